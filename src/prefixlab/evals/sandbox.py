"""Runs an untrusted Python program to its last line, or not, in a process that can be killed.

`run_program(source)` is 'passed' only if the source ran to its last line without an exception, within the limits. What
holds the program depends on the machine, is tried once with a real call, and `isolation()` says which it is:

- 'bubblewrap': namespaces of its own, no network, and a file system that holds the system's programs, the interpreter
  and its packages, all read-only, and one empty folder.
- 'namespaces' (util-linux `unshare`): no network, a read-only view of the whole machine in which home, /tmp and /run
  are empty.
- 'limits only': resource limits, and a filter that denies sockets, signals to other processes and leaving the process
  group. The program reads and writes what its user may; where we are root, that is a user without any rights.

As root the program runs under a user id that nobody else has, so that its number of processes can be limited and
everything it left can be ended. In a pid namespace the end of its first process ends all others.

A pass needs a random token, which the process that runs the program sends only when the last line is done. So exiting
early, printing any marker, writing to any file or killing the parent is no pass. What this does not stop:

- code that searches its own interpreter for the token (frames, garbage collector, trace functions) or patches what the
  tests use, e.g. a class whose instances equal everything: program and tests share one interpreter;
- a bug of the kernel;
- reading what every user may read, under 'namespaces' and 'limits only'; writing the user's own files under
  'limits only' without root;
- using up to `processes` processors for `seconds`.

The limits hold for all processes together, but `file_mb` for each file (all files together: four times that, except
under 'limits only'), and memory is counted twenty times a second (one process alone never exceeds it). Output is
counted and thrown away. `seconds` is wall time, so a program near the limit may pass on an idle machine and not on a
busy one.
"""

import contextlib
import itertools
import marshal
import os
import secrets
import select
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from prefixlab.records import Record

RunStatus = Literal["passed", "failed", "timeout", "memory", "killed", "error"]
"""How a program ended; 'error': the sandbox itself could not run it, which says nothing about the program."""
Isolation = Literal["bubblewrap", "namespaces", "limits only"]

_CHILD = Path(__file__).with_name("sandbox_child.py")
# Undocumented, but nothing else names the interpreter behind a virtual environment.
_PYTHON = Path(os.path.realpath(sys._base_executable))  # type: ignore[attr-defined]
_PREFIX = sys.base_prefix
_PACKAGES = sysconfig.get_path("purelib")
_FOLDER = "/tmp/work"
"""The program's folder, where it has a file system of its own."""
_ROOM = 4
"""All files of a program together, as a multiple of the largest one."""
_GRACE = 30.0
"""Seconds beyond the limit until a sandbox that does not answer is given up."""
_ANSWER = 65_536
"""Bytes that are read of the sandbox's answer."""
_ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "LANG": "C.UTF-8",
    "TZ": "UTC",
    # Sets of strings have one order, so a verdict does not depend on chance.
    "PYTHONHASHSEED": "0",
    # One thread each, since threads count as processes.
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}


class Limits(Record):
    """What one program may use."""

    seconds: float = 15.0
    """Wall time, from its first line."""
    memory_mb: int = 2048
    """Address space of a process, and memory of all of them."""
    processes: int = 32
    """Processes and threads."""
    file_mb: int = 16
    """Size of one file."""
    output_kb: int = 64
    """Standard output and error together."""


DEFAULT_LIMITS = Limits()


class Ran(Record):
    """How a program ended."""

    status: RunStatus
    detail: str
    """The error's last line, short; empty for a pass."""
    seconds: float
    """Wall time of the program, without the start of the sandbox."""


@dataclass(frozen=True)
class _Way:
    """One way to hold a program; `own_user`: under a user id of its own, which takes root."""

    isolation: Isolation
    own_user: bool


_numbers = itertools.count()
_lock = threading.Lock()
_chosen: list[_Way] = []


def isolation() -> Isolation:
    """What holds the programs here."""
    return _way().isolation


def run_program(source: str, limits: Limits = DEFAULT_LIMITS) -> Ran:
    """Run a program to its end or to its limits; may be called from several threads.

    The program sees no input, no arguments and an empty folder as the current one; its name is not `__main__`. The
    standard library and the installed packages can be imported.
    """
    return _run(_way(), source, limits)


def _ways() -> Iterator[_Way]:
    """Every way that may work here, the strongest first."""
    tools: dict[Isolation, str] = {"bubblewrap": "bwrap", "namespaces": "unshare"}
    for kind, tool in tools.items():
        if shutil.which(tool):
            if os.geteuid() == 0:
                yield _Way(kind, True)
            yield _Way(kind, False)


def _way() -> _Way:
    """The first way that runs a program; tried once."""
    with _lock:
        if not _chosen:
            working = (way for way in _ways() if _run(way, "import ctypes", DEFAULT_LIMITS).status == "passed")
            _chosen.append(next(working, _Way("limits only", os.geteuid() == 0)))
        return _chosen[0]


def _free_user() -> int:
    """A user id for one program, from the range that systemd too gives to short-lived services (61184 to 65519)."""
    block, number = os.getpid() % 67, next(_numbers) % 64
    return 61184 + block * 64 + number


def _command(way: _Way, limits: Limits) -> list[str]:
    """The call that starts sandbox_child.py inside the isolation."""
    # No site, no user site, no byte code, and no folder of the script on the path.
    python = [str(_PYTHON), "-S", "-s", "-B", "-P", str(_CHILD)]
    if way.isolation == "limits only":
        return python
    room = str(limits.file_mb * _ROOM << 20)
    if way.isolation == "namespaces":
        user = [] if way.own_user else ["--user", "--map-root-user"]
        spaces = ["--pid", "--fork", "--kill-child", "--mount-proc", "--net", "--ipc", "--uts", "--cgroup"]
        return ["unshare", *user, "--mount", *spaces, *python]
    command = ["bwrap", "--die-with-parent", "--as-pid-1", "--new-session", "--unshare-pid", "--unshare-net"]
    command += ["--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]
    if way.own_user:
        command += ["--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    else:
        command += ["--unshare-user"]
    for folder in ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/nix/store", "/etc/ld.so.cache"):
        command += ["--ro-bind-try", folder, folder]
    command += ["--proc", "/proc", "--dev", "/dev"]
    command += ["--perms", "1777", "--size", room, "--tmpfs", "/dev/shm", "--remount-ro", "/dev"]
    command += ["--perms", "1777", "--size", room, "--tmpfs", "/tmp", "--perms", "0777", "--dir", _FOLDER]
    for path in (_PREFIX, _PACKAGES, str(_CHILD)):
        # bwrap gives a folder that it has to make the rights of the original, e.g. none to others for root's home.
        for parent in reversed(Path(path).parents[:-1]):
            command += ["--perms", "0755", "--dir", str(parent)]
        command += ["--ro-bind", path, path]
    return [*command, "--remount-ro", "/", "--", *python]


def _order(way: _Way, source: str, limits: Limits, folder: str, user: int | None) -> bytes:
    order = {
        "source": source,
        "token": secrets.token_hex(16),
        "isolation": way.isolation,
        "user": user,
        "folder": folder,
        "home": os.path.realpath(os.path.expanduser("~")),
        "readable": [_PREFIX, _PACKAGES],
        "room_mb": limits.file_mb * _ROOM,
    }
    return marshal.dumps(order | limits.model_dump())


def _run(way: _Way, source: str, limits: Limits) -> Ran:
    user = _free_user() if way.own_user else None
    with contextlib.ExitStack() as stack:
        folder = _FOLDER
        if way.isolation == "limits only":
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="sandbox-", ignore_cleanup_errors=True))
            if user is not None:
                os.chown(folder, user, user)
        errors = stack.enter_context(tempfile.TemporaryFile())
        environment = _ENVIRONMENT | {"HOME": folder}
        try:
            process = subprocess.Popen(
                _command(way, limits),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
                cwd="/",
                start_new_session=True,
            )
        except OSError as error:
            return Ran(status="error", detail=str(error), seconds=0.0)
        answer = _answer(process, _order(way, source, limits, folder, user), limits.seconds + _GRACE)
        try:
            status, seconds, detail = f"{answer} ".split(" ", 2)
            return Ran.model_validate({"status": status, "seconds": float(seconds), "detail": detail.strip()})
        except ValueError:
            errors.seek(0)
            lines = errors.read(_ANSWER).decode("utf-8", "replace").strip().splitlines()
            detail = lines[-1][:300] if lines else "the sandbox gave no answer"
            return Ran(status="error", detail=detail, seconds=0.0)


def _answer(process: "subprocess.Popen[bytes]", order: bytes, seconds: float) -> str:
    """Send the order, read one line; every process is gone when this returns.

    Standard input stays open until then: its end tells the sandbox that we died.
    """
    assert process.stdin and process.stdout
    end, answer = time.monotonic() + seconds, b""
    try:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(order)
            process.stdin.flush()
        poll = select.poll()
        poll.register(process.stdout, select.POLLIN)
        while (left := end - time.monotonic()) > 0 and len(answer) < _ANSWER:
            if poll.poll(left * 1000):
                chunk = os.read(process.stdout.fileno(), _ANSWER)
                answer += chunk
                if not chunk or chunk.endswith(b"\n"):
                    break
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=max(1.0, end - time.monotonic()))
    finally:
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        process.stdout.close()
    return answer.split(b"\n", 1)[0].decode("utf-8", "replace")
