"""Two runs side by side: what is subtracted, against scipy and by hand, and what is not, with its reason."""

import json

import numpy as np
import polars
import pytest
import yaml
from browser import CHROMIUM, Opened, chromium, serious
from scipy.stats import binomtest, norm, ttest_rel

from conftest import tiny_study
from prefixlab.analysis import stats
from prefixlab.analysis.advice import advise, pareto
from prefixlab.analysis.contrasts import contrasts
from prefixlab.analysis.results import results
from prefixlab.analysis.rows import ArmInfo, CellScores, Rules
from prefixlab.analysis.verdicts import verdicts
from prefixlab.records import Measure, SampleScore
from prefixlab.report.compare import compare_runs
from prefixlab.report.compare_page import build_comparison, differences, flat
from prefixlab.report.tables import RunData
from prefixlab.study_file import parse_study

A = [1, 1, 1, 0, 0, 0, 1, 0, 1, 0]
B = [1, 1, 1, 1, 1, 1, 1, 0, 0, 1]


def score(i, value, *, epoch=1, item="p", prompt="What is {}?", target="t", status="ok"):
    return SampleScore(
        item=f"{item}{i}",
        epoch=epoch,
        metric="accuracy",
        value=None if value is None else float(value),
        status=status if value is not None else "invalid",
        kind="problem",
        category="",
        prompt=prompt.format(i),
        completion="c",
        prefill="",
        answer="1",
        target=target,
        n_tokens=3,
    )


def info(arm):
    ratio = {"base": None, "r000": 0.0}.get(arm, 1.0)
    return ArmInfo(
        arm=arm, ratio=ratio, position=None, prefix_set="reasoning" if ratio else None, control=None, loss_scope="all"
    )


def run(
    root, values, *, model="tiny-random", protocol="prefixlab", judges=None, k=1, judging=None, max_tokens=9, **how
):
    """A run of one suite: arm -> seed -> one value a prompt, or a list of them for several samples."""
    root.mkdir(parents=True)
    raw = tiny_study(models=[model], seeds=sorted({s for by in values.values() for s in by if s is not None}))
    study = parse_study(raw, "t")
    (root / "study.yaml").write_text(yaml.safe_dump(study.model_dump(mode="json")))
    cells, steps, folders = [], [], {}
    for arm, by_seed in values.items():
        for seed, column in by_seed.items():
            rows = None
            if column is not None:
                many = [v if isinstance(v, list) else [v] for v in column]
                rows = [score(i, v, epoch=e, **how) for i, vs in enumerate(many) for e, v in enumerate(vs, 1)]
            what = (arm, seed, "chain_sum", protocol, "bare")
            cells.append(
                CellScores(
                    model, "math", info(arm), *what[1:], {"accuracy": True}, k, rows,
                    "measured" if rows else "missing", judges=judges or {},
                )
            )  # fmt: skip
            about = {"model": {"name": model}, "capability": "math", "arm": {"arm": arm}, "seed": seed}
            about |= {"suite": {"suite": "chain_sum"}, "protocol": protocol, "condition": "bare"}
            slug = f"{arm}-{seed}"
            sampled = {**about, "decoding": {"max_tokens": max_tokens, "epochs": k}, "prompting": None}
            steps.append(
                {"slug": f"generate-{slug}", "id": f"g{slug}", "kind": "generate", "config": sampled, "inputs": {}}
            )
            scored = {**about, "judge_settings": judging}
            steps.append(
                {
                    "slug": f"eval-{slug}",
                    "id": f"e{slug}",
                    "kind": "eval",
                    "config": scored,
                    "inputs": {"log": f"generate-{slug}"},
                }
            )
            if rows is not None:
                folders |= {f"{kind}-{slug}": root for kind in ("generate", "eval")}
    rules = Rules({"math": ("chain_sum", protocol, "accuracy", "bare")}, alpha=0.05, margin=0.05)
    declared = contrasts(cells, rules)
    rows = results(cells, declared, 0.05)
    found = verdicts(rows, declared, rules)
    hardware = {"device": "cpu", "dtype": "float32", "threads": 1, "why": "a test"}
    models = [{"name": model, "fingerprint": "0" * 64, "revision": None, "note": ""}]
    plan = {"steps": steps, "summary": {}, "hardware": hardware, "models": models}
    return RunData(
        root, study, plan, cells, rows, declared, found, advise(found, pareto(cells, rows, rules)), folders, {}
    )


def one(a, b, arm="r000"):
    (row,) = [r for r in compare_runs(a, b) if r.arm == arm]
    return row


def test_one_seed_is_mcnemar_with_a_bonett_price_interval(tmp_path):
    found = one(run(tmp_path / "a", {"r000": {0: A}}), run(tmp_path / "b", {"r000": {0: B}}))
    up, down, n = 4, 1, 10
    assert (found.state, found.why, found.n_prompts, found.n_left_out, found.n_seeds) == ("compared", "", 10, 0, 1)
    assert (found.up, found.down) == (up, down) and found.diff == pytest.approx(0.3)
    assert (found.value_a, found.value_b) == (0.5, 0.8)
    assert found.p == pytest.approx(binomtest(up, up + down).pvalue)
    more, less = (up + 1) / (n + 2), (down + 1) / (n + 2)
    half = norm.ppf(0.975) * np.sqrt((more + less - (more - less) ** 2) / (n + 2))
    assert found.ci_low == pytest.approx(more - less - half) and found.ci_high == pytest.approx(more - less + half)


def test_several_samples_a_prompt_are_a_paired_t(tmp_path):
    a, b = [[1, 0], [0, 0], [1, 1], [0, 1]], [[1, 1], [0, 1], [1, 0], [1, 1]]
    found = one(run(tmp_path / "a", {"r000": {0: a}}, k=2), run(tmp_path / "b", {"r000": {0: b}}, k=2))
    wanted = ttest_rel(np.mean(b, 1), np.mean(a, 1))
    ends = wanted.confidence_interval(0.95)
    assert (found.ci_low, found.ci_high) == (pytest.approx(ends.low), pytest.approx(ends.high))
    assert found.p == pytest.approx(wanted.pvalue) and found.diff == pytest.approx(0.25)


def test_seeds_that_both_have_are_crossed_with_prompts(tmp_path):
    a, b = {0: A, 1: A[::-1], 2: B}, {1: B, 0: A, 7: A}
    found = one(run(tmp_path / "a", {"r000": a}), run(tmp_path / "b", {"r000": b}))
    wanted = stats.compare(np.array([A, B], float), np.array([A, A[::-1]], float), 0.05)
    assert (found.diff, found.ci_low, found.ci_high, found.p) == (wanted.diff, wanted.low, wanted.high, wanted.p)
    assert found.n_seeds == 2 and "with the 2 seeds that both have" in found.why and "crossed" in found.test


def test_without_a_common_seed_means_over_seeds_are_paired(tmp_path):
    a, b = {0: A, 1: A[::-1]}, {2: B, 3: A}
    found = one(run(tmp_path / "a", {"r000": a}), run(tmp_path / "b", {"r000": b}))
    wanted = ttest_rel(np.mean([B, A], 0), np.mean([A, A[::-1]], 0))
    assert found.p == pytest.approx(wanted.pvalue) and found.n_seeds == 0
    assert found.ci_low == pytest.approx(wanted.confidence_interval(0.95).low)
    assert "no seed in common" in found.why and "over prompts only" in found.why


def test_only_prompts_with_the_same_text_and_a_value_in_both_count(tmp_path):
    a, b = run(tmp_path / "a", {"r000": {0: A}}), run(tmp_path / "b", {"r000": {0: [*B[:9], None, 1, 1]}})
    b.cells[0].rows[0] = b.cells[0].rows[0].model_copy(update={"prompt": "Another question"})
    found = one(a, b)
    assert found.n_prompts == 8 and found.n_left_out == 1  # p0 reads otherwise, p9 is invalid, p10 and p11 are new
    assert found.diff == pytest.approx(np.mean(B[1:9]) - np.mean(A[1:9]))
    assert "on the 9 of 12 prompts that both have" in found.why and "1 of them without a value" in found.why


@pytest.mark.parametrize(
    ("changes", "state", "words"),
    [
        ({"protocol": "safechain"}, "other protocol", "protocol prefixlab in A, safechain in B"),
        ({"max_tokens": 99}, "other protocol", "max_tokens 9 in A, 99 in B"),
        ({"judges": {"accuracy": "rubric"}}, "other judge", "judge none in A, rubric in B"),
        ({"k": 4}, "other samples", "1 samples a prompt in A, 4 in B"),
        ({"k": 4, "max_tokens": 99}, "other protocol", "max_tokens 9 in A, 99 in B; 1 samples"),
        ({"prompt": "Say {}!"}, "different prompts", "0 of 10 prompts"),
        ({"target": "u"}, "different prompts", "0 of 10 prompts"),
        ({"item": "x"}, "different prompts", "0 of 20 prompts"),
    ],
)
def test_what_may_not_be_subtracted(tmp_path, changes, state, words):
    found = one(run(tmp_path / "a", {"r000": {0: A}}), run(tmp_path / "b", {"r000": {0: B}}, **changes))
    assert found.state == state and words in found.why
    assert (found.diff, found.ci_low, found.p, found.n_prompts) == (None, None, None, None)
    assert (found.value_a, found.value_b) == (0.5, 0.8)


@pytest.mark.parametrize(("judge", "state"), [("llama-guard", "other judge"), ("rules", "compared")])
def test_a_judge_with_other_settings_is_another_judge(tmp_path, judge, state):
    """Word rules have no settings: what the study's judge is does not matter to them."""
    a, b = (
        run(tmp_path / n, {"r000": {0: A}}, judges={"accuracy": judge}, judging={"name": judge, "model": m})
        for n, m in (("a", "x"), ("b", "y"))
    )
    assert one(a, b).state == state


def test_rows_of_one_run_are_listed(tmp_path):
    a = run(tmp_path / "a", {"base": {None: A}, "r000": {0: A}, "old": {0: A}})
    b = run(tmp_path / "b", {"base": {None: B}, "r000": {0: None}, "new": {0: B}})
    found = {r.arm: r for r in compare_runs(a, b)}
    assert {k: r.state for k, r in found.items()} == {
        "base": "compared", "r000": "not measured", "old": "only in A", "new": "only in B",
    }  # fmt: skip
    assert found["r000"].why == "missing in B" and found["r000"].value_b is None and found["r000"].value_a == 0.5
    assert found["new"].model_a is None and found["new"].value_a is None and found["new"].value_b == 0.8
    assert found["base"].diff == pytest.approx(0.3) and found["base"].n_seeds == 1


def test_one_model_each_is_matched_across_and_said(tmp_path):
    a = run(tmp_path / "a", {"r000": {0: A}})
    b = run(tmp_path / "b", {"r000": {0: B}}, model="smollm2-135m")
    assert one(a, b).state == "compared" and one(a, b).model_b == "smollm2-135m"
    said = " ".join(build_comparison(a, b, tmp_path / "out").banners)
    assert "tiny-random in A is compared with smollm2-135m in B" in said


def test_page_and_tables(tmp_path):
    hostile = '<img src=x onerror="document.title=1">{} \ud800'
    a = run(tmp_path / "a", {"r000": {0: A}, "reasoning-opening-r100": {0: B}, "old": {0: None}}, prompt=hostile)
    b = run(tmp_path / "<b>", {"r000": {0: B}, "reasoning-opening-r100": {0: B}}, prompt=hostile)
    b.plan["models"][0]["fingerprint"] = "1" * 64
    (a.root / "env.json").write_text(json.dumps({"versions": {"torch": "1"}, "command": "x"}))
    (b.root / "env.json").write_text(json.dumps({"versions": {"torch": "2"}, "command": "y"}))
    found = build_comparison(a, b, tmp_path / "out")
    text = (tmp_path / "out" / "index.html").read_text()
    assert "2 of 3 results can be subtracted (1 only in A)" in found.sentence and found.sentence in text
    assert "+30.0" in text and "versions.torch" in text and "&lt;b&gt; (B)" in text and "<img" not in text
    assert "A is not complete: 2 of 6 steps are missing." in text and "is not the same model in both" in text
    body = text.partition("</style>")[2]
    assert not any(word in body for word in ("NaN", "None", "http://", "https://"))
    table = polars.read_parquet(tmp_path / "out" / "comparison.parquet")
    assert table.height == polars.read_csv(tmp_path / "out" / "comparison.csv").height == 3
    assert table.schema["diff"] == polars.Float64 and table.schema["state"] == polars.String


def test_a_run_with_nothing_finished_is_said(tmp_path):
    a, b = run(tmp_path / "a", {"r000": {0: A}}), run(tmp_path / "b", {"r000": {0: None}})
    found = build_comparison(a, b, tmp_path / "out")
    assert any("B has no finished evaluation" in t for t in found.banners)
    assert found.sentence == "0 of 1 results can be subtracted (1 not measured)."


def test_a_measure_without_a_text_is_paired_by_the_text_of_its_prompt(tmp_path):
    a, b = run(tmp_path / "a", {"r000": {0: A}}), run(tmp_path / "b", {"r000": {0: B}})
    for data, length in ((a, 3.0), (b, 5.0)):
        rows = data.cells[0].rows
        about = {"epoch": 1, "metric": "length", "status": "ok", "kind": "problem"}
        rows += [Measure(item=r.item, value=length + i % 2, **about) for i, r in enumerate(rows[:])]
    a, b = (
        RunData(**{**d.__dict__, "cells": with_length(d), "results": results(with_length(d), [], 0.05)}) for d in (a, b)
    )
    found = {r.metric: r for r in compare_runs(a, b)}["length"]
    assert found.diagnostic and found.diff == 2.0 and found.ci_low is None and "every prompt differs alike" in found.why


def with_length(data):
    from dataclasses import replace

    return [replace(c, diagnostics=("length",)) for c in data.cells]


def test_differences_name_what_differs():
    a = {"seeds": [0], "arms": [{"prefixes": "x", "ratios": [0, 1]}, {"prefixes": "y"}], "same": {"k": 1}, "gone": None}
    b = {"seeds": [0, 1], "arms": [{"prefixes": "y"}, {"prefixes": "x", "ratios": [0]}], "same": {"k": 1}, "new": {}}
    assert [(d.key, d.a, d.b) for d in differences(a, b)] == [
        ("seeds", "[0]", "[0, 1]"),
        ("arms[x].ratios", "[0, 1]", "[0]"),
        ("gone", "null", "–"),
        ("new", "–", "{}"),
    ]
    assert flat([{"k": 1}, {"k": 2}], "l") == {"l[0].k": "1", "l[1].k": "2"}


def test_command_mistakes(call, tmp_path):
    (tmp_path / "a").mkdir()
    for arguments, words in (
        ([tmp_path / "a", tmp_path / "a"], "are the same run folder"),
        ([tmp_path / "a", tmp_path / "b"], "is no run folder"),
        ([tmp_path / "a", "--out", tmp_path / "o"], "--out is for a comparison"),
    ):
        done = call("report", *arguments)
        assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: install Debian's chromium")
@pytest.mark.parametrize(("width", "scheme"), [(1440, "light"), (390, "dark")])
def test_in_a_browser(tmp_path, width, scheme):
    a = run(tmp_path / "a", {"r000": {0: [0] * 30}, "reasoning-opening-r100": {0: A}})
    b = run(tmp_path / "b", {"r000": {0: [1] * 30}, "reasoning-opening-r100": {0: B}})
    build_comparison(a, b, tmp_path / "out")
    with chromium() as browser:
        shown = Opened(browser, tmp_path / "out" / "index.html", width=width, scheme=scheme)
        page = shown.page
        assert page.locator("#count").inner_text() == "2 of 2 rows"
        page.locator("#only").check()
        assert page.locator("#count").inner_text() == "1 of 2 rows"
        assert shown.wide() <= 0 and shown.said == [] and shown.leaves() == []
        assert serious(page) == []
