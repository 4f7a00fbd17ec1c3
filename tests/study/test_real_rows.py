"""The pipeline on rows of public sets: GSM8K for mathematics, STAR-1 for safety."""

import json

import polars
import pytest
import yaml

from conftest import cli, tiny_study

pytestmark = pytest.mark.smoke


def real_study(shared, models=("tiny-random",)):
    study = tiny_study(name="real", models=list(models))
    math, safety = study["capabilities"]["math"], study["capabilities"]["safety"]
    gsm8k = {"suite": "gsm8k", "source": str(shared / "gsm8k" / "test.jsonl"), "limit": 6, "max_tokens": 8}
    math["data"] = {"source": str(shared / "gsm8k" / "train.jsonl"), "limit": 8, "held_out": 2}
    math["suites"], math["primary"] = [gsm8k], {"suite": "gsm8k", "metric": "accuracy"}
    safety["data"] = {"source": str(shared / "star1" / "STAR-1.json"), "limit": 4, "held_out": 1}
    study["training"] |= {"max_length": 8000, "batch_size": 2}
    return study


def test_gsm8k_and_star1(shared, tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(real_study(shared)))
    done = cli("run", path, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    results = polars.read_parquet(tmp_path / "run" / "results.parquet")
    assert set(results["status"]) <= {"measured", "invalid"} and results.height > 20
    native = (next(tmp_path.glob("run/steps/data-safety-*")) / "native.jsonl").read_text().split("\n")
    assert all(json.loads(row)["reasoning"] for row in native if row)
    for check in tmp_path.glob("run/steps/check-*/check.json"):
        arms = {a["arm"]: a for a in json.loads(check.read_text())["arms"]}
        full = next(a for name, a in arms.items() if name.endswith("opening-r100") and not name.startswith("neutral"))
        assert full["n_prefix_in_ids"] == full["n_treated"] == full["n"]


@pytest.mark.slow
def test_gsm8k_and_star1_on_the_real_model(shared, tmp_path):
    study = real_study(shared, ["smollm2-135m"])
    study["capabilities"] = {"math": study["capabilities"]["math"]}
    study["arms"] = study["arms"][:1]
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(study))
    done = cli("run", path, "--out", tmp_path / "run", timeout=850)
    assert done.returncode == 0, done.stderr
    tokens = polars.concat(
        polars.read_parquet(p) for p in tmp_path.glob("run/steps/tokens-*-base-*/token_loss.parquet")
    )
    answers = tokens.filter((polars.col("span") == "answer") & (polars.col("rendering") == "r000"))
    assert 0.2 < answers["loss"].mean() < 3
