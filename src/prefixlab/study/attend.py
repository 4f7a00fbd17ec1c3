"""Runs a command for another process and ends it, with all its children, when that process is gone.

    python -m prefixlab.study.attend COMMAND [ARGUMENT ...]   (standard input: a pipe that the other process holds open)

A run that is killed cannot stop the server it has started; the closed pipe does.
"""

import os
import signal
import subprocess
import sys
import threading
import time

PATIENCE = 20.0
"""Seconds between the request to end and the end."""


def end(child: "subprocess.Popen[bytes]", patience: float = PATIENCE) -> None:
    """End a process that leads a group, and the group."""
    for sign, seconds in ((signal.SIGTERM, patience), (signal.SIGKILL, 5.0)):
        try:
            os.killpg(child.pid, sign)
        except ProcessLookupError:
            return
        until = time.monotonic() + seconds
        while child.poll() is None and time.monotonic() < until:
            time.sleep(0.05)


def main() -> int:
    """Run the command; its exit code."""
    child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, start_new_session=True)

    def watch() -> None:
        while os.read(0, 1):  # not sys.stdin, whose lock a thread that still reads would hold at the end
            pass
        end(child)

    threading.Thread(target=watch, daemon=True).start()
    signal.signal(signal.SIGTERM, lambda *_: end(child))
    code = child.wait()
    end(child, 0.0)  # what it has left behind
    return code


if __name__ == "__main__":
    sys.exit(main())
