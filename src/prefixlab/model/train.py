"""Train one LoRA adapter on one arm: transformers' Trainer with our ids, labels, batches and loss.

Micro-batches are planned from the whole set before training: order and grouping by length come from keyed hashes
and from the length without prefix, so every arm of a cell sees the same samples in the same order. The loss of an
optimiser step is the mean over its supervised tokens, as in TRL's SFTTrainer.
"""

import json
import math
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments, set_seed

from prefixlab.config import TrainingConfig
from prefixlab.data.arms import keyed_hash
from prefixlab.errors import StepError, UserError
from prefixlab.model.attention import NAME as FAST_ATTENTION
from prefixlab.model.attention import causal_mask
from prefixlab.model.loss import IGNORE, token_loss
from prefixlab.records import Record, Rendered, SpanName

SPAN_ORDER: tuple[SpanName, ...] = ("prompt", "prefix", "reasoning", "answer", "end")
LENGTH_BUCKETS = 4


class Recipe(Record):
    """A training configuration with nothing left to decide."""

    r: int
    alpha: int
    dropout: float
    target_modules: tuple[str, ...] | Literal["all-linear"]
    learning_rate: float
    epochs: int
    batch_size: int
    accumulation: int
    scheduler: str
    warmup_ratio: float
    weight_decay: float
    max_grad_norm: float
    max_length: int
    over_long: Literal["refuse", "cut"]


PAPER = Recipe(
    r=16,
    alpha=32,
    dropout=0.05,
    target_modules=("q_proj", "v_proj"),
    learning_rate=1e-5,
    epochs=2,
    batch_size=1,
    accumulation=8,
    scheduler="linear",
    warmup_ratio=0.0,
    weight_decay=0.0,
    max_grad_norm=1.0,
    max_length=1024,
    over_long="refuse",
)
"""arXiv 2601.01624; batch size and schedule are not known and follow the Trainer's defaults."""

MODERN = PAPER.model_copy(
    update={
        "target_modules": "all-linear",
        "dropout": 0.0,
        "learning_rate": 1e-3,
        "batch_size": 8,
        "accumulation": 1,
        "scheduler": "cosine",
    }
)


def recipe(config: TrainingConfig) -> Recipe:
    """The preset with the study's overrides."""
    base = {"paper": PAPER, "modern": MODERN}[config.preset]
    lora = {k: v for k, v in config.lora.model_dump().items() if v is not None}
    if isinstance(lora.get("target_modules"), list):
        lora["target_modules"] = tuple(lora["target_modules"])
    own = config.model_dump(exclude={"preset", "lora"})
    return base.model_copy(update={**lora, **{k: v for k, v in own.items() if v is not None}})


def plan_batches(samples: Sequence[Rendered], plan: Recipe, key: str, seed: int) -> list[list[list[int]]]:
    """Indices of every optimiser step, as its micro-batches, over all epochs.

    Each epoch orders samples by a keyed hash, sorts runs of a few batches by the length without prefix, and visits
    the batches in hashed order. A short last batch is kept unless it is smaller than `accumulation`.
    """
    size = plan.batch_size * plan.accumulation
    steps: list[list[list[int]]] = []
    for epoch in range(plan.epochs):
        order = sorted(
            range(len(samples)), key=lambda i: (keyed_hash(key, samples[i].id, "order", seed, epoch), samples[i].id)
        )
        run = size * LENGTH_BUCKETS
        batches: list[list[int]] = []
        for start in range(0, len(order), run):
            group = sorted(order[start : start + run], key=lambda i: (samples[i].no_prefix_length, samples[i].id))
            batches += [group[i : i + size] for i in range(0, len(group), size)]
        if len(batches) > 1 and len(batches[-1]) < plan.accumulation:
            batches[-2] += batches.pop()
        batches.sort(key=lambda b: keyed_hash(key, samples[b[0]].id, "batch", seed, epoch))
        steps += [_split(batch, plan.accumulation) for batch in batches]
    return steps


def _split(batch: list[int], parts: int) -> list[list[int]]:
    """Cut a batch into `parts` micro-batches of nearly equal size (fewer if the batch is too small)."""
    parts = min(parts, len(batch))
    cuts = [len(batch) * i // parts for i in range(parts + 1)]
    return [batch[a:b] for a, b in pairwise(cuts)]


@dataclass(frozen=True)
class Microbatch:
    """Right-padded tensors of one micro-batch, (B, T) each."""

    ids: Tensor
    labels: Tensor
    valid: Tensor
    spans: Tensor
    """Index into SPAN_ORDER; -1 at padding."""

    def to(self, device: torch.device) -> "Microbatch":
        """The same on a device."""
        return Microbatch(*(t.to(device) for t in (self.ids, self.labels, self.valid, self.spans)))


def collate(samples: Sequence[Rendered], pad: int) -> Microbatch:
    """Right-pad samples to the longest."""
    width = max(len(s.ids) for s in samples)
    ids = torch.full((len(samples), width), pad)
    labels = torch.full((len(samples), width), IGNORE)
    spans = torch.full((len(samples), width), -1)
    valid = torch.zeros(len(samples), width, dtype=torch.bool)
    for row, sample in enumerate(samples):
        n = len(sample.ids)
        ids[row, :n] = torch.tensor(sample.ids)
        labels[row, :n] = torch.tensor(sample.labels)
        valid[row, :n] = True
        for span in sample.spans:
            spans[row, span.start : span.end] = SPAN_ORDER.index(span.name)
    return Microbatch(ids, labels, valid, spans)


def hidden_states(model: PreTrainedModel, batch: Microbatch) -> Tensor:
    """Last hidden states (B, T, D) of a micro-batch; `model` is the causal LM, adapters injected or not."""
    fast = model.config._attn_implementation == FAST_ATTENTION
    mask = causal_mask(batch.valid, model.dtype) if fast else batch.valid.long()
    out = model.get_decoder()(input_ids=batch.ids, attention_mask=mask.to(batch.ids.device), use_cache=False)
    hidden: Tensor = out.last_hidden_state
    return hidden


class CellTrainer(Trainer):
    """Trainer over planned micro-batches, with the frozen-head loss and per-span metrics."""

    def __init__(self, *, steps: list[list[list[int]]], samples: Sequence[Rendered], pad: int, **kwargs: Any) -> None:
        super().__init__(train_dataset=list(samples), **kwargs)
        self._microbatches = [micro for step in steps for micro in step]
        self._samples, self._pad = samples, pad
        self._losses: list[tuple[Tensor, Tensor]] = []
        self._tokens = self._supervised = 0
        self._since = time.perf_counter()
        self.rows: list[dict[str, float]] = []
        self.model_accepts_loss_kwargs = True

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The planned micro-batches, in order."""
        samples, pad = self._samples, self._pad

        def fetch(indices: list[int]) -> dict[str, Tensor]:
            batch = collate([samples[i] for i in indices], pad)
            return {"input_ids": batch.ids, "labels": batch.labels, "valid": batch.valid, "spans": batch.spans}

        return DataLoader(self._microbatches, batch_size=None, collate_fn=fetch)  # type: ignore[arg-type]

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Tensor | Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Sum of token losses over the supervised tokens of the whole optimiser step."""
        assert isinstance(model, PeftModel)
        batch = Microbatch(inputs["input_ids"], inputs["labels"], inputs["valid"], inputs["spans"])
        base: PreTrainedModel = model.get_base_model()  # type: ignore[assignment]
        hidden = hidden_states(base, batch)
        losses, _ = token_loss(hidden, base.get_output_embeddings().weight, batch.labels)
        spans = batch.spans[:, 1:][batch.labels[:, 1:] != IGNORE]
        self._losses.append((losses.detach(), spans))
        self._tokens += int(batch.valid.sum())
        self._supervised += losses.numel()
        assert num_items_in_batch is not None
        total: Tensor = losses.sum() / num_items_in_batch
        return total

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Turn the Trainer's step log into one row of metrics.jsonl."""
        if "loss" not in logs or not self._losses:
            return
        losses, spans = (torch.cat(x) for x in zip(*self._losses, strict=True))
        now = time.perf_counter()
        row: dict[str, float] = {
            "step": self.state.global_step,
            "loss": float(losses.mean()),
            "grad_norm": float(logs.get("grad_norm", math.nan)),
            "learning_rate": float(logs.get("learning_rate", math.nan)),
            "tokens": self._tokens,
            "supervised_tokens": self._supervised,
            "seconds": now - self._since,
        }
        for index, name in enumerate(SPAN_ORDER):
            if bool((spans == index).any()):
                row[f"loss_{name}"] = float(losses[spans == index].mean())
        self.rows.append(row)
        self._losses, self._tokens, self._supervised, self._since = [], 0, 0, now
        if not math.isfinite(row["loss"]):
            raise StepError(
                f"training loss became {row['loss']} at step {self.state.global_step}; lower training.learning_rate"
            )


class _Progress(TrainerCallback):
    def __init__(self, tick: Any) -> None:
        self.tick = tick

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.tick(state.global_step, state.max_steps)


def lora_config(plan: Recipe, model: PreTrainedModel) -> LoraConfig:
    """PEFT's configuration of a recipe.

    Raises:
        UserError: A target module the model does not have; lists what it has.
    """
    if plan.target_modules != "all-linear":
        have = {n.rsplit(".", 1)[-1] for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
        missing = sorted(set(plan.target_modules) - have)
        if missing:
            raise UserError(
                f"target_modules {', '.join(missing)}: this model's linear layers are {', '.join(sorted(have))}"
            )
    return LoraConfig(
        r=plan.r,
        lora_alpha=plan.alpha,
        lora_dropout=plan.dropout,
        target_modules=plan.target_modules if plan.target_modules == "all-linear" else list(plan.target_modules),
        task_type="CAUSAL_LM",
    )


def _arguments(plan: Recipe, steps: int, seed: int, scratch: Path, device: str) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(scratch),
        max_steps=steps,
        per_device_train_batch_size=plan.batch_size,
        gradient_accumulation_steps=plan.accumulation,
        learning_rate=plan.learning_rate,
        lr_scheduler_type=plan.scheduler,
        warmup_steps=math.ceil(plan.warmup_ratio * steps),
        weight_decay=plan.weight_decay,
        max_grad_norm=plan.max_grad_norm,
        optim="adamw_torch",
        seed=seed,
        data_seed=seed,
        logging_strategy="steps",
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        use_cpu=device == "cpu",
    )


def train_adapter(
    model: PreTrainedModel,
    samples: Sequence[Rendered],
    plan: Recipe,
    *,
    key: str,
    seed: int,
    pad: int,
    folder: Path,
    tick: Any = lambda step, steps: None,
) -> dict[str, float]:
    """Train an adapter, save it as a PEFT folder, and leave the base model as it was.

    Args:
        model: Base, shared between cells; changed in place for the duration.
        samples: Rendered arm.
        plan: Recipe.
        key: Data key, for the order.
        seed: Adapter initialisation, dropout and order.
        pad: Padding id.
        folder: Gets adapter/ and metrics.jsonl.
        tick: Called with (step, steps) after each optimiser step.

    Returns:
        Totals: steps, tokens, seconds, first and last loss.

    Raises:
        StepError: The loss is not finite, or the adapter did not change.
    """
    steps = plan_batches(samples, plan, key, seed)
    if any(len(step) != plan.accumulation for step in steps):
        raise UserError(f"{len(samples)} samples are fewer than training.accumulation {plan.accumulation}")
    warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*", category=FutureWarning)  # PEFT's, not ours
    set_seed(seed)
    wrapped = get_peft_model(model, lora_config(plan, model))
    try:
        set_seed(seed)
        trainer = CellTrainer(
            steps=steps,
            samples=samples,
            pad=pad,
            model=wrapped,
            args=_arguments(plan, len(steps), seed, folder / "trainer", str(model.device.type)),
            callbacks=[_Progress(tick)],
        )
        started = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - started
        moved = max(float(p.detach().abs().max()) for n, p in wrapped.named_parameters() if "lora_B" in n)
        if moved == 0:
            raise StepError("the adapter did not change: every lora_B is still zero; check learning_rate and labels")
        wrapped.save_pretrained(str(folder / "adapter"))
    finally:
        wrapped.unload()
        model.eval()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in trainer.rows))
    return {
        "steps": float(len(steps)),
        "tokens": float(sum(row["tokens"] for row in trainer.rows)),
        "supervised_tokens": float(sum(row["supervised_tokens"] for row in trainer.rows)),
        "seconds": seconds,
        "first_loss": trainer.rows[0]["loss"],
        "last_loss": trainer.rows[-1]["loss"],
    }


def batches_of(samples: Sequence[Rendered], size: int) -> Iterator[list[int]]:
    """Indices in batches of similar length, longest first: planned from the whole set."""
    order = sorted(range(len(samples)), key=lambda i: (-len(samples[i].ids), samples[i].id))
    for start in range(0, len(order), size):
        yield order[start : start + size]
