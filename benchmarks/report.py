"""How long `prefixlab report` takes on a large run, how much memory it needs, and how soon the page paints.

    python benchmarks/report.py [--quick] [--out DIR]

The run is made here without training (simulated_run.py): 60 cells, 40,000 completions, 2 million token rows. Time and
peak memory are those of the command in a process of its own, imports included. First contentful paint is Chromium's
own, of index.html opened from disk in a fresh browser each time; it is left out where Chromium or Playwright is
missing. Prints one JSON object with the bounds that hold for the full size; `--out` keeps the run.
"""

import argparse
import json
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BOUNDS = {"seconds": 60.0, "memory_gb": 2.0, "index_mb": 8.0, "first_paint_seconds": 2.0}
OPENINGS = 3
# The peak that the system gives for a process counts what its parent held when it was started; a parent that holds
# next to nothing is put between.
LAUNCH = """
import json, resource, subprocess, sys, time
started = time.perf_counter()
done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL)
seconds, used = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps({"code": done.returncode, "seconds": seconds, "cpu_seconds": used.ru_utime + used.ru_stime,
                  "memory_gb": used.ru_maxrss * 1024 / 1e9}))
"""


@dataclass(frozen=True)
class Built:
    """What writing a report took, and what it wrote."""

    seconds: float
    """By the wall."""
    cpu_seconds: float
    memory_gb: float
    """Peak of the resident memory, in 10^9 bytes."""
    index_mb: float
    """10^6 bytes of index.html."""
    rest_mb: float
    """Of all other files of the report together."""
    files: int


def build(run: Path) -> Built:
    """Write the report of a run with the command line, in a process of its own.

    Args:
        run: A run folder.

    Raises:
        SystemExit: The command failed.
    """
    command = [sys.executable, "-c", LAUNCH, sys.executable, "-m", "prefixlab", "report", str(run)]
    said = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
    if said.pop("code"):
        raise SystemExit(f"prefixlab report {run} failed")
    index = run / "report" / "index.html"
    sizes = {f: f.stat().st_size for f in index.parent.rglob("*") if f.is_file()}
    rest = sum(sizes.values()) - sizes[index]
    return Built(**said, index_mb=sizes[index] / 1e6, rest_mb=rest / 1e6, files=len(sizes))


def browser() -> str | None:
    """Chromium's program; None where it or Playwright is missing."""
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    return found if find_spec("playwright") else None


def first_paints(index: Path, program: str, openings: int) -> list[float]:
    """Seconds from opening a page to its first contentful paint, each time in a fresh browser.

    Raises:
        SystemExit: The page painted nothing.
    """
    from playwright.sync_api import sync_playwright  # noqa: PLC0415  (optional: not every machine has it)

    found = []
    with sync_playwright() as driver:
        for _ in range(openings):
            with driver.chromium.launch(executable_path=program, args=["--no-sandbox"]) as chromium:
                page = chromium.new_page()
                page.goto(index.resolve().as_uri(), wait_until="load", timeout=120_000)
                page.wait_for_timeout(200)
                painted = page.evaluate(
                    "performance.getEntriesByType('paint').filter(e => e.name === 'first-contentful-paint')"
                    ".map(e => e.startTime)"
                )
                if not painted:
                    raise SystemExit(f"{index} painted nothing")
                found.append(painted[0] / 1000)
    return found


def machine() -> dict[str, Any]:
    """Machine and versions, as every benchmark prints them."""
    from prefixlab.model.machine import describe  # noqa: PLC0415  (torch; no reader of `build` needs it)

    names = ("prefixlab", "polars", "altair", "jinja2", "pydantic")
    return {"machine": describe(), "versions": {n: version(n) for n in names} | {"python": platform.python_version()}}


def spread(values: Sequence[float], unit: str) -> dict[str, Any]:
    """Median and range."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "n": len(values), "unit": unit}


def measure(folder: Path, quick: bool) -> dict[str, Any]:
    """Make the run in `folder`, then its report, and open it."""
    from simulated_run import LARGE, SMALL, simulate  # noqa: PLC0415  (torch; no reader of `build` needs it)

    started = time.perf_counter()
    counts = simulate(folder, SMALL if quick else LARGE)
    print(f"made {folder / 'run'} in {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
    built = build(folder / "run")
    figures = {
        "seconds": spread([built.seconds], "s"),
        "cpu_seconds": spread([built.cpu_seconds], "s"),
        "memory_gb": spread([built.memory_gb], "GB"),
        "index_mb": spread([built.index_mb], "MB"),
        "rest_mb": spread([built.rest_mb], f"MB in {built.files - 1} files"),
    }
    program = browser()
    if program is not None:
        paints = first_paints(folder / "run" / "report" / "index.html", program, OPENINGS)
        figures["first_paint_seconds"] = spread(paints, "s")
    within = {name: figures[name]["max"] <= bound for name, bound in BOUNDS.items() if name in figures}
    return {"counts": counts, "figures": figures} | ({} if quick else {"bounds": BOUNDS, "within": within})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small run, of which no bound is asked")
    parser.add_argument("--out", type=Path, help="keep the run in this new folder")
    options = parser.parse_args()
    if options.out is not None and options.out.exists():
        parser.error(f"--out {str(options.out)!r} is there already; name a new folder")
    with tempfile.TemporaryDirectory() as scratch:
        found = measure(options.out or Path(scratch), options.quick)
        print(json.dumps({"benchmark": "report", **machine(), **found}, indent=1))


if __name__ == "__main__":
    main()
