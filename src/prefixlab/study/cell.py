"""One cell's training as a job that any process can do: a step of a study, a worker of torchrun, `prefixlab train`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel

from prefixlab.data.arms import read_arm
from prefixlab.data.chat import ChatFormat, NoReasoning, OverLong
from prefixlab.data.check import ArmCheck, render_arm
from prefixlab.model.machine import peak_flops
from prefixlab.model.recipes import Recipe
from prefixlab.model.train import Conduct, train_adapter
from prefixlab.model.trainer import StopRequest
from prefixlab.records import ModelRef, Record, Resolved
from prefixlab.study.cards import model_card
from prefixlab.study.steps import CODE, code_hash

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class TrainJob(Record):
    """Everything that one training needs, as data."""

    study: str
    capability: str
    model: ModelRef
    hardware: Resolved
    arm: Path
    """Folder with data.jsonl and manifest.json."""
    max_length: int
    no_reasoning: NoReasoning
    over_long: OverLong
    recipe: Recipe
    seed: int
    key: str
    out: Path
    """Gets adapter/, metrics.jsonl and train.json."""
    checkpoints: Path | None
    """Folder that outlives a kill; None for no checkpoints."""
    minutes: float
    report_to: tuple[str, ...] = ()
    tracking: Path | None = None
    """Folder for the events of TensorBoard."""
    check: ArmCheck | None = None
    """What the treatment check found in this arm, for the model card."""


def train_cell(
    job: TrainJob,
    model: PreTrainedModel,
    tokenizer: "PreTrainedTokenizerBase",
    chat: ChatFormat,
    pad: int,
    *,
    tick: Callable[[int, int], None],
    stop: StopRequest,
    first: bool = True,
) -> None:
    """Render the arm, train the adapter, and write what a cell consists of.

    Args:
        job: What to do.
        model: The base, loaded as the job says.
        tokenizer: Of the model.
        chat: Of the tokenizer.
        pad: Padding id.
        tick: Progress, (step, steps).
        stop: Whether a signal asked for an end.
        first: Whether this process writes train.json and the card (of several, only one does).
    """
    rows, about = read_arm(job.arm)
    samples = render_arm(
        rows,
        tokenizer,
        chat,
        max_length=job.max_length,
        no_reasoning=job.no_reasoning,
        over_long=job.over_long,
    )
    totals = train_adapter(
        model,
        samples,
        job.recipe,
        key=job.key,
        seed=job.seed,
        pad=pad,
        folder=job.out,
        compiled=job.hardware.compile,
        processes=job.hardware.processes,
        basis={
            "model": job.model.fingerprint,
            "threads": job.hardware.threads,
            "code": code_hash(CODE["train"]),
        },
        conduct=Conduct(
            tick=tick,
            stop=stop,
            checkpoints=job.checkpoints,
            minutes=job.minutes,
            report_to=job.report_to,
            name=f"{job.capability}-{about.arm}-s{job.seed}",
            tracking=job.tracking,
            peak_flops=peak_flops(job.hardware),
        ),
    )
    if first:
        card = model_card(
            study=job.study,
            capability=job.capability,
            model=job.model,
            arm=about,
            recipe=job.recipe,
            seed=job.seed,
            check=job.check,
        )
        (job.out / "adapter" / "README.md").write_text(card, encoding="utf-8")
        _pin_base(job.out / "adapter" / "adapter_config.json", job.model)
        (job.out / "train.json").write_text(_json(totals), encoding="utf-8")


def _pin_base(path: Path, model: ModelRef) -> None:
    """The adapter's configuration names the commit of a base from the hub, which PEFT leaves out."""
    if model.revision is not None:
        config = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(_json(config | {"revision": model.revision}), encoding="utf-8")


def _json(value: Any) -> str:
    return json.dumps(value, indent=1) + "\n"
