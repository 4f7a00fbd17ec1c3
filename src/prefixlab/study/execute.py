"""How the steps of a plan get done, and the word on it: the seam between a run and what does its steps.

An executor is a function from the work and a journal to nothing: it does each step once those before it are done,
writes it through the store, and tells the journal. This module has the local one; `ray_executor.py` has Ray's.
"""

import json
import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from prefixlab.config import Study
from prefixlab.errors import StepError, Stopped
from prefixlab.study.energy import metered
from prefixlab.study.progress_file import LEAST, ProgressFile
from prefixlab.study.steps import Plan, Step, installed
from prefixlab.study.store import Store, write_text

if TYPE_CHECKING:
    from prefixlab.model.trainer import StopRequest
    from prefixlab.study.stages import Conditions


@dataclass
class Outcome:
    """What a run did."""

    ran: list[str] = field(default_factory=list)
    reused: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass(frozen=True)
class Work:
    """What there is to do."""

    study: Study
    plan: Plan
    pending: tuple[Step, ...]
    """Steps that are not done, in the plan's order: each after those it needs."""
    store: Store
    """The run folder, held by the process that runs the study."""

    def done(self) -> set[str]:
        """Slugs of the steps that were done before."""
        return {s.slug for s in self.plan.steps} - {s.slug for s in self.pending}


class Executor(Protocol):
    """Does all pending steps whose needs do not fail; a failed one stops only those that need it."""

    def __call__(self, work: Work, journal: "Journal") -> None:
        """Do the work.

        Raises:
            UserError: A mistake that stops the whole run; finished steps are kept.
            Stopped: A signal asked for an end.
        """


class _Bar:
    """One progress bar over the predicted seconds of all pending steps, with time left."""

    def __init__(self, steps: tuple[Step, ...], console: Console) -> None:
        self.total = sum(max(s.predicted_seconds, LEAST) for s in steps)
        self.finished, self.started = 0.0, time.monotonic()
        self.shares: dict[str, float] = {}
        """Slug -> predicted seconds that are over, of the steps in progress."""
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=console,
            transient=not console.is_terminal,
        )
        self.task = self.bar.add_task("", total=self.total, left="")

    def show(self, step: Step, share: float, place: str) -> None:
        self.shares[step.slug] = max(step.predicted_seconds, LEAST) * share
        done = self.finished + sum(self.shares.values())
        spent = time.monotonic() - self.started
        left = f"about {_duration(spent / done * (self.total - done))} left" if done > 0.05 * self.total else ""
        beside = f" and {len(self.shares) - 1} more" if len(self.shares) > 1 else ""
        self.bar.update(self.task, completed=done, description=f"{place} {step.slug[:-9]}{beside}", left=left)

    def over(self, step: Step, finished: bool) -> None:
        self.shares.pop(step.slug, None)
        if finished:
            self.finished += max(step.predicted_seconds, LEAST)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


class Journal:
    """What a run says while its steps are done: the bar, lines of text, progress.json, and the outcome."""

    def __init__(self, root: Path, pending: tuple[Step, ...], outcome: Outcome, console: Console, quiet: bool) -> None:
        self._outcome, self._console, self._quiet = outcome, console, quiet
        self._n, self._over = len(pending), 0
        self._bar, self._told = _Bar(pending, console), ProgressFile(root, pending)
        self._bar.bar.disable = quiet

    @contextmanager
    def running(self) -> Iterator[None]:
        """The time in which steps are done."""
        with self._told.running(), self._bar.bar:
            yield

    def say(self, text: str) -> None:
        """A line for people."""
        if not self._quiet:
            self._console.print(text, highlight=False, markup=False)

    def lanes(self, n: int) -> None:
        """How many steps are done at once."""
        self._told.lanes(n)

    def begin(self, step: Step) -> None:
        """A step starts."""
        self._bar.show(step, 0.0, self._place())
        self._told.begin(step)

    def tick(self, step: Step, share: float) -> None:
        """How far a step is, 0 to 1."""
        self._bar.show(step, share, self._place())
        self._told.tick(step, share)

    def end(self, step: Step) -> None:
        """A step is done and on disk."""
        place = self._place()
        self._over += 1
        self._told.end(step)
        self._outcome.ran.append(step.slug)
        self._bar.over(step, finished=True)
        if not self._console.is_terminal:
            self.say(f"{place} {step.slug}")

    def drop(self, step: Step) -> None:
        """A step in progress is gone with its worker and will be started again."""
        self._bar.over(step, finished=False)
        self._told.drop(step)

    def fail(self, step: Step, reason: str) -> None:
        """A step failed by its own error."""
        self.blocked(step, reason)
        self._console.print(f"step {step.slug} failed: {reason}", highlight=False, markup=False)

    def blocked(self, step: Step, reason: str) -> None:
        """A step cannot be started, since one that it needs failed."""
        self._over += 1
        self._bar.over(step, finished=False)
        self._outcome.failed[step.slug] = reason
        self._told.fail(step, reason)

    def _place(self) -> str:
        return f"[{min(self._over + 1, self._n)}/{self._n}]"


def environment() -> dict[str, Any]:
    """env.json: versions and machine."""
    from prefixlab.model.machine import describe  # noqa: PLC0415  (torch; not needed on a rerun)

    return {
        "machine": describe(),
        "versions": installed(),
        "python": platform.python_version(),
        "command": " ".join(["prefixlab", *sys.argv[1:]]),
    }


def write_environment(store: Store, **more: object) -> None:
    """Write env.json.

    Args:
        store: The run folder.
        more: What else is known, such as the nodes of a cluster.
    """
    text = json.dumps({**environment(), **more}, indent=1, ensure_ascii=False)
    write_text(store.root / "env.json", text + "\n")


def conditions_of(study: Study, name: str, store: Store, stop: "StopRequest | None" = None) -> "Conditions":
    """How a study's steps run in one process, whichever machine it is on.

    Args:
        study: Of the run.
        name: The plan's.
        store: The run folder.
        stop: Where an end is asked for; signals of this process by default.
    """
    from prefixlab.study.stages import Conditions  # noqa: PLC0415  (torch, Inspect; not needed on a rerun)

    found = Conditions(
        study=name,
        checkpoints=store.resume_folder,
        minutes=study.training.checkpoint_minutes,
        report_to=tuple(study.training.report_to),
        tracking=lambda slug: store.root / "tracking" / slug,
        judge=study.judge,
        serving=study.serving,
        server_logs=store.root / "serving",
        verdicts=store.root / "verdicts.sqlite",
    )
    if stop is not None:
        found.stop = stop
    return found


def in_this_process(work: Work, journal: Journal) -> None:
    """The local executor: one step after another, in the plan's order."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from prefixlab.study.stages import Bench  # noqa: PLC0415  (torch, Inspect; not needed on a rerun)

    store = work.store
    write_environment(store)
    conditions, done = conditions_of(work.study, work.plan.study, store), work.done()
    bench = Bench(store.folder, conditions)
    with metered(store.root), journal.running():
        for step in work.pending:
            missing = [s for s in (*step.inputs.values(), *step.after) if s not in done]
            if missing:
                journal.blocked(step, f"needs {missing[0]}, which failed")
                continue
            journal.begin(step)

            def tick(share: float, step: Step = step) -> None:
                journal.tick(step, share)

            try:
                with store.writing(step.slug, step.id) as folder:
                    bench.run(step, folder, tick)
            except StepError as error:
                journal.fail(step, str(error))
                continue
            done.add(step.slug)
            journal.end(step)
            if conditions.stop.signal is not None:
                raise Stopped(conditions.stop.signal, f"stopped after {step.slug}, which is finished")
    bench.close()
