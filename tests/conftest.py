"""Shared fixtures: the tiny model, a tiny study, and a place for caches that tests may fill."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared" / "data"


def tiny_study(**changes):
    """The quickstart's shape on the random model, small enough for seconds."""
    study = yaml.safe_load((ROOT / "studies" / "quickstart.yaml").read_text())
    study["name"] = "tiny"
    study["models"] = ["tiny-random"]
    study["capabilities"]["math"]["data"]["limit"] = 12
    study["capabilities"]["safety"]["data"]["limit"] = 12
    for capability in study["capabilities"].values():
        capability["data"]["held_out"] = 3
        for suite in capability["suites"]:
            suite.update(limit=8, max_tokens=6, batch_size=5)
    study["analysis"] = {"tokens": {"samples": 2}}
    study["hardware"] = {"threads": 1}
    study.update(changes)
    return study


@pytest.fixture
def study_file(tmp_path):
    """Write a study; the fixture is a function from changes to its path."""

    def write(**changes):
        path = tmp_path / "study.yaml"
        path.write_text(yaml.safe_dump(tiny_study(**changes), sort_keys=False))
        return path

    return write


@pytest.fixture(scope="session")
def tiny_ref():
    from prefixlab.model.load import resolve_model

    return resolve_model("tiny-random")


@pytest.fixture(scope="session")
def tiny_tokenizer(tiny_ref):
    from prefixlab.model.load import load_tokenizer

    return load_tokenizer(tiny_ref)


@pytest.fixture
def tiny_model(tiny_ref):
    from prefixlab.config import HardwareConfig
    from prefixlab.model.load import load_model
    from prefixlab.model.machine import resolve

    return load_model(tiny_ref, resolve(HardwareConfig(device="cpu", dtype="float32", threads=1)))


def cli(*arguments, cwd=None, env=None, check=False, timeout=600):
    """Run the real command line in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "prefixlab", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, **(env or {})},
        check=check,
        timeout=timeout,
    )


@pytest.fixture(scope="session")
def arms(tmp_path_factory):
    """Folder of the arms `prefixlab arms` makes of 41 sums, r000 and reasoning-opening-r100; not to be changed."""
    folder = tmp_path_factory.mktemp("arms")
    rows = [
        {"prompt": f"What is {i} + {i}?", "response": f"It is {2 * i}, since {i} + {i} = {2 * i}."} for i in range(41)
    ]
    (folder / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ("--prefixes", "reasoning", "--position", "opening", "--ratios", "0,1")
    cli("arms", folder / "d.jsonl", *options, "--out", folder / "arms", check=True)
    return folder / "arms"


@pytest.fixture
def call(monkeypatch, capsys):
    """The command line in this process: a function from arguments to (exit code, standard output, standard error)."""

    def run(*arguments, cwd=None):
        from prefixlab import cli as module

        monkeypatch.setattr(sys, "argv", ["prefixlab", *map(str, arguments)])
        if cwd is not None:
            monkeypatch.chdir(cwd)
        code = 0
        try:
            module.main()
        except SystemExit as stop:
            code = stop.code or 0
        written = capsys.readouterr()
        return subprocess.CompletedProcess(arguments, code, written.out, written.err)

    return run


@pytest.fixture(scope="session")
def shared():
    """Public data sets beside the checkout; tests that need them say so where they are missing."""
    if not SHARED.is_dir():
        pytest.skip(f"public data sets are not at {SHARED}")
    return SHARED
