"""Energy that the machine's own meters report for the work on a run: RAPL of the CPU packages, where Linux shows it.

The counters wrap within minutes on a busy machine, so they are read often. What no meter covers (memory outside the
package, GPUs, the power supply) is not in the number, and RUN/energy.json says so. No meter, no file.
"""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from prefixlab.study.store import write_text

POWERCAP = Path("/sys/class/powercap")
EVERY = 15.0
"""Seconds between two readings; a package at 400 W wraps a counter of 65 kJ in 160."""
METER = "CPU packages by RAPL; without memory, GPUs and losses"


@dataclass
class Counter:
    """One package's counter."""

    path: Path
    top: int
    """Where it wraps, in microjoules."""
    last: int

    def step(self) -> float:
        """Joules since the last reading."""
        now = int((self.path / "energy_uj").read_text())
        spent = (now - self.last) % self.top
        self.last = now
        return spent / 1e6


def counters(powercap: Path = POWERCAP) -> list[Counter]:
    """The readable counters of CPU packages; none where the kernel shows or allows none."""
    found = []
    for path in sorted(powercap.glob("intel-rapl:?")):
        try:
            if (path / "name").read_text().startswith("package"):
                top = int((path / "max_energy_range_uj").read_text()) + 1
                found.append(Counter(path, top, int((path / "energy_uj").read_text())))
        except (OSError, ValueError):
            continue
    return found


@contextmanager
def metered(root: Path, powercap: Path = POWERCAP) -> Iterator[None]:
    """Add the energy of what happens inside to RUN/energy.json.

    Args:
        root: Run folder.
        powercap: Where the kernel's counters are.
    """
    meters = counters(powercap)
    if not meters:
        yield
        return
    place = root / "energy.json"
    before = json.loads(place.read_text(encoding="utf-8")) if place.exists() else {"joules": 0.0, "seconds": 0.0}
    started, spent, ended = time.monotonic(), 0.0, threading.Event()

    def read() -> None:
        nonlocal spent
        spent += sum(meter.step() for meter in meters)
        total = {"joules": before["joules"] + spent, "seconds": before["seconds"] + time.monotonic() - started}
        write_text(place, json.dumps({**total, "meter": METER}) + "\n")

    def watch() -> None:
        while not ended.wait(EVERY):
            read()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
        read()
