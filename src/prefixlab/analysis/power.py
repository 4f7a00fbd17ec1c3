"""What a design can detect, and how much more it would need: before a study from assumptions, after it from a pilot.

One seed and 0/1 outcomes: the exact power of the exact McNemar test. Several seeds: the power of `crossed` for normal
differences with given variances, by quadrature over the mean squares. A pilot's variance of seeds is known with S - 1
degrees of freedom, so numbers of seeds or prompts that rest on it are rough. No torch; nothing is drawn at random.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

import numpy as np
from scipy import special, stats

from prefixlab.analysis.crossed import Components, Squares, few_differ, half_width
from prefixlab.analysis.intervals import Array

NODES_SEED, NODES_SPREAD = 200, 24
MOST_PROMPTS, MOST_SEEDS = 1_000_000, 1_000


class _McNemar:
    """The exact test for a number of pairs and a share of discordant ones."""

    def __init__(self, n: int, discordant: float, alpha: float) -> None:
        # The number of discordant pairs is binomial; what lies ten standard deviations away weighs nothing.
        mean, spread = n * discordant, 10 * math.sqrt(n * discordant) + 10
        m = np.arange(max(0, math.floor(mean - spread)), min(n, math.ceil(mean + spread)) + 1, dtype=float)
        weight, last = stats.binom.pmf(m, n, min(1.0, discordant)), _last_rejected(m, alpha)
        counts = (last >= 0) & (weight > 0)
        self._m, self._weight, self._last = m[counts], weight[counts], last[counts]

    def power(self, share_up: float) -> float:
        """Probability of p < alpha, given the share of the discordant pairs that are up."""
        # P(Binomial(m, q) <= k) is an incomplete beta function; the other side is the same with q turned.
        m, k = self._m, self._last
        rejected = special.betainc(m - k, k + 1, 1 - share_up) + special.betainc(m - k, k + 1, share_up)
        return float((self._weight * rejected).sum())


def _last_rejected(m: Array, alpha: float) -> Array:
    """Largest smaller count of m discordant pairs that the exact test rejects; -1 where none."""
    last: Array = stats.binom.ppf(alpha / 2, m, 0.5)
    return np.where(2 * stats.binom.cdf(last, m, 0.5) < alpha, last, last - 1)


def mcnemar_power(n: int, p_up: float, p_down: float, alpha: float = 0.05) -> float:
    """Probability that the exact two-sided McNemar test has p < alpha.

    Args:
        n: Pairs.
        p_up: Probability of a pair that is 1 in the treatment and 0 in the reference.
        p_down: Probability of a pair the other way round.
        alpha: Level of the test.
    """
    if n <= 0 or p_up + p_down <= 0:
        return 0.0
    return _McNemar(n, p_up + p_down, alpha).power(p_up / (p_up + p_down))


@lru_cache(maxsize=1024)
def detectable(n: int, discordant: float, alpha: float = 0.05, power: float = 0.8) -> float | None:
    """Smallest difference of paired proportions that the exact McNemar test detects, one training seed.

    Args:
        n: Prompts.
        discordant: Share of prompts on which the arms differ.
        alpha: Level of the test.
        power: Probability of p < alpha that is asked for.

    Returns:
        The difference, or None if not even fully one-sided discordance could be detected.
    """
    if n <= 0 or not 0 < discordant <= 1:
        return None
    test = _McNemar(n, discordant, alpha)
    if test.power(1.0) < power:
        return None
    return discordant * _smallest(lambda lead: test.power((1 + lead) / 2) >= power, 1.0)


def pairs_needed(
    effect: float, discordant: float, alpha: float = 0.05, power: float = 0.8, limit: int = MOST_PROMPTS
) -> int | None:
    """Prompts with which the exact McNemar test detects a difference, one training seed.

    The exact power goes up and down by a little from one number to the next; from about this one on it suffices.

    Args:
        effect: Difference of paired proportions, not 0.
        discordant: Share of prompts on which the arms differ; at least the size of the effect is taken.
        alpha: Level of the test.
        power: Probability of p < alpha that is asked for.
        limit: The most prompts that are tried.

    Returns:
        The number, or None if `limit` prompts do not suffice.
    """
    size = abs(effect)
    share = min(1.0, max(discordant, size))
    if size == 0:
        return None
    return _smallest_count(lambda n: mcnemar_power(n, (share + size) / 2, (share - size) / 2, alpha) >= power, 2, limit)


def assumed(discordant: float, seed_sd: float, shared: float = 0.5) -> Components:
    """Variances of differences of 0/1 outcomes from assumptions, for a plan without a pilot.

    Args:
        discordant: Share of prompts on which the arms differ, within a seed.
        seed_sd: Standard deviation of the effect over training seeds.
        shared: Share of the variance of prompts that every seed has alike, 0 to 1.
    """
    return Components(seed_sd**2, shared * discordant, (1 - shared) * discordant, discordant=discordant)


def _with_effect(parts: Components, effect: float) -> Components:
    """Variances where the difference is `effect`.

    Within a seed, 0/1 outcomes differ with variance psi - d^2 (psi the share of discordant prompts, at least |d|); what
    prompts and the rest have of it is taken to shrink alike.
    """
    if parts.discordant is None:
        return parts
    before = parts.discordant - parts.effect**2
    after = max(parts.discordant, min(1.0, abs(effect))) - effect**2
    scale = max(0.0, after) / before if before > 0 else 1.0
    return replace(parts, prompt=parts.prompt * scale, error=parts.error * scale, effect=effect)


def crossed_power(effect: float, parts: Components, n_prompts: int, n_seeds: int, alpha: float = 0.05) -> float | None:
    """Probability that `crossed` finds an effect; with one seed, that a t test over prompts does, given the seed.

    Args:
        effect: The expected difference.
        parts: Variances of a single cell.
        n_prompts: At least 2.
        n_seeds: At least 1. With one, the variance of seeds is left out, since such a test says nothing about it.
        alpha: Level of the test.

    Returns:
        The power, or None where nothing varies or the design is too small for a test.
    """
    one = n_seeds == 1
    if n_prompts < 2 or n_seeds < 1 or parts.prompt + parts.error + (0.0 if one else parts.seed) <= 0:
        return None
    parts = _with_effect(parts, effect)
    within = parts.prompt / n_prompts + parts.error / (n_seeds * n_prompts)
    between = 0.0 if one else parts.seed / n_seeds
    if within + between == 0:
        return 1.0  # every prompt differs, in one direction
    skewness, kurtosis = _moments(parts, n_seeds)
    # The spread that is seen goes up and down with the mean where differences are skewed, as those of few prompts are.
    middles = special.ndtri((np.arange(NODES_SPREAD) + 0.5) / NODES_SPREAD)
    spread = np.maximum(0.05, 1 + math.sqrt((kurtosis + 2) / n_prompts) * middles)
    together = skewness / math.sqrt(kurtosis + 2)
    mean = effect + math.sqrt(within) * together * middles
    rest = math.sqrt(max(1e-300, within * (1 - together**2) + between))
    if one:
        half = float(stats.t.ppf(1 - alpha / 2, n_prompts - 1)) * np.sqrt(within * spread)
    else:
        half = _half_widths(parts, n_prompts, n_seeds, alpha, spread)
    return float((special.ndtr((mean - half) / rest) + special.ndtr((-mean - half) / rest)).mean())


def _moments(parts: Components, n_seeds: int) -> tuple[float, float]:
    """Skewness and excess kurtosis of a prompt's mean over the seeds; 0 for outcomes that are not 0 and 1."""
    if parts.discordant is None or parts.prompt + parts.error == 0:
        return 0.0, 0.0
    d, psi = parts.effect, min(1.0, max(parts.discordant, abs(parts.effect)))
    variance = psi - d**2
    third, fourth = d - 3 * d * psi + 2 * d**3, psi - 4 * d**2 + 6 * d**2 * psi - 3 * d**4 - 3 * variance**2
    shared = parts.prompt / (parts.prompt + parts.error)
    second, s = (shared + (1 - shared) / n_seeds) * variance, n_seeds
    third, fourth = third * (shared + (1 - shared) / s**2), fourth * (shared + (1 - shared) / s**3)
    skewness = third / second**1.5
    # No distribution has a smaller kurtosis; the mixture of shared and own parts is not exact.
    return skewness, max(fourth / second**2, skewness**2 - 1.9)


def _half_widths(parts: Components, n_prompts: int, n_seeds: int, alpha: float, spread: Array) -> Array:
    """Half widths of `crossed`, by quantiles of the seeds' mean square and by the prompts' spread over its mean."""
    error, prompt = parts.error * spread, (n_seeds * parts.prompt + parts.error) * spread
    seed = _chi2_over_df(n_seeds - 1, NODES_SEED)[:, None] * (n_prompts * parts.seed + error)
    table = Squares(seed, prompt, error, n_seeds, n_prompts)
    return half_width(few_differ(table, max(1.0, parts.differing * n_prompts), None), alpha)


def _chi2_over_df(df: int, nodes: int) -> Array:
    """Quantiles of chi-squared over its degrees of freedom, at the middles of equal shares."""
    found: Array = 2 * special.gammaincinv(df / 2, (np.arange(nodes) + 0.5) / nodes) / df
    return found


def mde(parts: Components, n_prompts: int, n_seeds: int, alpha: float = 0.05, power: float = 0.8) -> float | None:
    """Smallest effect that the design detects; arguments as in `crossed_power`.

    Returns:
        The effect, or None where nothing varies, the design is too small for a test or, with 0/1 outcomes, not even
        fully one-sided discordance could be detected.
    """
    if crossed_power(0.0, parts, n_prompts, n_seeds, alpha) is None:
        return None
    high = math.sqrt(parts.seed + parts.prompt + parts.error) if parts.discordant is None else parts.discordant
    while (crossed_power(high, parts, n_prompts, n_seeds, alpha) or 0.0) < power:
        if parts.discordant is not None:
            return None
        high *= 2
    return _smallest(lambda d: (crossed_power(d, parts, n_prompts, n_seeds, alpha) or 0.0) >= power, high)


def prompts_needed(
    effect: float,
    parts: Components,
    n_seeds: int,
    alpha: float = 0.05,
    power: float = 0.8,
    limit: int = MOST_PROMPTS,
) -> int | None:
    """Prompts with which as many seeds detect an effect; arguments as in `crossed_power`.

    Returns:
        The number, or None if `limit` prompts do not suffice: no number helps where the variance of seeds dominates.
    """
    return _smallest_count(lambda n: (crossed_power(effect, parts, n, n_seeds, alpha) or 0.0) >= power, 2, limit)


def seeds_needed(
    effect: float,
    parts: Components,
    n_prompts: int,
    alpha: float = 0.05,
    power: float = 0.8,
    limit: int = MOST_SEEDS,
) -> int | None:
    """Seeds with which as many prompts detect an effect, two or more; arguments as in `crossed_power`.

    Returns:
        The number, or None if `limit` seeds do not suffice: no number helps where the prompts are too few.
    """
    return _smallest_count(lambda s: (crossed_power(effect, parts, n_prompts, s, alpha) or 0.0) >= power, 2, limit)


def one_way(power_of: Callable[[float], float], power: float = 0.8) -> float | None:
    """Smallest share of pairs that is detected if all of them go one way; None where not even all pairs are.

    Args:
        power_of: Power where that share of the pairs differs, one way; it grows with the share.
        power: What is asked for.
    """
    return _smallest(lambda share: power_of(share) >= power, 1.0) if power_of(1.0) >= power else None


def _smallest(reached: Callable[[float], bool], high: float) -> float:
    """Smallest number up to `high`, which suffices, that suffices."""
    low = 0.0
    for _ in range(24):  # to 6e-8 of the highest
        middle = (low + high) / 2
        low, high = (low, middle) if reached(middle) else (middle, high)
    return high


def _smallest_count(reached: Callable[[int], bool], least: int, limit: int) -> int | None:
    """Smallest count from `least` to `limit` that suffices, where more is never worse."""
    high = least
    while not reached(high):
        if high >= limit:
            return None
        high = min(limit, 2 * high)
    low = max(least - 1, high // 2)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if reached(middle) else (middle, high)
    return high
