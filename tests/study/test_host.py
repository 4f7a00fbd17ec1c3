"""A worker process: what it says of its node, and how it treats tries, bases and checkpoints. No Ray in it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import tiny_study
from prefixlab.study import host as module
from prefixlab.study.host import HOLDER, Host, NodeReport, look
from prefixlab.study.steps import Step, installed
from prefixlab.study.store import Store
from prefixlab.study_file import parse_study


def step(slug, base="a"):
    return Step(
        slug=slug,
        id=slug,
        kind="tokens",
        config={"model": MODEL | {"fingerprint": base}},
        inputs={},
        after=(),
        predicted_seconds=1.0,
    )


MODEL = {"name": "m", "path": str(Path(__file__).parent), "revision": None, "note": ""}


def asked(root, **changes):
    (root / ".probe-t").write_text("t")
    words = {"root": str(root), "token": "t", "cwd": str(root), "files": [], "models": [], "gpus": False}
    return look(**{**words, "offline": False, **changes})


def test_what_a_node_says_of_itself(tmp_path):
    (tmp_path / "steps").mkdir()
    with Store(tmp_path).locked():
        told = NodeReport.model_validate_json(asked(tmp_path))
    assert (told.trouble, told.locked, told.versions, told.gpus) == ("", True, installed(), ())
    # As on a node that the lock of another machine does not reach.
    assert not NodeReport.model_validate_json(asked(tmp_path)).locked
    assert sorted(p.name for p in tmp_path.iterdir()) == [".lock", ".probe-t", "steps"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"token": "other"}, "is not shared with it (No such file or directory)"),
        ({"files": ["d.jsonl"]}, "'d.jsonl' of the study is not there"),
        pytest.param(
            {"models": [{**MODEL, "path": "/none", "name": "/none/m", "fingerprint": "f"}]},
            "unknown model '/none/m'",
            marks=pytest.mark.smoke,
        ),
    ],
)
def test_what_is_missing_on_a_node(tmp_path, changes, words):
    assert words in json.loads(asked(tmp_path, **changes))["trouble"]


def test_a_hub_model_that_a_node_may_not_ask_for(tmp_path):
    model = {"name": "org/m", "path": "org/m", "revision": "0" * 40, "fingerprint": "0" * 40, "note": ""}
    found = json.loads(asked(tmp_path, models=[model], offline=True))["trouble"]
    assert "model 'org/m' is not in its Hugging Face cache" in found and "hf download org/m --revision 000" in found
    assert json.loads(asked(tmp_path, models=[model], offline=False))["trouble"] == ""
    pinned = json.loads(asked(tmp_path, models=[model | {"name": "org/m@v1"}], offline=True))["trouble"]
    assert "hf download org/m --revision 000" in pinned, "the id without its branch, which the command would not take"


@pytest.fixture
def worker(tmp_path, monkeypatch):
    """A host whose bench is scripted: `worker.script` is called in place of the work."""
    from prefixlab.study.stages import Bench

    store, study = Store(tmp_path / "run"), parse_study(tiny_study(), "test")
    store.steps.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "BEAT", 0.0)
    (tmp_path / "stop").touch()
    found = Host(str(store.root), study, "tiny", str(tmp_path), {}, str(tmp_path / "stop"), lambda *_: None)
    found.store, found.script, found.stop_file = store, lambda *_: None, tmp_path / "stop"
    monkeypatch.setattr(Bench, "run", lambda self, *arguments: found.script(self, *arguments))
    return found


@pytest.mark.smoke
def test_a_step_that_is_done_is_not_done_again(worker):
    ran = []
    worker.script = lambda bench, step, out, tick: ran.append(step.slug)
    assert worker.do(step("a-1"), "one").kind == "done" and worker.store.finished("a-1", "a-1")
    assert worker.do(step("a-1"), "two").kind == "done"
    assert ran == ["a-1"]
    (worker.store.folder("a-1") / "DONE").unlink()
    assert worker.do(step("a-1"), "three").kind == "done" and ran == ["a-1", "a-1"]


@pytest.mark.smoke
def test_one_base_at_a_time(worker):
    benches = []
    worker.script = lambda bench, step, out, tick: benches.append(bench)
    for i, base in enumerate("aabba"):
        worker.do(step(f"s-{i}", base), "one")
    first, second, third, fourth, fifth = benches
    assert first is second is not third and third is fourth is not fifth is not first


@pytest.mark.smoke
def test_checkpoints_have_one_writer(worker):
    holder = worker.store.resume_folder("a-1") / HOLDER

    def fail(bench, step, out, tick):
        from prefixlab.errors import StepError

        tick(0.5)
        assert holder.read_text() == "one"
        (holder.parent / "kept").touch()
        raise StepError("no")

    worker.script = fail
    assert worker.do(step("a-1"), "one").kind == "step error"
    assert [p.name for p in holder.parent.iterdir()] == ["kept"]  # for the next try
    worker.script = lambda *_: None
    worker.do(step("a-1"), "two")
    assert not holder.parent.exists()


@pytest.mark.smoke
def test_a_signal_comes_as_a_file(worker):
    from prefixlab.errors import Stopped

    def train(bench, step, out, tick):
        tick(0.1)
        assert bench._conditions.stop.signal is None
        worker.stop_file.write_text("15")
        tick(0.2)
        raise Stopped(bench._conditions.stop.signal, "stopped")

    worker.script = train
    result = worker.do(step("a-1"), "one")
    assert (result.kind, result.signal) == ("stopped", 15) and not worker.store.finished("a-1", "a-1")


LEAVE = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_host import Host, Store, module, parse_study, step, tiny_study
from prefixlab.study.stages import Bench

module.BEAT = 0.0
root = Path(sys.argv[1])
Store(root).steps.mkdir(parents=True)
worker = Host(str(root), parse_study(tiny_study(), "test"), "tiny", str(root), {}, str(root / "stop"), lambda *_: None)

def run(self, step, out, tick):
    tick(0.1)
    print("mine", flush=True)
    (root / "checkpoints" / "a-1" / "held-by").write_text("two")
    tick(0.2)
    print("still here", flush=True)

Bench.run = run
worker.do(step("a-1"), "one")
"""


@pytest.mark.slow
def test_a_worker_whose_step_went_to_another_leaves(tmp_path):
    places = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([*places, os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [sys.executable, "-c", LEAVE, str(tmp_path / "run"), places[0]], capture_output=True, text=True, env=env
    )
    assert (done.returncode, done.stdout) == (1, "mine\n"), done.stderr
    assert (tmp_path / "run" / "checkpoints" / "a-1" / HOLDER).read_text() == "two"
    assert not Store(tmp_path / "run").finished("a-1", "a-1")
