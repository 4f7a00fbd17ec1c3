"""Levels and paired differences of numbers that several seeds have on the same items. No torch.

An item is a prompt or a held-out sample. One seed: the item is the unit. Several: seeds and items are crossed random
factors, over the items that every seed has (analysis/stats.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import polars

from prefixlab.analysis import stats

Values = Mapping[int | None, Mapping[str, float]]
"""Seed -> item -> value; the untrained base has the one seed None."""


@dataclass(frozen=True)
class Pair:
    """A paired difference with the two levels it is between."""

    first: float | None
    second: float | None
    contrast: stats.Contrast
    n_seeds: int


def level(values: Values, alpha: float, *, share: bool = False) -> tuple[stats.Estimate, int]:
    """Mean with its interval over the items that every seed has, and the number of seeds.

    Args:
        values: What was measured.
        alpha: 1 - the interval's level.
        share: Whether values lie between 0 and 1 by nature.
    """
    tables = [v for v in values.values() if v]
    items = sorted(set.intersection(*map(set, tables))) if tables else []
    matrix = np.array([[v[i] for i in items] for v in tables]).reshape(len(tables), len(items))
    return stats.level(matrix, alpha, share=share), len(tables)


def difference(first: Values, second: Values, alpha: float) -> Pair:
    """First minus second, on the items that both have with every seed that both have.

    The base, which has no seed, is compared with every seed of the other.
    """
    if None in first and None not in second:
        first = dict.fromkeys(second, first[None])
    elif None in second and None not in first:
        second = dict.fromkeys(first, second[None])
    seeds = [s for s in first if first[s] and second.get(s)]
    items = sorted(set.intersection(*(set(first[s]) & set(second[s]) for s in seeds))) if seeds else []
    if not items:
        return Pair(None, None, stats.NONE, len(seeds))
    a, b = (np.array([[table[s][i] for i in items] for s in seeds]) for table in (first, second))
    return Pair(float(a.mean()), float(b.mean()), stats.compare(a, b, alpha), len(seeds))


def values_of(table: polars.DataFrame, column: str) -> Values:
    """The values of a table with columns `seed`, `sample` and `column`, one row a pair of the first two."""
    found: dict[int | None, dict[str, float]] = {}
    for seed, sample, value in table.select("seed", "sample", column).iter_rows():
        found.setdefault(seed, {})[sample] = value
    return found
