"""One worker process of a cluster: looks whether its node can do a study's steps, and does them as `Bench` does.

Knows nothing of Ray: `ray_executor.py` makes an actor of `Host` and a task of `look`.
"""

import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefixlab.config import Study
from prefixlab.errors import StepError, Stopped, UserError
from prefixlab.records import ModelRef, Record
from prefixlab.study.progress_file import BEAT
from prefixlab.study.schedule import base_of
from prefixlab.study.steps import Step, installed
from prefixlab.study.store import Store, disk_may_be_full

if TYPE_CHECKING:
    from prefixlab.model.trainer import StopRequest
    from prefixlab.study.launch import Result
    from prefixlab.study.stages import Bench

VISIBLE = 60.0
"""Seconds that a file written on another machine may take to show on this one."""
PASSED_ON = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "TOKENIZERS_PARALLELISM")
"""Variables of the command's environment that its workers get too; no secret is among them."""
HOLDER = "held-by"
"""File beside a step's checkpoints that names the try that may write there."""


class NodeReport(Record):
    """What a node is, as its own Python sees it."""

    host: str
    versions: dict[str, str]
    gpus: tuple[tuple[str, int], ...]
    """Name and bytes of each GPU."""
    trouble: str
    """Why the run folder, a model or a file cannot be used there; empty where all can."""
    locked: bool
    """Whether the lock that the driver has on the run folder keeps a run on this node out."""


def look(
    root: str,
    token: str,
    cwd: str,
    files: Sequence[str],
    models: Sequence[dict[str, Any]],
    gpus: bool,
    offline: bool,
) -> str:
    """Look at this node; a `NodeReport` as JSON.

    Args:
        root: Run folder.
        token: What the driver wrote into RUN/.probe-<token>.
        cwd: Where the driver runs; relative paths of the study start there.
        files: What the study reads, as it names it.
        models: The plan's models.
        gpus: Whether models run on GPUs.
        offline: Whether workers may not ask the hub.
    """
    trouble = _shared(Path(root), token) or _files(Path(cwd), files) or _models(models, offline)
    report = NodeReport(
        host=socket.gethostname(),
        versions=installed(),
        gpus=_gpus() if gpus else (),
        trouble=trouble,
        locked=_locked(Path(root)),
    )
    return report.model_dump_json()


def _locked(root: Path) -> bool:
    try:
        return Store(root).in_use()
    except OSError:  # no locks at all
        return False


def _gpus() -> tuple[tuple[str, int], ...]:
    os.environ.pop("CUDA_VISIBLE_DEVICES", None)  # Ray hides all GPUs from a task that asks for none
    import torch  # noqa: PLC0415  (only where GPUs count)

    found = (torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count()))
    return tuple((p.name, p.total_memory) for p in found)


def _shared(root: Path, token: str) -> str:
    """Whether this node reads what the driver wrote into the run folder and can write there."""
    try:
        if (root / f".probe-{token}").read_text() != token:
            return f"run folder {str(root)!r} is another folder there"
        answer = root / f".probe-{token}-{socket.gethostname()}-{os.getpid()}"
        answer.write_text(token)
        answer.unlink()
    except OSError as error:
        return f"run folder {str(root)!r} is not shared with it ({error.strerror})"
    return ""


def _files(cwd: Path, files: Sequence[str]) -> str:
    missing = next((f for f in files if not (cwd / Path(f).expanduser()).exists()), "")
    return missing and f"{missing!r} of the study is not there (looked for it from {str(cwd)!r})"


def _models(models: Sequence[dict[str, Any]], offline: bool) -> str:
    try:
        for ref in map(ModelRef.model_validate, models):
            at_home(ref)
            if offline and ref.revision is not None and not _cached(ref):
                from prefixlab.data.hub import fetching  # noqa: PLC0415  (only for models of the hub)

                return (
                    f"model {ref.name!r} is not in its Hugging Face cache, and HF_HUB_OFFLINE keeps it from asking: "
                    f"{fetching(ref.path, 'model', ref.revision)}, there"
                )
    except UserError as error:
        return str(error)
    return ""


def _cached(ref: ModelRef) -> bool:
    from huggingface_hub import snapshot_download  # noqa: PLC0415  (only for models of the hub)
    from huggingface_hub.errors import LocalEntryNotFoundError  # noqa: PLC0415

    try:
        folder = snapshot_download(ref.path, revision=ref.revision, local_files_only=True)
    except LocalEntryNotFoundError:
        return False
    return any(Path(folder).glob("*.safetensors"))


def at_home(ref: ModelRef) -> ModelRef:
    """The same model where this machine has it.

    Raises:
        UserError: It is not here, or is another one.
    """
    if ref.revision is not None or Path(ref.path).is_dir():
        return ref
    from prefixlab.model.load import resolve_model  # noqa: PLC0415  (torch)

    found = resolve_model(ref.name)
    if found.fingerprint != ref.fingerprint:
        raise UserError(f"model {ref.name!r} has other weights on {socket.gethostname()} than where the plan was made")
    return found


def _stop_file(file: Path) -> "tuple[StopRequest, Callable[[], None]]":
    """A request that comes as a file from the driver, who takes the signals; and what looks for it."""
    from prefixlab.model.trainer import StopRequest  # noqa: PLC0415  (torch)

    class FileStop(StopRequest):
        @contextmanager
        def listening(self) -> Iterator["StopRequest"]:
            yield self

    request = FileStop()

    def look() -> None:
        if request.signal is None:
            with suppress(OSError, ValueError):
                request.signal = int(file.read_text())

    return request, look


class Host:
    """Does steps in this process; the base of the last one stays loaded."""

    def __init__(
        self,
        root: str,
        study: Study,
        name: str,
        cwd: str,
        variables: Mapping[str, str],
        stop_file: str,
        told: Callable[[str, float], None],
    ) -> None:
        """Load the libraries.

        Args:
            root: Run folder.
            study: Of the run.
            name: The plan's.
            cwd: Where the driver runs; taken as this process's folder too where it exists.
            variables: For the environment, before a library reads it.
            stop_file: Holds a signal's number once an end is asked for.
            told: Hears (slug, share) every few seconds.
        """
        os.environ.update({"TOKENIZERS_PARALLELISM": "false", **variables})
        if Path(cwd).is_dir():
            os.chdir(cwd)
        from prefixlab.study.execute import conditions_of  # noqa: PLC0415
        from prefixlab.study.stages import Bench  # noqa: PLC0415  (torch, Inspect)

        self._store, self._told = Store(Path(root)), told
        stop, self._look_for_stop = _stop_file(Path(stop_file))
        conditions = conditions_of(study, name, self._store, stop)
        self._new_bench: Callable[[], Bench] = lambda: Bench(self._store.folder, conditions)
        self._bench, self._base = self._new_bench(), ""

    def do(self, step: Step, attempt: str) -> "Result":
        """Do one step and write it.

        Args:
            step: Its inputs are done.
            attempt: A name that no other try at it has.
        """
        from prefixlab.study.launch import Result  # noqa: PLC0415  (torch)

        if self._store.finished(step.slug, step.id):  # by a try that was taken for lost
            return Result(kind="done")
        last = time.monotonic()

        def tick(share: float) -> None:
            nonlocal last
            self._look_for_stop()
            if time.monotonic() - last >= BEAT:
                last = time.monotonic()
                self._leave_if_replaced(step, attempt)
                self._told(step.slug, share)

        try:
            self._wait_for(step)
            with (
                disk_may_be_full(self._store.root),
                self._holding(step, attempt),
                self._store.writing(step.slug, step.id, attempt) as folder,
            ):
                self._bench_for(step).run(self._here(step), folder, tick)
        except StepError as error:
            return Result(kind="step error", message=str(error))
        except UserError as error:
            return Result(kind="user error", message=str(error))
        except Stopped as stop:
            return Result(kind="stopped", message=str(stop), signal=stop.signal)
        return Result(kind="done")

    def _bench_for(self, step: Step) -> "Bench":
        """The bench, emptied when another base comes: a node has room for one base a worker, the largest."""
        from prefixlab.model.machine import return_device_memory  # noqa: PLC0415  (torch)

        base = base_of(step)
        if base and base != self._base:
            if self._base:
                self._bench.close()
                self._bench = self._new_bench()
                return_device_memory()
            self._base = base
        return self._bench

    @contextmanager
    def _holding(self, step: Step, attempt: str) -> Iterator[None]:
        """Have the step's checkpoints for this try."""
        file = self._store.resume_folder(step.slug) / HOLDER
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(attempt)
        try:
            yield
        finally:
            with suppress(OSError):  # gone with the step's end; or there are checkpoints, which stay
                if file.read_text() == attempt:
                    file.unlink()
                    file.parent.rmdir()

    def _leave_if_replaced(self, step: Step, attempt: str) -> None:
        """End this process if another worker has the step: then this one was taken for lost, and nobody listens.

        A node that the cluster lost sight of may go on for a minute; two tries must not write the same checkpoints.
        """
        try:
            holder = (self._store.resume_folder(step.slug) / HOLDER).read_text()
        except FileNotFoundError:
            holder = ""
        except OSError:  # the file system is in trouble: nothing is known
            return
        if holder != attempt:
            os._exit(1)

    def _wait_for(self, step: Step) -> None:
        """Wait until this node sees the steps that are needed: network file systems show new files late."""
        end = time.monotonic() + VISIBLE
        for slug in (*step.inputs.values(), *step.after):
            while self._store.marker(slug) is None:
                if time.monotonic() > end:
                    where = f"{str(self._store.folder(slug))!r} does not show on {socket.gethostname()}"
                    raise StepError(f"{where} {VISIBLE:.0f} s after it was written; is the run folder shared?")
                time.sleep(0.1)

    def _here(self, step: Step) -> Step:
        """The step with models where this machine has them; its id knows no paths."""
        models = {
            k: at_home(ModelRef.model_validate(step.config[k])) for k in ("model", "tokenizer") if k in step.config
        }
        found = {k: ref.model_dump(mode="json") for k, ref in models.items()}
        return step.model_copy(update={"config": {**step.config, **found}}) if found else step
