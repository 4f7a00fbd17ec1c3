"""Several training seeds: seeds and prompts as crossed random factors. No torch.

The estimand is the expected difference over seeds and prompts of the superpopulation both were drawn from. Two to eight
seeds are few, so no variance of theirs is known well. Two intervals are made, and the wider one counts:

- seeds and prompts random: two independent parts of the error, one known with as many degrees of freedom as there are
  seeds less one, the other with those of the prompts, joined by the weighted t of Cochran and Cox (1957);
- prompts random, seeds fixed: what the prompts alone would give. It keeps the interval honest where the seeds agree by
  chance.

One seed and two prompts are added to the variances, each as far off as the others, since neither need be normal.
benchmarks/calibration.py says how often they cover, docs/methods.md ("Statistics") how the rule was chosen.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from prefixlab.analysis.intervals import (
    ALIKE,
    NONE,
    ROUNDING,
    Array,
    Contrast,
    Estimate,
    Widths,
    estimate,
    is_binary,
    paired,
    t_quantile,
    t_test,
)

CROSSED = "seeds and prompts crossed; Cochran-Cox t"
PROMPTS_ONLY = "seeds and prompts crossed; t over prompts, which is wider here"
AGRESTI_COULL = 2
"""Made-up prompts that are always right, and as many that are always wrong, in the interval of a share."""


@dataclass(frozen=True)
class Squares:
    """Mean squares of a two-way table without replication, over any leading axes."""

    seed: Array
    prompt: Array
    error: Array
    n_seeds: int
    n_prompts: int


@dataclass(frozen=True)
class Components:
    """Variances of a single cell of the table of differences, each at least 0."""

    seed: float
    """Of a seed's effect. From S seeds it is known with S - 1 degrees of freedom: badly."""
    prompt: float
    """Of a prompt's effect that every seed shares."""
    error: float
    """Of the rest: which prompts differ under one seed and not under another."""
    differing: float = 1.0
    """Share of the prompts whose mean over the seeds is not 0; only small sets with few of them depend on it."""
    discordant: float | None = None
    """Share of the cells that are not 0, where outcomes are 0 and 1; None for other metrics."""
    effect: float = 0.0
    """Mean difference at which these variances hold. That of 0/1 outcomes shrinks as the difference grows."""


def squares_of_sums(
    row_sums_S: Array, column_squares: Array, cell_squares: Array, n_seeds: int, n_prompts: int
) -> Squares:
    """Mean squares from sums.

    Args:
        row_sums_S: Sum over the prompts, by seed (last axis).
        column_squares: Sum over the prompts of the squared sum over the seeds.
        cell_squares: Sum of all squares.
        n_seeds: At least 2.
        n_prompts: At least 2.
    """
    s, n = n_seeds, n_prompts
    common = row_sums_S.sum(-1) ** 2 / (s * n)
    seed = (row_sums_S**2).sum(-1) / n - common
    prompt = column_squares / s - common
    error = cell_squares - common - seed - prompt
    return Squares(
        np.maximum(seed, 0) / (s - 1),
        np.maximum(prompt, 0) / (n - 1),
        np.maximum(error, 0) / ((s - 1) * (n - 1)),
        s,
        n,
    )


def squares(values_S_N: Array) -> Squares:
    """Mean squares of seeds, prompts and the rest."""
    s, n = values_S_N.shape
    # Centred first, so that a large common level costs no digits.
    d_S_N = values_S_N - values_S_N.mean()
    return squares_of_sums(d_S_N.sum(1), (d_S_N.sum(0) ** 2).sum(), (d_S_N**2).sum(), s, n)


def few_differ(table: Squares, differing: Array | float, unit: float | None) -> Squares:
    """Mean squares with that of the prompts raised where few prompts differ.

    As in Bonett and Price (2012), one prompt is added that is up and one that is down; each differs by as much as those
    that do differ (root mean square), which multiplies the mean square by 1 + 2/m.

    Args:
        table: Mean squares of differences.
        differing: m, the prompts whose mean over the seeds is not 0.
        unit: By how much the added prompts differ where no other does (m = 0, or all differ alike); None if unknown.
    """
    raised = table.prompt * (1 + 2 / np.maximum(differing, 1))
    if unit is not None:
        alone = 2.0 * table.n_seeds * unit**2 / (table.n_prompts - 1)
        raised = np.where((np.asarray(differing) == 0) | (table.prompt <= ROUNDING**2), alone, raised)
    return Squares(table.seed, raised, table.error, table.n_seeds, table.n_prompts)


def widths_of(table: Squares) -> Widths:
    """Standard errors with seeds random and with seeds fixed."""
    # One seed is added that is as far off as the others (root mean square): effects of seeds need not be normal, and
    # are skewed where an outcome is rare.
    seed = table.seed * (1 + 1 / table.n_seeds)
    rest = np.maximum(table.prompt - table.error, 0)
    total, cells = seed + rest, table.n_seeds * table.n_prompts
    weight = np.where(total > 0, seed / np.where(total > 0, total, 1.0), 0.0)
    return Widths(np.sqrt(total / cells), weight, np.sqrt(table.prompt / cells), table.n_seeds - 1, table.n_prompts - 1)


def half_width(table: Squares, alpha: float) -> Array:
    """Half the width of the 1 - alpha interval."""
    return widths_of(table).wider(alpha / 2)


def p_values(table: Squares, diff: Array) -> Array:
    """Two-sided p of differences against 0: the alpha at which the interval of `half_width` ends at 0."""
    p: Array = np.minimum(1.0, 2 * widths_of(table).tail(np.abs(diff)))
    return p


def crossed(diffs_S_N: Array, alpha: float, *, unit: float | None = None) -> Contrast:
    """Several training seeds: seeds and prompts as crossed random factors.

    Args:
        diffs_S_N: Treatment minus reference, one row a seed, one column a prompt.
        alpha: 1 - the interval's level.
        unit: By how much one prompt can differ where outcomes are 0 and 1, so that there is an interval even where none
            does; None for other metrics, where such data have no interval.

    Returns:
        The contrast; `df` is that of the t quantile which gives the same interval from `se` at this alpha.
    """
    found, quantile = _interval(diffs_S_N, alpha, unit)
    if found.widths is None or found.diff is None:
        return found
    p = min(1.0, 2 * float(found.widths.tail(abs(found.diff))))
    return replace(found, p=p, df=_matching_df(quantile, alpha, diffs_S_N.shape[0] - 1.0, diffs_S_N.shape[1] - 1.0))


def _interval(diffs_S_N: Array, alpha: float, unit: float | None = None) -> tuple[Contrast, float]:
    """As `crossed`, without `p` and `df` where there is an interval: they take ten times as long; and its quantile."""
    s, n = diffs_S_N.shape
    if n == 0:
        return NONE, 0.0
    diff = float(diffs_S_N.mean())
    per_prompt = diffs_S_N.mean(0)
    up, down = int((per_prompt > ROUNDING).sum()), int((per_prompt < -ROUNDING).sum())
    if s < 2 or n < 2:
        return Contrast(diff, None, None, None, n, up, down, ""), 0.0
    table, nothing = squares(diffs_S_N), (ROUNDING * max(1.0, abs(diff))) ** 2
    if unit is None and table.prompt <= nothing:
        # The prompts' means agree though the cells do not: the rest is what is known of the prompts' spread.
        table = replace(table, prompt=table.error)
    if unit is None and max(table.seed, table.prompt) <= nothing:
        return Contrast(diff, None, None, 1.0 if diff == 0 else None, n, up, down, ALIKE), 0.0
    found = widths_of(few_differ(table, up + down, unit))
    widths = replace(found, se=float(found.se), weight=float(found.weight), se_fixed=float(found.se_fixed))
    quantile, quantile_fixed = widths.quantiles(alpha / 2)
    se, name = float(widths.se), CROSSED
    if widths.se_fixed * quantile_fixed >= se * quantile:
        se, quantile, name = float(widths.se_fixed), quantile_fixed, PROMPTS_ONLY
    half = float(se * quantile)
    return Contrast(diff, diff - half, diff + half, None, n, up, down, name, se=se, widths=widths), float(quantile)


def _matching_df(quantile: float, alpha: float, first: float, second: float) -> float:
    """Degrees of freedom at which t has this upper quantile; it lies between those of the parts."""
    low, high = min(first, second), max(first, second)
    for _ in range(60):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if t_quantile(1 - alpha / 2, middle) > quantile else (low, middle)
    return low


def compare(treatment_S_N: Array, reference_S_N: Array, alpha: float) -> Contrast:
    """Two arms on the same seeds and prompts: `paired` with one seed, else `crossed`.

    Args:
        treatment_S_N: One row a seed, one column a prompt (means where a prompt has K samples).
        reference_S_N: The same seeds and prompts in the same order.
        alpha: 1 - the interval's level.
    """
    if treatment_S_N.size == 0:
        return NONE
    if len(treatment_S_N) == 1:
        return paired(treatment_S_N[0], reference_S_N[0], alpha)
    if not is_binary(treatment_S_N, reference_S_N):
        return crossed(treatment_S_N - reference_S_N, alpha)
    found = crossed(treatment_S_N - reference_S_N, alpha, unit=1.0)
    if found.low is None or found.high is None:
        return found
    return replace(found, low=max(-1.0, found.low), high=min(1.0, found.high))


def level(values_S_N: Array, alpha: float, *, share: bool) -> Estimate:
    """Mean over seeds and prompts with its interval, as `crossed`; one seed as `estimate` or a t interval.

    Args:
        values_S_N: One row a seed, one column a prompt.
        alpha: 1 - the interval's level.
        share: Whether values lie between 0 and 1. Two prompts that are right in every seed and two that are wrong are
            then added to the interval (Agresti and Coull 1998), and it is cut to [0, 1].
    """
    s, n = values_S_N.shape
    if values_S_N.size == 0:
        return Estimate(None, None, None, 0)
    value = float(values_S_N.mean())
    if s == 1 and share:
        return estimate(values_S_N[0], alpha)
    if s == 1:
        found = t_test(values_S_N[0], alpha, "")
        return Estimate(value, found.low, found.high, n)
    if not share:
        found, _ = _interval(values_S_N, alpha)
        return Estimate(value, found.low, found.high, n)
    added = np.tile(np.repeat([0.0, 1.0], AGRESTI_COULL), (s, 1))
    whole_S_N = np.concatenate([values_S_N, added], axis=1)
    centre, half = float(whole_S_N.mean()), float(half_width(squares(whole_S_N), alpha))
    return Estimate(value, max(0.0, centre - half), min(1.0, centre + half), n)


def trend(values: Array, ratios: Sequence[float], alpha: float) -> Contrast:
    """Slope of the metric over the ratio, per unit of ratio.

    The least-squares slope is taken for each seed and prompt; the slopes are then a table as differences are, so the
    variance of training is in the interval where there are several seeds.

    Args:
        values: Axes (seeds, ratios, prompts), or (ratios, prompts) for one seed.
        ratios: The ratios, at least two different ones.
        alpha: 1 - the interval's level.
    """
    values_S_R_N = values if values.ndim == 3 else values[None]
    x = np.asarray(ratios, dtype=float) - float(np.mean(ratios))
    slopes_S_N = np.einsum("r,srn->sn", x, values_S_R_N) / float((x**2).sum())
    if slopes_S_N.size == 0:
        return NONE
    if len(slopes_S_N) == 1:
        return t_test(slopes_S_N[0], alpha, "t over prompts' slopes")
    steepest = float(x[x > 0].sum() / (x**2).sum())  # of a prompt that is 0 below the mean ratio and 1 above
    return crossed(slopes_S_N, alpha, unit=steepest if is_binary(values_S_R_N) else None)


def components(diffs_S_N: Array) -> Components | None:
    """Variances of seeds, prompts and the rest by the analysis of variance, negative ones set to 0.

    Args:
        diffs_S_N: Treatment minus reference, one row a seed, one column a prompt. Outcomes are taken for 0/1 where
            every difference is -1, 0 or 1.

    Returns:
        The variances, or None with fewer than two seeds or prompts: one seed says nothing about training.
    """
    s, n = diffs_S_N.shape
    if s < 2 or n < 2:
        return None
    found = squares(diffs_S_N)
    seed, prompt, error = float(found.seed), float(found.prompt), float(found.error)
    differing = float((np.abs(diffs_S_N.mean(0)) > ROUNDING).mean())
    binary = bool(np.isin(diffs_S_N, (-1.0, 0.0, 1.0)).all())
    return Components(
        seed=max(0.0, (seed - error) / n),
        prompt=max(0.0, (prompt - error) / s),
        error=error,
        differing=differing,
        discordant=float((diffs_S_N != 0).mean()) if binary else None,
        effect=float(diffs_S_N.mean()),
    )


def bootstrap(diffs_S_N: Array, alpha: float, rng: np.random.Generator, draws: int) -> Estimate:
    """Percentile interval from seeds and prompts drawn again with replacement. A cross-check only.

    It under-covers: with three seeds a resampled variance of seeds is a third too small and has no t to make up for it.

    Args:
        diffs_S_N: Treatment minus reference, one row a seed, one column a prompt.
        alpha: 1 - the interval's level.
        rng: Draws the seeds and the prompts.
        draws: Number of resampled tables.
    """
    s, n = diffs_S_N.shape
    if diffs_S_N.size == 0:
        return Estimate(None, None, None, 0)
    seeds = rng.multinomial(s, np.full(s, 1 / s), size=draws) / s
    prompts = rng.multinomial(n, np.full(n, 1 / n), size=draws) / n
    means = ((seeds @ diffs_S_N) * prompts).sum(1)
    low, high = np.quantile(means, [alpha / 2, 1 - alpha / 2])
    return Estimate(float(diffs_S_N.mean()), float(low), float(high), n)
