"""One seed: intervals and tests against oracles, by simulation, and at the edges."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats
from statsmodels.stats.proportion import proportion_confint
from statsmodels.stats.weightstats import ttost_paired

from prefixlab.analysis import stats
from prefixlab.errors import UserError


@pytest.mark.parametrize(("right", "n"), [(7, 20), (0, 20), (20, 20), (1, 1319)])
def test_wilson_and_clopper_pearson(right, n):
    found = stats.proportion(right, n, 0.05)
    oracle = scipy_stats.binomtest(right, n).proportion_ci(method="wilson")
    assert (found.value, found.low, found.high) == pytest.approx((right / n, oracle.low, oracle.high), abs=1e-12)
    found = stats.clopper_pearson(right, n, 0.05)
    oracle = scipy_stats.binomtest(right, n).proportion_ci(method="exact")
    assert (found.low, found.high) == pytest.approx((oracle.low, oracle.high), abs=1e-12)


def test_nothing_measured():
    assert stats.proportion(0, 0, 0.05) == stats.clopper_pearson(0, 0, 0.05) == stats.Estimate(None, None, None, 0)
    assert stats.mean_interval(np.zeros(0), 0.05).value is None
    assert stats.paired(np.zeros(0), np.zeros(0), 0.05) == stats.NONE
    assert stats.holm({}) == {}


def test_paired_binary_is_mcnemar():
    a = np.array([1.0] * 12 + [0.0] * 3 + [1.0] * 20 + [0.0] * 15)
    b = np.array([0.0] * 12 + [1.0] * 3 + [1.0] * 20 + [0.0] * 15)
    found = stats.paired(a, b, 0.05)
    assert found.diff == pytest.approx(9 / 50) and (found.up, found.down, found.n) == (12, 3, 50)
    assert found.p == pytest.approx(scipy_stats.binomtest(3, 15).pvalue)
    # Bonett and Price by hand: (12 + 1) / 52, (3 + 1) / 52.
    centre, se = 9 / 52, np.sqrt((17 / 52 - (9 / 52) ** 2) / 52)
    assert (found.centre, found.se, found.df) == (pytest.approx(centre), pytest.approx(se), None)
    assert (found.low, found.high) == pytest.approx((centre - 1.959964 * se, centre + 1.959964 * se))


def test_paired_continuous_is_the_t_test():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 30))
    found = stats.paired(a, b, 0.05)
    oracle = scipy_stats.ttest_rel(a, b)
    assert found.p == pytest.approx(oracle.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(oracle.confidence_interval()))
    assert (found.df, found.centre) == (29, None)


def test_several_samples_of_a_prompt_are_no_prompts():
    """The mean over K samples is the unit: the t test of the prompts' means, not of n K numbers."""
    rng = np.random.default_rng(1)
    level = rng.uniform(0, 1, (25, 1))
    a, b = (rng.random((25, 5)) < level).mean(1), (rng.random((25, 5)) < level * 0.8).mean(1)
    found = stats.paired(a, b, 0.05)
    assert found.p == pytest.approx(scipy_stats.ttest_rel(a, b).pvalue) and found.n == 25
    mean = stats.estimate(a, 0.05)
    assert (mean.low, mean.high) == pytest.approx(scipy_stats.t.interval(0.95, 24, a.mean(), scipy_stats.sem(a)))


def test_estimate_of_zeros_and_ones_is_wilson():
    found = stats.estimate(np.array([1.0] * 7 + [0.0] * 13), 0.05)
    assert (found.low, found.high) == pytest.approx(proportion_confint(7, 20, method="wilson"))


def test_edges():
    one = np.ones(10)
    same = stats.paired(one, one, 0.05)
    assert (same.diff, same.p, same.up, same.down) == (0.0, 1.0, 0, 0) and same.low < 0 < same.high
    single = stats.paired(np.array([0.5]), np.array([0.2]), 0.05)
    assert (single.p, single.low, single.se) == (None, None, None)
    assert stats.mean_interval(np.array([0.3]), 0.05).low is None
    constant = stats.paired(np.full(5, 0.7), np.full(5, 0.2), 0.05)
    assert constant.diff == pytest.approx(0.5) and (constant.low, constant.p, constant.se) == (None, None, None)
    still = stats.paired(np.full(5, 0.7), np.full(5, 0.7), 0.05)
    assert (still.diff, still.p, still.low) == (0.0, 1.0, None)


def test_equivalence_is_two_one_sided_tests():
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=(2, 40)) * 0.3
    contrast = stats.paired(a, b, 0.05)
    found = stats.equivalence(contrast, 0.2, 0.05)
    p, above, below = ttost_paired(a, b, -0.2, 0.2)
    assert found.p_equivalent == pytest.approx(p) and p == max(above[1], below[1])
    worse = scipy_stats.ttest_1samp(a - b, -0.2, alternative="greater")
    assert found.p_noninferior == pytest.approx(worse.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(scipy_stats.ttest_rel(a, b).confidence_interval(0.9)))


def test_equivalence_of_binary_pairs_by_hand():
    treatment, reference = np.zeros(400), np.zeros(400)
    treatment[:10], reference[10:18] = 1, 1
    found = stats.equivalence(stats.paired(treatment, reference, 0.05), 0.05, 0.05)
    centre, se = 2 / 402, np.sqrt((20 / 402 - (2 / 402) ** 2) / 402)
    assert found.p_noninferior == pytest.approx(scipy_stats.norm.sf((centre + 0.05) / se))
    assert found.p_equivalent == pytest.approx(scipy_stats.norm.sf((0.05 - centre) / se))


@given(st.floats(-0.3, 0.3), st.floats(0.001, 0.1), st.floats(0.001, 0.3), st.one_of(st.none(), st.floats(1, 100)))
def test_equivalence_agrees_with_its_interval(diff, se, margin, df):
    contrast = stats.Contrast(diff, None, None, None, 10, 0, 0, "", se=se, df=df)
    found = stats.equivalence(contrast, margin, 0.05)
    inside = -margin < found.low and found.high < margin
    if min(abs(abs(found.low) - margin), abs(abs(found.high) - margin)) > 1e-9:
        assert (found.p_equivalent < 0.05) == inside
        assert (found.p_noninferior < 0.05) == (found.low > -margin)


def test_equivalence_needs_a_standard_error_and_a_margin():
    assert stats.equivalence(stats.NONE, 0.05, 0.05) == stats.Equivalence(None, None, None, None)
    with pytest.raises(UserError, match="margin 0 cannot be tested: it must be above 0"):
        stats.equivalence(stats.NONE, 0.0, 0.05)


def test_identical_arms_are_equivalent_where_prompts_are_many():
    many, few = np.ones(300), np.ones(20)
    assert stats.equivalence(stats.paired(many, many, 0.05), 0.05, 0.05).p_equivalent < 0.001
    assert stats.equivalence(stats.paired(few, few, 0.05), 0.05, 0.05).p_equivalent > 0.05


def test_bonett_price_covers():
    rng, runs = np.random.default_rng(1), 20_000
    ups, downs, _ = rng.multinomial(80, [0.15, 0.07, 0.78], size=runs).T
    hits = 0
    for (up, down), times in zip(*np.unique(np.stack([ups, downs], 1), axis=0, return_counts=True), strict=True):
        low, high = stats.bonett_price(int(up), int(down), 80, 0.05)
        hits += int(times) * (low <= 0.08 <= high)
    assert 0.945 <= hits / runs <= 0.97


def test_holm():
    assert stats.holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06})
    assert stats.holm({"a": 0.9, "b": 0.9}) == {"a": 1.0, "b": 1.0}
