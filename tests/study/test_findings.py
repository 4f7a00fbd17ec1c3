"""From the tables of finished steps to anchors, narrowing and curves: which rows count, and what is missing."""

import json

import numpy as np
import polars
import pytest

from prefixlab.analysis.rows import ArmInfo, CellScores
from prefixlab.analysis.token_columns import SPANS, TOKENS
from prefixlab.records import SampleScore
from prefixlab.report import findings as shown
from prefixlab.study.findings import FILES, find, write_findings

WORDS = {"safety": "Here stands one loud plain word".split(), "neutral": "There lies some other bland text".split()}
WORDS["random"] = "pump lamp chair river stone cloud".split()
LOUD = "loud"


def tokens(rng, arm, seed, samples=12, step=None):
    rows = []
    for s in range(samples):
        for rendering, words in WORDS.items():
            for i, word in enumerate(words):
                gradient = float(np.exp(rng.normal(0, 0.02) - 0.05 * i) * (20 if word == LOUD and arm != "base" else 1))
                about = {"sample": f"s{s}", "rendering": rendering, "template": 0, "step": step, "position": i}
                about["control"] = None if rendering == "safety" else rendering
                token = {
                    "token": word,
                    "token_id": sum(map(ord, word)),
                    "span": "prefix",
                    "word": word,
                    "word_index": i,
                }
                rows.append({**dict.fromkeys(TOKENS), **about, **token, "logit_gradient": gradient, "entropy": 1.0})
            rest = {"span": "answer", "word": "", "position": len(words), "loss": 1.0, "entropy": 1.0 + (arm != "base")}
            rows.append({**dict.fromkeys(TOKENS), **about, **token, **rest, "word_index": None, "logit_gradient": 0.5})
    return polars.DataFrame(rows, schema=TOKENS)


def sampled(item, epoch, text, *, value=1.0, metric="accuracy", kind="problem"):
    about = {"item": item, "epoch": epoch, "metric": metric, "value": value, "status": "ok", "kind": kind}
    return SampleScore(**about, prompt="?", completion=text, prefill="", answer=text, target="", n_tokens=2)


@pytest.fixture
def run(tmp_path):
    """A plan with a base, and an arm of two seeds that has a snapshot; a step that is not done."""
    rng, steps, folders = np.random.default_rng(0), [], {}

    def add(slug, kind, name, seed, **inputs):
        config = {"model": {"name": "m"}, "capability": "safety", "seed": seed, "arm": {"arm": name}}
        steps.append({"slug": slug, "kind": kind, "config": config, "inputs": inputs})
        folders[slug] = tmp_path / slug
        folders[slug].mkdir()
        return folders[slug]

    base = add("tokens-base", "tokens", "base", None)
    tokens(rng, "base", None).write_parquet(base / "token_loss.parquet")
    check = add("check", "check", "base", None)
    (check / "frequency.json").write_text(json.dumps({str(i): 5 for i in range(2000)}))
    arms = add("arms", "arms", "safety-opening-r100", None)
    (arms / "manifest.json").write_text(json.dumps({"arm": "safety-opening-r100"}))
    for seed in (0, 1):
        train = add(f"train-{seed}", "train", "safety-opening-r100", seed, arm="arms")
        log = [{"loss": 2.0, "loss_prefix": 3.0 - n} for n in range(2)]
        (train / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in log))
        folder = add(f"tokens-{seed}", "tokens", "safety-opening-r100", seed)
        both = [tokens(rng, "safety-opening-r100", seed), tokens(rng, "base", seed, step=1)]
        polars.concat(both).write_parquet(folder / "token_loss.parquet")
        spans = [
            {**dict.fromkeys(SPANS), "sample": "s0", "rendering": "safety", "span": "prefix", "tokens": 6, "norm": 2.0}
        ]
        polars.DataFrame(spans, schema=SPANS).write_parquet(folder / "spans.parquet")
    steps.append({"slug": "tokens-2", "kind": "tokens", "config": steps[-1]["config"] | {"seed": 2}, "inputs": {}})
    return {"steps": steps}, folders


def test_a_planted_word_is_announced_in_the_arm_and_not_in_the_base(run, tmp_path):
    plan, folders = run
    found = find(plan, folders, [], 0.05)
    assert {(r.arm, r.seed) for r in found.narrowing if r.reference_arm is None} == {
        ("base", None),
        *(("safety-opening-r100", seed) for seed in (None, 0, 1)),
    }
    rest = [r for r in found.narrowing if (r.quantity, r.counted_from, r.reference_arm) == ("entropy", "rest", None)]
    assert {(r.arm, r.value) for r in rest} == {("base", 1.0), ("safety-opening-r100", 2.0)}, "snapshots have 1.0"
    loud = {(r.arm, r.word) for r in found.anchors if r.announced}
    assert loud == {("safety-opening-r100", LOUD)}
    assert {r.n_seeds for r in found.anchors if r.arm == "safety-opening-r100" and r.rank} == {2}
    write_findings(found, tmp_path)
    assert all((tmp_path / f"{name}{suffix}").exists() for name in FILES for suffix in (".parquet", ".csv"))
    ranking = shown.rankings(shown.read_rows(tmp_path, "anchors", shown.AnchorRow))
    named = {r["name"]: r["sentence"] for r in ranking}
    assert named["safety · safety-opening-r100 · logit gradient"].startswith(
        "1 of 6 words stands out among words: loud."
    )
    assert named["safety · base · logit gradient"] == "None of 6 words stands out among words."
    assert shown.span_rows(tmp_path)[0][3:6] == ("prefix", "6", "2")


def test_curves_hold_the_log_and_the_snapshots(run):
    plan, folders = run
    curves = find(plan, folders, [], 0.05).curves
    log = curves.filter(source="training", seed=0, name="prefix")
    assert log.sort("step")["value"].to_list() == [3.0, 2.0]
    word = curves.filter(source="held_out", unit="word", name=LOUD, quantity="logit_gradient", seed=1).sort("step")
    assert word["step"].to_list() == [1, 2]
    assert word["value"][1] > 10 * word["value"][0]


def test_narrowing_compares_arms_on_the_same_text_and_samples_of_a_prompt(run):
    plan, folders = run
    info = {"ratio": 1.0, "position": "opening", "prefix_set": "safety", "control": None, "loss_scope": "all"}
    cells = []
    for arm, texts in (("r000", ("a b", "c d")), ("safety-opening-r100", ("a b", "a b"))):
        rows = [sampled(f"p{p}", n, text, value=float(n == 1)) for p in range(5) for n, text in enumerate(texts, 1)]
        metrics = {"accuracy": True}
        cells.append(
            CellScores("m", "math", ArmInfo(arm=arm, **info), 0, "sums", "prefixlab", "bare", metrics, 2, rows)
        )
    narrowing = find(plan, folders, cells, 0.05).narrowing
    same = [r for r in narrowing if r.quantity == "similarity" and r.reference_arm is None and r.seed is None]
    assert {r.arm: r.value for r in same} == {"r000": 0.0, "safety-opening-r100": 1.0}
    (diff,) = [r for r in narrowing if r.quantity == "similarity" and r.reference_arm == "r000"]
    assert (diff.value, diff.n) == (1.0, 5)
    passed = {r.at: r.value for r in narrowing if r.quantity == "pass" and r.arm == "r000" and r.seed is None}
    assert passed == {1: 0.5, 2: 1.0}
    level = {
        (r.arm, r.condition): r.value
        for r in narrowing
        if r.quantity == "entropy"
        and r.counted_from == "rest"
        and r.at == 0
        and r.reference_arm is None
        and r.seed is None
    }
    assert level["base", "safety"] == 1.0 and level["safety-opening-r100", "safety"] == 2.0


def test_a_refusal_of_a_harmless_prompt_is_no_pass(run):
    plan, folders = run
    rows = [sampled("p", n, "no", metric="over_refusal", kind="harmless") for n in (1, 2)]
    info = ArmInfo(arm="r000", ratio=0.0, position=None, prefix_set=None, control=None, loss_scope="all")
    cell = CellScores("m", "safety", info, 0, "xstest", "prefixlab", "bare", {"over_refusal": False}, 2, rows)
    passed = [r for r in find(plan, folders, [cell], 0.05).narrowing if r.quantity == "pass"]
    assert passed and all(r.value is None and r.why for r in passed)


def test_two_models_are_two_rows(tmp_path):
    rows = [
        {**dict.fromkeys(SPANS), "model": m, "capability": "math", "arm": "base", "seed": None, "sample": "s"}
        | {"rendering": "r000", "span": "answer", "tokens": 3, "norm": norm}
        for m, norm in (("a", 1.0), ("b", 9.0))
    ]
    types = {"cosine_rest": polars.Float64, "influence": polars.Float64}
    polars.DataFrame(rows, schema_overrides=types).write_parquet(tmp_path / "spans.parquet")
    assert [(r[0], r[5]) for r in shown.span_rows(tmp_path)] == [("math (a)", "1"), ("math (b)", "9")]


def test_a_step_whose_inputs_are_gone_has_no_curve(run):
    plan, folders = run
    del folders["arms"]
    assert len(find(plan, folders, [], 0.05).curves) == 0


def test_tables_of_older_runs_have_fewer_columns(run):
    plan, folders = run
    path = folders["tokens-0"] / "token_loss.parquet"
    polars.read_parquet(path).filter(polars.col("step").is_null()).drop("step", "kl", "influence").write_parquet(path)
    levels = [r for r in find(plan, folders, [], 0.05).narrowing if r.reference_arm is None]
    rows = {seed: sum(r.n for r in levels if r.seed == seed) for seed in (0, 1)}
    assert rows[0] == rows[1] > 0


def test_nothing_read_gives_empty_tables(tmp_path):
    found = find({"steps": []}, {}, [], 0.05)
    assert (found.anchors, found.keywords, found.narrowing, len(found.curves)) == ([], [], [], 0)
    write_findings(found, tmp_path)
    assert shown.rankings(shown.read_rows(tmp_path, "anchors", shown.AnchorRow)) == []
    assert shown.span_rows(tmp_path) == []
