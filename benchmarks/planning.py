"""How long `prefixlab plan` takes on a large study: steps with ids, predicted times and costs, nothing trained.

    python benchmarks/planning.py [--quick] [--cells N]

The study has N cells (2,000) on the tiny random model: two capabilities, ten arms, many seeds, three conditions; every
cell has a training, evaluations and a reading. `plan_seconds` is the planner alone, in this process; `command_seconds`
the whole command with its imports, in a process of its own; `estimate_seconds` the plan of studies/r1_prefix.yaml with
as many cells, without hub. CPU seconds stand beside those of the wall, which other work on the machine disturbs more.
Prints one JSON object; a plan of 2,000 cells shall take less than 10 s (`plan_to_bound`).
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

os.environ["HF_HUB_OFFLINE"] = "1"

from prefixlab.config import Study
from prefixlab.model.machine import describe
from prefixlab.study.plan import make_plan
from prefixlab.study.planning import planned
from prefixlab.study.steps import Plan
from prefixlab.study.store import Store
from prefixlab.study_file import load_study, parse_study

STUDIES = Path(__file__).parent.parent / "studies"
ARMS = 10
BOUND = 10.0


def large_study(cells: int) -> dict[str, Any]:
    """A study of about so many cells."""
    study: dict[str, Any] = yaml.safe_load((STUDIES / "quickstart.yaml").read_text(encoding="utf-8"))
    ratios = [0, 0.25, 0.5, 0.75, 1]
    controls = ["neutral", "shuffled", "random", "masked", "revised"]
    study |= {
        "name": "planning",
        "models": ["tiny-random"],
        "seeds": list(range(max(1, cells // (2 * ARMS)))),
        "conditions": ["bare", "prefill", "attack_opening@5"],
    }
    for arms in study["arms"]:
        arms |= {"ratios": ratios, "controls": controls}
    return study


def timed(job: Callable[[], object], times: int) -> tuple[list[float], list[float]]:
    """Seconds of each run, by the wall and of the CPU, processes that it starts included."""
    wall, cpu = [], []
    for _ in range(times):
        before, started = os.times(), time.perf_counter()
        job()
        wall.append(time.perf_counter() - started)
        after = os.times()
        cpu.append(sum(after[:4]) - sum(before[:4]))
    return wall, cpu


def spread(values: Sequence[float], unit: str) -> dict[str, Any]:
    """Median and range."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "n": len(values), "unit": unit}


def three(values: Sequence[float]) -> dict[str, float]:
    """Median and range of a ratio."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def estimated(cells: int) -> Callable[[], object]:
    """The R1 study with more seeds, planned without hub."""
    study = load_study(STUDIES / "r1_prefix.yaml", [f"seeds={list(range(max(1, cells // 108)))}"])
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "run")
    return lambda: planned(study, store, "h100")


def main() -> None:
    """Time all three."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="200 cells, once")
    parser.add_argument("--cells", type=int, default=2_000)
    options = parser.parse_args()
    cells, times = (200, 1) if options.quick else (options.cells, 3)
    study: Study = parse_study(large_study(cells), "benchmark")
    made: list[Plan] = []
    plan = timed(lambda: made.append(make_plan(study, None)), times)
    with tempfile.TemporaryDirectory() as folder:
        file, run = Path(folder) / "study.yaml", Path(folder) / "run"
        file.write_text(yaml.safe_dump(large_study(cells)), encoding="utf-8")
        command = [sys.executable, "-m", "prefixlab", "plan", str(file), "--out", str(run), "--json"]
        whole = timed(lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL), times)
    estimate = timed(estimated(cells), times)
    steps = len(made[0].steps)
    timings = {"plan": plan, "command": whole, "estimate": estimate}
    figures = {
        "cells": spread([sum(s.kind == "train" for s in made[0].steps)], "cells"),
        "steps": spread([steps], "steps"),
        **{f"{name}_seconds": spread(found[0], "s") for name, found in timings.items()},
        **{f"{name}_cpu_seconds": spread(found[1], "s") for name, found in timings.items()},
        "milliseconds_a_step": spread([1000 * s / steps for s in plan[0]], "ms"),
    }
    names = ("prefixlab", "torch", "transformers", "peft")
    print(
        json.dumps(
            {
                "benchmark": "planning",
                "machine": describe(),
                "versions": {n: version(n) for n in names} | {"python": platform.python_version()},
                "figures": figures,
                "ratios": {"plan_to_bound": three([s / BOUND for s in plan[0]])},
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
