"""RUN/progress.json: what a run is doing, left by the runner; and what a reader makes of it and of the folder.

The runner replaces the file in one move when a step starts, ends or fails, and every few seconds while one goes on.
Which steps are done is read from their markers; whether anything runs at all, from the folder's lock, since a runner
that was killed leaves no word.
"""

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from prefixlab.records import Record
from prefixlab.report.status import Counts, Failure, Now, RunStatus, State
from prefixlab.study.steps import Plan, Step
from prefixlab.study.store import DONE, Store, write_text

FILE = "progress.json"
BEAT = 5.0
"""Seconds between two words on how far a step is."""
LEAST = 0.2
"""Seconds that a step is taken to last at least."""
ENOUGH = 0.05
"""Share of a run's predicted time from which on its pace counts: the first steps are short and say little."""
SLOW, HUSH = 0.01, 20.0
"""A file that takes longer than so many seconds to write is written in one part of so many of the time at most."""
TRUSTED = 0.02
"""Share of a step from which on its own pace says when it ends."""


class Current(Record):
    """A step in progress; times are seconds since 1970."""

    slug: str
    started: float
    predicted_seconds: float
    share: float


class RunProgress(Record):
    """Content of progress.json; times are seconds since 1970."""

    pid: int
    host: str
    started: float
    updated: float
    pending: tuple[str, ...]
    """Steps that this run set out to do, in order."""
    done: dict[str, float]
    """Slug -> seconds, of those it has done."""
    failed: dict[str, str]
    """Slug -> reason."""
    running: tuple[Current, ...]
    """Steps in progress, the one that started first in front."""
    lanes: int
    """How many steps are done at once."""
    finished: float | None
    """When the run ended, however it did; null while it goes on, and for ever where it was killed."""
    ended_by: str
    """What ended it before its last step, in words; empty where nothing did."""


class ProgressFile:
    """Writes progress.json while a run goes on."""

    def __init__(self, root: Path, pending: Sequence[Step]) -> None:
        self._path, now = root / FILE, time.time()
        self._took, self._written = 0.0, 0.0
        self._lock = threading.RLock()
        self._later: threading.Timer | None = None
        self._state = RunProgress(
            pid=os.getpid(),
            host=socket.gethostname(),
            started=now,
            updated=now,
            pending=tuple(s.slug for s in pending),
            done={},
            failed={},
            running=(),
            lanes=1,
            finished=None,
            ended_by="",
        )

    @contextmanager
    def running(self) -> Iterator[None]:
        """The time in which steps are done; its end is written whatever ends it, a kill excepted."""
        self._write(surely=True)
        try:
            yield
        except BaseException as error:
            with suppress(OSError):  # the error that ended the run is the one to tell, not that of a full disk
                ended_by = " ".join(str(error).split())[:300] or type(error).__name__
                self._write(surely=True, running=(), finished=time.time(), ended_by=ended_by)
            raise
        self._write(surely=True, running=(), finished=time.time())

    def lanes(self, n: int) -> None:
        """So many steps are done at once from now on."""
        if n != self._state.lanes:
            self._write(lanes=n)

    def begin(self, step: Step) -> None:
        """A step starts."""
        now, predicted = time.time(), step.predicted_seconds
        begun = Current(slug=step.slug, started=now, predicted_seconds=predicted, share=0.0)
        self._write(running=(*self._without(step), begun))

    def tick(self, step: Step, share: float) -> None:
        """How far a step is, 0 to 1; written every few seconds at most."""
        with self._lock:
            at = tuple(c.model_copy(update={"share": share}) if c.slug == step.slug else c for c in self._state.running)
            self._state = self._state.model_copy(update={"running": at})
        if time.time() - self._state.updated >= BEAT:
            self._write()

    def end(self, step: Step) -> None:
        """A step is done."""
        begun = next((c for c in self._state.running if c.slug == step.slug), None)
        seconds = time.time() - begun.started if begun is not None else 0.0
        self._write(running=self._without(step), done={**self._state.done, step.slug: seconds})

    def drop(self, step: Step) -> None:
        """A step is no longer in progress and waits again."""
        self._write(running=self._without(step))

    def fail(self, step: Step, reason: str) -> None:
        """A step failed, or cannot be started."""
        self._write(running=self._without(step), failed={**self._state.failed, step.slug: reason})

    def _without(self, step: Step) -> tuple[Current, ...]:
        return tuple(c for c in self._state.running if c.slug != step.slug)

    def _write(self, *, surely: bool = False, **changes: object) -> None:
        """Take changes in, and write them; where writing takes long a little later, unless `surely`."""
        with self._lock:
            self._state = self._state.model_copy(update=changes)
            wait = 0.0
            if not surely and self._took > SLOW:
                wait = self._written + HUSH * self._took - time.monotonic()
            if wait > 0:
                if self._later is None:
                    self._later = threading.Timer(wait, self._write_later)
                    self._later.daemon = True
                    self._later.start()
                return
            if self._later is not None:
                self._later.cancel()
                self._later = None
            began = time.monotonic()
            self._state = self._state.model_copy(update={"updated": time.time()})
            write_text(self._path, self._state.model_dump_json(indent=1) + "\n")
            self._written = time.monotonic()
            self._took = self._written - began

    def _write_later(self) -> None:
        with self._lock:
            if self._later is not None and self._state.finished is None:
                self._later = None
                with suppress(OSError):  # the next step's word meets the same error where it can be told
                    self._write(surely=True)


def read_progress(root: Path) -> RunProgress | None:
    """What the last runner left; None where none did, or other code wrote it."""
    try:
        return RunProgress.model_validate_json((root / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def cells_of(plan: Plan) -> dict[str, frozenset[str]]:
    """Slug of every training step -> it and all steps that need it: a cell with its evaluations and token tables."""
    needs: dict[str, frozenset[str]] = {}
    for step in plan.steps:  # a plan lists a step after those it needs
        above = (needs.get(s, frozenset()) for s in step.inputs.values())
        own = frozenset([step.slug]) if step.kind == "train" else frozenset()
        needs[step.slug] = own.union(*above)
    trained = [s.slug for s in plan.steps if s.kind == "train"]
    return {t: frozenset(slug for slug, found in needs.items() if t in found) for t in trained}


def _count(states: Sequence[str]) -> Counts:
    return Counts(
        total=len(states),
        done=states.count("done"),
        running=states.count("running"),
        failed=states.count("failed"),
        pending=states.count("pending"),
    )


def _cell_state(states: Sequence[str]) -> str:
    """A cell is failed or running as soon as one of its steps is, and done when all are."""
    return next((s for s in ("failed", "running") if s in states), "done" if set(states) == {"done"} else "pending")


def seconds_left(plan: Plan, told: RunProgress, now: float) -> tuple[float, float]:
    """Time that a run still needs: as predicted, and at the pace of what it has done.

    Steps that need a failed one will never start and cost nothing.
    """
    weights = {s.slug: max(s.predicted_seconds, LEAST) for s in plan.steps}
    blocked = set(told.failed)
    for step in plan.steps:
        if any(s in blocked for s in (*step.inputs.values(), *step.after)):
            blocked.add(step.slug)
    over = {*told.done, *blocked, *(c.slug for c in told.running)}
    rest = sum(weights[s] for s in told.pending if s in weights and s not in over)
    known = [s for s in told.done if s in weights]
    enough = sum(weights[s] for s in known) > ENOUGH * sum(weights.get(s, 0.0) for s in told.pending)
    pace = sum(told.done[s] for s in known) / sum(weights[s] for s in known) if enough else 1.0
    predicted: list[float] = []
    left: list[float] = []
    for current in told.running:
        weight, spent = weights.get(current.slug, LEAST), max(0.0, now - current.started)
        predicted.append(max(weight - spent, 0.0))
        if current.share > TRUSTED:
            own = spent / current.share
            # A step's own pace stands for the others only where too few of them are done.
            pace = pace if enough else own / weight
            left.append(own - spent)
        else:
            left.append(max(weight * pace - spent, 0.0))
    return _wall(rest, predicted, told.lanes), _wall(rest * pace, left, told.lanes)


def _wall(rest: float, running: Sequence[float], lanes: int) -> float:
    """Seconds by the wall for so much work in lanes; the longest step in progress is the least it takes."""
    return max([(rest + sum(running)) / lanes, *running])


class StatusReader:
    """What `prefixlab view` says of a run folder. The plan is read again only when its file changes."""

    def __init__(self, root: Path, load: Callable[[Store], Plan | None]) -> None:
        self._store, self._load = Store(root), load
        self._seen: object = None
        self._plan: Plan | None = None
        self._cells: dict[str, frozenset[str]] = {}

    def _current_plan(self) -> Plan | None:
        try:
            about = (self._store.root / "plan.json").stat()
        except OSError:
            return self._plan
        if (about.st_mtime_ns, about.st_size) != self._seen:
            plan = self._load(self._store)
            if plan is not None:
                self._seen, self._plan, self._cells = (about.st_mtime_ns, about.st_size), plan, cells_of(plan)
        return self._plan

    def finished(self) -> Mapping[str, float]:
        """Slug -> when its marker was written, of every planned step that has one; seconds since 1970."""
        found = {}
        plan = self._current_plan()
        for step in plan.steps if plan else ():
            with suppress(OSError):
                found[step.slug] = (self._store.folder(step.slug) / DONE).stat().st_mtime
        return found

    def status(self) -> RunStatus:
        """Counts, what runs, what failed, and how long it will take."""
        plan, told = self._current_plan(), read_progress(self._store.root)
        now, held = time.time(), self._store.in_use()
        steps = plan.steps if plan else ()
        failed = told.failed if told else {}
        # A damaged step keeps its marker until it is done again.
        again = set(told.pending) - set(told.done) if told else set()
        done = set(self.finished()) - (again if held else set())
        running = told.running if told and held else ()
        states = {s.slug: "done" if s.slug in done else "failed" if s.slug in failed else "pending" for s in steps}
        states.update({c.slug: "running" for c in running})
        cells = [_cell_state([states[s] for s in members]) for members in self._cells.values()]
        counts = _count(list(states.values()))
        predicted, left = seconds_left(plan, told, now) if plan and told and held else (None, None)
        state, sentence = _state(counts, told, held)
        return RunStatus(
            study=plan.study if plan else "",
            state=state,
            sentence=sentence,
            steps=counts,
            cells=_count(cells),
            now=None
            if not running
            else Now(
                step=running[0].slug,
                since=running[0].started,
                seconds=max(0.0, now - running[0].started),
                predicted_seconds=running[0].predicted_seconds,
            ),
            predicted_seconds_left=predicted,
            seconds_left=left,
            failures=tuple(Failure(step=s, reason=r) for s, r in failed.items() if states.get(s) == "failed"),
        )


def _state(counts: Counts, told: RunProgress | None, held: bool) -> tuple[State, str]:
    """State of a run and what to say of it."""
    if held:
        going = told is not None and bool(told.running)
        return "running", "Running." if going else "Running: plans the next steps, or writes tables and report."
    if counts.total and counts.done == counts.total:
        return "finished", "Finished."
    again = "The same prefixlab run command goes on."
    missing = counts.total - counts.done
    if not counts.total:
        return "stopped", f"Stopped before there was a plan. {again}"
    if told is None:
        return "stopped", f"Stopped: {missing} steps are not done and nothing works on them. {again}"
    if told.finished is None:
        who = f"process {told.pid} on {told.host}"
        return "stopped", f"Stopped: its runner ({who}) is gone without a word. {again}"
    if told.ended_by:
        return "stopped", f"Stopped: {told.ended_by}. {again}"
    if counts.failed:
        return "failed", f"Ended with {counts.failed} failed {'step' if counts.failed == 1 else 'steps'}. {again}"
    return "stopped", f"Stopped: {missing} steps are not done. {again}"
