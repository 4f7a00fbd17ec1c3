"""A training that is stopped, killed or damaged goes on to the same bits, or says why it cannot."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from conftest import ROOT
from prefixlab.config import ArmsConfig
from prefixlab.data.arms import build_arm, specs
from prefixlab.data.chat import chat_format
from prefixlab.data.check import render_arm
from prefixlab.data.sources import BUILTIN_DATA
from prefixlab.errors import Stopped, UserError
from prefixlab.model import checkpoints
from prefixlab.model.recipes import MODERN
from prefixlab.model.train import Conduct, snapshot_steps, train_adapter
from prefixlab.model.trainer import StopRequest

PLAN = MODERN.model_copy(
    update={"epochs": 2, "batch_size": 2, "accumulation": 2, "learning_rate": 1e-2, "dropout": 0.1, "warmup_ratio": 0.2}
)
STEPS = 10


@pytest.fixture
def samples(tiny_tokenizer):
    data = BUILTIN_DATA["chain_sum"]()[:20]
    arm = specs(ArmsConfig(prefixes="reasoning", ratios=[1.0], controls=[]), "k")[1]
    return render_arm(
        build_arm(data, arm, "k", "exact"),
        tiny_tokenizer,
        chat_format(tiny_tokenizer),
        max_length=512,
        no_reasoning="refuse",
    )


def train(model, samples, folder, *, stop_at=None, kept=None, plan=PLAN, minutes=0.0, seed=0):
    folder.mkdir(exist_ok=True)
    stop = StopRequest()

    def tick(step, steps):
        if step == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)

    conduct = Conduct(tick=tick, stop=stop, checkpoints=kept, minutes=minutes)
    totals = train_adapter(model, samples, plan, key="k", seed=seed, pad=0, folder=folder, conduct=conduct)
    return totals, load_file(folder / "adapter" / "adapter_model.safetensors")


def metrics(folder):
    timed = ("seconds", "tokens_per_second", "mfu")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in timed} for row in rows]


@pytest.mark.smoke
def test_snapshots_survive_a_stop_and_are_of_this_training_alone(samples, tiny_model, tmp_path):
    plan = PLAN.model_copy(update={"snapshots": 3})
    train(tiny_model, samples, tmp_path / "whole", plan=plan)
    stale = tmp_path / "kept" / "snapshots" / "step-000001"  # of a training that was killed before its first checkpoint
    stale.mkdir(parents=True)
    with pytest.raises(Stopped):
        train(tiny_model, samples, tmp_path / "a", stop_at=6, kept=tmp_path / "kept", plan=plan)
    (tmp_path / "a" / "snapshots").mkdir()  # a kill right behind the copy left one
    _, last = train(tiny_model, samples, tmp_path / "a", kept=tmp_path / "kept", plan=plan)
    names = [f"step-{n:06d}" for n in (2, 5, 8)]
    assert sorted(f.name for f in (tmp_path / "a" / "snapshots").iterdir()) == names
    before = None
    for name in names:
        places = [tmp_path / run / "snapshots" / name / "adapter_model.safetensors" for run in ("whole", "a")]
        one, other = map(load_file, places)
        assert one.keys() == other.keys() == last.keys()
        assert all(torch.equal(one[n], other[n]) for n in one)
        assert before is None or not all(torch.equal(one[n], before[n]) for n in one)
        before = one
    assert not all(torch.equal(before[n], last[n]) for n in last)


def test_snapshot_steps():
    assert snapshot_steps(10, 3) == [2, 5, 8]
    assert snapshot_steps(3, 9) == [1, 2]
    assert snapshot_steps(1, 2) == snapshot_steps(8, 0) == []


@pytest.mark.smoke
@pytest.mark.parametrize("stop_at", [1, 5, 9])
def test_stopped_and_resumed_equals_undisturbed(samples, tiny_model, tmp_path, stop_at):
    _, whole = train(tiny_model, samples, tmp_path / "whole")
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped, match=rf"after step {stop_at} of {STEPS}") as stopped:
        train(tiny_model, samples, tmp_path / "a", stop_at=stop_at, kept=tmp_path / "kept")
    assert stopped.value.signal == signal.SIGTERM and signal.getsignal(signal.SIGTERM) == handler
    assert not (tmp_path / "a" / "adapter").exists()
    torch.manual_seed(99)  # what another process would have drawn does not matter
    totals, resumed = train(tiny_model, samples, tmp_path / "a", kept=tmp_path / "kept")
    assert totals["resumed_at"] == stop_at and totals["steps"] == STEPS
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "a")
    assert [row["step"] for row in metrics(tmp_path / "a")] == list(range(1, STEPS + 1))


@pytest.mark.smoke
def test_a_stop_at_the_last_step_finishes(samples, tiny_model, tmp_path):
    totals, _ = train(tiny_model, samples, tmp_path / "a", stop_at=STEPS, kept=tmp_path / "kept")
    assert totals["steps"] == STEPS and not list((tmp_path / "kept").glob("checkpoint-*"))


@pytest.mark.smoke
def test_checkpoints_by_the_clock_keep_the_newest_only(samples, tiny_model, tmp_path):
    kept = tmp_path / "kept"
    with pytest.raises(Stopped):
        train(tiny_model, samples, tmp_path / "a", stop_at=6, kept=kept, minutes=1e-9)
    assert sorted(p.name for p in kept.iterdir()) == ["checkpoint-6", "checkpoint-6.json"]


@pytest.mark.smoke
def test_damaged_and_foreign_checkpoints(samples, tiny_model, tmp_path):
    kept = tmp_path / "kept"
    with pytest.raises(Stopped):
        train(tiny_model, samples, tmp_path / "a", stop_at=3, kept=kept)
    with pytest.raises(UserError, match=r"checkpoint-3' belongs to a training of another configuration"):
        train(tiny_model, samples, tmp_path / "a", kept=kept, seed=1)
    with pytest.raises(UserError, match="another configuration"):
        train(tiny_model, samples[:-1], tmp_path / "a", kept=kept)
    optimizer = kept / "checkpoint-3" / "optimizer.pt"
    optimizer.write_bytes(optimizer.read_bytes()[:-10])
    totals, _ = train(tiny_model, samples, tmp_path / "b", kept=kept)
    assert totals["resumed_at"] == 0


def test_an_unsealed_checkpoint_does_not_count(tmp_path):
    (tmp_path / "checkpoint-4").mkdir()
    (tmp_path / "checkpoint-4" / "x").write_text("half")
    assert checkpoints.latest(tmp_path, "id") is None
    checkpoints.seal(tmp_path, 4, "id")
    assert checkpoints.latest(tmp_path, "id") == (tmp_path / "checkpoint-4", 4)
    (tmp_path / "checkpoint-7").mkdir()
    assert checkpoints.latest(tmp_path, "id") == (tmp_path / "checkpoint-4", 4)
    (tmp_path / "checkpoint-4.json").write_text("{")
    assert checkpoints.latest(tmp_path, "id") is None


@pytest.fixture
def command(arms):
    """`prefixlab train` on a folder of arms, in a process of its own."""

    def start(out, *more):
        arguments = [
            "train",
            arms,
            "--arm",
            "reasoning-opening-r100",
            "--model",
            "tiny-random",
            "--out",
            out,
        ]
        sets = [
            "training.epochs=18",
            "training.lora.dropout=0.1",
            "training.checkpoint_minutes=0.005",
            "hardware.threads=1",
        ]
        arguments += [x for s in sets for x in ("--set", s)]
        return subprocess.Popen(
            [sys.executable, "-m", "prefixlab", *map(str, arguments), *more],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def newest(out):
    return max((int(f.stem.split("-")[1]) for f in (out / "checkpoints").glob("checkpoint-*.json")), default=0)


@pytest.mark.smoke
def test_signals_to_the_real_command(command, tmp_path):
    """Killed, then terminated, then interrupted, each time further on; then to the end, with the same bits."""
    reference = command(tmp_path / "whole")
    out, at = tmp_path / "out", 0
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT):
        process = command(out)
        end = time.monotonic() + 120
        while newest(out) <= at and time.monotonic() < end:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.01)
        process.send_signal(number)
        code, said = process.wait(120), process.stderr.read()
        at = newest(out)
        assert not (out / "adapter").exists()
        if number == signal.SIGKILL:
            assert code == -signal.SIGKILL
        else:
            assert code == 128 + number and "which is saved; run the same command again" in said
            assert "Traceback" not in said
    again = command(out, "--json")
    text, errors = again.communicate(timeout=300)
    assert again.returncode == 0, errors
    assert json.loads(text)["resumed_at"] == at > 0
    assert reference.wait(300) == 0, reference.stderr.read()
    name = "adapter/adapter_model.safetensors"
    assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert metrics(out) == metrics(tmp_path / "whole")
    second = command(out)
    assert second.wait(120) == 2 and "already holds an adapter" in second.stderr.read()
