"""The process of `prefixlab rewrite` that asks: python -m prefixlab.study.rewrite_worker, started by rewrite_launch.py.

It reads the job as one line of its standard input, and goes on for as long as that stays open. When the command that
started it ends, however it ends, the pipe closes: it then sends nothing more, waits for the replies that are on their
way, writes them down and ends. So what is paid for is kept even if the command is killed.

What it says are JSON lines: {"note": text}, {"progress": [done, of]}, and last {"report": ...} or {"error": text}.
"""

import asyncio
import json
import os
import select
import signal
from contextlib import suppress
from typing import Any

from prefixlab.errors import StepError, UserError
from prefixlab.evals.judging import Judge
from prefixlab.evals.teacher import Teacher
from prefixlab.study.rewrite_calls import Asking
from prefixlab.study.rewrite_job import RewriteJob, RewriteReport
from prefixlab.study.rewrite_log import RewriteLog
from prefixlab.study.rewriting import (
    estimate,
    estimate_text,
    grouped,
    read_work,
    report_of,
    row_records,
    unasked,
    write_outputs,
)

PIPE = 0
LEAVING = 30
"""Seconds beside a request's own time-out that a process which is leaving may take."""
_said = 1
"""Where messages go."""


def say(**message: Any) -> None:
    """One line to the command that started this process, if it is still there."""
    with suppress(OSError):
        os.write(_said, json.dumps(message).encode() + b"\n")


def _first_line() -> bytes:
    line = b""
    while not line.endswith(b"\n") and (piece := os.read(PIPE, 1 << 16)):
        line += piece
    return line


def _alone() -> bool:
    """Whether the pipe is closed."""
    return bool(select.select([PIPE], [], [], 0)[0]) and not os.read(PIPE, 1)


def _judge(job: RewriteJob) -> Judge | None:
    if job.mode != "correct":
        return None
    # torch: seconds, and needed by judges that run here only
    from prefixlab.config import HardwareConfig  # noqa: PLC0415
    from prefixlab.evals.judges import make_judge  # noqa: PLC0415
    from prefixlab.model.machine import resolve  # noqa: PLC0415

    return make_judge(job.judge, resolve(HardwareConfig()), job.out.with_name(job.out.name + ".verdicts.sqlite"))


def teacher_of(job: RewriteJob) -> Teacher:
    """The teacher that a job names.

    Raises:
        UserError: It cannot be had.
    """
    return Teacher(
        job.teacher,
        max_tokens=job.max_tokens,
        temperature=job.temperature,
        timeout=job.timeout,
        connections=job.concurrency,
    )


async def asked(job: RewriteJob) -> RewriteReport:
    """Do the job.

    Raises:
        UserError: Data, teacher or judge cannot be had, or another run has the output.
    """
    work = read_work(job)
    groups = grouped(job, work.targets)
    for note in work.notes:
        say(note=note)
    teacher = teacher_of(job)
    judge = _judge(job)
    wait = job.timeout + LEAVING
    with RewriteLog(job.log_path, job.settings, cost=job.cost, wait=wait, tell=lambda text: say(note=text)) as log:
        left = unasked(job, groups, log)
        for note in (*log.notes(), *([estimate_text(estimate(job, left), job)] if left else [])):
            say(note=note)
        asking = Asking(job, log, teacher, judge, tell=lambda done, of: say(progress=[done, of]))
        loop = asyncio.get_running_loop()

        def heard() -> None:
            if _alone():
                loop.remove_reader(PIPE)  # a closed pipe can be read for ever
                asking.leave()

        if _alone():
            asking.leave()
        else:
            loop.add_reader(PIPE, heard)
        loop.add_signal_handler(signal.SIGTERM, asking.leave)
        outcomes = await asking.run(groups, judged=work.judged)
        loop.remove_reader(PIPE)
        rows = row_records(work, groups, outcomes, log)
        report = report_of(job, work, rows, log, asking.stopped, asking.message)
        write_outputs(job, work, outcomes, report, rows)
    return report


def main() -> None:
    """Read the job, do it, say what came of it."""
    global _said
    # What a provider's package prints must not stand between our lines.
    _said = os.dup(1)
    os.dup2(2, 1)
    try:
        report = asyncio.run(asked(RewriteJob.model_validate_json(_first_line())))
    except UserError as error:
        say(error=str(error), step=isinstance(error, StepError))
    else:
        say(report=report.model_dump(mode="json"))


if __name__ == "__main__":
    main()
