"""What a kill costs: the command is killed again and again, and a proxy counts what was asked and paid for.

The server behind the proxy is `transformers serve`, a real one, with a tiny random model: it writes nonsense, so every
reply is refused, and what is tested is that each is paid for once and recorded. A scripted teacher (logic only) stands
for one that is right about most rows.
"""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from urllib.request import urlopen

import pytest

from chat_server import Reply, running
from conftest import cli
from fault_proxy import proxied

COUNT = 200
WORKERS = 4


@contextmanager
def served(model, folder):
    """`transformers serve` on a free port: the base URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [Path(sys.executable).with_name("transformers"), "serve", "--device", "cpu", "--host", "127.0.0.1"]
    with (folder / "serve.log").open("wb") as log:
        server = subprocess.Popen(
            [*command, "--port", str(port)], stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        try:
            for _ in range(300):
                time.sleep(0.5)
                assert server.poll() is None, (folder / "serve.log").read_text()[-2000:]
                try:
                    urlopen(f"http://127.0.0.1:{port}/health", timeout=1).close()
                    break
                except OSError:
                    continue
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.kill()
            server.wait()


def command(data, out, model, *more):
    options = ("--teacher", f"openai-api/taught/{model}", "--out", out, "--concurrency", WORKERS, "--timeout", 60)
    return ("rewrite", data, *options, "--json", *more)


def start(arguments, folder):
    """The command as a process of its own, as a shell would start it."""
    with (folder / "stdout").open("wb") as out, (folder / "stderr").open("wb") as err:
        return subprocess.Popen(
            [sys.executable, "-m", "prefixlab", *map(str, arguments)], stdout=out, stderr=err, start_new_session=True
        )


def children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def kill_while_asking(arguments, proxy, folder, more, kill):
    """Start the command, and `kill` it once it has asked about `more` responses and some are on their way."""
    began, process = proxy.n, start(arguments, folder)
    while process.poll() is None and not (proxy.n >= began + more and proxy.in_flight):
        time.sleep(0.005)
    assert process.poll() is None, (folder / "stderr").read_text()
    in_flight = proxy.in_flight
    kill(process)
    process.wait(120)
    return in_flight


def killed_five_times(arguments, proxy, folder, counts):
    """SIGKILL, at moments that nobody chose; the next run starts at once. How many requests were on their way."""
    return sum(kill_while_asking(arguments, proxy, folder, n, lambda p: p.kill()) for n in counts)


def lines_of(path):
    return [json.loads(line) for line in path.read_text().split("\n") if line]


@pytest.mark.slow
def test_two_hundred_rows_of_gsm8k_killed_five_times(shared, tmp_path, monkeypatch, tiny_ref):
    """No request reaches the server twice, and every reply is in the record of the row it is about."""
    data = tmp_path / "d.jsonl"
    lines = (shared / "gsm8k" / "train.jsonl").read_text().split("\n")[:COUNT]
    data.write_text("".join(line + "\n" for line in lines))
    out = tmp_path / "o.jsonl"
    arguments = command(data, out, tiny_ref.path, "--attempts", 2, "--max-tokens", 24)
    moments = random.Random(8)
    with served(tiny_ref.path, tmp_path) as upstream, proxied(upstream) as proxy:
        monkeypatch.setenv("TAUGHT_BASE_URL", proxy.url)
        monkeypatch.setenv("TAUGHT_API_KEY", "none")
        cut = killed_five_times(arguments, proxy, tmp_path, [moments.randint(5, 70) for _ in range(5)])
        assert cut >= 5 and not out.exists()
        done = cli(*arguments, timeout=800)
        report = json.loads(done.stdout)
        assert set(proxy.seen.values()) == set(proxy.paid.values()) == {1}
        assert proxy.n == report["replies"] == 2 * COUNT and report["unknown"] == 0
        again = cli(*arguments, timeout=100)
        assert json.loads(again.stdout) == report and proxy.n == 2 * COUNT
    assert report["states"]["refused"] == COUNT and report["tokens_in"] > 2 * COUNT * 100
    assert done.returncode == 2 and "no row of 200 could be rewritten" in done.stderr
    first, *rows = lines_of(tmp_path / "o.jsonl.record.jsonl")
    keys = [key for row in rows for key in row["keys"]]
    got = [line for line in lines_of(tmp_path / "o.jsonl.answers.jsonl") if line["kind"] == "got"]
    assert first == report and len(rows) == COUNT and sorted(keys) == sorted({line["key"] for line in got})
    assert sum(row["tokens_out"] for row in rows) == sum(line["tokens_out"] for line in got) == report["tokens_out"]


def sums(path):
    rows = [
        {"question": f"What is {i} + {i}?", "answer": f"Sure! {i} + {i} = {2 * i}.\n#### {2 * i}"} for i in range(COUNT)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def teacher(body):
    """Right at once about most rows, at the second attempt about some, and never about a few; slow enough to kill."""
    text = body["messages"][-1]["content"]
    i = int(text.split("What is ")[1].split(" ")[0])
    wrong = i % 10 == 3 or (i % 10 == 7 and "An earlier reply" not in text)
    return Reply(text=f"<answer>\nTwice {i} is {2 * i + wrong}.\n#### {2 * i + wrong}\n</answer>", delay=0.05)


@pytest.mark.slow
def test_a_good_teacher_killed_five_times(tmp_path, monkeypatch):
    data, out = sums(tmp_path / "d.jsonl"), tmp_path / "o.jsonl"
    arguments = command(data, out, "teacher-1", "--attempts", 2)
    with running(monkeypatch, teacher, "TAUGHT") as server, proxied(server.url) as proxy:
        monkeypatch.setenv("TAUGHT_BASE_URL", proxy.url)
        killed_five_times(arguments, proxy, tmp_path, [3, 30, 1, 50, 20])
        done = cli(*arguments, check=True)
        report = json.loads(done.stdout)
        assert set(proxy.seen.values()) == {1} and report["unknown"] == 0
        assert proxy.n == report["replies"] == 160 + 2 * 40
    assert report["states"] == {"rewritten": 180, "kept": 0, "refused": 20, "open": 0, "skipped": 0}
    assert len(lines_of(out)) == 180


@pytest.mark.slow
def test_a_machine_that_goes_down_costs_what_was_on_its_way(tmp_path, monkeypatch):
    """Where the asking process dies too, its open requests are asked again, and counted at their most."""
    data, out = sums(tmp_path / "d.jsonl"), tmp_path / "o.jsonl"
    prices = ("--price-in", 1, "--price-out", 2)
    arguments = command(data, out, "teacher-1", "--attempts", 2, *prices)

    def all_of_it(process):
        (worker,) = children(process.pid)
        os.killpg(worker, signal.SIGKILL)
        process.kill()

    with running(monkeypatch, teacher, "TAUGHT") as server, proxied(server.url) as proxy:
        monkeypatch.setenv("TAUGHT_BASE_URL", proxy.url)
        for n in (10, 40):
            kill_while_asking(arguments, proxy, tmp_path, n, all_of_it)
        report = json.loads(cli(*arguments, check=True).stdout)
        assert report["states"]["rewritten"] == 180 and report["replies"] == 240
        twice = sum(n - 1 for n in proxy.seen.values())
        assert 1 <= twice <= 2 * WORKERS and twice <= report["unknown"] <= 2 * WORKERS
        assert report["cost"] > (240 * 9 + report["unknown"] * 4096 * 2) / 1e6


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_waits_for_what_is_on_its_way(tmp_path, monkeypatch, number, code):
    data, out = sums(tmp_path / "d.jsonl"), tmp_path / "o.jsonl"
    arguments = command(data, out, "teacher-1", "--attempts", 2)

    def slow(body):
        return replace(teacher(body), delay=1.0)

    with running(monkeypatch, slow, "TAUGHT") as server, proxied(server.url) as proxy:
        monkeypatch.setenv("TAUGHT_BASE_URL", proxy.url)
        process = start(arguments, tmp_path)
        while proxy.n < 5:
            time.sleep(0.01)
        refused = cli(*arguments)
        assert refused.returncode == 2 and "in use by another run" in refused.stderr
        process.send_signal(number)
        assert process.wait(60) == code
        said = (tmp_path / "stderr").read_text().strip().split("\n")[-1]
        assert said.startswith("prefixlab: stopped with ") and "run the same command again" in said
        first = json.loads((tmp_path / "o.jsonl.record.jsonl").read_text().split("\n")[0])
        assert first["stopped"] == "interrupted" and first["replies"] == proxy.n and first["unknown"] == 0
