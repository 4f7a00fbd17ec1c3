"""The command line as a user meets it: help with examples, one-line errors, exit codes, JSON alone on stdout."""

import json

import pytest
import yaml

from conftest import cli, tiny_study


def one_line(done, *words):
    assert done.returncode == 2, (done.returncode, done.stderr)
    lines = [x for x in done.stderr.splitlines() if x.strip()]
    assert "Traceback" not in done.stderr and lines[-1].startswith("prefixlab: ")
    for word in words:
        assert word in lines[-1], lines[-1]


@pytest.mark.parametrize("command", ["run", "plan", "results", "report", "arms", "check", "doctor"])
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
        (["arms", "builtin:safety", "--prefixes", "safety", "--ratios", "0,2", "--out", "x"], ["ratios.1", "2.0"]),
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
