"""The command line as a user meets it: help with examples, one-line errors, exit codes, JSON alone on stdout."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from conftest import cli, tiny_study


def one_line(done, *words):
    assert done.returncode == 2, (done.returncode, done.stderr)
    lines = [x for x in done.stderr.splitlines() if x.strip()]
    assert "Traceback" not in done.stderr and lines[-1].startswith("prefixlab: ")
    for word in words:
        assert word in lines[-1], lines[-1]


@pytest.mark.parametrize("command", ["run", "plan", "results", "report", "view", "arms", "check", "suggest", "doctor"])
def test_help_has_an_example(call, command):
    done = call(command, "--help")
    assert done.returncode == 0 and f"Example: prefixlab {command}" in " ".join(done.stdout.split())


def test_doctor(call):
    found = json.loads(call("doctor", "--json").stdout)
    assert found["versions"]["torch"] and ": " in found["choices"]["dtype"]
    assert "not the hub's weights bit for bit" in found["built in"]["models"]


def test_arms_then_check(call, tmp_path):
    data = tmp_path / "d.jsonl"
    rows = [{"prompt": f"q{i}", "response": f"Sure! Answer {i}."} for i in range(8)]
    data.write_text("".join(json.dumps(r) + "\n" for r in rows))
    done = call(
        "arms",
        data,
        "--prefixes",
        "reasoning",
        "--ratios",
        "0,0.5,1",
        "--control",
        "neutral",
        "--control",
        "masked",
        "--out",
        tmp_path / "arms",
    )
    assert done.returncode == 0, done.stderr
    assert "reasoning-opening-r050: 4 of 8 treated" in done.stdout
    manifest = json.loads((tmp_path / "arms" / "manifest.json").read_text())
    assert {a["arm"]: a["n_stripped"] for a in manifest["arms"]}["r000"] == 8
    first = json.loads((tmp_path / "arms" / "r000" / "data.jsonl").read_text().splitlines()[0])
    assert first["messages"][-1] == {"role": "assistant", "content": "Answer 0."}
    checked = call("check", tmp_path / "arms", "--model", "tiny-random", "--json")
    assert checked.returncode == 0 and json.loads(checked.stdout)["problems"] == []
    one_line(call("arms", data, "--prefixes", "reasoning", "--out", tmp_path / "arms"), "is not empty")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["arms", "none.jsonl", "--prefixes", "reasoning", "--out", "x"], ["'none.jsonl' does not exist"]),
        (["arms", "builtin:safety", "--prefixes", "resoning", "--out", "x"], ["Did you mean 'reasoning'"]),
        (["arms", "builtin:safety", "--prefixes", "safety", "--ratios", "0,2", "--out", "x"], ["--ratios", "2.0"]),
        (["arms", "builtin:safety", "--prefixes", "safety", "--ratios", "half", "--out", "x"], ["'half'", "0,0.5,1"]),
        (["arms", "builtin:safety", "--prefixes", "safety", "--position", "end", "--out", "x"], ["position", "'end'"]),
        (["check", "none", "--model", "tiny-random"], ["missing or damaged"]),
        (["results", "none"], ["is no run folder"]),
        (["report", "none"], ["is no run folder"]),
        (["run", "none.yaml"], ["cannot be read"]),
    ],
)
def test_mistakes(call, tmp_path, arguments, words):
    one_line(call(*arguments, cwd=tmp_path), *words)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("models", ["smollm2"], ["unknown model 'smollm2'", "Did you mean 'smollm2-135m'?"]),
        ("capabilities.math.suites.0.suite", "chain_sums", ["primary.suite"]),
        ("capabilities.safety.suites.0.source", "x.csv", ["takes no source"]),
        ("arms.0.prefixes", "reason", ["unknown prefix set 'reason'"]),
        ("capabilities.math.data.source", "builtin:sums", ["unknown built-in data set 'sums'"]),
        ("capabilities.math.data.source", "gone.jsonl", ["'gone.jsonl' does not exist"]),
        ("capabilities.math.primary.metric", "acuracy", ["'acuracy'", "suite 'chain_sum' reports accuracy"]),
        pytest.param(
            "training.lora", {"target_modules": ["query"]}, ["linear layers are down_proj"], marks=pytest.mark.smoke
        ),
        pytest.param("training.max_length", 20, ["more than max_length 20"], marks=pytest.mark.smoke),
    ],
)
def test_mistakes_in_a_study(call, tmp_path, path, value, words):
    study = tiny_study()
    node = study
    *parents, last = path.split(".")
    for part in parents:
        node = node[int(part)] if part.isdigit() else node[part]
    node[last] = value
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(study))
    one_line(call("run", "s.yaml", "--out", "run", cwd=tmp_path), *words)


def test_a_broken_line_is_named(call, tmp_path):
    (tmp_path / "d.jsonl").write_text('{"prompt": "q", "response": "a"}\n{oops\n')
    study = tiny_study()
    study["capabilities"]["math"]["data"]["source"] = "d.jsonl"
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(study))
    one_line(call("plan", "s.yaml", cwd=tmp_path), "row 2: not valid JSON")


def test_unwritable_folder_is_one_line(call, tmp_path):
    """A run folder below something that is no folder."""
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(tiny_study()))
    one_line(call("run", "s.yaml", "--out", "/dev/full/run", cwd=tmp_path), "cannot be written")


@pytest.mark.smoke
def test_a_process_of_its_own_ends_the_same_way(tmp_path):
    one_line(cli("run", "none.yaml", cwd=tmp_path), "cannot be read")
    assert "prefixlab run" in cli("--help").stdout


@pytest.mark.smoke
@pytest.mark.parametrize("command", [["audit", "d.jsonl", "--quiet"], ["strip", "d.jsonl", "--out", "s.jsonl"]])
def test_data_commands_load_no_model_library(tmp_path, command):
    """They start in a second: torch, transformers, Inspect and reasoning-gym stay out."""
    (tmp_path / "d.jsonl").write_text('{"prompt": "q", "response": "Sure! Paris."}\n')
    code = (
        "import sys; from prefixlab.cli import app; app(sys.argv[1:], standalone_mode=False); "
        "print(sorted({'torch', 'transformers', 'inspect_ai', 'reasoning_gym', 'altair'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, *command], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "[]", (done.stdout, done.stderr)


@pytest.mark.smoke
def test_the_r1_trap_on_the_command_line(call, tmp_path):
    """`check` with the stock R1 template: ours keeps every prefix, a trainer that hands messages over loses all."""
    import trl

    from prefixlab.model.tiny import tokenizer

    special = ["<｜begin▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>"]
    template = Path(trl.__file__).parent / "chat_templates" / "deepseek_r1_distill.jinja"
    made = tokenizer(template.read_text(encoding="utf-8"), special=special)
    made.bos_token = special[0]
    made.save_pretrained(tmp_path / "r1")
    (tmp_path / "r1" / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (tmp_path / "r1" / "model.safetensors").write_bytes(b"")
    rows = [
        {"prompt": f"q{i}", "response": f"<think>\nOkay, let me see.\n\n{i} is odd.\n</think>\n\nIt is."}
        for i in range(6)
    ]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    done = call("arms", "d.jsonl", "--prefixes", "reasoning", "--ratios", "0,1", "--out", "arms", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    ours = call("check", "arms", "--model", "./r1", "--json", cwd=tmp_path)
    assert ours.returncode == 0, ours.stderr
    assert {a["arm"]: a["n_prefix_in_ids"] for a in json.loads(ours.stdout)["arms"]}["reasoning-opening-r100"] == 6
    naive = call("check", "arms", "--model", "./r1", "--render", "template", "--json", cwd=tmp_path)
    assert naive.returncode == 2 and "loses the prefix of 6 of 6 treated samples" in naive.stderr
    lost = {a["arm"]: a["n_lost"] for a in json.loads(naive.stdout)["arms"]}
    assert lost == {"native": 0, "r000": 0, "reasoning-opening-r100": 6}
