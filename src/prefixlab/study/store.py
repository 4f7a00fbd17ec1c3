"""The run folder: steps that are written whole or not at all.

A step writes into a temporary folder beside its place, last of all its DONE marker, which lists every file with size
and sha256; then the folder is renamed into place. One without DONE, or whose files differ from it, is not done.
Only this package knows run folders.
"""

import errno
import fcntl
import hashlib
import json
import os
import shutil
import socket
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Literal

import yaml

from prefixlab.config import Study
from prefixlab.errors import UserError
from prefixlab.records import Record

DONE = "DONE"
SCRATCH = ".writing-"
State = Literal["done", "missing", "broken"]
LOOKS = (0.02, 0.1, 0.2)
"""Pauses between tries to get the lock: who only looks whether it is held (`Store.in_use`) has it for a moment."""


class Marker(Record):
    """Content of a DONE file."""

    id: str
    seconds: float
    files: dict[str, tuple[int, str]]
    """Path below the step -> (bytes, sha256)."""


def digest(path: Path) -> str:
    """sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_text(path: Path, text: str) -> None:
    """Replace a file in one move, so that a reader never sees half of it."""
    scratch = path.with_name(f".{path.name}.new")
    with scratch.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(path)


@contextmanager
def disk_may_be_full(root: Path) -> Iterator[None]:
    """Turn a full disk into one line, also where a library (safetensors, Arrow) says so in words only.

    Raises:
        UserError: No space left.
    """
    try:
        yield
    except Exception as error:
        coded = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        # torch.save does not say why a write failed.
        unsaid = "PytorchStreamWriter" in str(error) and shutil.disk_usage(root).free < 1 << 24
        if coded or unsaid or "No space left on device" in str(error):
            raise UserError(
                f"no space left on the disk of {str(root)!r}; free some and run again: finished steps are kept"
            ) from error
        raise


@contextmanager
def held(lock: IO[str], folder: Path) -> Iterator[None]:
    """Hold an open file's lock; it goes with the process, however it ends. The file says who has it.

    Raises:
        UserError: Another process holds it, or the file system has no locks.
    """
    for pause in (*LOOKS, None):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError as error:
            if pause is None:
                holder = ""
                with suppress(OSError):
                    holder = Path(lock.name).read_text(encoding="utf-8")
                who = f" ({holder})" if holder else ""
                raise UserError(
                    f"run folder {str(folder)!r} is in use by another run{who}; wait for it or choose another --out"
                ) from error
            time.sleep(pause)
        except OSError as error:  # ENOLCK, ENOSYS: NFS without its lock service, Lustre without -o flock
            raise UserError(
                f"the file system of {str(folder)!r} has no file locks ({error.strerror}), which keep two runs apart; "
                "mount it with locks or choose another --out"
            ) from error
    lock.truncate(0)
    lock.write(f"process {os.getpid()} on {socket.gethostname()}")
    lock.flush()
    yield


class Store:
    """One run folder, held by at most one process at a time."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.steps = root / "steps"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder; the lock goes with the process, however it ends.

        Raises:
            UserError: Another run holds it, or the folder cannot be written.
        """
        try:
            self.steps.mkdir(parents=True, exist_ok=True)
            # Not "w": what the holder says of itself must stay.
            lock: IO[str] = (self.root / ".lock").open("a")
        except OSError as error:
            raise UserError(f"run folder {str(self.root)!r} cannot be written: {error.strerror}") from error
        with lock, held(lock, self.root):
            yield

    def in_use(self) -> bool:
        """Whether a process holds the folder."""
        try:
            lock = (self.root / ".lock").open()
        except OSError:
            return False
        with lock:  # closing it lets go of it
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    def adopt(self, study: Study) -> list[str]:
        """Make this folder the study's, or check that it is. A changed study is kept once its plan is made (`keep`).

        Returns:
            Top-level keys that changed since the last run of the same study; empty for a new or unchanged one.

        Raises:
            UserError: The folder belongs to another study, or holds something else.
        """
        path = self.root / "study.yaml"
        wanted = study.model_dump(mode="json")
        if not path.exists():
            foreign = [p.name for p in self.root.iterdir() if p.name != "steps" and not p.name.startswith(".")]
            if foreign or any(self.steps.iterdir()):
                raise UserError(
                    f"folder {str(self.root)!r} has files but no study.yaml ({', '.join(foreign) or 'steps'}); "
                    "choose another --out"
                )
            self.keep(study)
            return []
        try:
            found = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UserError(f"{path} is damaged; restore it or choose another --out") from error
        name = found.get("name") if isinstance(found, dict) else None
        if name != study.name:
            raise UserError(
                f"run folder {str(self.root)!r} belongs to study {name!r}, not {study.name!r}; choose another --out"
            )
        return sorted(k for k in {*wanted, *found} if wanted.get(k) != found.get(k))

    def keep(self, study: Study) -> None:
        """Write study.yaml."""
        text = yaml.safe_dump(study.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        write_text(self.root / "study.yaml", text)

    def folder(self, slug: str) -> Path:
        """Where a step lives."""
        return self.steps / slug

    def marker(self, slug: str) -> Marker | None:
        """The DONE marker, or None where there is none that can be read."""
        try:
            return Marker.model_validate(json.loads((self.folder(slug) / DONE).read_text(encoding="utf-8")))
        except (OSError, ValueError):
            return None

    def state(self, slug: str) -> State:
        """Whether a step is done, not there, or there but not as its marker says."""
        folder = self.folder(slug)
        if not folder.exists():
            return "missing"
        marker = self.marker(slug)
        if marker is None:
            return "broken"
        for name, (size, sha) in marker.files.items():
            file = folder / name
            if not file.is_file() or file.stat().st_size != size or digest(file) != sha:
                return "broken"
        return "done"

    @contextmanager
    def writing(self, slug: str, step_id: str, attempt: str = "") -> Iterator[Path]:
        """A temporary folder that becomes the step when the block ends without an error.

        Args:
            slug: Of the step.
            step_id: Of the step.
            attempt: Where other machines may be at the same step, a name that none of them has: what a lost one left
                half-written is not touched.
        """
        scratch = self.steps / f"{SCRATCH}{slug}{attempt and f'-{attempt}'}"
        shutil.rmtree(scratch, ignore_errors=True)
        started = time.perf_counter()
        try:
            scratch.mkdir(parents=True)
            yield scratch
            files = {
                str(f.relative_to(scratch)): (f.stat().st_size, digest(f))
                for f in sorted(scratch.rglob("*"))
                if f.is_file()
            }
            marker = Marker(id=step_id, seconds=time.perf_counter() - started, files=files)
            write_text(scratch / DONE, marker.model_dump_json(indent=1) + "\n")
            self._place(scratch, slug, step_id)
            shutil.rmtree(self.resume_folder(slug), ignore_errors=True)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def _place(self, scratch: Path, slug: str, step_id: str) -> None:
        """Move a whole step into its place, in one move; of two tries at it the first that comes here counts."""
        damaged = scratch.with_name(f"{scratch.name}-damaged")
        while True:
            try:
                scratch.rename(self.folder(slug))
                return
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
            if self.finished(slug, step_id):
                return
            with suppress(FileNotFoundError):  # another try was quicker to move it away
                self.folder(slug).rename(damaged)
            shutil.rmtree(damaged, ignore_errors=True)

    def finished(self, slug: str, step_id: str) -> bool:
        """Whether a step is done, as this id and undamaged."""
        marker = self.marker(slug)
        return marker is not None and marker.id == step_id and self.state(slug) == "done"

    def resume_folder(self, slug: str) -> Path:
        """Where a step keeps what must outlive a kill; removed once the step is done."""
        return self.root / "checkpoints" / slug

    def sweep_checkpoints(self, slugs: Collection[str]) -> None:
        """Remove checkpoints of steps that the plan no longer has."""
        for left in (self.root / "checkpoints").glob("*"):
            if left.name not in slugs:
                shutil.rmtree(left, ignore_errors=True)

    def sweep(self) -> None:
        """Remove what killed runs left half-written."""
        for left in self.steps.glob(f"{SCRATCH}*"):
            shutil.rmtree(left, ignore_errors=True)
