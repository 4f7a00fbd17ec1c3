"""Ways in which a cell can be trained: in several processes, among other cells, compiled; and what it leaves behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from conftest import ROOT, cli


def train(arms, out, *more, arm="reasoning-opening-r100", **options):
    made = cli("train", arms, "--arm", arm, "--model", "tiny-random", "--out", out, *more, **options)
    assert made.returncode == 0, made.stderr
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return rows, load_file(out / "adapter" / "adapter_model.safetensors")


@pytest.mark.smoke
@pytest.mark.parametrize(
    "sets",
    [
        pytest.param(("training.batch_size=8",), id="split", marks=pytest.mark.slow),
        pytest.param(("training.batch_size=2", "training.accumulation=4"), id="accumulated"),
    ],
)
def test_two_gloo_processes_give_the_losses_of_one(arms, tmp_path, sets):
    options = [x for s in (*sets, "hardware.threads=2", "training.lora.dropout=0") for x in ("--set", s)]
    one, a = train(arms, tmp_path / "one", *options)
    two, b = train(arms, tmp_path / "two", *options, "--processes", "2")
    assert len(one) == len(two) >= 10
    for x, y in zip(one, two, strict=True):
        assert abs(x["loss"] - y["loss"]) < 1e-5 and x["grad_norm"] == pytest.approx(y["grad_norm"], rel=1e-4)
        assert (x["tokens"], x["supervised_tokens"]) == (y["tokens"], y["supervised_tokens"])
    assert all(torch.allclose(a[k], b[k], atol=1e-4) for k in a)


@pytest.mark.smoke
def test_the_number_of_processes_is_asserted(arms, tmp_path):
    from prefixlab.study.launch import command

    train(arms, tmp_path / "one", "--set", "training.epochs=1")
    job = {**make_job(arms, tmp_path / "one"), "out": str(tmp_path / "three")}
    job["hardware"]["processes"] = 3
    (tmp_path / "job.json").write_text(json.dumps(job))
    (tmp_path / "parent").write_text(str(os.getpid()))
    done = subprocess.run(
        command(tmp_path / "job.json", 2), cwd=ROOT, capture_output=True, text=True, timeout=300, env={**os.environ}
    )
    assert done.returncode != 0
    assert "3 training processes were asked for, but there are 2" in (tmp_path / "result.json").read_text()


def make_job(arms, trained):
    from prefixlab.config import HardwareConfig
    from prefixlab.model.load import resolve_model
    from prefixlab.model.machine import resolve
    from prefixlab.model.recipes import MODERN
    from prefixlab.study.cell import TrainJob

    job = TrainJob(
        study="s",
        capability="c",
        model=resolve_model("tiny-random"),
        hardware=resolve(HardwareConfig(threads=1, device="cpu")),
        arm=trained / "arm",
        max_length=512,
        no_reasoning="refuse",
        over_long="refuse",
        recipe=MODERN.model_copy(update={"epochs": 1}),
        seed=0,
        key="k",
        out=trained,
        checkpoints=None,
        minutes=0,
    )
    return job.model_dump(mode="json")


def start(arms, out, *sets, arm="r000", processes=2):
    arguments = ["train", arms, "--arm", arm, "--model", "tiny-random", "--out", out, "--processes", processes]
    arguments += [x for s in sets for x in ("--set", s)]
    return subprocess.Popen(
        [sys.executable, "-m", "prefixlab", *map(str, arguments)], stderr=subprocess.PIPE, text=True
    )


@pytest.mark.smoke
def test_failures_of_workers_are_one_line(arms, tmp_path):
    process = start(arms, tmp_path / "o", "training.learning_rate=1e30")
    said = process.communicate(timeout=300)[1]
    assert process.returncode == 2 and said.count("\n") == 1
    assert "at step 2; lower training.learning_rate" in said
    assert not (tmp_path / "o" / "train.json").exists()


def workers_of(out):
    """Processes whose job writes into a folder."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes().decode().split("\0") if entry.name.isdigit() else []
            jobs = [w for w in words if w.endswith("job.json")]
            if jobs and str(out) in Path(jobs[0]).read_text():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


@pytest.mark.smoke
def test_workers_end_with_a_killed_parent(arms, tmp_path):
    out = tmp_path / "o"
    process = start(arms, out, "training.epochs=2000", "training.checkpoint_minutes=0.005")
    end = time.monotonic() + 120
    while not list((out / "checkpoints").glob("checkpoint-*.json")) and time.monotonic() < end:
        time.sleep(0.05)
    workers = workers_of(out)
    assert len(workers) >= 2
    second = start(arms, out, "training.epochs=2000", processes=1)
    assert "in use by another run" in second.communicate(timeout=120)[1] and second.returncode == 2
    process.send_signal(signal.SIGKILL)
    process.wait()
    end = time.monotonic() + 30
    while any(Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes() for pid in workers):
        assert time.monotonic() < end, "workers live on"
        time.sleep(0.2)


TOGETHER = """
import sys
from pathlib import Path
from prefixlab.data.chat import chat_format
from prefixlab.model.load import load_model, load_tokenizer
from prefixlab.model.trainer import StopRequest
from prefixlab.study.cell import TrainJob, train_cell

jobs = [TrainJob.model_validate_json(Path(f).read_text()) for f in sys.argv[1:]]
model, tok = load_model(jobs[0].model, jobs[0].hardware), load_tokenizer(jobs[0].model)
for job in jobs:
    job.out.mkdir()
    train_cell(job, model, tok, chat_format(tok), tok.pad_token_id, tick=lambda a, b: None, stop=StopRequest())
"""


@pytest.mark.slow
def test_cells_in_one_process_equal_cells_in_processes_of_their_own(arms, tmp_path):
    """Two arms one after another on one loaded base, with dropout, against one process each."""
    script = tmp_path / "both.py"
    script.write_text(TOGETHER)
    jobs = []
    for name in ("r000", "reasoning-opening-r100"):
        train(arms, tmp_path / name, "--set", "training.epochs=1", arm=name)
        job = make_job(arms, tmp_path / name)
        job["recipe"]["dropout"] = 0.1
        jobs.append(job)

    def run(label, chosen):
        files = []
        for i, job in enumerate(chosen):
            out = tmp_path / f"{label}{i}"
            files.append(tmp_path / f"{label}{i}.json")
            files[-1].write_text(json.dumps({**job, "out": str(out)}))
        subprocess.run([sys.executable, script, *files], check=True, cwd=ROOT, timeout=300)
        return [
            (tmp_path / f"{label}{i}" / "adapter" / "adapter_model.safetensors").read_bytes()
            for i in range(len(chosen))
        ]

    assert run("together", jobs) == [*run("first", jobs[:1]), *run("second", jobs[1:])]


@pytest.mark.smoke
def test_what_a_training_leaves_behind(arms, tmp_path):
    sets = ["training.epochs=1", "training.checkpoint_minutes=0.00001", "training.report_to=[tensorboard]"]
    train(arms, tmp_path / "o", *(x for s in sets for x in ("--set", s)))
    found = sorted(str(p.relative_to(tmp_path / "o")) for p in (tmp_path / "o").rglob("*") if p.is_file())
    events = [f for f in found if f.startswith("tracking/events.out.tfevents")]
    assert len(events) == 1
    assert [f for f in found if f not in events] == [
        ".lock",
        "adapter/README.md",
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
        "arm/data.jsonl",
        "arm/manifest.json",
        "metrics.jsonl",
        "train.json",
    ]
    card = (tmp_path / "o" / "adapter" / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["library_name"] == "peft" and front["base_model"] == "tiny-random"
    sha = json.loads((tmp_path / "o" / "arm" / "manifest.json").read_text())["data_sha256"]
    for words in (
        "| arm | reasoning-opening-r100 |",
        "| ratio | 1 |",
        sha,
        "41 of 41 treated samples carry",
        "torch 2.",
    ):
        assert words in card, words
    rows = [json.loads(line) for line in (tmp_path / "o" / "metrics.jsonl").read_text().splitlines()]
    assert {"loss_prefix", "logit_gradient_prefix", "tokens_per_second", "flops", "mfu", "learning_rate"} <= set(
        rows[0]
    )


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--arm", "r00"], "unknown arm 'r00'"),
        (["--arm", "r000", "--set", "training.lora.rr=4"], "unknown key 'rr'; allowed"),
        (["--arm", "r000", "--set", "training.lora.lora_alpha=4"], "call it 'alpha'"),
        (["--arm", "r000", "--set", "training.lora.modules_to_save=[x]"], "changes the base model"),
        (["--arm", "r000", "--set", "training.lora.init_lora_weights=pissa"], "unknown value 'pissa'"),
        (["--arm", "r000", "--set", "training.lora.r=0"], "training.lora.r: Input should be greater than 0"),
        (["--arm", "r000", "--set", "training.trainer.max_steps=4"], "set training.epochs instead"),
        (["--arm", "r000", "--set", "training.trainer.eval_steps=4"], "cannot be set: batches"),
        (["--arm", "r000", "--set", "training.trainer.adam_bet1=4"], "Did you mean 'adam_beta1'?"),
        (["--arm", "r000", "--set", "training.trainer.optim=adamm"], "transformers refuses it"),
        (["--arm", "r000", "--set", "seeds=4"], "only keys below training and hardware"),
        (["--arm", "r000", "--set", "training.max_length=10"], "more than max_length 10"),
        (["--arm", "r000", "--set", "training.report_to=[trakio]"], "Did you mean 'trackio'?"),
        (["--arm", "r000", "--set", "training.report_to=[wandb]"], "pip install wandb"),
    ],
)
def test_mistakes_are_one_line(call, arms, tmp_path, more, words):
    made = call("train", arms, "--model", "tiny-random", "--out", tmp_path / "o", *more)
    assert made.returncode == 2 and made.stderr.count("\n") == 1, made.stderr
    assert words in made.stderr
    assert not (tmp_path / "o").exists()
