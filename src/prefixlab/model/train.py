"""Train one LoRA adapter on one arm, and leave the base model as it was.

The loss of an optimiser step is the mean over its supervised tokens, as in TRL's SFTTrainer (docs/performance.md has
the comparison). What a step trains on is planned in batches.py, how it runs is in trainer.py and lora.py.
"""

import hashlib
import json
import shutil
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel, set_seed

from prefixlab.errors import StepError, Stopped
from prefixlab.model import checkpoints
from prefixlab.model.batches import accumulation, plan_batches
from prefixlab.model.flops import model_shape
from prefixlab.model.lora import fused_lora
from prefixlab.model.recipes import Recipe, lora_config, training_arguments
from prefixlab.model.trainer import CellTrainer, StepControl, StopRequest, Tick, returning_losses
from prefixlab.records import Rendered


@dataclass
class Conduct:
    """How a training is run; nothing here changes what comes out."""

    tick: Tick = lambda step, steps: None
    stop: StopRequest = field(default_factory=StopRequest)
    checkpoints: Path | None = None
    """Folder that outlives the process; no checkpoints where None."""
    minutes: float = 5.0
    """Between checkpoints; 0 saves only when asked to stop."""
    report_to: tuple[str, ...] = ()
    peak_flops: float | None = None
    """Of the machine, in FLOP/s, for model FLOP utilisation; not reported where unknown."""


def world_size() -> int:
    """Training processes that run together; 1 outside torchrun."""
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def train_adapter(
    model: PreTrainedModel,
    samples: Sequence[Rendered],
    plan: Recipe,
    *,
    key: str,
    seed: int,
    pad: int,
    folder: Path,
    compiled: bool = False,
    processes: int = 1,
    conduct: Conduct | None = None,
) -> dict[str, float]:
    """Train an adapter, save it as a PEFT folder, and leave the base model as it was.

    Args:
        model: Base, shared between cells; changed in place for the duration.
        samples: Rendered arm.
        plan: Recipe.
        key: Data key, for the order.
        seed: Adapter initialisation, dropout and order.
        pad: Padding id.
        folder: Gets adapter/ and metrics.jsonl, written by the first process.
        compiled: Compile every decoder layer.
        processes: How many processes train together; must be how many there are.
        conduct: Progress, checkpoints, trackers.

    Returns:
        Totals: steps, tokens, seconds, first and last loss.

    Raises:
        StepError: The loss or the gradient norm is not finite or explodes, memory runs out, or the adapter did not
            change.
        UserError: Too few samples, unknown target modules, or a checkpoint of another training.
        Stopped: SIGTERM or SIGINT; a checkpoint was saved.
    """
    conduct = conduct or Conduct()
    steps = plan_batches(samples, plan, key, seed, processes)
    shape = model_shape(model.config, "base")
    warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*", category=FutureWarning)  # PEFT's, not ours
    set_seed(seed)
    wrapped = get_peft_model(model, lora_config(plan, model))
    identity = _identity(model, samples, plan, key, seed, compiled, processes)
    scratch = conduct.checkpoints or folder / "trainer"
    with ExitStack() as stack:
        stack.callback(model.eval)
        stack.callback(wrapped.unload)
        stack.enter_context(returning_losses(model))
        stack.enter_context(fused_lora(wrapped))
        if plan.trainer_options.get("activation_checkpointing"):
            stack.enter_context(_checkpointing(model))
        if compiled:
            stack.enter_context(_compiled_layers(model))
        set_seed(seed)
        control = StepControl(conduct.tick, conduct.stop, conduct.checkpoints, identity, conduct.minutes, processes)
        trainer = CellTrainer(
            steps=steps,
            samples=samples,
            pad=pad,
            shape=shape,
            rank=plan.r,
            adapter_width=shape.adapter_width(plan.target_modules),
            peak_flops=conduct.peak_flops,
            model=wrapped,
            args=training_arguments(
                plan,
                len(steps),
                seed,
                scratch,
                str(model.device.type),
                accumulation(plan, processes),
                conduct.report_to,
            ),
            callbacks=[control],
        )
        if trainer.args.world_size != processes:
            raise StepError(
                f"{processes} training processes were asked for, but there are {trainer.args.world_size}; launch with "
                f"torchrun --nproc-per-node {processes}, or set hardware.processes"
            )
        before = {k: v.detach().cpu().clone() for k, v in get_peft_model_state_dict(wrapped).items()}
        found = checkpoints.latest(conduct.checkpoints, identity) if conduct.checkpoints else None
        trainer.resumed_at = found[1] if found else 0
        started = time.perf_counter()
        with conduct.stop.listening(), _told_of_memory(control):
            trainer.train(resume_from_checkpoint=str(found[0]) if found else None)
        seconds = time.perf_counter() - started
        if conduct.stop.signal is not None and trainer.state.global_step < len(steps):
            raise Stopped(
                conduct.stop.signal, f"training stopped after step {control.at} of {len(steps)}, which is saved"
            )
        _save(trainer, wrapped, before, folder)
    rows = trainer.rows
    if trainer.is_world_process_zero():
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        shutil.rmtree(folder / "trainer", ignore_errors=True)
    flops = sum(row["flops"] for row in rows)
    spent = sum(row["seconds"] for row in rows)
    return {
        "steps": float(len(steps)),
        "resumed_at": float(trainer.resumed_at),
        "tokens": float(sum(row["tokens"] for row in rows)),
        "supervised_tokens": float(sum(row["supervised_tokens"] for row in rows)),
        "seconds": seconds,
        "flops": flops,
        **({"mfu": flops / spent / conduct.peak_flops} if conduct.peak_flops else {}),
        "first_loss": rows[0]["loss"],
        "last_loss": rows[-1]["loss"],
    }


def _save(trainer: CellTrainer, wrapped: PeftModel, before: dict[str, Tensor], folder: Path) -> None:
    """Write the PEFT folder and check that the adapter moved."""
    target = folder / "adapter"
    trainer.save_model(str(target))
    if not trainer.is_world_process_zero():
        return
    (target / "training_args.bin").unlink(missing_ok=True)  # a pickle that names this machine's folders
    after = load_file(target / "adapter_model.safetensors")
    if all(torch.equal(after[name].float(), value.float()) for name, value in before.items()):
        raise StepError("the adapter did not change: it is what it was drawn as; check learning_rate and labels")


def _identity(
    model: PreTrainedModel,
    samples: Sequence[Rendered],
    plan: Recipe,
    key: str,
    seed: int,
    compiled: bool,
    processes: int,
) -> str:
    """Hash of all that a training's steps depend on; a checkpoint is resumed only by the same one."""
    libraries = {name: version(name) for name in ("torch", "transformers", "peft", "accelerate")}
    first = next(model.parameters())
    base = (model.config.to_json_string(), str(first.dtype), first.device.type, model.config._attn_implementation)
    about = [plan.model_dump(mode="json"), key, seed, compiled, processes, libraries, base]
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for sample in samples:
        digest.update(repr((sample.id, sample.ids, sample.labels)).encode())
    return digest.hexdigest()


@contextmanager
def _checkpointing(model: PreTrainedModel) -> Iterator[None]:
    """Gradient checkpointing needs a gradient at the first layer's input, where the frozen embedding gives none."""
    model.enable_input_require_grads()
    try:
        yield
    finally:
        model.gradient_checkpointing_disable()
        model.disable_input_require_grads()


@contextmanager
def _compiled_layers(model: PreTrainedModel) -> Iterator[None]:
    """Compile each decoder layer, for sequences of any length, inside the block."""
    layers = list(model.get_decoder().layers)
    for layer in layers:
        layer.compile(dynamic=True)
    try:
        yield
    finally:
        for layer in layers:
            layer._compiled_call_impl = None


@contextmanager
def _told_of_memory(control: StepControl) -> Iterator[None]:
    """Turn the ways in which memory runs out into one line."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        said = any(words in str(error) for words in ("can't allocate memory", "not enough memory"))
        if not said and not isinstance(error, torch.OutOfMemoryError | MemoryError):
            raise
        raise StepError(
            f"out of memory at step {control.at + 1}; lower training.batch_size (and raise training.accumulation), "
            "lower training.max_length, or set training.trainer: {activation_checkpointing: true}"
        ) from error
