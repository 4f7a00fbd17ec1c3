"""`prefixlab rewrite` as the user sees it: starts the process that asks (rewrite_worker.py) and shows how far it is.

Loads neither torch nor Inspect.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from rich.console import Console

from prefixlab.errors import StepError, Stopped, UserError
from prefixlab.study.progress import row_progress
from prefixlab.study.rewrite_job import RewriteJob, RewriteReport
from prefixlab.study.rewriting import check_out

COMMAND = (sys.executable, "-m", "prefixlab.study.rewrite_worker")


@contextmanager
def _signals(first: Callable[[], None], second: Callable[[], None]) -> Iterator[list[int]]:
    """Call `first` at the first SIGINT or SIGTERM and `second` at each further one; the signals so far."""
    seen: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        seen.append(number)
        (first if len(seen) == 1 else second)()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield seen
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _message(line: bytes) -> dict[str, Any]:
    """What the process that asks says in a line; nothing where a package that it imports has printed one."""
    try:
        said = json.loads(line)
    except ValueError:
        said = None
    if isinstance(said, dict):
        return said
    sys.stderr.write(line.decode("utf-8", "replace"))
    return {}


def rewrite(job: RewriteJob, console: Console, quiet: bool) -> RewriteReport:
    """Do a job, or what is missing of it.

    Args:
        job: What to ask whom.
        console: For notes and the progress bar.
        quiet: Neither.

    Raises:
        UserError: Data, teacher or judge cannot be had, or another run has the output.
        StepError: The process that asks ended without a report.
        Stopped: A signal asked for an end; replies that were on their way are kept.
    """
    check_out(job)
    worker = subprocess.Popen(COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
    assert worker.stdin is not None and worker.stdout is not None
    stdin = worker.stdin

    def note(text: str) -> None:
        if not quiet:
            console.print(text, highlight=False, markup=False, soft_wrap=True)

    def let_go() -> None:
        note("waiting for the replies that are on their way; a second signal ends at once")
        stdin.close()

    report, failed = None, None
    with worker, _signals(let_go, lambda: os.killpg(worker.pid, signal.SIGKILL)) as seen:
        with suppress(BrokenPipeError):
            stdin.write(job.model_dump_json().encode() + b"\n")
            stdin.flush()
        with row_progress("rewriting", console, quiet) as progress:
            for line in worker.stdout:
                said = _message(line)
                if "progress" in said:
                    done, of = said["progress"]
                    progress(done / of, done)
                elif "note" in said:
                    note(said["note"])
                elif "error" in said:
                    failed = StepError(said["error"]) if said["step"] else UserError(said["error"])
                elif "report" in said:
                    report = RewriteReport.model_validate(said["report"])
        code = worker.wait()
    if failed is not None:
        raise failed
    if seen:
        finished = (
            "" if report is None else f" with {report.n_rows - report.states['open']} of {report.n_rows} rows done"
        )
        raise Stopped(seen[0], f"stopped{finished}")
    if report is None:
        raise StepError(
            f"the process that asks the teacher ended with {code} and without a report; replies are kept in "
            f"{str(job.log_path)!r}: run the same command again"
        )
    return report
