"""What of a plan can be done now, and by whom: the queue of an executor with many workers.

Nothing here knows a clock, a machine or Ray; benchmarks/scheduling.py runs the same code on simulated ones.

A worker has a lane. `model` steps load a base, or train in processes of their own; `plain` ones do not and need one
CPU. Without GPUs there is one lane, since both would take the same CPUs. A worker with a base gets steps of that base
as long as there are any. Steps that go on with what is begun (scores, evaluations of finished adapters) come before
those that begin a cell, so that results come early; only when a base has fewer cells to begin than workers, these begin
at once, so that the end is short. Of either sort the one with the longest predicted way to the plan's end comes first.
"""

import heapq
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from prefixlab.study.steps import Step

Lane = Literal["model", "plain"]
LEAST = 0.2
"""Seconds that a step is taken to last at least."""


def base_of(step: Step) -> str:
    """What a step loads, so that the next one that needs it is quicker; empty for nothing worth keeping."""
    if step.kind == "generate" and "serving" in step.config:
        return ""  # a model server has the base
    if step.kind in ("generate", "tokens") or (step.kind == "train" and step.config["hardware"]["processes"] == 1):
        return str(step.config["model"]["fingerprint"])
    if step.kind == "eval":  # only a judge that is a model of ours has a fingerprint
        return str((step.config["judge_settings"] or {}).get("fingerprint", ""))
    return ""


def lane_of(step: Step, gpus: bool) -> Lane:
    """Which workers can do a step.

    Args:
        step: Of the plan.
        gpus: Whether the plan's models run on GPUs.
    """
    return "model" if not gpus or step.kind == "train" or base_of(step) else "plain"


def ranks(steps: Sequence[Step]) -> dict[str, float]:
    """Slug -> predicted seconds of the longest way from a step's start to the end of the plan.

    Args:
        steps: Each after those it needs.
    """
    after: dict[str, float] = {}
    found: dict[str, float] = {}
    for step in reversed(steps):
        found[step.slug] = max(step.predicted_seconds, LEAST) + after.get(step.slug, 0.0)
        for need in (*step.inputs.values(), *step.after):
            after[need] = max(after.get(need, 0.0), found[step.slug])
    return found


@dataclass
class _Waiting:
    """Steps of one base that are ready; heaps of (minus the rank, place in the plan)."""

    begun: list[tuple[float, int]] = field(default_factory=list)
    """Those that go on with what is begun."""
    fresh: list[tuple[float, int]] = field(default_factory=list)
    """Those that begin a cell."""
    seconds: float = 0.0
    """Predicted, of all of them."""


class Schedule:
    """The steps that wait, by lane and base."""

    def __init__(self, pending: Sequence[Step], done: Collection[str], *, gpus: bool) -> None:
        """Sort the steps.

        Args:
            pending: In the plan's order: each after those it needs.
            done: Slugs of steps that are done.
            gpus: As for `lane_of`.
        """
        self._gpus, self._rank = gpus, ranks(pending)
        self._pending, self._steps = tuple(pending), {s.slug: s for s in pending}
        self._order = {s.slug: i for i, s in enumerate(pending)}
        self._missing = {s.slug: {n for n in (*s.inputs.values(), *s.after) if n not in done} for s in pending}
        self._needed_by: dict[str, list[str]] = {}
        self._given_up: set[str] = set()
        self._ready: dict[Lane, dict[str, _Waiting]] = {"model": {}, "plain": {}}
        self._left: dict[Lane, int] = {"model": 0, "plain": 0}
        for step in pending:
            self._left[lane_of(step, gpus)] += 1
            for need in self._missing[step.slug]:
                self._needed_by.setdefault(need, []).append(step.slug)
            if not self._missing[step.slug]:
                self._put(step)

    def left(self, lane: Lane) -> int:
        """Steps of a lane that are neither done nor given up; those in progress count."""
        return self._left[lane]

    def take(self, lane: Lane, loaded: str, held: Mapping[str, int]) -> Step | None:
        """The next step for a worker; None if nothing of its lane is ready.

        Args:
            lane: Of the worker.
            loaded: Base that it has loaded; empty for none.
            held: Base -> workers of the lane that have it, or are about to.
        """
        ready = self._ready[lane]
        if not ready:
            return None
        base = next((b for b in ("", loaded) if b in ready), None)
        if base is None:  # the base whose waiting work has the fewest workers
            base = max(ready, key=lambda b: (ready[b].seconds / (held.get(b, 0) + 1), b))
        waiting = ready[base]
        begin = not waiting.begun or 0 < len(waiting.fresh) <= held.get(base, 0)
        step = self._pending[heapq.heappop(waiting.fresh if begin else waiting.begun)[1]]
        waiting.seconds -= max(step.predicted_seconds, LEAST)
        if not waiting.fresh and not waiting.begun:
            del ready[base]
        return step

    def end(self, step: Step) -> None:
        """A step is done: those that waited for it alone are ready."""
        self._left[lane_of(step, self._gpus)] -= 1
        for slug in self._needed_by.get(step.slug, ()):
            self._missing[slug].discard(step.slug)
            if not self._missing[slug]:
                self._put(self._steps[slug])

    def again(self, step: Step) -> None:
        """A step in progress was lost with its worker and waits again."""
        self._put(step)

    def fail(self, step: Step) -> list[tuple[Step, str]]:
        """A step failed: it and those that need it are given up.

        Returns:
            Those that need it, in the plan's order, each with the step it needs that is missing.
        """
        self._left[lane_of(step, self._gpus)] -= 1
        given_up = [f for slug in self._needed_by.get(step.slug, ()) for f in self._give_up(slug, step.slug)]
        return sorted(given_up, key=lambda found: self._order[found[0].slug])

    def _give_up(self, slug: str, need: str) -> list[tuple[Step, str]]:
        if slug in self._given_up:
            return []
        self._given_up.add(slug)
        step = self._steps[slug]
        self._left[lane_of(step, self._gpus)] -= 1
        return [(step, need), *(f for follower in self._needed_by.get(slug, ()) for f in self._give_up(follower, slug))]

    def _put(self, step: Step) -> None:
        waiting = self._ready[lane_of(step, self._gpus)].setdefault(base_of(step), _Waiting())
        entry = (-self._rank[step.slug], self._order[step.slug])
        heapq.heappush(waiting.fresh if step.kind == "train" else waiting.begun, entry)
        waiting.seconds += max(step.predicted_seconds, LEAST)
