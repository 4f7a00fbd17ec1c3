"""Intervals and tests with one training seed, where the prompt is the unit; equivalence; Holm. No torch.

Everything here is conditional on the seed: it says nothing about the variance of training. Several seeds are the
subject of analysis/crossed.py. Formulas and sources: docs/methods.md, "Statistics".
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from prefixlab.errors import UserError

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A number with its interval; None where it does not exist."""

    value: float | None
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class Widths:
    """Half widths, at any upper tail, of the two intervals that several seeds give; numbers or arrays (crossed.py)."""

    se: Array | float
    """Seeds and prompts random."""
    weight: Array | float
    """Share of the seeds in its variance."""
    se_fixed: Array | float
    """Prompts random, seeds fixed."""
    df_seed: int
    df_prompt: int

    def quantiles(self, tail: Array | float) -> tuple[Array, Array]:
        """With seeds random (Cochran and Cox: quantiles weighted by the variances), and with seeds fixed."""
        by_seed, by_prompt = -special.stdtrit(self.df_seed, tail), -special.stdtrit(self.df_prompt, tail)
        return self.weight * by_seed + (1 - self.weight) * by_prompt, by_prompt

    def wider(self, tail: Array | float) -> Array:
        """Half the width of the interval that counts."""
        random, fixed = self.quantiles(tail)
        half: Array = np.maximum(self.se * random, self.se_fixed * fixed)
        return half

    def tail(self, distance: Array | float) -> Array:
        """The upper tail at which `wider` is a distance of 0 or more."""
        if np.ndim(distance) == 0:
            return np.asarray(self._tail_of(float(distance)))
        # Bisection in the logarithm, which keeps its digits for the smallest tails as well.
        low, high = np.full(np.shape(distance), -690.0), np.full(np.shape(distance), math.log(0.5))
        for _ in range(45):
            middle = (low + high) / 2
            inside = distance <= self.wider(np.exp(middle))
            low, high = np.where(inside, middle, low), np.where(inside, high, middle)
        found: Array = np.exp(high)
        return found

    def _tail_of(self, distance: float) -> float:
        """The same of one number, which is most of what is asked: ten times as fast without arrays."""
        low, high = -690.0, math.log(0.5)
        for _ in range(45):
            middle = (low + high) / 2
            low, high = (middle, high) if distance <= self.wider(np.exp(middle)) else (low, middle)
        return float(np.exp(high))


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
    se: float | None = None
    """Standard error behind the interval; None where there is no interval."""
    df: float | None = None
    """Degrees of freedom of the t quantile that gives the interval from `se`; None for a normal quantile."""
    centre: float | None = None
    """Middle of the interval where that is not `diff`."""
    widths: Widths | None = None
    """With several seeds: the interval at every level; `df` gives it at its own level only."""


@dataclass(frozen=True)
class Equivalence:
    """Whether a difference lies within a margin; all None where there is no standard error."""

    p_equivalent: float | None
    """Two one-sided tests of |diff| >= margin."""
    p_noninferior: float | None
    """One-sided test of diff <= -margin."""
    low: float | None
    high: float | None
    """The 1 - 2 alpha interval: it lies within the margin where p_equivalent < alpha."""


ROUNDING = 1e-12
"""A spread below this share of the numbers is rounding, not variance."""
NONE = Contrast(None, None, None, None, 0, 0, 0, "")
ALIKE = "none: every prompt differs alike"


def t_quantile(q: float, df: float | None) -> float:
    """Upper quantile of t, of the normal where df is None; precise for q close to 1 as well."""
    tail = 1 - q
    return -float(special.ndtri(tail) if df is None else special.stdtrit(df, tail))


def t_upper(x: float, df: float | None) -> float:
    """P(T > x) of t, of the normal where df is None."""
    return float(special.ndtr(-x) if df is None else special.stdtr(df, -x))


def is_binary(*tables: Array) -> bool:
    """Whether all values are 0 or 1."""
    return all(bool(np.isin(t, (0.0, 1.0)).all()) for t in tables)


def proportion(successes: int, n: int, alpha: float) -> Estimate:
    """Share with its Wilson score interval."""
    return _share(successes, n, alpha, "wilson")


def clopper_pearson(successes: int, n: int, alpha: float) -> Estimate:
    """Share with its exact interval: it covers with at least 1 - alpha for every share, and mostly with more."""
    return _share(successes, n, alpha, "beta")


def _share(successes: int, n: int, alpha: float, method: str) -> Estimate:
    if n == 0:
        return Estimate(None, None, None, 0)
    low, high = proportion_confint(successes, n, alpha=alpha, method=method)
    return Estimate(successes / n, float(low), float(high), n)


def mean_interval(per_prompt: Array, alpha: float) -> Estimate:
    """Mean over prompts with a t interval; the prompt is the unit, so K samples of one do not count as K."""
    n = len(per_prompt)
    if n == 0:
        return Estimate(None, None, None, 0)
    value = float(per_prompt.mean())
    if n < 2:
        return Estimate(value, None, None, n)
    half = t_quantile(1 - alpha / 2, n - 1) * float(per_prompt.std(ddof=1)) / math.sqrt(n)
    return Estimate(value, value - half, value + half, n)


def estimate(per_prompt: Array, alpha: float) -> Estimate:
    """Wilson where every prompt is 0 or 1, else a t interval over prompts."""
    if is_binary(per_prompt):
        return proportion(int(per_prompt.sum()), len(per_prompt), alpha)
    return mean_interval(per_prompt, alpha)


def _laplace(up: int, down: int, n: int) -> tuple[float, float]:
    """Centre and standard error of Bonett and Price (2012): one pair more each way."""
    p_up, p_down = (up + 1) / (n + 2), (down + 1) / (n + 2)
    diff = p_up - p_down
    return diff, math.sqrt((p_up + p_down - diff**2) / (n + 2))


def bonett_price(up: int, down: int, n: int, alpha: float) -> tuple[float, float]:
    """Interval of a difference of paired proportions, Laplace-adjusted (Bonett and Price 2012).

    Args:
        up: Pairs that are 1 in the treatment and 0 in the reference.
        down: Pairs the other way round.
        n: All pairs.
        alpha: 1 - the interval's level.
    """
    centre, se = _laplace(up, down, n)
    half = t_quantile(1 - alpha / 2, None) * se
    return max(-1.0, centre - half), min(1.0, centre + half)


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
    if is_binary(treatment, reference):
        low, high = bonett_price(up, down, n, alpha)
        centre, se = _laplace(up, down, n)
        p = float(mcnemar([[0, up], [down, 0]], exact=True).pvalue) if up + down else 1.0
        name = "exact McNemar; Bonett-Price interval"
        return Contrast(float(d.mean()), low, high, p, n, up, down, name, se=se, centre=centre)
    return t_test(d, alpha, "paired t over prompts")


def t_test(d: Array, alpha: float, name: str) -> Contrast:
    """One-sample t test of per-prompt numbers against 0."""
    n, diff = len(d), float(d.mean())
    up, down = int((d > 0).sum()), int((d < 0).sum())
    if n < 2:
        return Contrast(diff, None, None, None, n, up, down, "")
    se = float(d.std(ddof=1)) / math.sqrt(n)
    if se <= ROUNDING * max(1.0, abs(diff)):
        return Contrast(diff, None, None, 1.0 if diff == 0 else None, n, up, down, ALIKE)
    half = t_quantile(1 - alpha / 2, n - 1) * se
    p = 2 * t_upper(abs(diff) / se, n - 1)
    return Contrast(diff, diff - half, diff + half, p, n, up, down, name, se=se, df=n - 1.0)


def equivalence(contrast: Contrast, margin: float, alpha: float) -> Equivalence:
    """Two one-sided tests and non-inferiority against a margin (Schuirmann 1987).

    Args:
        contrast: A difference whose sign has been turned so that more is better.
        margin: The largest difference that does not matter, above 0, in the metric's unit.
        alpha: Level of each one-sided test.

    Raises:
        UserError: If the margin is not above 0.
    """
    if not margin > 0:
        raise UserError(
            f"the margin {margin:g} cannot be tested: it must be above 0; set the smallest loss that matters"
        )
    if contrast.se is None or contrast.diff is None:
        return Equivalence(None, None, None, None)
    centre = contrast.diff if contrast.centre is None else contrast.centre
    below, above = _beyond(contrast, centre + margin), _beyond(contrast, margin - centre)
    if contrast.widths is None:
        half = t_quantile(1 - alpha, contrast.df) * contrast.se
    else:
        half = float(contrast.widths.wider(alpha))
    return Equivalence(max(below, above), below, centre - half, centre + half)


def _beyond(contrast: Contrast, distance: float) -> float:
    """One-sided p of a centre that lies so far on the right side of a bound."""
    assert contrast.se is not None
    if contrast.widths is None:
        return t_upper(distance / contrast.se, contrast.df)
    tail = float(contrast.widths.tail(abs(distance)))
    return tail if distance >= 0 else 1 - tail


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm-adjusted p values of a declared family, by name."""
    if not p_values:
        return {}
    names = list(p_values)
    adjusted = multipletests([p_values[n] for n in names], method="holm")[1]
    return {name: float(p) for name, p in zip(names, adjusted, strict=True)}
