"""A small calibration: the simulated studies are what they claim, and the intervals cover in a few of them."""

import numpy as np
import pytest

import calibration
from prefixlab.analysis import crossed, stats
from simulated_studies import Design, Noise, differences, family_outcomes, outcomes, sums


@pytest.mark.parametrize("samples", [1, 5])
def test_studies_are_what_they_claim(samples):
    rng, design, sd = np.random.default_rng(0), Design(0.12, 0.05, 0.2, 0.5), 0.04
    effects, levels, discordant, seeds, alike = [], [], [], [], []
    for _ in range(10):
        noise = Noise(rng, 40, 4, 1500, samples)
        _, treated, reference = next(outcomes(noise, design, (sd,), samples))
        d = (treated - reference) / samples
        effects.append(d.mean())
        levels.append(reference.mean() / samples)
        seeds.append(d.mean(2).var(1, ddof=1).mean())
        alike.append((d[:, 0] * d[:, 1]).mean() - d[:, 0].mean() * d[:, 1].mean())
        discordant.append((d != 0).mean())
    assert np.mean(effects) == pytest.approx(0.05, abs=0.003)
    assert np.mean(levels) == pytest.approx(0.12, abs=0.002)
    within = np.var(d, axis=2).mean()
    assert np.sqrt(np.mean(seeds) - within / 1500) == pytest.approx(sd, rel=0.15)
    assert np.mean(alike) > 0.01  # what all seeds have alike
    if samples == 1:
        assert np.mean(discordant) == pytest.approx(0.2, abs=0.015)


def test_impossible_combinations_are_left_out():
    assert Design(0.12, 0.0, 0.4, 0.5).correlation() is None and Design(0.5, 0.05, 0.04, 0.5).correlation() is None
    chosen, excluded = calibration.designs(quick=False)
    assert excluded == 10 and all(d.correlation() is not None for d in chosen)
    assert {(d.accuracy, d.effect) for d in chosen} == {(a, e) for a in (0.12, 0.5, 0.88) for e in (0.0, 0.05)}


@pytest.mark.parametrize("samples", [1, 5])
def test_many_tables_at_once_are_crossed_one_by_one(samples):
    noise = Noise(np.random.default_rng(1), 6, 5, 100, samples)
    _, treated, reference = next(outcomes(noise, Design(0.5, 0.05, 0.2, 0.25), (0.02,), samples))
    found = sums(treated - reference, (60, 100), (3, 5))
    for at, n, s in ((0, 60, 3), (1, 100, 5)):
        mean, table = differences(found, at, n, s, samples)
        half, p = crossed.half_width(table, 0.05), crossed.p_values(table, mean)
        for i in range(6):
            one = stats.compare(treated[i, :s, :n] / samples, reference[i, :s, :n] / samples, 0.05)
            assert (one.diff, one.high - one.diff, one.p) == pytest.approx((mean[i], half[i], p[i]), rel=1e-6)


@pytest.mark.parametrize(
    ("design", "sd"),
    [
        (Design(0.5, 0.05, 0.1, 0.75), 0.0),
        (Design(0.12, 0.05, 0.2, 0.25), 0.02),
        (Design(0.88, 0.0, 0.1, 0.25), 0.04),
    ],
)
def test_intervals_cover(design, sd):
    hits = {}
    for chunk in range(10):
        noise = Noise(np.random.default_rng(chunk), 200, 8, 100, 1)
        _, treated, reference = next(outcomes(noise, design, (sd,), 1))
        found = sums(treated - reference, (60, 100), (3, 8))
        for (at, n), s in [((0, 60), 3), ((1, 100), 3), ((0, 60), 8)]:
            mean, table = differences(found, at, n, s, 1)
            hits.setdefault((n, s), []).append(np.abs(mean - design.effect) <= crossed.half_width(table, 0.05))
    shares = [np.mean(v) for v in hits.values()]
    # 2,000 repetitions: a standard error of 0.5 points, so three of them below 95%.
    assert min(shares) > 0.935 and np.mean(shares) < 0.985


def test_nothing_is_called_different_more_often_than_promised():
    rng, called = np.random.default_rng(2), 0
    for _ in range(4):
        p = np.concatenate([calibration._family_p(rng, Design(0.5, 0.0, 0.2, 0.5), 0.02, 60, 3) for _ in range(2)], 1)
        assert p.shape == (100, 20)
        called += int((p.min(1) * 20 < 0.05).sum())
        for row in (p[p.min(1).argmin()], p[0]):  # Holm's first step is what decides
            adjusted = stats.holm({str(i): float(x) for i, x in enumerate(row)})
            assert (min(adjusted.values()) < 0.05) == (row.min() * 20 < 0.05)
    assert called / 400 <= 0.05


def test_arms_of_a_family_are_alike():
    arms = family_outcomes(np.random.default_rng(3), Design(0.3, 0.0, 0.2, 0.5), 0.02, 3, 200, 3, 100)
    assert [a.mean() for a in arms] == pytest.approx([0.3] * 3, abs=0.01)
    assert (arms[0] != arms[1]).mean() == pytest.approx(0.2, abs=0.01)
