"""Stock TRL on the same ids, labels, order, seed and recipe: what our training is compared with.

`run` hands TRL's SFTTrainer a data set that is already tokenised and in the order of our plan, and takes the loss, the
gradient norm and the time of every step. Nothing of TRL, PEFT or transformers is changed.
"""

import contextlib
import io
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from datasets.utils.logging import disable_progress_bar
from peft import get_peft_model_state_dict
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from trl import SFTConfig, SFTTrainer

from prefixlab.model.recipes import Recipe, lora_arguments
from prefixlab.records import Rendered

TUNED = {"gradient_checkpointing": False, "bf16": False}
"""No autocast and no checkpointing: the model trains in the dtype it was loaded in."""


@dataclass
class Run:
    """What one training gave."""

    losses: list[float] = field(default_factory=list)
    grad_norms: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    initial: dict[str, torch.Tensor] = field(default_factory=dict)
    final: dict[str, torch.Tensor] = field(default_factory=dict)


class _Clock(TrainerCallback):
    def __init__(self, seed: int) -> None:
        self.seed, self.times = seed, [0.0]

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 0:
            # TRL's data loader draws a number of its own; dropout starts from the seed in both.
            torch.manual_seed(self.seed)
            self.times = [time.perf_counter()]

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.times.append(time.perf_counter())


def run(
    model: PreTrainedModel | str,
    tokenizer: PreTrainedTokenizerBase,
    samples: Sequence[Rendered],
    steps: Sequence[Sequence[Sequence[int]]],
    plan: Recipe,
    seed: int,
    scratch: Path,
    **options: Any,
) -> Run:
    """Train with SFTTrainer.

    Args:
        model: A fresh base in the dtype it is to train in, or a name, for TRL to load as it does.
        tokenizer: Of the model.
        samples: Rendered arm.
        steps: Our plan: micro-batches of equal size.
        plan: Recipe.
        seed: Training seed.
        scratch: Empty folder.
        options: More SFTConfig fields; none for TRL as it comes.
    """
    order = [i for step in steps for micro in step for i in micro]
    rows = [{"input_ids": list(samples[i].ids), "labels": list(samples[i].labels)} for i in order]
    clock = _Clock(seed)
    disable_progress_bar()
    arguments = {
        "output_dir": str(scratch),
        "max_steps": len(steps),
        "per_device_train_batch_size": len(steps[0][0]),
        "gradient_accumulation_steps": len(steps[0]),
        "learning_rate": plan.learning_rate,
        "lr_scheduler_type": plan.scheduler,
        "weight_decay": plan.weight_decay,
        "max_grad_norm": plan.max_grad_norm,
        "seed": seed,
        "shuffle_dataset": False,
        "train_sampling_strategy": "sequential",
        "max_length": None,
        "logging_steps": 1,
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": not torch.cuda.is_available(),
        **options,
    }
    with contextlib.redirect_stdout(io.StringIO()):
        trainer = SFTTrainer(
            model=model,
            args=SFTConfig(**arguments),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            peft_config=lora_arguments(plan),
            callbacks=[clock],
        )
        made = Run(initial=_state(trainer))
        trainer.train()
    history = [row for row in trainer.state.log_history if "loss" in row]
    made.losses = [float(row["loss"]) for row in history]
    made.grad_norms = [float(row["grad_norm"]) for row in history]
    made.seconds = [b - a for a, b in zip(clock.times, clock.times[1:], strict=False)]
    made.final = _state(trainer)
    return made


def _state(trainer: SFTTrainer) -> dict[str, torch.Tensor]:
    return {k: v.detach().float().clone() for k, v in get_peft_model_state_dict(trainer.model).items()}


def update_cosine(
    initial: dict[str, torch.Tensor], ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]
) -> float:
    """Cosine between two updates: A minus its initial value, and B, over all modules; 0 where one is zero.

    Not of the weights themselves: two adapters that never trained would agree perfectly there.
    """
    a, b = (torch.cat([(end[k] - initial[k]).flatten().double() for k in sorted(initial)]) for end in (ours, theirs))
    norms = float(a.norm() * b.norm())
    return float(a @ b) / norms if norms else 0.0
