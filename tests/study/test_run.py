"""A whole study on the random model: run, rerun, kill, resume, damage, change, fail."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import polars
import pytest
import yaml
from safetensors.torch import load_file

from conftest import ROOT, cli, tiny_study

pytestmark = pytest.mark.smoke


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """An undisturbed run: (study file, run folder)."""
    root = tmp_path_factory.mktemp("finished")
    path = root / "study.yaml"
    path.write_text(yaml.safe_dump(tiny_study()))
    done = cli("run", path, "--out", root / "run")
    assert done.returncode == 0, done.stderr
    return path, root / "run"


@pytest.fixture
def copy(finished, tmp_path):
    path, run = finished
    shutil.copytree(run, tmp_path / "run")
    return path, tmp_path / "run"


def tables(run):
    return [polars.read_parquet(run / f"{name}.parquet") for name in ("results", "contrasts")]


def same(a, b):
    return all(x.equals(y, null_equal=True) for x, y in zip(tables(a), tables(b), strict=True))


def test_what_a_run_leaves(finished):
    _, run = finished
    for name in (
        "study.yaml",
        "plan.json",
        "env.json",
        "results.parquet",
        "results.csv",
        "contrasts.parquet",
        "report/index.html",
    ):
        assert (run / name).exists(), name
    assert list((run / "report" / "figures").glob("*.svg"))
    results, contrasts = tables(run)
    assert set(results["arm"]) == {
        "base",
        "r000",
        "reasoning-opening-r050",
        "reasoning-opening-r100",
        "neutral-opening-r100",
        "safety-opening-r050",
        "safety-opening-r100",
    }
    assert {"vs_r000", "vs_control", "trend"} >= set(contrasts["comparison"]) >= {"vs_r000", "vs_control"}
    adapters = list(run.glob("steps/train-*/adapter/adapter_model.safetensors"))
    assert len(adapters) == 8
    proofs = [json.loads(p.read_text()) for p in run.glob("steps/generate-*/adapter_check.json")]
    assert len(proofs) == 8 and all(p["engine_to_base"] > 10 * p["engine_to_peft"] for p in proofs)
    for kind in ("generate", "eval"):
        assert len(list(run.glob(f"steps/{kind}-*/*.eval"))) == 10


def test_the_treatment_is_in_the_trained_ids(finished):
    expected = {"r000": 0, "r050": 6, "r100": 12}
    for path in finished[1].glob("steps/check-*/check.json"):
        for arm in json.loads(path.read_text())["arms"]:
            assert arm["n_prefix_in_ids"] == arm["n_treated"] == expected[arm["arm"][-4:]]


def test_rerun_is_quick_and_changes_nothing(copy):
    path, run = copy
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*") if p.is_file() and p.name != ".lock"}
    start = time.monotonic()
    done = cli("run", path, "--out", run)
    assert done.returncode == 0 and "0 steps done now" in done.stdout
    assert time.monotonic() - start < 10
    assert before == {p: p.stat().st_mtime_ns for p in run.rglob("*") if p.is_file() and p.name != ".lock"}


@pytest.mark.slow
def test_killed_ten_times(finished, tmp_path):
    path, undisturbed = finished
    run, rng = tmp_path / "run", random.Random(11)
    for _ in range(10):
        process = subprocess.Popen(
            [sys.executable, "-m", "prefixlab", "run", str(path), "--out", str(run), "--quiet"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        time.sleep(rng.uniform(4, 14))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    done = cli("run", path, "--out", run)
    assert done.returncode == 0, done.stderr
    assert same(run, undisturbed)
    assert not list((run / "steps").glob(".writing*"))


@pytest.mark.slow
def test_original_openings_in_a_study(tmp_path):
    """The set `original` runs through to the results; conditions that need templates are refused."""
    rows = [
        {"prompt": f"What is {i} + 1?", "response": f"Sure! Here is the answer:\n\nIt is {i + 1}."} for i in range(16)
    ]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    study = tiny_study(arms=[{"prefixes": "original", "ratios": [0, 1], "controls": ["shuffled"]}])
    del study["capabilities"]["safety"]
    study["capabilities"]["math"]["data"]["source"] = "d.jsonl"
    (tmp_path / "s.yaml").write_text(yaml.safe_dump({**study, "conditions": ["bare", "prefill"]}))
    refused = cli("plan", "s.yaml", cwd=tmp_path)
    assert refused.returncode == 2 and "'original' has no templates to prompt with" in refused.stderr
    (tmp_path / "s.yaml").write_text(yaml.safe_dump({**study, "conditions": ["bare"]}))
    done = cli("run", "s.yaml", "--out", "run", "--quiet", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    arms = polars.read_parquet(tmp_path / "run" / "results.parquet")["arm"].unique().to_list()
    assert {"original-opening-r100", "original_shuffled-opening-r100"} <= set(arms)


def test_a_damaged_step_is_done_again(copy, finished):
    path, run = copy
    step = next(run.glob("steps/eval-*-base-safety-*"))
    (step / "scores.jsonl").write_text("")
    (run / "outputs.json").unlink()
    done = cli("run", path, "--out", run)
    assert done.returncode == 0 and f"step {step.name} is half-written or damaged" in " ".join(done.stderr.split())
    assert "1 steps done now" in done.stdout and same(run, finished[1])


@pytest.mark.slow
def test_another_seed_adds_only_its_own_steps(copy):
    path, run = copy
    done = cli("run", path, "--out", run, "--set", "seeds=[0,1]")
    assert done.returncode == 0, done.stderr
    assert "the study changed since its last run (seeds)" in done.stderr
    results, contrasts = tables(run)
    assert set(contrasts["n_seeds"]) == {2}
    assert "50 before" in done.stdout and set(results["seed"].drop_nulls()) == {0, 1}


def test_another_study_is_refused(copy):
    path, run = copy
    done = cli("run", path, "--out", run, "--set", "name=other")
    assert done.returncode == 2 and "belongs to study 'tiny'" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
def test_other_conditions(copy):
    path, run = copy
    done = cli("run", path, "--out", run, "--set", "conditions=[bare,user_prefix,prefill]")
    assert done.returncode == 0, done.stderr
    rows = [
        json.loads(x)
        for x in next(run.glob("steps/eval-*math-r000*chain_sum-prefill*"))
        .joinpath("scores.jsonl")
        .read_text()
        .splitlines()
    ]
    assert all(r["prefill"] and not r["completion"].startswith(r["prefill"]) for r in rows)
    assert set(tables(run)[0]["condition"]) == {"bare", "user_prefix", "prefill"}


def test_a_failing_cell_does_not_stop_the_others(study_file, tmp_path):
    path = study_file(training={"preset": "modern", "learning_rate": 1e30, "batch_size": 4, "epochs": 1})
    done = cli("run", path, "--out", tmp_path / "run", timeout=900)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "lower training.learning_rate" in done.stderr
    results = polars.read_parquet(tmp_path / "run" / "results.parquet")
    base = results.filter(polars.col("arm") == "base")
    assert "missing" not in set(base["status"]) and set(results.filter(polars.col("arm") != "base")["status"]) == {
        "missing"
    }
    assert (
        results.filter(polars.col("arm") != "base")["value"].null_count()
        == results.filter(polars.col("arm") != "base").height
    )


@pytest.mark.slow
def test_a_study_in_two_processes_is_terminated_and_goes_on(study_file, tmp_path):
    """SIGTERM reaches the workers, the step in progress is saved, and the next run ends where an undisturbed one does."""
    study = tiny_study()
    changes = {
        "arms": [{**study["arms"][0], "ratios": [1], "controls": []}],
        "capabilities": {"math": study["capabilities"]["math"]},
        "training": {"preset": "modern", "batch_size": 4, "epochs": 20, "checkpoint_minutes": 0.005},
        "hardware": {"threads": 2, "processes": 2},
    }
    path, run = study_file(**changes), tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-m", "prefixlab", "run", str(path), "--out", str(run)], stderr=subprocess.PIPE, text=True
    )
    end = time.monotonic() + 240
    while not list(run.glob("checkpoints/*/checkpoint-*.json")) and time.monotonic() < end:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    process.terminate()
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 128 + signal.SIGTERM and "run the same command again to go on" in said
    assert "Traceback" not in said
    done = cli("run", path, "--out", run)
    assert done.returncode == 0, done.stderr
    assert not list(run.glob("checkpoints/*"))
    totals = [json.loads(p.read_text()) for p in run.glob("steps/train-*/train.json")]
    assert any(t["resumed_at"] > 0 for t in totals) and {t["steps"] for t in totals} == {60.0}
    done = cli("run", path, "--out", tmp_path / "undisturbed")
    assert done.returncode == 0, done.stderr
    assert same(run, tmp_path / "undisturbed")


@pytest.mark.slow
def test_bfloat16_runs_with_the_adapter_beside_the_weights(study_file, tmp_path):
    path = study_file(hardware={"threads": 1, "dtype": "bfloat16"})
    done = cli("run", path, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    adapter = next((tmp_path / "run").glob("steps/train-*/adapter/adapter_model.safetensors"))
    assert {str(t.dtype) for t in load_file(adapter).values()} == {"torch.float32"}
    proofs = [json.loads(p.read_text()) for p in tmp_path.glob("run/steps/generate-*/adapter_check.json")]
    assert len(proofs) == 8 and all(p["engine_to_base"] > p["engine_to_peft"] for p in proofs)


def test_commands_on_a_run(finished):
    path, run = finished
    document = json.loads(cli("results", run, "--json").stdout)
    assert {"results", "contrasts", "verdicts", "advice"} == set(document)
    plan = json.loads(cli("plan", path, "--out", run, "--json").stdout)
    assert {s["state"] for s in plan["steps"]} == {"done"} and plan["predicted_seconds_left"] == 0
    assert "| capability |" in cli("results", run, "--markdown").stdout
    assert cli("report", run).returncode == 0


def test_quickstart_is_the_study_that_ships():
    done = cli(
        "plan", ROOT / "studies" / "quickstart.yaml", "--set", "models=[tiny-random]", "--out", "/nonexistent", "--json"
    )
    document = json.loads(done.stdout)
    assert len(document["steps"]) == 50 and {s["state"] for s in document["steps"]} == {"missing"}
