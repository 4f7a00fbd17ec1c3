"""Means of words, and how far resampling samples and seeds moves them. No torch.

Resampling is the Bayesian bootstrap (Rubin 1981): in every draw each unit gets an exponential weight. Unlike counts of
drawn units these are never 0, so that a word of few samples has a mean in every draw. Samples, seeds, and single
readings (a sample with a seed) are resampled apart, and their variances combined as for crossed factors.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import polars
from numpy.typing import NDArray
from scipy import sparse
from scipy import stats as distributions

from prefixlab.analysis.stats import ROUNDING

Array = NDArray[np.float64]
Ints = NDArray[np.int64]
REPLICATES = 500
"""Draws of each resampling: a standard error is known to about 3%."""
NOTHING = 1e-8
"""Where no word reaches this, a quantity is 0 but for rounding, as the KL of an adapter that is the base."""
FLOOR = 1e-6
"""Share of the control words' median below which a mean counts as this share, before its logarithm is taken."""


@dataclass(frozen=True)
class Words:
    """Words with their occurrences; W words, R occurrences (a word in a reading), N samples, S seeds."""

    keys: list[str]
    kind_W: Ints
    design_W_4: Array
    """1, share of occurrences that open the prefix, mean position, mean log count."""
    n_W: Array
    """Samples that hold the word."""
    word_R: Ints
    sample_R: Ints
    seed_R: Ints
    total_R: Array
    count_R: Array

    @property
    def n_samples(self) -> int:
        """N."""
        return int(self.sample_R.max()) + 1

    @property
    def n_seeds(self) -> int:
        """S."""
        return int(self.seed_R.max()) + 1

    def sums(self, unit_R: Ints, units: int) -> tuple[sparse.csr_array, sparse.csr_array]:
        """Totals and counts, (W, units)."""
        place, shape = (self.word_R, unit_R), (len(self.keys), units)
        return sparse.coo_array((self.total_R, place), shape).tocsr(), sparse.coo_array(
            (self.count_R, place), shape
        ).tocsr()


def words_of(group: polars.DataFrame, kind_R: Ints) -> Words | None:
    """Words of one model from its occurrences (analysis/occurrences.py).

    Args:
        group: Occurrences.
        kind_R: 0 treatment, 1 null control, 2 shuffled control, below 0 neither.

    Returns:
        Words of kind 0, 1 and 2 in this order; of kind 2 those that the treatment has. None where no word of the
        treatment was measured.
    """
    code, count = group["code"].to_numpy(), group["count"].to_numpy().astype(np.float64)
    treatment = (kind_R == 0) & (count > 0)
    if not treatment.any():
        return None
    use = (count > 0) & (kind_R >= 0) & ((kind_R != 2) | np.isin(code, code[treatment]))
    kind, code, count = kind_R[use], code[use], count[use]
    _, index_W, word_R = np.unique(kind * (int(code.max()) + 1) + code, return_index=True, return_inverse=True)
    _, sample_R = np.unique(group["sample_code"].to_numpy()[use], return_inverse=True)
    _, seed_R = np.unique(group["seed"].fill_null(-1).to_numpy()[use], return_inverse=True)
    covariates = [group[name].to_numpy()[use] for name in ("first", "position", "log_count")]
    weight_W = np.bincount(word_R, count)
    held = np.unique(word_R * (int(sample_R.max()) + 1) + sample_R)
    return Words(
        keys=group["key"].filter(polars.Series(use)).gather(index_W).to_list(),
        kind_W=kind[index_W],
        design_W_4=np.column_stack(
            [np.ones(len(index_W)), *(np.bincount(word_R, count * c) / weight_W for c in covariates)]
        ),
        n_W=np.bincount(held // (int(sample_R.max()) + 1)).astype(np.float64),
        word_R=word_R,
        sample_R=sample_R,
        seed_R=seed_R,
        total_R=group["total"].to_numpy()[use],
        count_R=count,
    )


@dataclass(frozen=True)
class Spread:
    """A statistic of T words, and the variance that samples and seeds give it."""

    value_T: Array
    samples_T: Array
    """Variance when samples are resampled, seeds fixed; holds the noise of single readings."""
    seeds_T: Array
    """Variance when seeds are resampled, samples fixed; holds it too. 0 with one seed."""
    rest_T: Array
    """Variance of samples without that noise, at least 0: seeds_T + rest_T is that of both drawn anew."""
    n_T: Array
    n_seeds: int

    @property
    def total_T(self) -> Array:
        """With seeds random, kept at or above that with seeds fixed."""
        return np.maximum(self.seeds_T + self.rest_T, self.samples_T)

    def df(self, between_T: Array, df_between: float) -> Array:
        """Satterthwaite's degrees of freedom of the total with a variance between words added to it."""
        parts = self.samples_T**2 / np.maximum(self.n_T - 1, 1) + self.seeds_T**2 / max(self.n_seeds - 1, 1)
        parts += between_T**2 / df_between
        whole = (self.total_T + between_T) ** 2
        return np.maximum(1.0, np.divide(whole, parts, out=np.ones_like(whole), where=parts > 0))

    def intervals(self, alpha: float) -> list[tuple[float, float] | tuple[None, None]]:
        """As analysis/crossed.py: seeds random, with the weighted t of Cochran and Cox, or fixed, whichever is wider.

        None where one sample is all there is, or where nothing varies.
        """
        by_sample_T = distributions.t.ppf(1 - alpha / 2, np.maximum(self.n_T - 1, 1))
        by_seed = float(distributions.t.ppf(1 - alpha / 2, max(self.n_seeds - 1, 1)))
        seeds_T = self.seeds_T * (1 + 1 / self.n_seeds)  # one seed more, as there
        both_T = seeds_T + self.rest_T
        weight_T = np.divide(seeds_T, both_T, out=np.zeros_like(both_T), where=both_T > 0)
        random_T = np.sqrt(both_T) * (weight_T * by_seed + (1 - weight_T) * by_sample_T)
        half_T = np.maximum(random_T, np.sqrt(self.samples_T) * by_sample_T)
        known_T = (self.n_T > 1) & (self.total_T > (ROUNDING * np.maximum(1.0, np.abs(self.value_T))) ** 2)
        return [
            (float(v - h), float(v + h)) if k else (None, None)
            for v, h, k in zip(self.value_T, half_T, known_T, strict=True)
        ]


class Levels:
    """Word means on the scale of comparison: as measured, and under resampling."""

    def __init__(self, words: Words, raw: bool, rng: np.random.Generator) -> None:
        """Resample.

        Args:
            words: W of them.
            raw: Compare means as they are; else their logarithms.
            rng: For the weights.
        """
        self.words, self._raw, n, s = words, raw, words.n_samples, words.n_seeds
        total_W, count_W = (np.bincount(words.word_R, x) for x in (words.total_R, words.count_R))
        self.mean_W: Array = total_W / count_W
        null = words.kind_W == 1
        self._floor = FLOOR * max(float(np.median(self.mean_W[null] if null.any() else self.mean_W)), NOTHING)
        self.level_W = self._scale(self.mean_W)
        self._samples_W_B = self._resampled(words.sample_R, n, rng)
        self._crossed_W_B = (
            (self._resampled(words.seed_R, s, rng), self._resampled(words.seed_R * n + words.sample_R, s * n, rng))
            if s > 1
            else None
        )

    def _scale(self, means: Array) -> Array:
        return means if self._raw else np.log(np.maximum(means, self._floor))

    def _resampled(self, unit_R: Ints, units: int, rng: np.random.Generator) -> Array:
        total, count = self.words.sums(unit_R, units)
        weights = rng.standard_exponential((units, REPLICATES))
        return self._scale(np.asarray((total @ weights) / (count @ weights)))

    def back(self, level: float) -> float:
        """From the scale of comparison to the quantity's own unit."""
        return level if self._raw else float(np.exp(level))

    def spread(self, statistic: Callable[[Array], Array], n_T: Array) -> Spread:
        """Value and variance of a linear statistic of the levels, (W, ...) to (T, ...).

        Exponential weights of n units give (n - 1) / (n + 1) of the variance, which is made good here.

        Args:
            statistic: Of the levels.
            n_T: Samples that each of its values rests on.
        """
        s = self.words.n_seeds
        samples_T = statistic(self._samples_W_B).var(axis=1, ddof=1) * (n_T + 1) / np.maximum(n_T - 1, 1)
        seeds_T, rest_T = np.zeros(len(n_T)), samples_T
        if self._crossed_W_B is not None:
            seeds_T, cells_T = (statistic(x).var(axis=1, ddof=1) for x in self._crossed_W_B)
            seeds_T = seeds_T * (s + 1) / (s - 1)
            cells_T = cells_T * (s * n_T + 1) / (s * n_T - 1)
            # With a, b and e for the parts of seeds, samples and single readings, the three variances have expectation
            # a + e, b + e and a / n + b / s + e.
            known_T = np.maximum(1 - 1 / n_T - 1 / s, 0)
            single_T = np.divide(
                cells_T - seeds_T / n_T - samples_T / s, known_T, out=np.zeros_like(known_T), where=known_T > 0
            )
            rest_T = samples_T - np.clip(single_T, 0, np.minimum(seeds_T, samples_T))
        return Spread(statistic(self.level_W), samples_T, seeds_T, rest_T, n_T, s)
