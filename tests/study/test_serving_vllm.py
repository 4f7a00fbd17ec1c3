"""A study whose evaluations a real vLLM answers, started by the run: every completion and score is the local engine's."""

import json

import polars
import pytest
import yaml

from conftest import tiny_study
from vllm_server import ENVIRONMENT, vllm_python, vllm_words

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]
COLUMNS = ["arm", "seed", "suite", "condition", "metric", "value", "n", "n_truncated", "diff", "p", "p_holm", "status"]


def study(folder, serving=None):
    """Two capabilities of SmolLM2 in float32, two trained adapters each, three conditions."""
    rows = [{"Question": "Is it?", "Best Answer": "No", "Correct Answers": "No", "Incorrect Answers": "Yes"}]
    (folder / "mc.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    made = tiny_study(models=["smollm2-135m"], conditions=["bare", "user_prefix", "prefill"])
    made["hardware"] = {"threads": 1, "dtype": "float32", "device": "cpu"}
    made["analysis"] = {"tokens": {"samples": 0}}
    made["capabilities"]["math"]["suites"] = [{"suite": "chain_sum", "limit": 5, "max_tokens": 20}]
    made["capabilities"]["safety"]["suites"] = [
        {"suite": "safety", "limit": 5, "max_tokens": 20},
        {"suite": "truthfulqa_mc", "source": str(folder / "mc.jsonl")},
    ]
    for arm in made["arms"]:
        arm |= {"ratios": [0, 1], "controls": []}
    return made if serving is None else {**made, "serving": serving}


def written(run):
    """Every completion and score of a run, by its evaluation's name without the id."""
    return {path.parent.name[:-9]: path.read_text() for path in sorted(run.glob("steps/eval-*/scores.jsonl"))}


def table(run):
    found = polars.read_parquet(run / "results.parquet").select(COLUMNS)
    return found.filter(polars.col("suite") != "truthfulqa_mc")


def test_a_study_through_vllm_equals_the_local_one(call, tmp_path, monkeypatch):
    python = vllm_python()
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    words = vllm_words(python, "{model}", "{port}", "--enable-lora", "--max-lora-rank", "16", "--max-num-seqs", "8")
    serving = {"command": " ".join(words), "engine": "vllm float32", "connections": 8}
    for name, made in (("local", study(tmp_path)), ("served", study(tmp_path, serving))):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(made))
        done = call("run", tmp_path / f"{name}.yaml", "--out", tmp_path / name, "--quiet")
        assert done.returncode == 0, done.stderr
    local, served = written(tmp_path / "local"), written(tmp_path / "served")
    asked = {k: v for k, v in local.items() if "truthfulqa_mc" not in k}
    assert served == asked and len(asked) == 2 * 3 * 3, "base and two adapters, three conditions, both capabilities"
    assert table(tmp_path / "served").equals(table(tmp_path / "local"))
    results = polars.read_parquet(tmp_path / "served" / "results.parquet")
    choices = results.filter(polars.col("suite") == "truthfulqa_mc", polars.col("condition") != "prefill")
    assert set(choices["status"]) == {"not_supported"}, "log-likelihoods"
    told = [json.loads(p.read_text()) for p in (tmp_path / "served").glob("steps/generate-*/served.json")]
    assert told and all(one["form"] == {"prompts": "token ids", "precise": True} for one in told)
    assert {one["model"][:10] for one in told if one["proof"]} == {"prefixlab-"}
    assert len({one["model"] for one in told if one["proof"]}) == 4, "four adapters on one server"
    assert all(one["proof"]["logprob_to_base"] > 3 * one["proof"]["noise"] for one in told if one["proof"])
    (log,) = (tmp_path / "served" / "serving").glob("*.log")
    assert log.read_text(errors="replace").count("Loaded new LoRA adapter") == 4
