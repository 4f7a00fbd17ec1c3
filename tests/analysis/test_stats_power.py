"""Power against enumeration, statsmodels and simulation; what is needed, and what no number reaches."""

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.power import TTestPower

from prefixlab.analysis import crossed, stats


@pytest.mark.parametrize(("up", "down"), [(0.5, 0.1), (0.3, 0.3), (0.9, 0.1), (0.6, 0.0)])
def test_mcnemar_power_by_enumeration(up, down):
    n, expected = 14, 0.0
    for u in range(n + 1):
        for d in range(n + 1 - u):
            if u + d and mcnemar([[0, u], [d, 0]], exact=True).pvalue < 0.05:
                ways = math.comb(n, u) * math.comb(n - u, d)
                expected += ways * up**u * down**d * max(0.0, 1 - up - down) ** (n - u - d)
    assert stats.mcnemar_power(n, up, down) == pytest.approx(expected, abs=1e-9)


def test_mcnemar_power_at_the_edges():
    assert stats.mcnemar_power(0, 0.2, 0.1) == stats.mcnemar_power(50, 0.0, 0.0) == 0.0
    assert stats.mcnemar_power(5, 1.0, 0.0) == 0.0  # five pairs give p = 0.0625 at best
    assert stats.mcnemar_power(6, 1.0, 0.0) == pytest.approx(1.0)
    assert 0 < stats.mcnemar_power(2000, 0.1, 0.1) <= 0.05


@pytest.mark.parametrize(("n", "expected"), [(313, 0.07), (250, 0.08), (50, 0.18), (1319, 0.035), (164, 0.10)])
def test_detectable_effects_known_from_the_field(n, expected):
    assert stats.detectable(n, 0.2) == pytest.approx(expected, rel=0.06)


@pytest.mark.parametrize(("n", "discordant"), [(60, 0.2), (200, 0.2), (313, 0.1)])
def test_detectable_is_confirmed_by_simulation(n, discordant):
    d, rng = stats.detectable(n, discordant), np.random.default_rng(4)
    drawn = rng.multinomial(n, [(discordant + d) / 2, (discordant - d) / 2, 1 - discordant], size=10_000)
    up, down = drawn[:, 0], drawn[:, 1]
    p = np.minimum(1, 2 * scipy_stats.binom.cdf(np.minimum(up, down), up + down, 0.5))
    assert (p < 0.05).mean() == pytest.approx(0.8, abs=0.015)


def test_undetectable():
    assert stats.detectable(10, 0.05) is None and stats.detectable(0, 0.2) is None
    assert stats.detectable(100, 0.0) is None


def test_pairs_needed_is_where_the_power_is():
    n = stats.pairs_needed(0.05, 0.2)
    assert n is not None and stats.mcnemar_power(n, 0.125, 0.075) >= 0.8 > stats.mcnemar_power(n - 40, 0.125, 0.075)
    assert stats.pairs_needed(-0.05, 0.2) == n
    assert stats.pairs_needed(0.0, 0.2) is None and stats.pairs_needed(0.001, 0.4, limit=1000) is None
    assert stats.pairs_needed(0.3, 0.1) == stats.pairs_needed(0.3, 0.3)


@pytest.mark.parametrize(("effect", "n"), [(0.1, 60), (0.05, 313), (0.3, 20), (0.0, 100)])
def test_one_seed_is_the_power_of_the_t_test(effect, n):
    parts = stats.Components(seed=9.0, prompt=0.05, error=0.04)
    found = stats.crossed_power(effect, parts, n, 1)
    assert found == pytest.approx(TTestPower().power(effect / 0.3, n, 0.05), abs=0.003)


@pytest.mark.parametrize(
    ("seeds", "seed_sd", "effect"), [(3, 0.0, 0.1), (3, 0.05, 0.2), (5, 0.03, 0.1), (2, 0.02, 0.3)]
)
def test_power_of_several_seeds_by_simulation(seeds, seed_sd, effect):
    rng, reps, n = np.random.default_rng(5), 6000, 80
    parts = stats.Components(seed_sd**2, 0.2**2, 0.3**2)
    d = effect + rng.normal(0, seed_sd, (reps, seeds, 1)) + rng.normal(0, 0.2, (reps, 1, n))
    d = d + rng.normal(0, 0.3, (reps, seeds, n))
    table = crossed.squares_of_sums(d.sum(2), (d.sum(1) ** 2).sum(1), (d**2).sum((1, 2)), seeds, n)
    found = np.abs(d.mean((1, 2))) > crossed.half_width(crossed.few_differ(table, n, None), 0.05)
    assert found.mean() == pytest.approx(stats.crossed_power(effect, parts, n, seeds), abs=0.02)


def test_smallest_effect_has_the_power():
    parts = stats.assumed(0.2, 0.02)
    for n, seeds in ((60, 3), (313, 1), (313, 3), (1319, 8)):
        effect = stats.mde(parts, n, seeds)
        assert stats.crossed_power(effect, parts, n, seeds) == pytest.approx(0.8, abs=1e-6)
    assert stats.mde(parts, 313, 8) < stats.mde(parts, 313, 5) < stats.mde(parts, 313, 3)
    assert stats.mde(parts, 1319, 8) < stats.mde(parts, 313, 8) < stats.mde(parts, 313, 8, alpha=0.005)


def test_one_seed_and_binary_agrees_with_the_exact_test():
    parts = stats.assumed(0.2, 0.0)
    assert stats.mde(parts, 313, 1) == pytest.approx(stats.detectable(313, 0.2), rel=0.06)


def test_numbers_needed():
    parts = stats.assumed(0.2, 0.02)
    n = stats.prompts_needed(0.05, parts, 5)
    assert stats.crossed_power(0.05, parts, n, 5) >= 0.8 > stats.crossed_power(0.05, parts, n - 1, 5)
    s = stats.seeds_needed(0.05, parts, 1319)
    assert stats.crossed_power(0.05, parts, 1319, s) >= 0.8 > stats.crossed_power(0.05, parts, 1319, s - 1)


def test_what_no_number_reaches():
    parts = stats.assumed(0.2, 0.04)
    assert stats.prompts_needed(0.05, parts, 3) is None  # three seeds of this spread cannot, with any prompts
    assert stats.seeds_needed(0.05, stats.assumed(0.2, 0.0, shared=1.0), 60) is None  # all seeds ask the same 60
    nothing = stats.Components(0.0, 0.0, 0.0)
    assert stats.mde(nothing, 100, 3) is None and stats.crossed_power(0.1, nothing, 100, 3) is None
    assert stats.mde(parts, 1, 3) is None and stats.prompts_needed(0.1, nothing, 3) is None
    assert stats.mde(stats.assumed(0.02, 0.0), 60, 3) is None  # one prompt in fifty differs: too few, even one-sided


def test_variance_of_binary_differences_shrinks_with_the_effect():
    plain = stats.Components(0.0, 0.1, 0.1)
    binary = stats.assumed(0.2, 0.0)
    assert stats.crossed_power(0.18, binary, 30, 3) > stats.crossed_power(0.18, plain, 30, 3) + 0.05
    assert stats.crossed_power(1.0, binary, 30, 3) == 1.0
    # Variances that were measured at an effect are not shrunk twice.
    pilot = stats.Components(0.0, 0.08, 0.08, discordant=0.2, effect=0.2)
    assert stats.crossed_power(0.2, pilot, 30, 3) == pytest.approx(stats.crossed_power(0.2, binary, 30, 3))


def test_a_pilot_gives_the_numbers():
    rng = np.random.default_rng(6)
    many = rng.normal(0, 0.03, (80, 1)) + rng.normal(0, 0.2, (1, 300)) + rng.normal(0, 0.3, (80, 300))
    truth = stats.Components(0.03**2, 0.2**2, 0.3**2)
    assert stats.mde(stats.components(many), 300, 5) == pytest.approx(stats.mde(truth, 300, 5), rel=0.1)
