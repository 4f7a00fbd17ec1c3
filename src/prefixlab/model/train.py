"""Train one LoRA adapter on one arm, and leave the base model as it was.

The loss of an optimiser step is the mean over its supervised tokens, as in TRL's SFTTrainer (docs/performance.md has
the comparison). What a step trains on is planned in batches.py, how it runs is in trainer.py and lora.py.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel, set_seed

from prefixlab.errors import StepError, Stopped, UserError
from prefixlab.model import checkpoints
from prefixlab.model.batches import accumulation, plan_batches
from prefixlab.model.flops import model_shape
from prefixlab.model.lora import fused_lora
from prefixlab.model.recipes import Recipe, lora_config, training_arguments
from prefixlab.model.trainer import CellTrainer, StepControl, StopRequest, Tick, returning_losses
from prefixlab.records import Rendered

OUT_OF_MEMORY = (
    "can't allocate memory",
    "not enough memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)
TENSORBOARD = "TENSORBOARD_LOGGING_DIR"
SNAPSHOTS = "snapshots"


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
    name: str | None = None
    """What trackers call this training."""
    tracking: Path | None = None
    """Where TensorBoard writes, unless TENSORBOARD_LOGGING_DIR says so; beside the checkpoints where None."""
    peak_flops: float | None = None
    """Of the machine, in FLOP/s, for model FLOP utilisation; not reported where unknown."""


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
    basis: Mapping[str, object] | None = None,
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
        folder: Gets adapter/, metrics.jsonl and, with `plan.snapshots`, snapshots/step-N/, written by the first
            process.
        compiled: Compile every decoder layer.
        processes: How many processes train together; must be how many there are.
        basis: What else the steps depend on and a resume must find again (fingerprint of the base, threads, code).
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
    identity = _identity(
        model, samples, plan, key, seed, {"compiled": compiled, "processes": processes, **(basis or {})}
    )
    set_seed(seed)
    with ExitStack() as stack:
        wrapped = stack.enter_context(_adapted(model, plan, compiled, conduct))
        before = {k: v.detach().cpu().clone() for k, v in get_peft_model_state_dict(wrapped).items()}
        set_seed(seed)
        snapshots = (conduct.checkpoints or folder) / SNAPSHOTS
        kept = {n: snapshots / f"step-{n:06d}" for n in snapshot_steps(len(steps), plan.snapshots)}
        control = StepControl(
            conduct.tick, conduct.stop, conduct.checkpoints, identity, conduct.minutes, processes, kept
        )
        trainer = _trainer(wrapped, samples, steps, plan, seed, pad, folder, processes, control, conduct)
        found = checkpoints.latest(conduct.checkpoints, identity) if conduct.checkpoints else None
        trainer.resumed_at = found[1] if found else 0
        if found is None:
            shutil.rmtree(snapshots, ignore_errors=True)  # of a training that was never sealed
        started = time.perf_counter()
        with conduct.stop.listening(), _told_of_memory(control):
            trainer.train(resume_from_checkpoint=str(found[0]) if found else None)
        seconds = time.perf_counter() - started
        if conduct.stop.signal is not None and trainer.state.global_step < len(steps):
            how = "which is saved" if conduct.checkpoints else "and nothing is saved"
            raise Stopped(conduct.stop.signal, f"training stopped after step {control.at} of {len(steps)}, {how}")
        _save(trainer, before, folder)
    if trainer.is_world_process_zero():
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in trainer.rows))
        shutil.rmtree(folder / "trainer", ignore_errors=True)
        if kept and conduct.checkpoints:
            shutil.rmtree(folder / SNAPSHOTS, ignore_errors=True)
            shutil.copytree(snapshots, folder / SNAPSHOTS)
    return _totals(trainer, len(steps), seconds, conduct.peak_flops)


def snapshot_steps(total: int, count: int) -> list[int]:
    """Steps after which a snapshot is kept: `count` of them at most, evenly spaced, none of them the last."""
    return sorted({round(total * i / (count + 1)) for i in range(1, count + 1)} - {0, total})


@contextmanager
def _adapted(model: PreTrainedModel, plan: Recipe, compiled: bool, conduct: Conduct) -> Iterator[PeftModel]:
    """The base with a fresh adapter, ready to be trained; the base is as it was after the block, however it ends."""
    wrapped = get_peft_model(model, lora_config(plan, model))
    assert isinstance(wrapped, PeftModel)
    with ExitStack() as stack:
        stack.callback(model.eval)
        stack.callback(wrapped.unload)
        stack.enter_context(returning_losses(model))
        stack.enter_context(fused_lora(wrapped))
        if plan.trainer_options.get("activation_checkpointing"):
            stack.enter_context(_checkpointing(model))
        if compiled:
            stack.enter_context(compiled_layers(model))
        if conduct.tracking:
            stack.enter_context(_tensorboard_in(conduct.tracking))
        stack.callback(_finish_trackers, conduct.report_to)
        yield wrapped


def _trainer(
    wrapped: PeftModel,
    samples: Sequence[Rendered],
    steps: list[list[list[int]]],
    plan: Recipe,
    seed: int,
    pad: int,
    folder: Path,
    processes: int,
    control: StepControl,
    conduct: Conduct,
) -> CellTrainer:
    base: PreTrainedModel = wrapped.get_base_model()  # type: ignore[assignment]
    shape = model_shape(base.config, "base")
    arguments = training_arguments(
        plan,
        len(steps),
        seed,
        conduct.checkpoints or folder / "trainer",
        str(base.device.type),
        accumulation(plan, processes),
        conduct.report_to,
        conduct.name,
    )
    if arguments.world_size != processes:
        raise StepError(
            f"{processes} training processes were asked for, but there are {arguments.world_size}; launch with "
            f"torchrun --nproc-per-node {processes}, or set hardware.processes"
        )
    if plan.trainer_options.get("fsdp") and processes == 1:
        raise UserError("training.trainer.fsdp shards a model over processes; set hardware.processes to more than 1")
    return CellTrainer(
        steps=steps,
        samples=samples,
        pad=pad,
        shape=shape,
        rank=plan.r,
        adapter_width=shape.adapter_width(plan.target_modules),
        peak_flops=conduct.peak_flops,
        model=wrapped,
        args=arguments,
        callbacks=[control],
    )


def _totals(trainer: CellTrainer, steps: int, seconds: float, peak: float | None) -> dict[str, float]:
    """What train.json says; sums are over all steps, those before a resume included."""
    rows = trainer.rows
    flops = sum(row["flops"] for row in rows)
    spent = sum(row["seconds"] for row in rows)
    return {
        "steps": float(steps),
        "resumed_at": float(trainer.resumed_at),
        "tokens": float(sum(row["tokens"] for row in rows)),
        "supervised_tokens": float(sum(row["supervised_tokens"] for row in rows)),
        "seconds": seconds,
        "flops": flops,
        **({"mfu": flops / spent / peak} if peak else {}),
        "first_loss": rows[0]["loss"],
        "last_loss": rows[-1]["loss"],
    }


def _save(trainer: CellTrainer, before: dict[str, Tensor], folder: Path) -> None:
    """Write the PEFT folder and check that the adapter moved and has an effect."""
    target = folder / "adapter"
    trainer.save_model(str(target))
    if not trainer.is_world_process_zero():
        return
    (target / "training_args.bin").unlink(missing_ok=True)  # a pickle that names this machine's folders
    after = load_file(target / "adapter_model.safetensors")
    same = all(torch.equal(after[name].float(), value.float()) for name, value in before.items())
    idle = not any(value.any() for name, value in after.items() if "lora_B" in name)
    if same or idle:
        shutil.rmtree(target)
        raise StepError("the adapter did not change: every lora_B is what it was; check learning_rate and labels")


def _identity(
    model: PreTrainedModel, samples: Sequence[Rendered], plan: Recipe, key: str, seed: int, basis: Mapping[str, object]
) -> str:
    """Hash of all that a training's steps depend on; a checkpoint is resumed only by the same one."""
    libraries = {name: version(name) for name in ("torch", "transformers", "peft", "accelerate")}
    first = next(model.parameters())
    base = (model.config.to_json_string(), str(first.dtype), first.device.type, model.config._attn_implementation)
    about = [plan.model_dump(mode="json"), key, seed, dict(basis), libraries, base]
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for sample in samples:
        digest.update(repr((sample.id, sample.ids, sample.labels)).encode())
    return digest.hexdigest()


def _finish_trackers(names: Sequence[str]) -> None:
    """End the run of trackers that would carry it over into the next cell."""
    if "wandb" in names:
        import wandb  # noqa: PLC0415  (optional)

        wandb.finish()
    if "mlflow" in names:
        import mlflow  # noqa: PLC0415  (optional)

        mlflow.end_run()


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
def _tensorboard_in(folder: Path) -> Iterator[None]:
    """TensorBoard's own variable is the only way to tell transformers where its events go."""
    if TENSORBOARD in os.environ:
        yield
        return
    os.environ[TENSORBOARD] = str(folder)
    try:
        yield
    finally:
        del os.environ[TENSORBOARD]


@contextmanager
def compiled_layers(model: PreTrainedModel) -> Iterator[None]:
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
        said = any(words in str(error) for words in OUT_OF_MEMORY)
        if not said and not isinstance(error, torch.OutOfMemoryError | MemoryError):
            raise
        raise StepError(
            f"out of memory at step {control.at + 1}; lower training.batch_size (and raise training.accumulation), "
            "lower training.max_length, or set training.trainer: {activation_checkpointing: true}"
        ) from error
