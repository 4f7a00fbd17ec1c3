"""A study on a real Ray cluster of two node processes: results as local, lost nodes and drivers, bad input."""

import http.server
import itertools
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from importlib.util import find_spec
from pathlib import Path

import polars
import pytest
import yaml

from conftest import ROOT, cli, tiny_study

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed"),
]
# Before Ray is imported: clusters of these tests take in nobody else.
os.environ.update({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16), "RAY_USAGE_STATS_ENABLED": "0"})

STUDY = {"seeds": [0, 1], "hardware": {"threads": 1, "dtype": "float32"}}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A study of four cells."""
    found = tmp_path_factory.mktemp("ray") / "study.yaml"
    changes = tiny_study(**STUDY)
    del changes["capabilities"]["safety"]
    changes["arms"] = [{**changes["arms"][0], "ratios": [0, 1], "controls": []}]
    found.write_text(yaml.safe_dump(changes))
    return found


@pytest.fixture(scope="module")
def local(path):
    """Folder of an undisturbed local run of it."""
    out = path.parent / "local"
    done = cli("run", path, "--out", out)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture
def cluster():
    """A head and one more node, of one CPU each; nodes can be added and killed."""
    from ray.cluster_utils import Cluster

    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    found.second = found.add_node(num_cpus=1)
    yield found
    found.shutdown()


def run(cluster, study, out, *options, **keywords):
    return cli("run", study, "--out", out, "--executor", "ray", "--address", cluster.address, *options, **keywords)


def start(cluster, study, out, *more):
    options = ["--out", str(out), "--executor", "ray", "--address", cluster.address, *more]
    return subprocess.Popen(
        [sys.executable, "-m", "prefixlab", "run", str(study), *options], stderr=subprocess.PIPE, text=True
    )


def finished(out):
    """Step -> when its marker was written."""
    return {p.parent.name: p.stat().st_mtime_ns for p in out.glob("steps/*/DONE")}


def wait_for(condition, process, seconds=300):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None and time.monotonic() < end, process.stderr.read()
        time.sleep(0.05)


RAY_SPEAKS = re.compile(
    r"^\[\d{4}-\d\d-\d\d |^\d{4}-\d\d-\d\d .*(?:INFO|WARNING|ERROR)|raylet|core_worker|[a-z]Warning:", re.M
)


def in_our_words(said):
    """Nothing of Ray's own log is on the terminal."""
    assert not RAY_SPEAKS.search(said) and "Traceback" not in said, said


def same(a, b):
    """Whether tables are equal value for value, and adapters byte for byte."""
    for name in ("results", "contrasts"):
        one, other = (polars.read_parquet(x / f"{name}.parquet") for x in (a, b))
        assert one.equals(other, null_equal=True), name
    names = {p.relative_to(a) for p in a.glob("steps/train-*/adapter/adapter_model.safetensors")}
    assert names
    for name in names:
        assert (a / name).read_bytes() == (b / name).read_bytes(), name


def test_two_nodes_give_what_one_process_gives(cluster, path, local, tmp_path):
    out = tmp_path / "run"
    done = run(cluster, path, out)
    assert done.returncode == 0, done.stderr
    same(out, local)
    in_our_words(done.stderr)
    assert "2 nodes with room for 2 workers" in done.stderr
    assert len(json.loads((out / "env.json").read_text())["nodes"]) == 2
    told = json.loads((out / "progress.json").read_text())
    assert told["lanes"] == 2 and set(told["done"]) == set(told["pending"]) and not told["running"]
    spans = sorted((finished(out)[s] / 1e9 - told["done"][s], finished(out)[s] / 1e9) for s in told["done"])
    assert any(b[0] < a[1] - 0.05 for a, b in itertools.pairwise(spans)), "no two steps overlapped"
    again = run(cluster, path, out)
    assert again.returncode == 0 and "0 steps done now" in again.stdout


def test_a_killed_node_changes_nothing_but_time(cluster, path, local, tmp_path):
    out = tmp_path / "run"
    process = start(cluster, path, out)
    wait_for(lambda: len([s for s in finished(out) if s.startswith("train-")]) >= 1, process)
    cluster.remove_node(cluster.second, allow_graceful=False)
    said = process.communicate(timeout=600)[1]
    assert process.returncode == 0, said
    assert "is done again elsewhere" in said
    in_our_words(said)
    same(out, local)
    assert not list(out.glob("steps/.writing*"))


def at_once(out):
    """Steps that are in progress now."""
    return json.loads((out / "progress.json").read_text())["running"]


def test_a_node_that_joins_gets_work(cluster, path, tmp_path):
    """Ten seeds, since asking a node and starting a worker on it take longer than the few steps of two."""
    out = tmp_path / "run"
    cluster.remove_node(cluster.second)
    process = start(cluster, path, out, "--set", f"seeds={list(range(10))}")
    wait_for(lambda: len(finished(out)) >= 3, process)
    assert len(at_once(out)) < 2, "one CPU does one step"
    cluster.add_node(num_cpus=1)
    wait_for(lambda: len(at_once(out)) == 2, process)
    said = process.communicate(timeout=600)[1]
    assert process.returncode == 0 and "joined" in said, said


def test_idle_workers_of_a_lost_node_get_no_step(cluster, path, local, tmp_path):
    """A step given to one would count as lost, and after four of them as failed."""
    from rich.console import Console

    from prefixlab.study.cluster import joined, nodes
    from prefixlab.study.execute import Journal, Outcome, Work
    from prefixlab.study.needs import Need
    from prefixlab.study.ray_executor import _Driver, _Seat
    from prefixlab.study.run import read_study
    from prefixlab.study.store import Store
    from prefixlab.study.survey import Survey

    study, plan = read_study(local)
    work = Work(study, plan, (), Store(tmp_path))
    with joined(cluster.address):
        journal = Journal(tmp_path, (), Outcome(), Console(stderr=True), quiet=True)
        usable = {node.id for node in nodes()}
        driver = _Driver(work, journal, {"plain": Need(1, 0, 0)}, Survey(work, None), usable, "")
        driver.idle = [_Seat("plain", node, None) for node in nodes() for _ in range(4)]
        assert len(driver.idle) == 8
        lost = cluster.second.node_id
        cluster.remove_node(cluster.second, allow_graceful=False)
        end = time.monotonic() + 60
        while len(nodes()) > 1 and time.monotonic() < end:
            time.sleep(0.2)
        driver.staff(nodes())
    assert [s.node.id == lost for s in driver.idle] == [False] * 4


def test_a_killed_driver_is_taken_up_again(cluster, path, local, tmp_path):
    out = tmp_path / "run"
    process = start(cluster, path, out)
    wait_for(lambda: len([s for s in finished(out) if s.startswith("train-")]) >= 1, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = finished(out)
    done = run(cluster, path, out)
    assert done.returncode == 0, done.stderr
    after = finished(out)
    # What was done stays; a worker may have ended its step after the driver was gone.
    assert before.items() <= after.items() and len(after) > len(before)
    same(out, local)


def test_sigterm_ends_the_run_in_a_line(cluster, path, local, tmp_path):
    out = tmp_path / "run"
    process = start(cluster, path, out)
    wait_for(lambda: len(finished(out)) >= 4, process)
    process.terminate()
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 128 + signal.SIGTERM and "run the same command again to go on" in said
    assert "Traceback" not in said and not list(out.glob(".stop-*"))
    assert run(cluster, path, out).returncode == 0
    same(out, local)


def test_steps_in_progress_may_end_while_a_signal_is_answered(cluster, path, local, tmp_path):
    """One worker trains, and the other ends a step, after the signal: neither loses what it has written."""
    out = tmp_path / "run"
    process = start(cluster, path, out)

    def both():
        at = at_once(out)
        return len(at) == 2 and sum(s["slug"].startswith("train-") for s in at) == 1

    wait_for(lambda: (out / "progress.json").exists() and both(), process)
    process.terminate()
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 128 + signal.SIGTERM, said
    in_our_words(said)
    assert run(cluster, path, out).returncode == 0
    same(out, local)


def of_cluster(place):
    """Processes whose environment names a Ray folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if place.encode() in (process / "environ").read_bytes():
                found.append((process.name, (process / "cmdline").read_bytes()[:60]))
        except OSError:
            continue
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_nothing_goes_on_after_a_cluster_of_its_own(path, tmp_path, number):
    """Without an address the command starts Ray on this machine; Ctrl-C goes to all processes of the terminal."""
    place = tempfile.mkdtemp(prefix="ray-")  # short: sockets lie in it
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "prefixlab", "run", str(path), "--out", str(tmp_path / "run"), "--executor", "ray"],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "RAY_TMPDIR": place},
            start_new_session=True,
        )
        wait_for(lambda: len(finished(tmp_path / "run")) >= 3, process)
        assert len(of_cluster(place)) > 3
        if number == signal.SIGINT:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        said = process.communicate(timeout=120)[1]
        in_our_words(said)
        if number == signal.SIGINT:
            assert process.returncode == 128 + number and "run the same command again to go on" in said
            assert not list((tmp_path / "run").glob(".stop-*"))
        end = time.monotonic() + 180  # Ray's agents look for their raylet now and then
        while of_cluster(place) and time.monotonic() < end:
            time.sleep(0.5)
        assert of_cluster(place) == []
    finally:
        shutil.rmtree(place, ignore_errors=True)


def test_a_step_that_fails_is_reported_and_not_repeated(cluster, path, tmp_path):
    out = tmp_path / "run"
    done = run(cluster, path, out, "--set", "training.learning_rate=1e30", "--set", "seeds=[0]")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "lower training.learning_rate" in done.stderr and done.stderr.count("failed: the loss") <= 4
    results = polars.read_parquet(out / "results.parquet")
    assert set(results.filter(polars.col("arm") == "base")["status"]) == {"measured"}
    assert set(results.filter(polars.col("arm") != "base")["status"]) == {"missing"}


def refused(done, *words):
    assert done.returncode == 2, (done.stdout, done.stderr)
    assert "Traceback" not in done.stderr and len(done.stderr.strip().splitlines()) <= 3, done.stderr
    line = done.stderr.strip().splitlines()[-1]
    assert all(w in line for w in words), line


def test_an_address_without_a_cluster(path, tmp_path):
    server = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        for address, words in (
            ("127.0.0.1:1", ("--address '127.0.0.1:1'", "no Ray head answers there", "ray start --head")),
            ("no-such-host.invalid:6379", ("no Ray head answers there",)),
            (f"127.0.0.1:{server.server_port}", ("no Ray head answers there",)),
            ("ray://127.0.0.1:10001", ("write HOST:PORT",)),
        ):
            began = time.monotonic()
            done = cli("run", path, "--out", tmp_path / "run", "--executor", "ray", "--address", address)
            refused(done, *words)
            assert time.monotonic() - began < 60, address
            assert not (tmp_path / "run").exists()
    finally:
        server.shutdown()
    refused(cli("run", path, "--address", "127.0.0.1:1"), "--address '127.0.0.1:1' is for --executor ray")


def test_a_step_that_no_node_has_room_for(cluster, path, tmp_path):
    done = run(cluster, path, tmp_path / "run", "--set", "hardware.threads=64")
    refused(done, "no node of the cluster has room", "64 CPUs", "has 1 CPUs, 0 GPUs", "Lower hardware.threads")
    assert not finished(tmp_path / "run")


def test_a_cluster_that_other_work_holds(cluster, path, local, tmp_path):
    """Both CPUs are another job's: that is said, and work begins as soon as they are free."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD_CPUS, cluster.address], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "held\n"
        process = start(cluster, path, tmp_path / "run")
        said = ""
        while "no worker has started for" not in said:
            line = process.stderr.readline()
            assert line, said
            said += line
        assert not finished(tmp_path / "run")
        holder.communicate("let go\n", timeout=60)
        rest = process.communicate(timeout=600)[1]
        assert process.returncode == 0, rest
        same(tmp_path / "run", local)
    finally:
        holder.kill()
        holder.wait()


HOLD_CPUS = """
import sys, ray
ray.init(address=sys.argv[1], log_to_driver=False)

@ray.remote(num_cpus=1)
class Holder:
    def here(self):
        return True

holders = [Holder.remote() for _ in range(2)]
ray.get([h.here.remote() for h in holders])
print("held", flush=True)
sys.stdin.readline()
"""


def with_python_path(cluster, folder):
    """A third node whose Python finds other modules first."""
    return cluster.add_node(num_cpus=1, env_vars={"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT / "src")])})


def test_a_node_without_the_package(cluster, path, tmp_path):
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "prefixlab.py").write_text("raise ModuleNotFoundError(\"No module named 'prefixlab'\")\n")
    with_python_path(cluster, tmp_path / "path")
    done = run(cluster, path, tmp_path / "run")
    refused(done, "node ", "(ModuleNotFoundError: No module named 'prefixlab')")
    assert not finished(tmp_path / "run")


def test_a_node_with_another_version(cluster, path, tmp_path):
    shutil.copytree(ROOT / "src" / "prefixlab", tmp_path / "path" / "prefixlab")
    with (tmp_path / "path" / "prefixlab" / "errors.py").open("a") as file:
        file.write("\n# changed\n")
    with_python_path(cluster, tmp_path / "path")
    done = run(cluster, path, tmp_path / "run")
    refused(done, "node ", "has prefixlab", "with other files", "install the same commit")


def test_a_node_that_does_not_see_the_run_folder(cluster, path, tmp_path):
    """A node in a mount namespace of its own, in which another file system lies over the run folder."""
    out = tmp_path / "run"
    out.mkdir()
    script = f"mount -t tmpfs none {out} && exec ray start --address={cluster.address} --num-cpus=1 --block"
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    probe = subprocess.run(["unshare", "--mount", "true"], capture_output=True)
    if probe.returncode:
        pytest.skip("no mount namespaces here")
    node = subprocess.Popen(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", script],
        env={**os.environ, "PATH": programs},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        import ray

        ray.init(address=cluster.address, log_to_driver=False)
        end = time.monotonic() + 60
        while len([n for n in ray.nodes() if n["Alive"]]) < 3 and time.monotonic() < end:
            time.sleep(0.2)
        assert len([n for n in ray.nodes() if n["Alive"]]) == 3
        ray.shutdown()
        done = run(cluster, path, out)
        refused(done, "run folder", "is not shared with it")
    finally:
        os.killpg(node.pid, signal.SIGKILL)


def test_two_runs_on_one_folder(cluster, path, tmp_path):
    process = start(cluster, path, tmp_path / "run")
    try:
        wait_for(lambda: len(finished(tmp_path / "run")) >= 1, process)
        refused(cli("run", path, "--out", tmp_path / "run"), "is in use by another run")
    finally:
        process.kill()
        process.communicate()


def test_a_node_on_which_no_worker_starts_is_left_out(cluster, path, local, tmp_path):
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "sitecustomize.py").write_text(NO_START)
    cluster.remove_node(cluster.second)
    with_python_path(cluster, tmp_path / "path")
    done = run(cluster, path, tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert "3 workers in a row could not be started on node" in done.stderr and "left out" in done.stderr
    in_our_words(done.stderr)
    same(tmp_path / "run", local)


NO_START = """
import os, sys, threading, time

def watch():
    while "prefixlab.study.stages" not in sys.modules:
        time.sleep(0.01)
    os._exit(1)

threading.Thread(target=watch, daemon=True).start()
"""
CRASH = """
import os, sys, threading, time

def watch():
    while not hasattr(sys.modules.get("prefixlab.study.stages"), "Bench"):
        time.sleep(0.01)
    bench = sys.modules["prefixlab.study.stages"].Bench
    train = bench._train

    def crash(self, step, out, tick):
        if "-reasoning-opening-r100-s1-" in step.slug:
            os._exit(1)
        train(self, step, out, tick)

    bench._train = crash

threading.Thread(target=watch, daemon=True).start()
"""


def test_a_step_that_kills_its_workers_is_given_up(path, tmp_path):
    from ray.cluster_utils import Cluster

    (tmp_path / "sitecustomize.py").write_text(CRASH)
    places = os.pathsep.join([str(tmp_path), str(ROOT / "src")])
    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "env_vars": {"PYTHONPATH": places}})
    try:
        done = run(found, path, tmp_path / "run", timeout=900)
    finally:
        found.shutdown()
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "its worker was lost 4 times" in done.stderr
    results = polars.read_parquet(tmp_path / "run" / "results.parquet").filter(polars.col("seed") == 1)
    missing = set(results.filter(polars.col("status") == "missing")["arm"])
    assert missing == {"reasoning-opening-r100"}
