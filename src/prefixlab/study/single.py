"""`prefixlab train`: one adapter on one arm of a folder written by `prefixlab arms`, without a study."""

import hashlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console

from prefixlab.data.arms import dump_rows, write_arm
from prefixlab.data.chat import NoReasoning, chat_format, padding_id
from prefixlab.data.check import ArmCheck, check_arms
from prefixlab.errors import UserError, unknown
from prefixlab.model.load import load_model, load_tokenizer, resolve_model
from prefixlab.model.machine import resolve
from prefixlab.model.recipes import recipe
from prefixlab.model.trainer import StopRequest
from prefixlab.records import ArmManifest, ArmSample
from prefixlab.study.cell import TrainJob, train_cell
from prefixlab.study.datafiles import read_arms
from prefixlab.study.launch import train_in_processes
from prefixlab.study.predict import Speed, token_counts, with_compiling
from prefixlab.study.progress import row_progress
from prefixlab.study.store import disk_may_be_full, held
from prefixlab.study_file import load_training

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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
    training, asked = load_training({"training": {"preset": preset}, "hardware": {"processes": processes}}, overrides)
    plan = recipe(training)
    about, arms = read_arms(folder)
    if arm not in arms:
        raise unknown("arm", arm, arms, where=f"{str(folder)!r}")
    if (out / "train.json").exists():
        raise UserError(f"{str(out)!r} already holds an adapter; choose another --out")
    ref = resolve_model(model)
    tokenizer = load_tokenizer(ref)
    rendering = {"max_length": plan.max_length, "no_reasoning": no_reasoning, "over_long": plan.over_long}
    hardware = resolve(asked)
    speed = Speed(ref, hardware, plan)
    flops = speed.train_flops(*token_counts([row.sample for row in arms[arm]], tokenizer))
    chosen = next(a for a in about.arms if a.arm == arm)
    job = TrainJob(
        study=f"none (prefixlab train {arm})",
        capability=chosen.capability,
        model=ref,
        hardware=with_compiling(hardware, asked, flops),
        arm=out / "arm",
        **rendering,
        recipe=plan,
        seed=seed,
        key=chosen.data_key,
        out=out,
        checkpoints=out / "checkpoints",
        minutes=training.checkpoint_minutes,
        report_to=tuple(training.report_to),
        tracking=out / "tracking",
        check=_checked(arms, arm, tokenizer, rendering, ref.name, chosen.capability),
    )
    out.mkdir(parents=True, exist_ok=True)
    with (
        (out / ".lock").open("w") as lock,
        held(lock, out),
        disk_may_be_full(out),
        row_progress("training", console, quiet, unit="steps") as progress,
    ):
        _write_arm(out / "arm", arms[arm], chosen)
        _train(job, tokenizer, lambda done, steps: progress(done / steps, done))
    shutil.rmtree(out / "checkpoints", ignore_errors=True)
    return out / "adapter"


def _write_arm(folder: Path, rows: Sequence[ArmSample], about: ArmManifest) -> None:
    """Keep the data beside the adapter, in our own layout, whatever layout they came in."""
    folder.mkdir(exist_ok=True)
    sha = hashlib.sha256(dump_rows(rows).encode("utf-8", "surrogatepass")).hexdigest()
    write_arm(folder, rows, about.model_copy(update={"format": "arm", "data_sha256": sha}))


def _train(job: TrainJob, tokenizer: "PreTrainedTokenizerBase", tick: Callable[[int, int], None]) -> None:
    """Here, or in processes of their own."""
    stop = StopRequest()
    if job.hardware.processes > 1:
        train_in_processes(job, tick=tick, stop=stop)
        return
    chat = chat_format(tokenizer)
    base = load_model(job.model, job.hardware)
    train_cell(job, base, tokenizer, chat, padding_id(tokenizer, chat), tick=tick, stop=stop)


def _checked(
    arms: Mapping[str, Sequence[ArmSample]],
    arm: str,
    tokenizer: "PreTrainedTokenizerBase",
    rendering: Mapping[str, Any],
    model: str,
    capability: str,
) -> ArmCheck | None:
    """The treatment check of the arm, made before training; None without r000 to compare with."""
    if "r000" not in arms:
        return None
    pair = {name: rows for name, rows in arms.items() if name in ("r000", arm)}
    found = check_arms(pair, tokenizer, chat_format(tokenizer), model=model, capability=capability, **rendering)
    if problems := found.problems():
        raise UserError(f"treatment check failed, training does not start: {problems[0]}")
    return next(c for c in found.arms if c.arm == arm)
