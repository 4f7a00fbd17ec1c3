"""The inner half of sandbox.py: runs one untrusted program and tells how it ended.

A script, started inside the isolation with one marshalled dict on standard input. The supervisor forks the process that
runs the program, counts its output and the memory of its processes, and writes one line on standard output: status,
seconds, detail. In a pid namespace it is process 1, whose end ends every other process there. The end of standard input
means that the caller died, and ends the program too.

It starts once a program, so it imports little (json, signal, contextlib and typing took half of its time). It is longer
than other files because it has to be one file: of our package the isolation shows the program this one alone.
"""

from __future__ import annotations

import builtins
import ctypes
import marshal
import os
import resource
import select
import struct
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_TICK = 0.05
"""Seconds between two counts of processes and memory."""
_REPORT = 16_384
"""Bytes of the program's report that are read."""
_SIGKILL = 9
_PDEATHSIG, _DUMPABLE, _SECCOMP, _SUBREAPER, _NO_NEW_PRIVS = 1, 4, 22, 36, 38  # linux/prctl.h
# Signals to others, tracing, leaving the process group, sockets and io_uring, which opens them too (linux/unistd.h).
# Under 'limits only' nothing else stands between the program and the user's other processes and the network.
_DENIED = {
    "x86_64": (0xC000003E, (41, 62, 101, 109, 112, 129, 200, 234, 297, 310, 311, 424, 425)),
    "aarch64": (0xC00000B7, (117, 129, 130, 131, 138, 154, 157, 198, 240, 270, 271, 424, 425)),
}

_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")


def _prctl(option: int, value: int) -> None:
    _checked(_libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0), f"prctl {option}")


# ---------------------------------------------------------------------------------------------------- isolation


def _mount(source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
    name = kind.encode() if kind else None
    _checked(_libc.mount(source.encode(), target.encode(), name, flags, options.encode()), f"mount {target}")


def _enclose(order: dict[str, Any]) -> None:
    """In a fresh mount namespace: everything read-only, and an empty home, /tmp and /run.

    What the interpreter needs is bound back where one of these hid it.
    """
    attributes = struct.pack("QQQQ", 1, 0, 0, 0)  # set MOUNT_ATTR_RDONLY
    at_cwd, recursive, mount_setattr = -100, 0x8000, 442
    _checked(_libc.syscall(mount_setattr, at_cwd, b"/", recursive, attributes, len(attributes)), "read-only view")
    kept = {path: os.open(path, os.O_PATH) for path in order["readable"]}
    nosuid_nodev = 2 | 4
    for path in ("/tmp", "/dev/shm", "/run", order["home"]):
        if os.path.isdir(path) and path != "/":
            shared = path in ("/tmp", "/dev/shm")
            size = f"size={order['room_mb']}m,mode=1777" if shared else "size=64k,mode=755"
            _mount("tmpfs", path, "tmpfs", nosuid_nodev, size)
    bind_recursive = 4096 | 16384
    for path, fd in kept.items():
        if not os.path.exists(path):
            os.makedirs(path)
            _mount(f"/proc/self/fd/{fd}", path, None, bind_recursive)
        os.close(fd)
    os.makedirs(order["folder"])
    os.chmod(order["folder"], 0o777)


def _drop(user: int | None) -> None:
    """Become `user`, or give up every capability; neither can be undone by the program."""
    if user is not None:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    else:
        header = struct.pack("Ii", 0x20080522, 0)
        _checked(_libc.capset(header, struct.pack("6I", 0, 0, 0, 0, 0, 0)), "capset")
    _prctl(_NO_NEW_PRIVS, 1)


def _filter_calls() -> None:
    """Deny the system calls of _DENIED for good, with EPERM."""
    machine = os.uname().machine
    if machine not in _DENIED:
        raise OSError(f"without namespaces a sandbox needs x86_64 or aarch64, not {machine}")
    arch, denied = _DENIED[machine]
    load, equal, at_least, give = 0x20, 0x15, 0x35, 0x06
    allow, refuse, kill = 0x7FFF0000, 0x00050000 | 1, 0x80000000
    n = len(denied)
    lines = [(load, 0, 0, 4), (equal, 1, 0, arch), (give, 0, 0, kill), (load, 0, 0, 0), (at_least, n + 1, 0, 1 << 30)]
    lines += [(equal, n - i, 0, number) for i, number in enumerate(denied)]
    lines += [(give, 0, 0, allow), (give, 0, 0, refuse)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in lines))
    program = struct.pack("HxxxxxxP", len(lines), ctypes.addressof(code))
    _checked(_libc.prctl(_SECCOMP, 2, program, 0, 0), "seccomp")


def _own_tasks() -> int:
    """Threads of this user that can be seen: RLIMIT_NPROC counts them all."""
    total = 0
    for name in os.listdir("/proc"):
        try:
            if name.isdigit() and os.stat(f"/proc/{name}").st_uid == os.getuid():
                total += len(os.listdir(f"/proc/{name}/task"))
        except OSError:
            continue  # it has ended meanwhile
    return total


def _limit(order: dict[str, Any]) -> None:
    others = 0 if order["user"] is not None else _own_tasks()
    wanted = {
        resource.RLIMIT_AS: order["memory_mb"] << 20,
        resource.RLIMIT_FSIZE: order["file_mb"] << 20,
        resource.RLIMIT_NPROC: order["processes"] + others,
        resource.RLIMIT_NOFILE: 256,
        resource.RLIMIT_CORE: 0,
    }
    for kind, value in wanted.items():
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))
    if order["user"] is None:
        _try_process_limit()


def _try_process_limit() -> None:
    """Refuse to go on where the number of processes is not limited: for root, in whichever namespace, it is not."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NPROC)
    resource.setrlimit(resource.RLIMIT_NPROC, (1, hard))
    try:
        if os.fork() == 0:
            os._exit(0)
    except BlockingIOError:
        resource.setrlimit(resource.RLIMIT_NPROC, (soft, hard))
        return
    raise OSError("the number of processes of this user cannot be limited")


# ---------------------------------------------------------------------------------------------------- the program


def _confine(order: dict[str, Any], output: int) -> None:
    """Everything between the fork and the program's first line."""
    os.setpgid(0, 0)
    null = os.open("/dev/null", os.O_RDWR)
    for fd, target in ((null, 0), (output, 1), (output, 2)):
        os.dup2(fd, target)
    _limit(order)
    _drop(order["user"])
    if not os.access(os.path.join(sys.base_prefix, "lib"), os.R_OK | os.X_OK):
        raise OSError(f"the interpreter in {sys.base_prefix} is not readable for other users than its owner")
    if order["isolation"] == "limits only":
        _prctl(_PDEATHSIG, _SIGKILL)
        _filter_calls()
    _prctl(_DUMPABLE, 1)
    sys.path[:] = [*sys.path, *order["readable"][1:]]
    sys.argv[:] = ["program"]


def _describe(error: BaseException, source: str) -> str:
    """The error's last line; for one without a message also the line of the program that raised it."""
    text = str(error).strip().splitlines()
    name = type(error).__name__
    if text:
        return f"{name}: {text[-1]}"[:300]
    line, trace = 0, error.__traceback__
    while trace:
        line = trace.tb_lineno if trace.tb_frame.f_code.co_filename == "<program>" else line
        trace = trace.tb_next
    lines = source.split("\n")
    return f"{name} at line {line}: {lines[line - 1].strip()}"[:300] if 0 < line <= len(lines) else name


def _outcome(source: str) -> tuple[str, str]:
    """Run the program in a module of its own: status and detail. Passed if its last line was completed.

    The module is not called `__main__`, so a demonstration under the usual guard does not run.
    """
    module = type(sys)("program")
    module.__dict__["__builtins__"] = builtins
    sys.modules["program"] = sys.modules["__main__"] = module
    try:
        exec(compile(source, "<program>", "exec", dont_inherit=True), module.__dict__)
    except MemoryError:
        return "memory", "MemoryError"
    except BaseException as error:
        try:
            return "failed", _describe(error, source)
        except BaseException:
            return "failed", "an error that cannot be shown"
    return "passed", ""


def _line(*fields: object) -> bytes:
    """Fields as one line, the last of which may hold spaces."""
    return " ".join(" ".join(map(str, fields)).split()).encode("utf-8", "backslashreplace") + b"\n"


def _program(order: dict[str, Any], report: int, output: int) -> None:
    """The forked process; a process that the program forks in turn cannot report."""
    me, getpid, write, leave, line = os.getpid(), os.getpid, os.write, os._exit, _line
    streams, token = (sys.stdout, sys.stderr), order.pop("token")
    try:
        _confine(order, output)
    except (OSError, ValueError) as error:
        write(report, line(token, "error", error))
        leave(0)
    status, detail = _outcome(order["source"])
    if getpid() != me:
        leave(3)
    for stream in streams:
        try:
            stream.flush()
        except BaseException:
            continue  # its output is not wanted, only counted
    write(report, line(token, status, detail))
    leave(0)


# ---------------------------------------------------------------------------------------------------- the supervisor


def _members(group: int, enclosed: bool) -> list[int]:
    """The program's processes: all but ourselves in a pid namespace, else those of its group, which it cannot leave."""
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    if enclosed:
        return [pid for pid in pids if pid != os.getpid()]
    found = []
    for pid in pids:
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                # the name, in brackets, may hold anything; behind it: state, parent, group
                its_group = int(file.read().rpartition(b")")[2].split()[2])
        except OSError:
            continue  # it has ended meanwhile
        if its_group == group:
            found.append(pid)
    return found


def _memory(pids: list[int]) -> int:
    """Resident bytes that are not files."""
    pages = 0
    for pid in pids:
        try:
            with open(f"/proc/{pid}/statm", "rb") as file:
                _, resident, shared = map(int, file.read().split()[:3])
        except OSError:
            continue  # it has ended meanwhile
        pages += resident - shared
    return pages * resource.getpagesize()


def _excess(order: dict[str, Any], child: int) -> tuple[str, str] | None:
    """What all processes together use too much of; RLIMIT_AS holds for each alone."""
    pids = _members(child, order["isolation"] != "limits only")
    if _memory(pids) > order["memory_mb"] << 20:
        return "memory", f"more than {order['memory_mb']} MB in all processes"
    return None


def _verdict(said: bytes, token: str) -> tuple[str, str]:
    """Status and detail of the report; only what carries the token is one."""
    line = said.split(b"\n", 1)[0].decode("utf-8", "replace")
    genuine, _, rest = line.partition(" ")
    if genuine != token:
        return "failed", "wrote a forged report"
    status, _, detail = rest.partition(" ")
    return status, detail


def _ended(child: int) -> tuple[str, str] | None:
    """How the program's first process ended; None while it runs. Reaps orphans as well."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return None
        if pid == 0:
            return None
        if pid == child and os.WIFSIGNALED(status):
            return "killed", f"ended by signal {os.WTERMSIG(status)}"
        if pid == child:
            return "failed", f"exit code {os.WEXITSTATUS(status)} before its last line"


def _read(fd: int, poll: select.poll) -> bytes:
    """What is there now; a pipe that every writer has closed is watched no longer."""
    try:
        chunk = os.read(fd, 1 << 16)
    except BlockingIOError:
        return b""
    if not chunk:
        try:  # noqa: SIM105  # contextlib would slow every start
            poll.unregister(fd)
        except KeyError:
            pass  # read again, after its end
    return chunk


def _watch(order: dict[str, Any], token: str, child: int, report: int, output: int) -> tuple[str, str]:
    """Wait for the report, the end, an excess or the time limit, whichever is first."""
    poll = select.poll()
    for fd in (0, report, output):
        os.set_blocking(fd, False)
        poll.register(fd, select.POLLIN)
    said, written, budget = b"", 0, order["output_kb"] << 10
    end, count = time.monotonic() + order["seconds"], time.monotonic() + _TICK
    while True:
        ready = {fd for fd, _ in poll.poll(_TICK * 1000)}
        now = time.monotonic()
        if 0 in ready:
            return "error", "the caller is gone"
        # In this order, so that nothing is lost of what was said before the end or written before the report.
        gone = _ended(child) if report in ready or now > count else None
        said += _read(report, poll)
        while written <= budget and (chunk := _read(output, poll)):
            written += len(chunk)
        if written > budget:
            return "killed", f"wrote more than {order['output_kb']} KB of output"
        if b"\n" in said or len(said) > _REPORT:
            return _verdict(said, token)
        if gone:
            return gone
        if now > end:
            return "timeout", f"no end within {order['seconds']:g} s"
        if now > count:
            if excess := _excess(order, child):
                return excess
            count = now + _TICK


def _end_all(order: dict[str, Any], child: int) -> None:
    """Kill and reap everything the program started; in a pid namespace our own end does that."""
    while order["isolation"] == "limits only":
        try:
            if order["user"] is None:
                os.killpg(child, _SIGKILL)
            elif (helper := os.fork()) == 0:
                _kill_all_of(order["user"])
            else:
                os.waitpid(helper, 0)
        except ProcessLookupError:
            pass  # all have ended, and are only to be reaped
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.002)


def _kill_all_of(user: int) -> None:
    """End every process of a user whom nobody else shares, this one included; no fork can outrun kill(-1)."""
    try:
        os.setresuid(user, user, user)
        os.kill(-1, _SIGKILL)
    finally:
        os._exit(0)


def main() -> None:
    """Read the order, run the program, answer."""
    order = marshal.load(sys.stdin.buffer)
    if order["isolation"] == "namespaces":
        _enclose(order)
    os.chdir(order["folder"])
    answer = os.dup(1)
    # The program may run under our own user id: keep it from our memory and from our standard output in /proc.
    _prctl(_DUMPABLE, 0)
    _prctl(_SUBREAPER, 1)
    (report, report_in), (output, output_in) = os.pipe(), os.pipe()
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        try:
            for fd in (answer, report, output):
                os.close(fd)
            _program(order, report_in, output_in)
        finally:
            os._exit(3)
    os.close(report_in)
    os.close(output_in)
    status, detail = _watch(order, order.pop("token"), child, report, output)
    seconds = time.monotonic() - start
    _end_all(order, child)
    os.write(answer, _line(status, seconds, detail))


if __name__ == "__main__":
    main()
