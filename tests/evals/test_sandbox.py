"""Hostile programs, under every isolation that this machine has: each must be contained, and none may pass by a trick."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from conftest import ROOT
from prefixlab.evals import sandbox
from prefixlab.evals.sandbox import Limits, run_program

ROOT_USER = os.geteuid() == 0
WAYS = [*(way for way in sandbox._ways() if way.own_user == ROOT_USER), sandbox._Way("limits only", ROOT_USER)]
SMALL = Limits(seconds=5, memory_mb=512, processes=12, file_mb=2, output_kb=16)
pytestmark = pytest.mark.smoke


@pytest.fixture(scope="session")
def readable_python():
    """The interpreter where every user can read it; root's own folder may be closed to others."""
    folder = tempfile.mkdtemp(prefix="python-")
    os.chmod(folder, 0o755)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    skip = shutil.ignore_patterns("site-packages", "test", "idlelib", "config-*", "ensurepip", "lib2to3", "tkinter")
    shutil.copytree(Path(sys.base_prefix) / "lib" / version, Path(folder) / "lib" / version, ignore=skip)
    (Path(folder) / "bin").mkdir()
    yield shutil.copy(sandbox._PYTHON, Path(folder) / "bin" / version)
    shutil.rmtree(folder)


@pytest.fixture(params=WAYS, ids=lambda way: f"{way.isolation}{', own user' if way.own_user else ''}".replace(" ", "-"))
def way(request, monkeypatch, tmp_path):
    """One isolation, with a script whose path finds what it left behind in the list of processes."""
    child = tmp_path / "sandbox_child.py"
    shutil.copy(sandbox._CHILD, child)
    monkeypatch.setattr(sandbox, "_CHILD", child)
    if request.param.isolation == "limits only" and ROOT_USER:
        monkeypatch.setattr(sandbox, "_PYTHON", request.getfixturevalue("readable_python"))
    monkeypatch.setattr(sandbox, "_chosen", [request.param])
    first = run_program("x = 1")
    if first.status == "error" and request.param.isolation != "limits only":
        pytest.skip(f"does not work here: {first.detail}")
    assert first.status == "passed", first
    yield request.param
    assert not left(child)


def left(child):
    """Processes of this test's sandboxes; a fork keeps the command line that names the script."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            line = Path("/proc", name, "cmdline").read_bytes()
        except OSError:
            continue
        if os.fsencode(child) in line and int(name) != os.getpid():
            found.append(int(name))
    return found


def own_files_only(way):
    if way.isolation == "limits only" and not way.own_user:
        pytest.skip("limits alone do not keep a user's program from the user's files")


ENDINGS = [
    ("x = 1", "passed", ""),
    ("", "passed", ""),
    ("1 / 0", "failed", "ZeroDivisionError: division by zero"),
    ("x = 2\nassert x == 3", "failed", "AssertionError at line 2: assert x == 3"),
    ("def f(:\n  pass", "failed", "SyntaxError: "),
    ("x = 1\0", "failed", ""),
    ("x = '\ud800'", "failed", "UnicodeEncodeError: "),
    ("# -*- coding: latin-1 -*-\nassert len('é') == 1", "passed", ""),
    ("import sys\nsys.exit(0)", "failed", "SystemExit: 0"),
    ("raise SystemExit", "failed", "SystemExit"),
    ("raise KeyboardInterrupt", "failed", "KeyboardInterrupt"),
    ("import os\nos._exit(0)", "failed", "exit code 0 before its last line"),
    ("import os, signal\nos.abort()", "killed", "ended by signal "),
    ("input()", "failed", "EOFError: "),
    ("import sys\nassert sys.stdin.read() == ''", "passed", ""),
    ("def f(): return f()\nf()", "failed", "RecursionError: "),
    ("class E(Exception):\n  def __str__(self): raise E\nraise E", "failed", "an error that cannot be shown"),
    ("import threading, time\nthreading.Thread(target=time.sleep, args=(60,)).start()", "passed", ""),
    ("if __name__ == '__main__':\n  input()", "passed", ""),
    ("import os\nassert os.listdir() == []\nopen('a', 'w').write('b')\nassert open('a').read() == 'b'", "passed", ""),
    ("from dataclasses import dataclass\n@dataclass\nclass A:\n  x: 'int' = 1\nassert A().x == 1", "passed", ""),
    ("import sys\nassert sys.argv[1:] == []", "passed", ""),
    ("import numpy\nassert numpy.arange(3).sum() == 3", "passed", ""),
    ("import subprocess\nassert subprocess.run(['true']).returncode == 0", "passed", ""),
    ("raise ValueError('x' * 10**6)", "failed", "ValueError: xxx"),
]  # fmt: skip


@pytest.mark.parametrize(("source", "status", "detail"), ENDINGS, ids=range(len(ENDINGS)))
def test_endings(way, source, status, detail):
    ran = run_program(source, SMALL)
    assert (ran.status, ran.detail.startswith(detail), len(ran.detail) <= 300) == (status, True, True), ran


FORGERIES = {
    "markers": "print('passed'); print('OK'); print('{\"status\": \"passed\"}'); os._exit(0)",
    "every descriptor": "for fd in range(3, 300):\n  try: os.write(fd, b'passed 0.1 \\n')\n  except OSError: pass\nos._exit(0)",
    "the supervisor's output": (
        "for pid in filter(str.isdigit, os.listdir('/proc')):\n  for fd in range(20):\n    try:\n"
        "      if int(pid) != os.getpid(): open(f'/proc/{pid}/fd/{fd}', 'w').write('passed 0.1 \\n')\n"
        "    except OSError: pass\nos._exit(0)"
    ),
    "an infrastructure error": "for fd in range(3, 300):\n  try: os.write(fd, b'x error none of my doing\\n')\n  except OSError: pass\nos._exit(0)",
    "patched exits": "import sys, builtins\nsys.exit = os._exit = lambda *a: None\nraise AssertionError",
    "a fork that goes on": "if os.fork():\n  os.wait()\n  os._exit(0)",
    "silenced errors": "import sys\nsys.excepthook = lambda *a: None\nassert False",
    "an exit handler": "import atexit\natexit.register(os._exit, 0)\nassert False",
    "closed descriptors": "os.closerange(0, 300)\nassert False",
    "no modules": "import sys\nsys.modules.clear()\nassert False",
}


@pytest.mark.parametrize("source", FORGERIES.values(), ids=FORGERIES)
def test_no_trick_passes(way, source):
    own_files_only(way) if "/proc/" in source else None
    ran = run_program("import os\n" + source, SMALL)
    assert ran.status == "failed", ran


def test_time(way):
    began = time.monotonic()
    ran = run_program("while True:\n  try:\n    while True: pass\n  except BaseException: pass", Limits(seconds=0.5))
    assert ran.status == "timeout" and 0.5 <= ran.seconds < 5
    assert time.monotonic() - began < 10


def test_time_asleep_in_c(way):
    assert run_program("import time\ntime.sleep(60)", Limits(seconds=0.3)).status == "timeout"
    assert run_program("(10**6)**(10**6)", Limits(seconds=0.3)).status == "timeout"


def test_memory(way):
    assert run_program("x = bytearray(600 << 20)", SMALL).status == "memory"
    assert run_program("x = [0]\nwhile True: x += x", SMALL).status == "memory"
    # Each alone stays below the limit.
    many = "import os, time\nfor _ in range(6):\n  if not os.fork():\n    x = b'x' * (200 << 20)\n    time.sleep(60)\ntime.sleep(60)"
    assert run_program(many, SMALL).status == "memory"


@pytest.mark.parametrize("body", ["pass", "os.setsid()", "signal.signal(signal.SIGTERM, signal.SIG_IGN)"])
def test_fork_bomb(way, body):
    """Ends within its time, with nothing left (the fixture looks)."""
    source = f"import os, signal\nwhile True:\n  try:\n    os.fork()\n    {body}\n  except OSError: pass"
    began = time.monotonic()
    ran = run_program(source, Limits(seconds=1, processes=12))
    assert ran.status in ("timeout", "killed")
    assert time.monotonic() - began < 15


@pytest.mark.parametrize("kind", ["bubblewrap", "namespaces"])
def test_without_a_limit_of_processes_nothing_runs(kind):
    """Root of this machine is exempt from the limit, root of a container that belongs to a user is not."""
    source = "import os, time\nn = 0\nfor _ in range(30):\n  try:\n    if not os.fork(): time.sleep(60)\n    n += 1\n  except OSError: pass\nassert n <= 12, n"
    ran = sandbox._run(sandbox._Way(kind, False), source, SMALL)
    assert ran.status in ("passed", "error"), ran


def test_a_few_processes_are_allowed(way):
    source = "import os\nfor _ in range(5):\n  if not os.fork(): os._exit(0)\nfor _ in range(5): os.wait()"
    assert run_program(source, SMALL).status == "passed"


def test_a_daemon_does_not_survive(way):
    source = (
        "import os, time\nif not os.fork():\n  for leave in (os.setsid, lambda: os.setpgid(0, 0)):\n    try: leave()\n"
        "    except OSError: pass\n  if not os.fork():\n    time.sleep(600)\n  os._exit(0)\nos.wait()"
    )
    assert run_program(source, SMALL).status == "passed"


def test_output(way):
    before = Path("/proc/self/statm").read_text().split()[1]
    for source in (
        "while True: print('x' * 10**6)",
        "import os\nwhile True: os.write(2, b'x' * 10**6)",
        "print('x' * 20000)",
    ):
        ran = run_program(source, SMALL)
        assert (ran.status, ran.detail) == ("killed", "wrote more than 16 KB of output")
    grown = (int(Path("/proc/self/statm").read_text().split()[1]) - int(before)) * os.sysconf("SC_PAGESIZE")
    assert grown < 20 << 20
    assert run_program("print('x' * 16000)", SMALL).status == "passed"


def test_files(way):
    one = run_program("f = open('a', 'wb')\nfor _ in range(100): f.write(b'x' * 10**6)", SMALL)
    assert one.status == "failed" and "File too large" in one.detail
    if way.isolation != "limits only":
        many = "for n in range(100):\n  with open(str(n), 'wb') as f: f.write(b'x' * 10**6)"
        ran = run_program(many, SMALL)
        assert ran.status == "failed" and "No space left" in ran.detail


def test_files_outside_stay(way):
    own_files_only(way)
    for parent in ("/tmp", "/var/tmp", str(Path.home())):
        with tempfile.TemporaryDirectory(dir=parent) as folder:
            canary = Path(folder, "canary")
            canary.write_text("alive")
            os.chmod(folder, 0o755)
            source = (
                f"import os, shutil\nfor act in (os.remove, lambda p: open(p, 'w').write('dead'), "
                f"lambda p: os.chmod(p, 0), lambda p: shutil.rmtree(os.path.dirname(p))):\n"
                f"  try: act({str(canary)!r})\n  except OSError: pass"
            )
            assert run_program(source, SMALL).status == "passed"
            assert canary.read_text() == "alive" and canary.stat().st_mode & 0o400


def test_home_and_repository_are_hidden(way):
    if way.isolation != "bubblewrap":
        pytest.skip("only bubblewrap has a file system of its own")
    with tempfile.NamedTemporaryFile(dir=Path.home()) as canary:
        source = (
            f"import os\nfor path in ({str(ROOT / 'pyproject.toml')!r}, {canary.name!r}, '/etc/passwd'):\n"
            "  assert not os.path.exists(path)\n"
            "try: open('/usr/canary', 'w')\nexcept OSError: pass\nelse: raise AssertionError"
        )
        assert os.path.exists(canary.name)
        ran = run_program(source, SMALL)
    assert ran.status == "passed", ran


def test_network(way):
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as local:
        local.bind("\0prefixlab-test-" + str(os.getpid()))
        local.listen()
        for family, address in ((socket.AF_INET, server.getsockname()), (socket.AF_UNIX, local.getsockname())):
            source = f"import socket\nsocket.socket({int(family)}).connect({address!r})"
            ran = run_program(source, SMALL)
            assert ran.status == "failed" and "Error" in ran.detail
        for listening in (server, local):
            listening.settimeout(0.1)
            with pytest.raises(TimeoutError):
                listening.accept()
        socket.create_connection(server.getsockname(), timeout=5).close()


def test_killing_others(way):
    with subprocess.Popen(["sleep", "600"]) as bystander:
        source = (
            f"import os\nfor pid in (os.getppid(), -1, 1, {os.getpid()}, {bystander.pid}, -{os.getpgrp()}):\n"
            "  try: os.kill(pid, 9)\n  except OSError: pass"
        )
        assert run_program(source, SMALL).status == "passed"
        assert bystander.poll() is None
        bystander.kill()


def test_no_secret_in_the_environment(way, monkeypatch):
    own_files_only(way)
    monkeypatch.setenv("HF_TOKEN", "hf_canary")
    # The environment that /proc shows is the one a process started with.
    with subprocess.Popen(["sleep", "600"]) as holder:
        source = (
            "import os\nseen = str(dict(os.environ))\nfor pid in filter(str.isdigit, os.listdir('/proc')):\n"
            "  try: seen += open(f'/proc/{pid}/environ').read()\n  except OSError: pass\nassert 'hf_' + 'canary' not in seen"
        )
        ran = run_program(source, SMALL)
        holder.kill()
    assert ran.status == "passed", ran


def test_hash_order_is_fixed(way):
    source = "raise Exception(hash('prefix'))"
    assert run_program(source).detail == run_program(source).detail


def test_several_threads(way):
    sources = ["x = 1", "1 / 0", "import time\ntime.sleep(9)", "import os\nos._exit(0)"] * 4
    with ThreadPoolExecutor(4) as pool:
        ran = list(pool.map(lambda source: run_program(source, Limits(seconds=2)).status, sources))
    assert ran == ["passed", "failed", "timeout", "failed"] * 4


def test_the_program_ends_with_its_caller(way, tmp_path):
    code = (
        "import sys\nfrom pathlib import Path\nfrom prefixlab.evals import sandbox\n"
        f"sandbox._CHILD, sandbox._PYTHON = Path({str(sandbox._CHILD)!r}), Path({str(sandbox._PYTHON)!r})\n"
        f"sandbox._chosen.append(sandbox._Way({way.isolation!r}, {way.own_user}))\n"
        "print('ready', flush=True)\n"
        "sandbox.run_program('import os\\nos.fork()\\nwhile True: pass', sandbox.Limits(seconds=100))"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as caller:
        assert caller.stdout.readline() == b"ready\n"
        wait_for(lambda: len(left(sandbox._CHILD)) >= 3)
        caller.send_signal(signal.SIGKILL)
    wait_for(lambda: not left(sandbox._CHILD))


def wait_for(condition, seconds=15):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def test_a_broken_sandbox_is_no_wrong_answer(way, monkeypatch):
    monkeypatch.setattr(sandbox, "_PYTHON", Path("/nonexistent/python"))
    ran = run_program("x = 1")
    assert ran.status == "error" and ran.detail


def test_the_strongest_isolation_is_chosen(monkeypatch):
    monkeypatch.setattr(sandbox, "_chosen", [])
    chosen = sandbox.isolation()
    assert chosen in ("bubblewrap", "namespaces", "limits only")
    if shutil.which("bwrap") and sandbox._run(sandbox._Way("bubblewrap", False), "x = 1", SMALL).status == "passed":
        assert chosen == "bubblewrap"


def test_without_tools_limits_are_left(monkeypatch):
    monkeypatch.setattr(sandbox, "_chosen", [])
    monkeypatch.setenv("PATH", "")
    assert sandbox.isolation() == "limits only"


def test_a_closed_interpreter_is_named(monkeypatch):
    open_to_all = all(path.stat().st_mode & 1 for path in (sandbox._PYTHON, *sandbox._PYTHON.parents))
    if not ROOT_USER or open_to_all:
        pytest.skip("every user can read the interpreter")
    monkeypatch.setattr(sandbox, "_chosen", [sandbox._Way("limits only", True)])
    ran = run_program("x = 1")
    assert ran.status == "error" and "not readable for other users" in ran.detail
