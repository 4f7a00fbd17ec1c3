"""Intervals, tests and detectable effects for paired designs. No torch; no hidden randomness.

Every comparison is made on the same prompts. With one training seed the unit is the prompt, and the interval says
nothing about the variance of training; with several seeds, seeds and prompts are crossed random factors.
Formulas and sources: docs/methods.md.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A number with its interval; None where it does not exist."""

    value: float | None
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class Contrast:
    """A paired difference, treatment minus reference."""

    diff: float | None
    low: float | None
    high: float | None
    p: float | None
    n: int
    """Prompts in both arms."""
    up: int
    """Prompts where the treatment is higher."""
    down: int
    test: str
    """The test and the interval, in words; empty where none exists."""


ROUNDING = 1e-12
"""A spread below this share of the numbers is rounding, not variance."""
NONE = Contrast(None, None, None, None, 0, 0, 0, "")


def proportion(successes: int, n: int, alpha: float) -> Estimate:
    """Share with its Wilson score interval."""
    if n == 0:
        return Estimate(None, None, None, 0)
    low, high = proportion_confint(successes, n, alpha=alpha, method="wilson")
    return Estimate(successes / n, float(low), float(high), n)


def mean_interval(per_prompt: Array, alpha: float) -> Estimate:
    """Mean over prompts with a t interval; the prompt is the unit, so K samples of one do not count as K."""
    n = len(per_prompt)
    if n == 0:
        return Estimate(None, None, None, 0)
    value = float(per_prompt.mean())
    if n < 2:
        return Estimate(value, None, None, n)
    half = float(stats.t.ppf(1 - alpha / 2, n - 1) * per_prompt.std(ddof=1) / math.sqrt(n))
    return Estimate(value, value - half, value + half, n)


def estimate(per_prompt: Array, alpha: float) -> Estimate:
    """Wilson where every prompt is 0 or 1, else a t interval over prompts."""
    if set(np.unique(per_prompt)) <= {0.0, 1.0}:
        return proportion(int(per_prompt.sum()), len(per_prompt), alpha)
    return mean_interval(per_prompt, alpha)


def bonett_price(up: int, down: int, n: int, alpha: float) -> tuple[float, float]:
    """Interval of a difference of paired proportions, Laplace-adjusted (Bonett and Price 2012).

    Args:
        up: Pairs that are 1 in the treatment and 0 in the reference.
        down: Pairs the other way round.
        n: All pairs.
        alpha: 1 - the interval's level.
    """
    p_up, p_down = (up + 1) / (n + 2), (down + 1) / (n + 2)
    diff = p_up - p_down
    half = float(stats.norm.ppf(1 - alpha / 2)) * math.sqrt((p_up + p_down - diff**2) / (n + 2))
    return max(-1.0, diff - half), min(1.0, diff + half)


def paired(treatment: Array, reference: Array, alpha: float) -> Contrast:
    """One training seed: difference on the same prompts.

    Args:
        treatment: One value a prompt (a mean where a prompt has K samples).
        reference: The same prompts in the same order.
        alpha: 1 - the interval's level.

    Returns:
        Exact McNemar with a Bonett-Price interval where all values are 0 or 1, else a paired t test.
    """
    n = len(treatment)
    if n == 0:
        return NONE
    d = treatment - reference
    up, down = int((d > 0).sum()), int((d < 0).sum())
    diff = float(d.mean())
    if set(np.unique(treatment)) | set(np.unique(reference)) <= {0.0, 1.0}:
        low, high = bonett_price(up, down, n, alpha)
        p = float(mcnemar([[0, up], [down, 0]], exact=True).pvalue) if up + down else 1.0
        return Contrast(diff, low, high, p, n, up, down, "exact McNemar; Bonett-Price interval")
    return _t_test(d, alpha, "paired t over prompts")


def _t_test(d: Array, alpha: float, name: str) -> Contrast:
    """One-sample t test of per-prompt numbers against 0."""
    n, diff = len(d), float(d.mean())
    up, down = int((d > 0).sum()), int((d < 0).sum())
    if n < 2:
        return Contrast(diff, None, None, None, n, up, down, "")
    se = float(d.std(ddof=1)) / math.sqrt(n)
    if se <= ROUNDING * max(1.0, abs(diff)):
        return Contrast(diff, None, None, 1.0 if diff == 0 else None, n, up, down, "none: every prompt differs alike")
    half = float(stats.t.ppf(1 - alpha / 2, n - 1)) * se
    p = float(2 * stats.t.sf(abs(diff) / se, n - 1))
    return Contrast(diff, diff - half, diff + half, p, n, up, down, name)


def crossed(diffs_S_N: Array, alpha: float) -> Contrast:
    """Several training seeds: seeds and prompts as crossed random factors.

    Var(mean) = (MS_seed + MS_prompt - MS_error) / (S N) from the two-way table without replication, with
    Satterthwaite's degrees of freedom; the variance is kept at or above each of its parts.

    Args:
        diffs_S_N: Treatment minus reference, one row a seed, one column a prompt.
        alpha: 1 - the interval's level.
    """
    s, n = diffs_S_N.shape
    diff = float(diffs_S_N.mean())
    per_prompt = diffs_S_N.mean(0)
    up, down = int((per_prompt > 0).sum()), int((per_prompt < 0).sum())
    if s < 2 or n < 2:
        return Contrast(diff, None, None, None, n, up, down, "")
    row, column = diffs_S_N.mean(1, keepdims=True), diffs_S_N.mean(0, keepdims=True)
    ms_seed = float(n * ((row - diff) ** 2).sum() / (s - 1))
    ms_prompt = float(s * ((column - diff) ** 2).sum() / (n - 1))
    ms_error = float(((diffs_S_N - row - column + diff) ** 2).sum() / ((s - 1) * (n - 1)))
    total = max(ms_seed + ms_prompt - ms_error, ms_seed, ms_prompt)
    if total <= (ROUNDING * max(1.0, abs(diff))) ** 2:
        return Contrast(diff, None, None, 1.0 if diff == 0 else None, n, up, down, "none: every prompt differs alike")
    parts = ms_seed**2 / (s - 1) + ms_prompt**2 / (n - 1) + ms_error**2 / ((s - 1) * (n - 1))
    df = max(1.0, (ms_seed + ms_prompt - ms_error) ** 2 / parts) if total == ms_seed + ms_prompt - ms_error else s - 1.0
    se = math.sqrt(total / (s * n))
    half = float(stats.t.ppf(1 - alpha / 2, df)) * se
    p = float(2 * stats.t.sf(abs(diff) / se, df))
    return Contrast(diff, diff - half, diff + half, p, n, up, down, "seed-by-prompt variance components, t")


def trend(values_R_N: Array, ratios: Sequence[float], alpha: float) -> Contrast:
    """Slope of the metric over the ratio, per unit of ratio, with the prompt as the unit.

    Args:
        values_R_N: One row a ratio (mean over seeds where there are several), one column a prompt.
        ratios: The ratios of the rows, at least two different ones.
        alpha: 1 - the interval's level.
    """
    x = np.asarray(ratios, dtype=float) - float(np.mean(ratios))
    slopes = (x[:, None] * values_R_N).sum(0) / float((x**2).sum())
    return _t_test(slopes, alpha, "t over prompts' slopes") if len(slopes) else NONE


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm-adjusted p values of a declared family, by name."""
    if not p_values:
        return {}
    names = list(p_values)
    adjusted = multipletests([p_values[n] for n in names], method="holm")[1]
    return {name: float(p) for name, p in zip(names, adjusted, strict=True)}


def detectable(n: int, discordant: float, alpha: float = 0.05, power: float = 0.8) -> float | None:
    """Smallest paired difference of proportions that a McNemar test detects, one training seed.

    Connor's (1987) normal approximation: the d that solves
    z_{1-alpha/2} sqrt(psi) + z_power sqrt(psi - d^2) = d sqrt(n), psi the share of discordant pairs.

    Returns:
        The difference, or None if not even fully one-sided discordance (d = psi) could be detected.
    """
    if n <= 0 or not 0 < discordant <= 1:
        return None
    za, zb = float(stats.norm.ppf(1 - alpha / 2)), float(stats.norm.ppf(power))

    def lack(d: float) -> float:
        return za * math.sqrt(discordant) + zb * math.sqrt(max(discordant - d * d, 0.0)) - d * math.sqrt(n)

    if lack(discordant) > 0:
        return None
    low, high = 0.0, discordant
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if lack(middle) > 0 else (low, middle)
    return high
