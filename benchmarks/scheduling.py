"""How busy the queue of the cluster executor keeps 64 GPUs, and what the executor costs a step.

    python benchmarks/scheduling.py [--quick] [--no-ray]

Simulated are the GPUs, the clock, and how long steps last; real are the plan (prefixlab's planner on a study of 2,016
cells: three models, two capabilities, eight arms, 42 seeds, with evaluations and token tables) and the queue
(`prefixlab.study.schedule`). The three models stand for 1.5B, 7B and 8B: copies of the tiny random one, whose steps get
the seconds of NOMINAL times SIZE. The queue sees these as predictions; a step lasts that times a log-normal factor
(sigma 0.3). Loading another base takes LOADING seconds in which a GPU counts as idle. The tail begins when fewer steps
for GPUs wait to be started than there are GPUs. Every figure over REPEATS seeds of the factors.

Then without simulation: what one step costs beside its own work, on as many data steps of one sample as STEPS, by this
process alone and by Ray's executor with one worker on a cluster of this machine (all between the steps: Ray, the queue,
progress.json, DONE markers). Prints one JSON object.
"""

import argparse
import heapq
import json
import platform
import random
import shutil
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console

from prefixlab.config import Study
from prefixlab.model.load import resolve_model
from prefixlab.model.machine import cpu_threads, describe
from prefixlab.study.execute import Executor, Journal, Outcome, Work, in_this_process
from prefixlab.study.plan import make_plan
from prefixlab.study.schedule import Lane, Schedule, base_of, lane_of
from prefixlab.study.steps import Plan, Step
from prefixlab.study.store import Store

GPUS = 64
REPEATS = 5
STEPS = 300
SIGMA = 0.3
SIZE = {"1.5b": 1.0, "7b": 4.4, "8b": 5.0}
NOMINAL = {"train": 900.0, "generate": 240.0, "tokens": 120.0, "eval": 20.0, "data": 30.0, "arms": 5.0, "check": 20.0}
"""Predicted seconds of a step of the smallest model."""
LOADING = 20.0
"""Seconds to load the smallest base."""
BOUNDS = {"busy_until_the_tail": 0.9, "overhead_ms": 50.0}


def models(folder: Path) -> list[str]:
    """Folders of three models that differ in their fingerprint alone."""
    found = []
    for name in SIZE:
        path = folder / f"model-{name}"
        shutil.copytree(resolve_model("tiny-random").path, path)
        (path / "size.json").write_text(json.dumps(name))  # part of the fingerprint
        found.append(str(path))
    return found


def study(models: Sequence[str], seeds: int) -> Study:
    """A study of 16 cells a model and seed."""
    entry = {"position": "opening", "ratios": [0, 0.25, 0.5, 0.75, 1], "controls": ["neutral", "shuffled", "masked"]}
    data = {"limit": 24, "held_out": 2}
    return Study.model_validate(
        {
            "name": "simulated",
            "models": list(models),
            "capabilities": {
                name: {
                    "data": {"source": f"builtin:{source}", **data},
                    "suites": [{"suite": source, "limit": 8}],
                    "primary": {"suite": source, "metric": metric},
                }
                for name, source, metric in (("math", "chain_sum", "accuracy"), ("safety", "safety", "safe@1"))
            },
            "arms": [{"prefixes": "reasoning", **entry}],
            "seeds": list(range(seeds)),
            "analysis": {"tokens": {"samples": 2}},
            "hardware": {"threads": 1},
        }
    )


def predicted(plan: Plan) -> list[Step]:
    """The plan's steps with the seconds that the simulation predicts."""
    sizes = {ref.fingerprint: SIZE[ref.name.rpartition("-")[2]] for ref in plan.models}
    return [
        s.model_copy(
            update={
                "predicted_seconds": NOMINAL[s.kind]
                * (sizes[s.config["model"]["fingerprint"]] if lane_of(s, True) == "model" else 1.0)
            }
        )
        for s in plan.steps
    ]


@dataclass
class Seat:
    """A simulated worker."""

    lane: Lane
    base: str = ""
    step: Step | None = None


@dataclass
class Simulated:
    """What came out of one simulation; times in seconds of the simulated clock."""

    span: float = 0.0
    tail: float = 0.0
    """When the tail began."""
    busy: list[tuple[float, float]] = field(default_factory=list)
    """Start and end of every step on a GPU."""
    loads: int = 0
    queue_seconds: float = 0.0
    """Real seconds that the queue took."""

    def share(self, until: float) -> float:
        """Of the GPUs' time up to then, how much went into steps."""
        return sum(max(0.0, min(end, until) - start) for start, end in self.busy) / (GPUS * until)


def simulate(steps: Sequence[Step], seed: int) -> Simulated:
    """Run the queue against simulated workers: GPUS with a GPU, and as many with a CPU."""
    rng, found = random.Random(seed), Simulated()
    lasts = {s.slug: s.predicted_seconds * rng.lognormvariate(-(SIGMA**2) / 2, SIGMA) for s in steps}
    sizes = {base_of(s): s.predicted_seconds / NOMINAL[s.kind] for s in steps if s.kind == "train"}
    began = time.perf_counter()
    schedule = Schedule(steps, (), gpus=True)
    found.queue_seconds += time.perf_counter() - began
    idle = [Seat(lane) for _ in range(GPUS) for lane in ("model", "plain")]
    events: list[tuple[float, int, Seat]] = []
    held: dict[Lane, Counter[str]] = {"model": Counter(), "plain": Counter()}
    clock, number, started = 0.0, 0, 0
    total = sum(lane_of(s, True) == "model" for s in steps)
    while True:
        waiting, idle = idle, []
        for seat in waiting:
            held[seat.lane][seat.base] -= 1
            began = time.perf_counter()
            step = schedule.take(seat.lane, seat.base, held[seat.lane])
            found.queue_seconds += time.perf_counter() - began
            if step is None:
                idle.append(seat)
            else:
                begin, base = clock, base_of(step) or seat.base
                if base != seat.base:
                    found.loads += 1
                    begin += LOADING * sizes[base]
                seat.step, seat.base, number = step, base, number + 1
                end = begin + lasts[step.slug]
                heapq.heappush(events, (end, number, seat))
                if seat.lane == "model":
                    found.busy.append((begin, end))
                    started += 1
            held[seat.lane][seat.base] += 1
        if not found.tail and total - started < GPUS:
            found.tail = clock
        if not events:
            break
        clock, _, seat = heapq.heappop(events)
        assert seat.step is not None
        began = time.perf_counter()
        schedule.end(seat.step)
        found.queue_seconds += time.perf_counter() - began
        idle.append(seat)
    assert schedule.left("model") == schedule.left("plain") == 0
    found.span = clock
    return found


def trivial(folder: Path, n: int) -> Work:
    """Work of data steps with one sample each."""
    small = study(["tiny-random"], 1)
    plan = make_plan(small, None)
    one = next(s for s in plan.steps if s.kind == "data")
    config = {**one.config, "data": {**one.config["data"], "limit": 1, "held_out": 0}}
    steps = tuple(
        one.model_copy(update={"slug": f"data-{i:05d}", "id": f"{i:064x}", "config": config}) for i in range(n)
    )
    # As many threads as there are CPUs, so that there is room for one worker.
    hardware = plan.hardware.model_copy(update={"threads": cpu_threads()})
    plan = plan.model_copy(update={"steps": steps, "hardware": hardware})
    store = Store(folder / "run")
    store.steps.mkdir(parents=True)
    return Work(small, plan, steps, store)


def between_steps(work: Work, executor: Executor) -> float:
    """Milliseconds a step that are not the step's own, from the first start to the last end.

    Raises:
        SystemExit: A step is missing.
    """
    began: list[float] = []

    class Timed(Journal):
        def begin(self, step: Step) -> None:
            began.append(time.perf_counter())
            super().begin(step)

    outcome = Outcome()
    executor(work, Timed(work.store.root, work.pending, outcome, Console(stderr=True), quiet=True))
    ended = time.perf_counter()
    markers = [work.store.marker(s.slug) for s in work.pending]
    if len(outcome.ran) != len(markers) or None in markers:
        raise SystemExit(f"{len(outcome.ran)} of {len(markers)} steps were done: {outcome.failed}")
    # The first step loads libraries, in its own time or before it: count from the second on.
    own = sum(m.seconds for m in markers[1:] if m is not None)
    return 1000 * (ended - began[1] - own) / (len(markers) - 1)


def spread(values: Sequence[float], unit: str) -> dict[str, Any]:
    """Median and range."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "n": len(values), "unit": unit}


def scheduled(seeds: int) -> tuple[dict[str, Any], dict[str, Any], dict[str, int]]:
    """Figures, ratios and counts of the simulation."""
    with tempfile.TemporaryDirectory() as scratch:
        asked = study(models(Path(scratch)), seeds)
        began = time.perf_counter()
        plan = make_plan(asked, None)
        planning = time.perf_counter() - began
    steps = predicted(plan)
    runs = [simulate(steps, seed) for seed in range(REPEATS)]
    work = [sum(end - start for start, end in r.busy) for r in runs]
    figures = {
        "busy_until_the_tail": spread([r.share(r.tail) for r in runs], "share of the GPUs' time"),
        "busy_all_the_time": spread([r.share(r.span) for r in runs], "share of the GPUs' time"),
        "span": spread([r.span / 3600 for r in runs], "h, simulated"),
        "tail": spread([(r.span - r.tail) / 3600 for r in runs], "h, simulated"),
        "base_loads": spread([float(r.loads) for r in runs], f"on {GPUS} GPUs"),
        "queue_ms_a_step": spread([1000 * r.queue_seconds / len(steps) for r in runs], "ms"),
        "planning_seconds": spread([planning], "s"),
    }
    ratios = {"span_to_work_over_gpus": spread([r.span * GPUS / w for r, w in zip(runs, work, strict=True)], "")}
    cells = sum(s.kind == "train" for s in steps)
    return figures, ratios, {"cells": cells, "steps": len(steps), "gpus": GPUS}


def costs(n: int) -> dict[str, Any]:
    """What a step costs beside its own work, by this process alone and through Ray."""
    from prefixlab.study.cluster import joined  # noqa: PLC0415  (optional: not every machine has Ray)
    from prefixlab.study.ray_executor import RayExecutor  # noqa: PLC0415

    figures = {}
    with tempfile.TemporaryDirectory() as scratch:
        local = [between_steps(trivial(Path(scratch) / str(i), n), in_this_process) for i in range(3)]
        figures["local_overhead_ms"] = spread(local, f"ms a step of {n}")
    with tempfile.TemporaryDirectory() as scratch, joined(None):
        found = [between_steps(trivial(Path(scratch) / str(i), n), RayExecutor()) for i in range(3)]
        figures["overhead_ms"] = spread(found, f"ms a step of {n}, one worker")
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="480 cells, and no Ray")
    parser.add_argument("--no-ray", action="store_true", help="the simulation alone")
    options = parser.parse_args()
    figures, ratios, counts = scheduled(10 if options.quick else 42)
    if not (options.quick or options.no_ray):
        figures |= costs(STEPS)
    within = {
        k: figures[k]["min"] >= b if k.startswith("busy") else figures[k]["max"] <= b
        for k, b in BOUNDS.items()
        if k in figures
    }
    versions = {n: version(n) for n in ("prefixlab", "ray", "pydantic")} | {"python": platform.python_version()}
    about = {"benchmark": "scheduling", "machine": describe(), "versions": versions, "counts": counts}
    print(json.dumps({**about, "figures": figures, "ratios": ratios, "bounds": BOUNDS, "within": within}, indent=1))


if __name__ == "__main__":
    main()
