"""Simulated studies with known truth, for calibration.py.

A prompt's outcome in an arm is 1 where a latent normal number is above 0: a part that both arms share (difficulty), a
part that all seeds of an arm share, a part that is new in every seed, and with several samples a part of each sample.
Every training seed shifts the treatment. Shares are set so that accuracy, discordance and the seeds' standard deviation
are those of the configuration, and the expected difference over seeds and prompts is exactly the effect.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from scipy import special

from prefixlab.analysis import crossed


@dataclass(frozen=True)
class Design:
    """Two arms: accuracy of the reference, effect, discordance, and the share of its cause that is in every seed."""

    accuracy: float
    effect: float
    discordance: float
    shared: float

    def correlation(self) -> float | None:
        """Of the two arms' latent numbers; None where no correlation gives this discordance."""
        return _correlation(self.accuracy, self.accuracy + self.effect, self.discordance)

    def shift(self, sd: float) -> tuple[float, float]:
        """Standard deviation of the seeds' latent shift, and the treatment's mean that keeps the effect exact."""
        mean = float(special.ndtri(self.accuracy + self.effect))
        latent = sd / float(np.exp(-(mean**2) / 2) / np.sqrt(2 * np.pi))
        return latent, mean * float(np.sqrt(1 + latent**2))


@cache
def _correlation(first: float, second: float, discordance: float) -> float | None:
    """Solve P(first) + P(second) - 2 P(both) = discordance for the correlation, by bisection."""
    x = np.linspace(-9, 9, 20001)
    weight = np.exp(-(x**2) / 2)
    weight /= weight.sum()

    def differ(r: float) -> float:
        a, b = (special.ndtr((special.ndtri(p) + np.sqrt(r) * x) / np.sqrt(1 - r)) for p in (first, second))
        return float((weight * (a * (1 - b) + b * (1 - a))).sum())

    low, high = 0.0, 0.9995
    if not differ(high) <= discordance <= differ(low):
        return None
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if differ(middle) > discordance else (low, middle)
    return low


class Noise:
    """Standard normal draws of one chunk of repetitions, float32; axes are repetitions R, seeds S, prompts N."""

    def __init__(self, rng: np.random.Generator, reps: int, seeds: int, prompts: int, samples: int) -> None:
        def draw(*shape: int) -> Any:
            return rng.standard_normal(shape, dtype=np.float32)

        self.difficulty = draw(reps, 1, prompts)
        self.seeds = draw(reps, seeds, 1)
        self.alike = [draw(reps, 1, prompts) for _ in range(2)]
        self.fresh = [draw(reps, seeds, prompts) for _ in range(2)]
        self.sample = [[draw(reps, seeds, prompts) for _ in range(samples if samples > 1 else 0)] for _ in range(2)]


def outcomes(noise: Noise, design: Design, sds: Sequence[float], samples: int) -> Iterator[tuple[float, Any, Any]]:
    """For every standard deviation of the seeds: it, and the correct samples (R, S, N) of treatment and reference."""
    r = design.correlation()
    assert r is not None
    rest = (1 - r) * (1 - design.shared)
    own = 0.5 * rest if samples > 1 else 0.0  # what each sample draws anew; the other half is the trained model's
    latent = []
    for arm in range(2):
        base = np.sqrt(r) * noise.difficulty + np.sqrt((1 - r) * design.shared) * noise.alike[arm]
        base = base.astype(np.float32) + np.float32(np.sqrt(rest - own)) * noise.fresh[arm]
        scale = np.float32(np.sqrt(own))
        latent.append([base] if samples == 1 else [base + scale * noise.sample[arm][k] for k in range(samples)])
    reference = _count(latent[1], np.float32(-special.ndtri(design.accuracy)))
    for sd in sds:
        sigma, mean = design.shift(sd)
        yield sd, _count(latent[0], (-mean - sigma * noise.seeds).astype(np.float32)), reference


def _count(latent: Sequence[Any], bound: Any) -> Any:
    """Samples above the bound, by cell."""
    found = (latent[0] > bound).view(np.int8).copy()
    for one in latent[1:]:
        found += one > bound
    return found


@dataclass(frozen=True)
class Sums:
    """What the analysis of variance needs, for the first n prompts and s seeds; the last axis is over `prompts`."""

    rows: Any
    """Sum over the prompts, (R, S, P)."""
    cells: Any
    """Sum of squares, (R, S, P)."""
    columns: dict[int, Any]
    """Seeds -> sum over the prompts of the squared sum over the seeds, (R, P)."""
    differing: dict[int, Any]
    """Seeds -> prompts whose sum over the seeds is not 0, (R, P)."""


def sums(values: Any, prompts: Sequence[int], seeds: Sequence[int]) -> Sums:
    """Sums of whole numbers (R, S, N) at every size of the study."""
    starts = [0, *prompts[:-1]]
    used = values[:, :, : prompts[-1]]

    def by_size(x: Any) -> Any:
        return np.add.reduceat(x, starts, axis=-1, dtype=np.int64).cumsum(-1).astype(float)

    columns, differing = {}, {}
    for s in seeds:
        total = used[:, :s].sum(1, dtype=np.int16)
        columns[s], differing[s] = by_size(total.astype(np.int32) ** 2), by_size(total != 0)
    return Sums(by_size(used), by_size(used * used), columns, differing)


def differences(found: Sums, at: int, n: int, s: int, samples: int) -> tuple[Any, crossed.Squares]:
    """Mean differences and their mean squares, as `crossed` has them."""
    rows, k = found.rows[:, :s, at] / samples, samples
    table = crossed.squares_of_sums(rows, found.columns[s][:, at] / k**2, found.cells[:, :s, at].sum(1) / k**2, s, n)
    table = crossed.few_differ(table, found.differing[s][:, at], 1.0 if k == 1 else None)
    return rows.sum(1) / (s * n), table


def family_outcomes(
    rng: np.random.Generator, design: Design, sd: float, arms: int, reps: int, seeds: int, prompts: int
) -> list[Any]:
    """Outcomes (R, S, N) of arms that are all alike; `sd` is that of the seeds' difference between two arms."""
    r = design.correlation()
    assert r is not None
    mean = float(special.ndtri(design.accuracy))
    latent_sd, _ = design.shift(sd / np.sqrt(2))
    bound = np.float32(-mean * np.sqrt(1 + latent_sd**2))

    def draw(*shape: int) -> Any:
        return rng.standard_normal(shape, dtype=np.float32)

    difficulty = np.float32(np.sqrt(r)) * draw(reps, 1, prompts)
    found = []
    for _ in range(arms):
        alike = np.float32(np.sqrt((1 - r) * design.shared)) * draw(reps, 1, prompts)
        fresh = np.float32(np.sqrt((1 - r) * (1 - design.shared))) * draw(reps, seeds, prompts)
        shift = np.float32(latent_sd) * draw(reps, seeds, 1)
        found.append((difficulty + alike + fresh + shift > bound).view(np.int8))
    return found


@dataclass
class Tally:
    """Hits and widths of one configuration."""

    hits: int = 0
    n: int = 0
    width: float = 0.0
    means: float = 0.0
    squares: float = 0.0

    def add(self, mean: Any, half: Any, truth: Any) -> None:
        """Count intervals of one chunk."""
        self.hits += int((np.abs(mean - truth) <= half + 1e-12).sum())
        self.n += len(mean)
        self.width += float(half.sum())
        self.means += float(mean.sum())
        self.squares += float((mean**2).sum())

    @property
    def coverage(self) -> float:
        """Share of intervals that hold the truth."""
        return self.hits / self.n

    @property
    def price(self) -> float:
        """Mean half width over that of an oracle who knows the variance."""
        sd = np.sqrt(max(0.0, self.squares / self.n - (self.means / self.n) ** 2))
        return float(self.width / self.n / (1.96 * sd))
