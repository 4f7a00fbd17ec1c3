"""`prefixlab train`: one adapter on one arm of a folder written by `prefixlab arms`, without a study."""

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from transformers import AutoConfig

from prefixlab.config import HardwareConfig, TrainingConfig, load_training
from prefixlab.data.arms import dump_rows, write_arm
from prefixlab.data.chat import ChatFormat, NoReasoning, chat_format, padding_id
from prefixlab.data.check import ArmCheck, check_arms, render_arm
from prefixlab.errors import UserError, unknown
from prefixlab.model.flops import model_shape, train_flops
from prefixlab.model.load import load_model, load_tokenizer, resolve_model
from prefixlab.model.machine import compile_pays, resolve
from prefixlab.model.recipes import Recipe, check_adapter, recipe
from prefixlab.model.trainer import StopRequest
from prefixlab.records import ArmSample, ModelRef, Rendered, Resolved
from prefixlab.study.cell import TrainJob, train_cell
from prefixlab.study.datafiles import read_arms
from prefixlab.study.launch import train_in_processes
from prefixlab.study.progress import row_progress
from prefixlab.study.store import disk_may_be_full, held


def train_folder(
    folder: Path,
    arm: str,
    model: str,
    out: Path,
    *,
    preset: Literal["paper", "modern"],
    overrides: Sequence[str],
    seed: int,
    processes: int,
    no_reasoning: NoReasoning,
    console: Console,
    quiet: bool,
) -> Path:
    """Check the arms, train one, and write a PEFT folder; resumes from OUT/checkpoints.

    Args:
        folder: Written by `make_arms`.
        arm: Name of the arm.
        model: Built-in name, local folder or hub id.
        out: Gets adapter/, metrics.jsonl, train.json and arm/ (the data).
        preset: Recipe to start from.
        overrides: `training.key=value`, `hardware.key=value`.
        seed: Training seed.
        processes: Training processes, launched by torchrun.
        no_reasoning: For samples without reasoning under a template that opens it.
        console: For the progress bar.
        quiet: No progress bar.

    Returns:
        The adapter's folder.

    Raises:
        UserError: A mistake in the request, the data or the machine.
    """
    training, asked = _asked(preset, processes, overrides)
    plan = recipe(training)
    about, arms = read_arms(folder)
    if arm not in arms:
        raise unknown("arm", arm, arms, where=f"{str(folder)!r}")
    if (out / "train.json").exists():
        raise UserError(f"{str(out)!r} already holds an adapter; choose another --out")
    ref = resolve_model(model)
    tokenizer = load_tokenizer(ref)
    chat = chat_format(tokenizer)
    check = _checked(arms, arm, tokenizer, chat, plan, no_reasoning, model, about.arms[0].capability)
    rendered = render_arm(
        arms[arm],
        tokenizer,
        chat,
        max_length=plan.max_length,
        no_reasoning=no_reasoning,
        over_long=plan.over_long,
    )
    hardware = _hardware(asked, ref, plan, rendered)
    out.mkdir(parents=True, exist_ok=True)
    chosen = next(a for a in about.arms if a.arm == arm)
    (out / "arm").mkdir(exist_ok=True)
    sha = hashlib.sha256(dump_rows(arms[arm]).encode("utf-8", "surrogatepass")).hexdigest()
    write_arm(out / "arm", arms[arm], chosen.model_copy(update={"format": "arm", "data_sha256": sha}))
    job = TrainJob(
        study=f"none (prefixlab train {arm})",
        capability=chosen.capability,
        model=ref,
        hardware=hardware,
        arm=out / "arm",
        max_length=plan.max_length,
        no_reasoning=no_reasoning,
        over_long=plan.over_long,
        recipe=plan,
        seed=seed,
        key=chosen.data_key,
        out=out,
        checkpoints=out / "checkpoints",
        minutes=training.checkpoint_minutes,
        report_to=tuple(training.report_to),
        tracking=out / "tracking",
        check=check,
    )
    stop = StopRequest()
    with (
        (out / ".lock").open("w") as lock,
        held(lock, out),
        disk_may_be_full(out),
        row_progress("training", console, quiet, unit="steps") as progress,
    ):

        def tick(done: int, steps: int) -> None:
            progress(done / steps, done)

        if hardware.processes > 1:
            train_in_processes(job, tick=tick, stop=stop)
        else:
            base = load_model(ref, hardware)
            train_cell(job, base, tokenizer, chat, padding_id(tokenizer, chat), tick=tick, stop=stop)
    shutil.rmtree(out / "checkpoints", ignore_errors=True)
    return out / "adapter"


def _asked(preset: str, processes: int, overrides: Sequence[str]) -> tuple[TrainingConfig, HardwareConfig]:
    tree: dict[str, Any] = {"training": {"preset": preset}, "hardware": {"processes": processes}}
    return load_training(tree, overrides)


def _hardware(asked: HardwareConfig, ref: ModelRef, plan: Recipe, rendered: Sequence[Rendered]) -> Resolved:
    """The machine's settings for this one training."""
    hardware = resolve(asked)
    config = AutoConfig.from_pretrained(ref.path, revision=ref.revision, trust_remote_code=False)
    check_adapter(plan, config)
    shape = model_shape(config, ref.name)
    lengths, supervised = [len(s.ids) for s in rendered], sum(s.n_supervised for s in rendered)
    width = shape.adapter_width(plan.target_modules)
    flops = plan.epochs * train_flops(shape, lengths, supervised, plan.r, width)
    compiled = compile_pays(hardware, flops) if asked.compile == "auto" else hardware.compile
    return hardware.model_copy(update={"compile": compiled})


def _checked(
    arms: dict[str, list[ArmSample]],
    arm: str,
    tokenizer: Any,
    chat: ChatFormat,
    plan: Recipe,
    no_reasoning: NoReasoning,
    model: str,
    capability: str,
) -> ArmCheck | None:
    """The treatment check of the arm, made before training; None without r000 to compare with."""
    if "r000" not in arms:
        return None
    found = check_arms(
        {name: rows for name, rows in arms.items() if name in ("r000", arm)},
        tokenizer,
        chat,
        model=model,
        capability=capability,
        max_length=plan.max_length,
        no_reasoning=no_reasoning,
        over_long=plan.over_long,
    )
    if problems := found.problems():
        raise UserError(f"treatment check failed, training does not start: {problems[0]}")
    return next(c for c in found.arms if c.arm == arm)
