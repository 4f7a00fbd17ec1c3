"""Intervals and tests against oracles, by simulation, and at the edges."""

import numpy as np
import pytest
from scipy import stats as scipy_stats
from statsmodels.stats.proportion import proportion_confint

from prefixlab.analysis import stats


def test_wilson():
    found = stats.proportion(7, 20, 0.05)
    assert (found.low, found.high) == pytest.approx(proportion_confint(7, 20, method="wilson"))
    assert stats.proportion(0, 0, 0.05).value is None


def test_paired_binary_is_mcnemar():
    a = np.array([1.0] * 12 + [0.0] * 3 + [1.0] * 20 + [0.0] * 15)
    b = np.array([0.0] * 12 + [1.0] * 3 + [1.0] * 20 + [0.0] * 15)
    found = stats.paired(a, b, 0.05)
    assert found.diff == pytest.approx(9 / 50) and (found.up, found.down, found.n) == (12, 3, 50)
    assert found.p == pytest.approx(scipy_stats.binomtest(3, 15).pvalue)
    assert found.low < found.diff < found.high


def test_paired_continuous_is_the_t_test():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 30))
    found = stats.paired(a, b, 0.05)
    oracle = scipy_stats.ttest_rel(a, b)
    assert found.p == pytest.approx(oracle.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(oracle.confidence_interval()))


def test_edges():
    one, none = np.ones(10), np.zeros(0)
    same = stats.paired(one, one, 0.05)
    assert (same.diff, same.p, same.up, same.down) == (0.0, 1.0, 0, 0) and same.low < 0 < same.high
    assert stats.paired(none, none, 0.05) == stats.NONE
    assert stats.paired(np.array([0.5]), np.array([0.2]), 0.05).p is None
    assert stats.mean_interval(np.array([0.3]), 0.05).low is None
    constant = stats.paired(np.full(5, 0.7), np.full(5, 0.2), 0.05)
    assert constant.diff == pytest.approx(0.5) and constant.low is None and constant.p is None
    assert stats.crossed(np.zeros((3, 5)), 0.05).p == 1.0
    assert stats.crossed(np.ones((1, 5)), 0.05).p is None
    assert stats.holm({}) == {}


def test_bonett_price_covers():
    rng, hits, runs = np.random.default_rng(1), 0, 1500
    for _ in range(runs):
        u = rng.random(80)
        a, b = (u < 0.35).astype(float), ((u > 0.15) & (u < 0.42)).astype(float)
        found = stats.paired(a, b, 0.05)
        hits += found.low <= 0.35 - 0.27 <= found.high
    assert 0.935 <= hits / runs <= 0.985


@pytest.mark.parametrize(("seed_sd", "seeds"), [(0.0, 3), (0.03, 3), (0.03, 5)])
def test_crossed_covers(seed_sd, seeds):
    rng, hits, runs, effect = np.random.default_rng(2), 0, 1200, 0.05
    for _ in range(runs):
        d = (
            effect
            + rng.normal(0, seed_sd, (seeds, 1))
            + rng.normal(0, 0.2, (1, 100))
            + rng.normal(0, 0.3, (seeds, 100))
        )
        found = stats.crossed(d, 0.05)
        hits += found.low <= effect <= found.high
    assert hits / runs >= 0.935


def test_crossed_counts_prompts_once():
    """Three identical seeds tell no more about prompts than one."""
    rng = np.random.default_rng(3)
    d = rng.normal(0.1, 0.4, 50)
    one = stats.paired(d, np.zeros(50), 0.05)
    three = stats.crossed(np.stack([d] * 3), 0.05)
    assert three.high - three.low == pytest.approx(one.high - one.low, rel=0.02)


def test_trend():
    ratios = [0.0, 0.5, 1.0]
    values = np.array([[0.1, 0.2, 0.3, 0.2], [0.3, 0.35, 0.5, 0.45], [0.5, 0.6, 0.8, 0.6]])
    found = stats.trend(values, ratios, 0.05)
    assert found.diff == pytest.approx(np.polyfit(ratios, values.mean(1), 1)[0])
    assert found.low < found.diff < found.high and found.p < 0.05


def test_holm():
    assert stats.holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06})


@pytest.mark.parametrize(("n", "expected"), [(313, 0.07), (250, 0.08), (50, 0.18), (1319, 0.035), (164, 0.10)])
def test_detectable_effects_known_from_the_field(n, expected):
    assert stats.detectable(n, 0.2) == pytest.approx(expected, rel=0.06)


def test_detectable_is_confirmed_by_simulation():
    n, psi = 200, 0.2
    d = stats.detectable(n, psi)
    rng = np.random.default_rng(4)
    found = 0
    for _ in range(600):
        up, down, _ = rng.multinomial(n, [(psi + d) / 2, (psi - d) / 2, 1 - psi])
        found += scipy_stats.chi2.sf((up - down) ** 2 / max(up + down, 1), 1) < 0.05
    assert found / 600 == pytest.approx(0.8, abs=0.05)


def test_undetectable():
    assert stats.detectable(10, 0.05) is None and stats.detectable(0, 0.2) is None
