"""One process of several that train a cell: started by torchrun, see launch.py. Not for people to call."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from prefixlab.data.chat import chat_format, padding_id
from prefixlab.errors import StepError, Stopped, UserError
from prefixlab.model.load import load_model, load_tokenizer
from prefixlab.model.trainer import StopRequest
from prefixlab.study.cell import TrainJob, train_cell
from prefixlab.study.launch import Progress, Result
from prefixlab.study.store import write_text

LOOK = 0.5
"""Seconds between looks whether the parent is still there."""


def _end_with_parent(place: Path) -> None:
    """End this process as soon as the parent, or the folder it made for us, is gone."""
    parent = int((place / "parent").read_text())

    def watch() -> None:
        while (place / "job.json").exists() and Path(f"/proc/{parent}").exists():
            time.sleep(LOOK)
        os._exit(1)

    if Path("/proc/self").exists():
        threading.Thread(target=watch, daemon=True).start()


class _FileStop(StopRequest):
    """A request that comes as a file from the parent, who takes the signals."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self._file = file

    @contextmanager
    def listening(self) -> Iterator[StopRequest]:
        """Leave signals as they are."""
        yield self

    def look(self) -> None:
        if self.signal is None and self._file.exists():
            self.signal = int(self._file.read_text() or signal.SIGTERM)


def work(job_file: Path) -> None:
    """Do this process's share of the job."""
    job = TrainJob.model_validate_json(job_file.read_text(encoding="utf-8"))
    place, first = job_file.parent, os.environ["RANK"] == "0"
    world = int(os.environ["WORLD_SIZE"])
    result = Result(kind="done")
    _end_with_parent(place)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    try:
        if world != job.hardware.processes:
            raise StepError(f"{job.hardware.processes} training processes were asked for, but there are {world}")
        threads = max(1, job.hardware.threads // world)
        if job.hardware.device == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        model = load_model(job.model, job.hardware.model_copy(update={"threads": threads}))
        tokenizer = load_tokenizer(job.model)
        chat = chat_format(tokenizer)
        stop = _FileStop(place / "stop")

        def tick(step: int, steps: int) -> None:
            stop.look()
            if first:
                write_text(place / "progress.json", Progress(step=step, steps=steps).model_dump_json())

        train_cell(
            job,
            model,
            tokenizer,
            chat,
            padding_id(tokenizer, chat),
            tick=tick,
            stop=stop,
            first=first,
        )
    except StepError as error:
        result = Result(kind="step error", message=str(error))
    except UserError as error:
        result = Result(kind="user error", message=str(error))
    except Stopped as error:
        result = Result(kind="stopped", message=str(error), signal=error.signal)
    if first or result.kind in ("step error", "user error"):
        write_text(place / "result.json", result.model_dump_json())
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    raise SystemExit(0 if result.kind in ("done", "stopped") else 1)


if __name__ == "__main__":
    work(Path(sys.argv[1]))
