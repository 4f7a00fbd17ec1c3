"""Entropy by position, diversity and pass@k: by hand, against brute force and scipy, and at the edges."""

import math
from itertools import combinations

import numpy as np
import polars
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from prefixlab.analysis import stats
from prefixlab.analysis.diversity import Sampled, distinct, diversity_series, pass_series, similarity
from prefixlab.analysis.narrowing import EDGES, NarrowingRow, Series, differences, levels, position_series
from prefixlab.errors import UserError


def reading(entropy, spans, *, sample="s0", rendering="set", arm="a", seed=1):
    """Token rows of one sample."""
    n = len(entropy)
    return polars.DataFrame(
        {
            "model": ["m"] * n,
            "capability": "math",
            "arm": arm,
            "seed": polars.Series([seed] * n, dtype=polars.Int64),
            "sample": sample,
            "rendering": rendering,
            "position": range(n),
            "span": spans,
            "entropy": polars.Series(entropy, dtype=polars.Float64),
        }
    )


def by_place(series):
    return {(s.condition, s.counted_from, s.at): s.values for s in series}


def test_positions_from_the_response_and_from_the_rest():
    rows = polars.concat(
        [
            reading([9.0, 8.0, 1.0, 2.0], ["prefix", "prefix", "answer", "end"]),
            reading([3.0, 4.0], ["answer", "end"], rendering="r000"),
            reading([7.0, 6.0], ["prefix", "prefix"], sample="s1"),  # the prefix is all there is of this response
        ]
    )
    found = by_place(position_series(rows))
    assert [found["set", "response", i] for i in range(4)] == [
        {1: {"s0": 9.0, "s1": 7.0}},
        {1: {"s0": 8.0, "s1": 6.0}},
        {1: {"s0": 1.0}},
        {1: {"s0": 2.0}},
    ]
    assert found["set", "rest", 0] == {1: {"s0": 1.0}} and found["set", "rest", 1] == {1: {"s0": 2.0}}
    assert found["r000", "rest", 0] == found["r000", "response", 0] == {1: {"s0": 3.0}}
    assert len(found) == 10


def test_prefix_at_the_answer():
    """The rest starts behind the prefix, and at the same answer token where there is none."""
    rows = polars.concat(
        [
            reading([5.0, 5.0, 9.0, 1.0], ["reasoning", "reasoning", "prefix", "answer"]),
            reading([5.0, 5.0, 2.0], ["reasoning", "reasoning", "answer"], rendering="r000"),
        ]
    )
    found = by_place(position_series(rows))
    assert found["set", "rest", 0] == {1: {"s0": 1.0}} and found["r000", "rest", 0] == {1: {"s0": 2.0}}
    assert ("r000", "rest", 1) not in found
    longer = reading([5.0] * 3 + [9.0, 1.0], ["reasoning"] * 3 + ["prefix", "answer"]).with_columns(
        model=polars.lit("n")
    )
    both = [s for s in position_series(polars.concat([rows, longer])) if s.model == "m"]
    assert by_place(both) == found


def test_late_positions_are_taken_together():
    assert EDGES[:18] == (*range(16), 16, 32)
    entropy = np.arange(40.0)
    found = by_place(position_series(reading(entropy, ["answer"] * 40, rendering="r000")))
    assert found["r000", "response", 15] == {1: {"s0": 15.0}}
    assert found["r000", "response", 16] == {1: {"s0": np.mean(entropy[16:32])}}
    assert found["r000", "response", 32] == {1: {"s0": np.mean(entropy[32:])}}


def test_no_entropy_no_series():
    rows = reading([float("nan"), 1.0], ["answer", "end"]).with_columns(entropy=polars.lit(None, dtype=polars.Float64))
    assert position_series(rows) == [] and position_series(rows.clear()) == []


def series(values, *, arm="a", condition="bare", quantity="similarity", k=4, **more):
    return Series("m", "math", arm, "gsm8k", condition, quantity, "", None, None, values, k, **more)


def test_levels_by_seed_and_over_seeds():
    rng = np.random.default_rng(0)
    table = {seed: {f"p{i}": float(x) for i, x in enumerate(rng.normal(2, 1, 15))} for seed in (1, 2, 3)}
    pooled, *single = levels([series(table)], 0.05)
    assert [r.seed for r in single] == [1, 2, 3] and pooled.seed is None and pooled.n_seeds == 3
    for row in single:
        x = np.array(list(table[row.seed].values()))
        low, high = scipy_stats.t.interval(0.95, 14, x.mean(), scipy_stats.sem(x))
        assert (row.value, row.ci_low, row.ci_high, row.n) == pytest.approx((x.mean(), low, high, 15))
    oracle = stats.level(np.array([list(t.values()) for t in table.values()]), 0.05, share=False)
    assert (pooled.value, pooled.ci_low, pooled.ci_high) == pytest.approx((oracle.value, oracle.low, oracle.high))


def test_branching_is_the_exponential_of_the_mean_entropy():
    rows = polars.concat([reading([h], ["answer"], sample=f"s{i}") for i, h in enumerate([1.0, 2.0, 4.0])])
    found = {
        r.quantity: r for r in levels(position_series(rows), 0.05) if r.seed is None and r.counted_from == "response"
    }
    entropy, branching = found["entropy"], found["branching"]
    assert entropy.value == pytest.approx(7 / 3) and (entropy.suite, entropy.condition) == ("held_out", "set")
    for name in ("value", "ci_low", "ci_high"):
        assert getattr(branching, name) == pytest.approx(math.exp(getattr(entropy, name)))


def test_differences_are_paired_on_the_same_items():
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(2, 20))
    first = series(
        {1: {f"p{i}": float(x) for i, x in enumerate(a)} | {"only here": 99.0}}, arm="t", quantity="entropy", k=None
    )
    second = series({1: {f"p{i}": float(x) for i, x in enumerate(b)}}, arm="r000", quantity="entropy", k=None)
    entropy, branching = differences([first, second], [(("t", "bare"), ("r000", "bare"))], 0.05)
    oracle = scipy_stats.ttest_rel(a, b)
    assert (entropy.ci_low, entropy.ci_high, entropy.p) == pytest.approx((*oracle.confidence_interval(), oracle.pvalue))
    assert (entropy.reference_arm, entropy.reference_condition, entropy.n) == ("r000", "bare", 20)
    assert branching.quantity == "branching" and branching.value == pytest.approx(math.exp((a - b).mean()))
    assert differences([first, second], [(("t", "bare"), ("r000", "prefill"))], 0.05) == []


def test_differences_with_seeds_and_with_the_base():
    rng = np.random.default_rng(2)
    values = rng.normal(size=(2, 3, 10))
    tables = [{s: {f"p{i}": float(x) for i, x in enumerate(row)} for s, row in enumerate(v)} for v in values]
    base = {None: tables[1][0]}
    (found,) = differences(
        [series(tables[0], arm="t"), series(tables[1], arm="r000")], [(("t", "bare"), ("r000", "bare"))], 0.05
    )
    oracle = stats.crossed(values[0] - values[1], 0.05)
    assert (found.value, found.ci_low, found.ci_high, found.p, found.n_seeds) == pytest.approx(
        (oracle.diff, oracle.low, oracle.high, oracle.p, 3)
    )
    (found,) = differences(
        [series(tables[0], arm="t"), series(base, arm="base")], [(("t", "bare"), ("base", "bare"))], 0.05
    )
    assert found.value == pytest.approx((values[0] - values[1][0]).mean()) and found.n_seeds == 3


def test_equal_arms_and_arms_without_common_items():
    same = {1: {"p0": 0.5, "p1": 0.7}}
    pair = [(("t", "bare"), ("r000", "bare"))]
    (found,) = differences([series(same, arm="t"), series(same, arm="r000")], pair, 0.05)
    assert (found.value, found.p, found.n) == (0.0, 1.0, 2)
    (found,) = differences([series(same, arm="t"), series({1: {"q": 0.1}}, arm="r000")], pair, 0.05)
    assert found.value is None and found.n == 0 and found.why == "not measured: no item has a value in both"
    (found,) = differences([series(same, arm="t"), series(same, arm="r000", k=8)], pair, 0.05)
    assert found.value is None and found.why == "not compared: 4 samples a prompt against 8"
    (found,) = levels([series({1: {"p0": 0.5}, 2: {"p1": 0.5}})], 0.05)[:1]
    assert found.value is None and found.why == "not measured: no item has a value with every seed"


def test_distinct_by_hand():
    texts = ["The cat sat.", "the CAT ran"]  # the cat sat the cat ran
    assert distinct(texts, 1) == 4 / 6 and distinct(texts, 2) == 3 / 4 and distinct(texts, 3) == 1.0
    assert distinct(["one", "two"], 2) is None and distinct(["", "..."], 1) is None


def test_similarity_by_hand():
    assert similarity(["a b c", "b c d", "x"]) == pytest.approx((2 / 4 + 0 + 0) / 3)
    assert similarity(["A b!", "b, a"]) == 1.0 and similarity(["", "--"]) == 1.0 and similarity(["", "a"]) == 0.0
    assert similarity(["alone"]) is None


TEXTS = st.lists(st.text(alphabet="ab c", max_size=8), min_size=2, max_size=5)


@settings(max_examples=60, deadline=None)
@given(TEXTS, st.randoms(use_true_random=False))
def test_diversity_is_bounded_and_has_no_order(texts, random):
    mixed = random.sample(texts, len(texts))
    assert 0 <= similarity(texts) <= 1 and similarity(mixed) == pytest.approx(similarity(texts))
    for n in (1, 2, 3):
        value = distinct(texts, n)
        assert value is None or 0 < value <= 1
        assert distinct(mixed, n) == value
    assert similarity([texts[0]] * 3) == 1.0


def sampled(texts, **more):
    return Sampled("m", "math", "a", "gsm8k", "bare", texts, **more)


def test_diversity_series():
    texts = {1: {"p": ["a b c d", "a b c e"], "q": ["x", "y"], "short": ["one only"]}}
    answers = {1: {"p": ["4", "4"], "q": ["4", ""], "short": ["4"]}}
    found = {(s.quantity, s.at): s for s in diversity_series(sampled(texts, answers=answers))}
    assert found["similarity", None].values == {1: {"p": 3 / 5, "q": 0.0}}  # `short` lacks a completion
    assert found["distinct", 1].values == {1: {"p": 5 / 8, "q": 1.0}}
    assert found["distinct", 3].values == {1: {"p": 3 / 4}}  # q has no three words
    assert found["answers", None].values == {1: {"p": 1.0, "q": 2.0}}
    assert {s.k for s in found.values()} == {2}


def test_one_completion_is_not_measured():
    one = diversity_series(sampled({None: {"p": ["a b"], "q": ["c"]}}))
    rows = levels(one, 0.05)
    assert [r.at for r in rows] == [1, 2, 3, None] and all(r.value is None and r.n == 0 for r in rows)
    assert {r.why for r in rows} == {"not measured: 1 completion a prompt, two are needed"}
    assert {s.why for s in diversity_series(sampled({}))} == {"not measured: 0 completions a prompt, two are needed"}


def test_pass_curve_is_the_mean_over_all_subsets():
    counts = {"p": (1, 5), "q": (4, 5), "never": (0, 5), "always": (5, 5), "unfinished": (1, 3)}
    found = pass_series(sampled({}, passed={1: counts}))
    assert [s.at for s in found] == [1, 2, 4, 5]
    for one in found:
        for prompt, (c, n) in counts.items():
            if prompt == "unfinished":
                assert prompt not in one.values[1]
                continue
            draws = list(combinations([True] * c + [False] * (n - c), one.at))
            assert one.values[1][prompt] == pytest.approx(np.mean([any(d) for d in draws]))
    curve = [r.value for r in levels(found, 0.05) if r.seed is None]
    assert curve == sorted(curve)


def test_pass_of_all_or_none_has_an_interval():
    counts = {f"p{i}": (2, 2) for i in range(20)}
    row, _ = levels(pass_series(sampled({}, passed={1: counts}), ks=[2]), 0.05)
    assert row.value == 1.0 and 0.8 < row.ci_low < 0.9 and row.ci_high == pytest.approx(1)


def test_pass_at_different_n_can_be_compared():
    a = pass_series(Sampled("m", "math", "t", "gsm8k", "bare", {}, passed={1: {"p": (2, 4), "q": (1, 4)}}))
    b = pass_series(Sampled("m", "math", "r000", "gsm8k", "bare", {}, passed={1: {"p": (1, 2), "q": (1, 2)}}))
    found = {r.at: r for r in differences([*a, *b], [(("t", "bare"), ("r000", "bare"))], 0.05)}
    assert found.keys() == {1, 2} and found[1].value == pytest.approx(-0.125)


def test_counts_that_cannot_be():
    with pytest.raises(UserError, match="prompt 'p': 5 of 4 samples pass"):
        pass_series(sampled({}, passed={1: {"p": (5, 4)}}))
    with pytest.raises(UserError, match=r"pass@8 with 4 samples a prompt; k is 1 to 4"):
        pass_series(sampled({}, passed={1: {"p": (1, 4)}}), ks=[1, 8])
    (none,) = pass_series(sampled({}))
    assert none.why == "not measured: nothing was scored" and none.values == {}


def test_rows_fit_a_table():
    rows = levels(diversity_series(sampled({1: {"p": ["a b", "c d"], "q": ["a", "b"]}})), 0.05)
    table = polars.DataFrame([r.model_dump() for r in rows])
    assert set(table.columns) == set(NarrowingRow.model_fields)
    assert all(math.isfinite(v) for r in rows for v in r.model_dump().values() if isinstance(v, float))
