"""Train one cell in several processes, launched by torchrun, and hear from them through files.

The parent writes the job, starts `torchrun ... -m prefixlab.study.worker`, reads progress and the outcome, and passes a
signal on. Each worker loads the base itself; the first one writes the cell.
"""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from prefixlab.errors import StepError, Stopped, UserError
from prefixlab.model.trainer import StopRequest
from prefixlab.records import Record
from prefixlab.study.cell import TrainJob

POLL = 0.2
"""Seconds between looks at the workers."""
ERROR = re.compile(r"^(?:\[rank\d+\]: ?)?((?:\w+\.)*(?!ChildFailed)\w*Error: .*)$", re.M)
ENDING = 10.0
"""Seconds that a worker has to end by itself once the outcome is written."""


class Progress(Record):
    """progress.json: what the first worker has done."""

    step: int
    steps: int


class Result(Record):
    """result.json: how the training ended."""

    kind: Literal["done", "step error", "user error", "stopped"]
    message: str = ""
    signal: int = 0


def command(job_file: Path, processes: int) -> list[str]:
    """The torchrun call; a free local port is found by torchrun itself."""
    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={processes}",
        "-m",
        "prefixlab.study.worker",
        str(job_file),
    ]


def train_in_processes(job: TrainJob, *, tick: Callable[[int, int], None], stop: StopRequest) -> None:
    """Train a cell in `job.hardware.processes` processes.

    Raises:
        StepError: The training failed; says why, or gives the workers' first error.
        UserError: A mistake in what was asked for.
        Stopped: A signal asked for an end; a checkpoint was saved.
    """
    processes = job.hardware.processes
    with tempfile.TemporaryDirectory(prefix="prefixlab-workers-") as folder, stop.listening():
        place = Path(folder)
        (place / "job.json").write_text(job.model_dump_json(), encoding="utf-8")
        (place / "parent").write_text(str(os.getpid()))
        log = place / "workers.log"
        env = {**os.environ, "OMP_NUM_THREADS": str(max(1, job.hardware.threads // processes))}
        with log.open("w") as words:
            workers = subprocess.Popen(
                command(place / "job.json", processes), stdout=words, stderr=words, env=env, start_new_session=True
            )
            try:
                _watch(workers, place, tick, stop)
            finally:
                # The agent goes at once; workers have sessions of their own, and end when this folder is gone.
                if workers.poll() is None:
                    os.killpg(workers.pid, signal.SIGKILL)
                    workers.wait()
        _conclude(place, log, processes, workers.returncode)


def _watch(workers: subprocess.Popen[bytes], place: Path, tick: Callable[[int, int], None], stop: StopRequest) -> None:
    """Wait for the workers; a signal is passed on once, as a file that they look at after each step."""
    seen, ended = 0, 0.0
    while workers.poll() is None:
        time.sleep(POLL)
        if stop.signal is not None and not (place / "stop").exists():
            (place / "stop").write_text(str(stop.signal))
        if (place / "result.json").exists():
            ended = ended or time.monotonic()
            if time.monotonic() - ended > ENDING:
                return
        try:
            found = Progress.model_validate_json((place / "progress.json").read_text())
        except (OSError, ValueError):
            continue
        if found.step != seen:
            seen = found.step
            tick(found.step, found.steps)


def _conclude(place: Path, log: Path, processes: int, code: int) -> None:
    try:
        result = Result.model_validate_json((place / "result.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = ERROR.search(log.read_text(errors="replace"))
        first = found.group(1) if found else f"no message, exit code {code}; perhaps the machine ran out of memory"
        raise StepError(f"the {processes} training processes ended without a result: {first}") from None
    if result.kind == "step error":
        raise StepError(result.message)
    if result.kind == "user error":
        raise UserError(result.message)
    if result.kind == "stopped":
        raise Stopped(result.signal, result.message)
