"""Token tables for the page: scaled numbers that come back, no snapshot, means over seeds and samples."""

import json

import polars
import pytest
from test_completions import load
from test_page import data

from prefixlab.analysis.token_columns import TOKENS
from prefixlab.report.parts import Parts
from prefixlab.report.token_view import span_means, token_samples

OLD = ("sample", "rendering", "token", "span", "loss", "logit_gradient")


def tokens_step(root, seed, loss, columns=tuple(TOKENS), extra=None):
    """A finished tokens step of one sample with two texts, and a snapshot that must not be shown."""
    folder = root / f"tokens-{seed}"
    folder.mkdir()
    rows = [
        {**dict.fromkeys(TOKENS), "sample": "s1", "rendering": text, "token": token, "span": "answer", "word": ""}
        | {"step": step, "loss": loss + i + (step or 0), "logit_gradient": 0.5, "rank": 12345 * i, "position": i}
        | (extra or {})
        for text in ("r000", "reasoning")
        for step in (None, 7)
        for i, token in enumerate(("Yes", "</script>"))
    ]
    table = polars.DataFrame(rows, schema=TOKENS)
    table = table if "step" in columns else table.filter(polars.col("step").is_null())
    table.select(columns).write_parquet(folder / "token_loss.parquet")
    config = {"model": {"name": "tiny-random"}, "capability": "math", "seed": seed, "arm": {"arm": "r000"}}
    return {"slug": folder.name, "kind": "tokens", "config": config, "id": "0" * 64}, folder


def with_tokens(root, columns=tuple(TOKENS), **extra):
    run = data(root)
    for seed, loss in ((0, 1.0), (1, 2.0)):
        step, folder = tokens_step(root, seed, loss, columns, extra)
        run.plan["steps"].append(step)
        run.folders[step["slug"]] = folder
    return run


@pytest.mark.parametrize("columns", [tuple(TOKENS), OLD])
def test_tokens_are_shown_without_snapshots_and_means_over_seeds(tmp_path, columns):
    run = with_tokens(tmp_path, columns)
    (shown,) = token_samples(run, Parts(tmp_path))
    assert shown["name"] == "math · s1" and list(shown["parts"]) == ["r000", "reasoning"]
    part = load(tmp_path, shown["parts"]["r000"])
    assert part["tokens"] == ["Yes", "</script>"] and part["spans"] == ["answer", "answer"]
    arms = dict(part["arms"])
    assert list(arms) == ["r000 · seed 0", "r000 · seed 1"]
    scale, whole = arms["r000 · seed 0"]["loss"]
    assert [scale * x for x in whole] == pytest.approx([1.0, 2.0], rel=2e-4)
    known = {"loss", "logit_gradient"} | ({"rank"} if "rank" in columns else set())
    assert set(arms["r000 · seed 0"]) == known  # what is missing is left out, never 0
    assert [(r["rendering"], r["loss"], r["n"]) for r in span_means(run)] == [("r000", 2.0, 1), ("reasoning", 2.0, 1)]


def test_ranks_are_exact_and_what_is_no_number_is_left_out(tmp_path):
    run = with_tokens(tmp_path, kl=float("nan"), entropy=0.0, influence=1e-12)
    (shown,) = token_samples(run, Parts(tmp_path))
    arm = dict(load(tmp_path, shown["parts"]["r000"])["arms"])["r000 · seed 0"]
    assert arm["rank"] == [1, [0, 12345]] and "kl" not in arm
    assert arm["entropy"] == [1, [0, 0]] and arm["influence"][0] * arm["influence"][1][0] == pytest.approx(
        1e-12, rel=1e-3
    )


def test_the_prompt_is_named(tmp_path):
    run = with_tokens(tmp_path)
    folder = tmp_path / "data-x"
    folder.mkdir()
    row = {
        "id": "s1",
        "messages": [{"role": "user", "content": "What\nis " + "1 + " * 40}],
        "reasoning": None,
        "answer": "x",
    }
    (folder / "held_out.jsonl").write_text(json.dumps(row) + "\n")
    run.plan["steps"].append({"slug": "data-x", "kind": "data", "config": {"capability": "math"}})
    run.folders["data-x"] = folder
    (shown,) = token_samples(run, Parts(tmp_path))
    assert shown["name"].startswith("math · What is 1 + 1 +") and shown["name"].endswith("…")
    assert load(tmp_path, shown["parts"]["r000"])["prompt"] == row["messages"][0]["content"]
