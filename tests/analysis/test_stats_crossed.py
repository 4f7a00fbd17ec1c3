"""Several seeds: mean squares and intervals by hand and against oracles, coverage, and the edges."""

import math
from dataclasses import astuple

import numpy as np
import pandas
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats as scipy_stats
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm

from prefixlab.analysis import crossed, stats


def table(rng, seeds, prompts, seed_sd=0.1, prompt_sd=0.3, error_sd=0.2, mean=0.1, reps=()):
    return (
        mean
        + rng.normal(0, seed_sd, (*reps, seeds, 1))
        + rng.normal(0, prompt_sd, (*reps, 1, prompts))
        + rng.normal(0, error_sd, (*reps, seeds, prompts))
    )


def test_mean_squares_are_those_of_the_analysis_of_variance():
    d = table(np.random.default_rng(0), 4, 7)
    seed, prompt = np.indices(d.shape)
    frame = pandas.DataFrame({"y": d.ravel(), "s": seed.ravel(), "p": prompt.ravel()})
    oracle = anova_lm(ols("y ~ C(s) + C(p)", frame).fit())["mean_sq"]
    found = crossed.squares(d)
    assert (found.seed, found.prompt, found.error) == pytest.approx(
        (oracle["C(s)"], oracle["C(p)"], oracle["Residual"])
    )


def test_components_by_hand():
    # Rows 0 and 2, columns 0, 2 and 4 on top: no rest. SS_seed = 2 * 3 * 1, SS_prompt = 2 * 8, so MS = 6 and 8.
    d = np.array([[0.0, 2.0, 4.0], [2.0, 4.0, 6.0]])
    assert astuple(stats.components(d))[:3] == pytest.approx((6 / 3, 8 / 2, 0.0))
    # A rest alone: both other variances would be negative.
    d = np.array([[1.0, -1.0], [-1.0, 1.0]])
    assert astuple(stats.components(d))[:3] == (0.0, 0.0, 4.0)
    assert stats.components(np.zeros((1, 5))) is None and stats.components(np.zeros((3, 1))) is None


def test_components_of_binary_differences():
    found = stats.components(np.array([[1.0, 0, 0, -1], [1, 0, 0, 0], [1, 0, 0, 1]]))
    assert (found.discordant, found.effect, found.differing) == (pytest.approx(5 / 12), pytest.approx(0.25), 0.25)
    assert stats.components(np.array([[0.2, 0.0], [0.4, 0.1]])).discordant is None


def test_components_are_unbiased():
    d = table(np.random.default_rng(1), 5, 60, reps=(4000,))
    found = crossed.squares_of_sums(d.sum(2), (d.sum(1) ** 2).sum(1), (d**2).sum((1, 2)), 5, 60)
    assert ((found.seed - found.error) / 60).mean() == pytest.approx(0.1**2, rel=0.05)
    assert ((found.prompt - found.error) / 5).mean() == pytest.approx(0.3**2, rel=0.02)
    assert found.error.mean() == pytest.approx(0.2**2, rel=0.01)


def test_crossed_by_hand():
    d = np.array([[0.3, -0.2, 0.5, 0.1, 0.0], [0.2, -0.1, 0.1, 0.0, 0.3], [0.8, 0.1, 0.9, 0.6, 0.2]])
    found = stats.crossed(d, 0.05)
    ms_seed = 5 * np.var(d.mean(1), ddof=1) * (1 + 1 / 3)  # three seeds
    ms_prompt = 3 * np.var(d.mean(0), ddof=1)
    ms_error = ((d - d.mean(1, keepdims=True) - d.mean(0) + d.mean()) ** 2).sum() / 8
    ms_prompt *= 1 + 2 / 5  # five prompts differ
    rest = ms_prompt - ms_error
    se = math.sqrt((ms_seed + rest) / 15)
    quantile = (ms_seed * scipy_stats.t.ppf(0.975, 2) + rest * scipy_stats.t.ppf(0.975, 4)) / (ms_seed + rest)
    assert rest > 0 and se * quantile > scipy_stats.t.ppf(0.975, 4) * math.sqrt(ms_prompt / 15)
    assert (found.diff, found.se) == (pytest.approx(d.mean()), pytest.approx(se))
    assert (found.low, found.high) == pytest.approx((d.mean() - se * quantile, d.mean() + se * quantile))
    assert 2 < found.df < 4 and scipy_stats.t.ppf(0.975, found.df) == pytest.approx(quantile)
    assert (found.n, found.up, found.down) == (5, 4, 1)


def test_seeds_that_agree_by_chance_leave_the_prompts_alone():
    d = np.array([[0.3, -0.2, 0.5, 0.0], [-0.2, 0.3, 0.0, 0.5], [0.2, 0.2, 0.1, 0.1]])
    found = stats.crossed(d, 0.05)
    se = math.sqrt((1 + 2 / 4) * np.var(d.mean(0), ddof=1) / 4)
    assert found.se == pytest.approx(se) and found.df == pytest.approx(3)
    assert found.high - found.diff == pytest.approx(scipy_stats.t.ppf(0.975, 3) * se)


def test_without_differences_between_prompts_it_is_the_t_test_over_seeds_and_one_more():
    rng = np.random.default_rng(2)
    means = rng.normal(0.1, 0.05, 4)
    found = stats.crossed(np.repeat(means[:, None], 50, 1), 0.05)
    se = math.sqrt((1 + 1 / 4) * np.var(means, ddof=1) / 4)
    assert found.p == pytest.approx(2 * scipy_stats.t.sf(abs(means.mean()) / se, 3), rel=1e-6)
    assert (found.low, found.high) == pytest.approx(scipy_stats.t.interval(0.95, 3, means.mean(), se))
    assert found.df == pytest.approx(3)


def test_crossed_counts_prompts_once():
    """Three identical seeds tell no more about prompts than one."""
    rng = np.random.default_rng(3)
    d = rng.normal(0.1, 0.4, 50)
    one = stats.paired(d, np.zeros(50), 0.05)
    three = stats.crossed(np.stack([d] * 3), 0.05)
    assert three.high - three.low == pytest.approx(one.high - one.low, rel=0.03)
    assert three.high - three.low >= one.high - one.low


@pytest.mark.parametrize(("seed_sd", "seeds"), [(0.0, 3), (0.03, 3), (0.1, 3), (0.03, 5), (0.0, 8)])
def test_crossed_covers(seed_sd, seeds):
    reps, effect = 4000, 0.05
    d = table(np.random.default_rng(2), seeds, 60, seed_sd, 0.2, 0.3, effect, (reps,))
    found = crossed.squares_of_sums(d.sum(2), (d.sum(1) ** 2).sum(1), (d**2).sum((1, 2)), seeds, 60)
    half = crossed.half_width(crossed.few_differ(found, 60, None), 0.05)
    assert 0.945 <= (np.abs(d.mean((1, 2)) - effect) <= half).mean() <= 0.99
    one = stats.crossed(d[0], 0.05)
    assert one.high - one.diff == pytest.approx(half[0])


@pytest.mark.parametrize(
    ("seeds", "least", "most"), [(2, 0.9495, 0.995), (3, 0.9495, 0.991), (5, 0.9495, 0.984), (8, 0.9495, 0.978)]
)
def test_the_rule_covers_in_theory(seeds, least, most):
    """Coverage for normal tables of many prompts, integrated over the seeds' mean square: the table of methods.md."""
    chi = scipy_stats.chi2.ppf((np.arange(4000) + 0.5) / 4000, seeds - 1) / (seeds - 1)
    found = []
    for error in (0.0, 0.1, 0.4, 0.7, 1.0):  # share of the rest in the prompts' mean square
        for seed in (0.0, 0.1, 0.3, 1.0, 3.0, 10.0, 50.0):  # what seeds add to theirs
            table = crossed.Squares((seed + error) * chi, np.ones(4000), np.asarray(error), seeds, 10**6)
            half = crossed.half_width(table, 0.05) * math.sqrt(seeds * 10**6 / (1 + seed))
            found.append((2 * scipy_stats.norm.cdf(half) - 1).mean())
    assert least < min(found) and max(found) < most


def test_the_bootstrap_under_covers_where_crossed_does_not():
    rng, hits, wide = np.random.default_rng(4), 0, 0
    for _ in range(200):
        d = table(rng, 3, 60, 0.2, 0.2, 0.3, 0.05)
        found, known = stats.bootstrap(d, 0.05, rng, 300), stats.crossed(d, 0.05)
        hits += found.low <= 0.05 <= found.high
        wide += known.low <= 0.05 <= known.high
    assert hits / 200 < 0.9 and wide / 200 > 0.92


def test_the_bootstrap_is_its_definition_and_its_generators():
    d = table(np.random.default_rng(5), 3, 20)
    found = stats.bootstrap(d, 0.1, np.random.default_rng(6), 4000)
    assert found == stats.bootstrap(d, 0.1, np.random.default_rng(6), 4000)
    rng = np.random.default_rng(7)
    means = [d[rng.integers(0, 3, 3)][:, rng.integers(0, 20, 20)].mean() for _ in range(4000)]
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(means, [0.05, 0.95])), abs=0.01)
    assert stats.bootstrap(np.zeros((3, 0)), 0.1, rng, 10).value is None


def test_p_is_where_the_interval_ends_at_zero():
    d = table(np.random.default_rng(8), 3, 40)
    p = stats.crossed(d, 0.05).p
    found = stats.crossed(d, p)
    assert 0.01 < p < 0.99 and min(abs(found.low), abs(found.high)) < 1e-6


def test_equivalence_of_several_seeds_at_every_level():
    d = table(np.random.default_rng(13), 3, 60, 0.02, 0.1, 0.1, 0.01)
    contrast = stats.crossed(d, 0.05)
    for alpha in (0.05, 0.01, 0.001):
        found, wide = stats.equivalence(contrast, 0.2, alpha), stats.crossed(d, 2 * alpha)
        assert (found.low, found.high) == pytest.approx((wide.low, wide.high))
    for margin in (0.06, 0.1, 0.3):
        found = stats.equivalence(contrast, margin, 0.05)
        # The margin is where the interval of twice that level ends.
        assert stats.crossed(d, 2 * found.p_noninferior).low == pytest.approx(-margin, rel=1e-6)
        assert stats.crossed(d, 2 * found.p_equivalent).high == pytest.approx(margin, rel=1e-6)
    worse = stats.equivalence(stats.crossed(d - 0.3, 0.05), 0.05, 0.05)
    assert worse.p_noninferior > 0.95


cells = st.sampled_from([-1.0, 0.0, 1.0]) | st.sampled_from([-0.4, 0.0, 0.2])


@given(st.tuples(st.integers(1, 4), st.integers(1, 6)).flatmap(lambda shape: arrays(float, shape, elements=cells)))
def test_numbers_are_finite_and_agree(d):
    found = stats.crossed(d, 0.05)
    for value in (found.diff, found.low, found.high, found.p, found.se, found.df):
        assert value is None or math.isfinite(value)
    assert found.up + found.down <= found.n == d.shape[1]
    assert (found.low is None) == (found.se is None) == (found.df is None)
    if found.low is not None:
        assert found.low <= found.diff <= found.high and 0 <= found.p <= 1
        if abs(found.p - 0.05) > 1e-9:
            assert (found.p < 0.05) == (found.low > 0 or found.high < 0)


outcomes = arrays(
    float, st.tuples(st.just(2), st.integers(1, 4), st.integers(1, 6)), elements=st.sampled_from([0.0, 1.0])
)


@given(outcomes)
def test_binary_arms_always_have_an_interval(arms):
    found = stats.compare(arms[0], arms[1], 0.05)
    turned = stats.compare(arms[1], arms[0], 0.05)
    assert found.diff == -turned.diff and (found.up, found.down) == (turned.down, turned.up)
    if arms.shape[1] == 1 or arms.shape[2] > 1:
        assert -1 <= found.low <= found.high <= 1 and found.se > 0 and 0 <= found.p <= 1
        assert (found.low, found.high, found.p) == pytest.approx((-turned.high, -turned.low, turned.p))


def test_identical_arms_have_about_the_interval_of_one_seed():
    same = np.ones((3, 60))
    found, one = stats.compare(same, same, 0.05), stats.compare(same[:1], same[:1], 0.05)
    assert (found.diff, found.p, found.up, found.down) == (0.0, 1.0, 0, 0)
    assert found.high == pytest.approx(one.high, rel=0.1) and found.low == -found.high
    assert stats.equivalence(found, 0.05, 0.05).p_equivalent < 0.05
    # A metric whose scale nobody knows has no such interval.
    still = stats.crossed(np.zeros((3, 60)), 0.05)
    assert (still.diff, still.p, still.low, still.se) == (0.0, 1.0, None, None)
    moved = stats.crossed(np.full((3, 60), 0.3), 0.05)
    assert moved.diff == pytest.approx(0.3) and (moved.p, moved.low) == (None, None)


def test_everything_wrong_against_everything_right():
    found = stats.compare(np.ones((3, 60)), np.zeros((3, 60)), 0.05)
    assert found.diff == found.high == 1.0 and 0.9 < found.low < 1 and found.p < 1e-6


def test_compare_takes_the_test_that_fits():
    rng = np.random.default_rng(9)
    a, b = (rng.random((2, 3, 30)) < 0.5).astype(float)
    assert stats.compare(a[:1], b[:1], 0.05) == stats.paired(a[0], b[0], 0.05)
    assert stats.compare(a, b, 0.05).p == stats.crossed(a - b, 0.05).p
    assert stats.compare(np.zeros((0, 0)), np.zeros((0, 0)), 0.05) == stats.NONE
    assert stats.compare(np.zeros((3, 0)), np.zeros((3, 0)), 0.05) == stats.NONE
    alone = stats.compare(np.ones((3, 1)), np.zeros((3, 1)), 0.05)
    assert (alone.diff, alone.low, alone.p) == (1.0, None, None)


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 1.0])
def test_levels_stay_between_zero_and_one(share):
    rng = np.random.default_rng(10)
    values = (rng.random((3, 80)) < share).astype(float)
    found = stats.level(values, 0.05, share=True)
    assert 0 <= found.low <= found.value <= found.high <= 1 and found.low < found.high
    assert stats.level(values[:1], 0.05, share=True) == stats.estimate(values[0], 0.05)


def test_levels_of_other_metrics():
    values = np.random.default_rng(11).normal(300, 20, (3, 40))
    found = stats.level(values, 0.05, share=False)
    plain = stats.crossed(values, 0.05)
    assert (found.value, found.low, found.high) == (plain.diff, plain.low, plain.high)
    oracle = scipy_stats.ttest_1samp(values[0], 0).confidence_interval()
    assert stats.level(values[:1], 0.05, share=False).low == pytest.approx(oracle.low)
    assert stats.level(np.zeros((3, 0)), 0.05, share=True) == stats.Estimate(None, None, None, 0)


def test_trend_of_one_seed():
    ratios = [0.0, 0.5, 1.0]
    values = np.array([[0.1, 0.2, 0.3, 0.2], [0.3, 0.35, 0.5, 0.45], [0.5, 0.6, 0.8, 0.6]])
    found = stats.trend(values, ratios, 0.05)
    slopes = [np.polyfit(ratios, values[:, i], 1)[0] for i in range(4)]
    oracle = scipy_stats.ttest_1samp(slopes, 0)
    assert found.diff == pytest.approx(np.mean(slopes)) and found.p == pytest.approx(oracle.pvalue)
    assert found == stats.trend(values[None], ratios, 0.05)


def test_trend_of_several_seeds_holds_their_variance():
    rng = np.random.default_rng(12)
    ratios = [0.0, 0.25, 1.0]
    prompts = rng.normal(0, 0.1, (1, 1, 80))
    slope = np.array([0.0, 0.3, 0.6])[:, None, None]
    values = prompts + slope * np.array(ratios)[None, :, None] + rng.normal(0, 0.05, (3, 3, 80))
    found = stats.trend(values, ratios, 0.05)
    slopes = np.array([[np.polyfit(ratios, values[s, :, i], 1)[0] for i in range(80)] for s in range(3)])
    oracle = stats.crossed(slopes, 0.05)
    assert (found.diff, found.low, found.p) == pytest.approx((oracle.diff, oracle.low, oracle.p))
    # Slopes of 0, 0.3 and 0.6: the prompts alone would call 0.3 certain.
    assert found.low < 0 < stats.trend(values.mean(0), ratios, 0.05).low


def test_trend_without_any_movement():
    still = stats.trend(np.ones((3, 3, 40)), [0.0, 0.5, 1.0], 0.05)
    assert (still.diff, still.p) == (0.0, 1.0) and still.low < 0 < still.high
    assert stats.trend(np.zeros((2, 3, 0)), [0.0, 0.5, 1.0], 0.05) == stats.NONE
