"""Whether prefixes narrow what a model says: entropy by position, diversity of samples, the pass@k curve. No torch.

Three sources of numbers, one treatment of them. Each becomes `Series`: a quantity of one cell under one condition, one
value an item (a held-out sample or a prompt). `levels` gives means with intervals, `differences` compares two series on
the same items. Definitions and limits: docs/methods.md, "Narrowing"; how texts are compared: analysis/diversity.py.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import polars

from prefixlab.analysis.occurrences import CELL, behind_prefix
from prefixlab.analysis.pairing import Values, difference, level, values_of
from prefixlab.records import Record

EDGES = (*range(16), *(2**k for k in range(4, 21)))
"""Starts of the stretches of positions: single tokens up to 16, then doubling, so that late ones hold enough tokens."""
HELD_OUT = "held_out"
"""The suite of numbers that come from reading held-out samples, not from sampling."""


@dataclass(frozen=True)
class Series:
    """One quantity of one model, arm and condition; `values` by seed and item."""

    model: str
    capability: str
    arm: str
    suite: str
    condition: str
    """How the model was prompted, or the rendering that was read."""
    quantity: str
    counted_from: str
    """`response` or `rest` (behind the prefix) for a quantity by position, else empty."""
    at: int | None
    """Position, n of an n-gram, or k of pass@k."""
    at_end: int | None
    """Exclusive end of a stretch of positions."""
    values: Values
    k: int | None = None
    """Samples a prompt; None where nothing was sampled."""
    why: str = ""
    """Why there are no values."""


class NarrowingRow(Record):
    """A level, or (where `reference_arm` is set) a difference on the same items: arm minus reference."""

    model: str
    capability: str
    arm: str
    seed: int | None
    """Null for the base and for all seeds together."""
    suite: str
    condition: str
    quantity: str
    counted_from: str
    at: int | None
    at_end: int | None
    reference_arm: str | None
    reference_condition: str | None
    value: float | None
    """Of `branching`, a difference is the ratio of the two."""
    ci_low: float | None
    ci_high: float | None
    p: float | None
    n: int
    """Items."""
    n_seeds: int
    why: str
    """Why it was not measured; empty where it was."""


def position_series(rows: polars.DataFrame) -> list[Series]:
    """Entropy of the next token by position, from the start of the response and from the start of its rest.

    Positions are taken in the stretches of `EDGES`; a sample's value is its mean over the stretch. A sample that has
    nothing behind its prefix is in no series from the rest.

    Args:
        rows: Token rows of one training step.
    """
    needed = [*CELL, "seed", "sample", "rendering", "span", "position", "entropy"]
    known = rows.select(needed).filter(polars.col("entropy").cast(polars.Float64).is_finite())
    found = []
    for counted_from, table in (("response", known), ("rest", behind_prefix(known))):
        stretch = np.searchsorted(EDGES, table["position"].to_numpy(), side="right") - 1
        binned = (
            table.with_columns(stretch=polars.Series(stretch, dtype=polars.Int64))
            .group_by([*CELL, "rendering", "stretch", "seed", "sample"])
            .agg(polars.col("entropy").cast(polars.Float64).mean())
            .sort([*CELL, "rendering", "stretch", "seed", "sample"])
        )
        for key, group in binned.group_by([*CELL, "rendering", "stretch"], maintain_order=True):
            model, capability, arm, rendering, at = key
            about = (str(model), str(capability), str(arm), HELD_OUT, str(rendering), "entropy", counted_from)
            place = int(str(at))
            found.append(Series(*about, EDGES[place], EDGES[place + 1], values_of(group, "entropy")))
    return found


def levels(series: Iterable[Series], alpha: float) -> list[NarrowingRow]:
    """A row a seed and one over all seeds for every series; entropy also as effective branching."""
    rows = []
    for one in series:
        for seed in (None, *(s for s in one.values if s is not None)):
            values: Values = one.values if seed is None else {seed: one.values[seed]}
            found, n_seeds = level(values, alpha, share=one.quantity == "pass")
            why = one.why or ("" if found.n else "not measured: no item has a value with every seed")
            rows += _rows(one, seed, None, (found.value, found.low, found.high, None), found.n, n_seeds, why)
    return rows


def differences(
    series: Sequence[Series], pairs: Iterable[tuple[tuple[str, str], tuple[str, str]]], alpha: float
) -> list[NarrowingRow]:
    """Paired differences of two arms, or of two conditions of one arm, wherever both have a series.

    Args:
        series: All of them.
        pairs: ((arm, condition), (reference arm, reference condition)).
        alpha: 1 - the intervals' level.
    """
    found: dict[tuple[object, ...], Series] = {}
    for one in series:
        found[(*_place(one), one.arm, one.condition)] = one
    places = list(dict.fromkeys(_place(one) for one in series))
    rows = []
    for first, second in pairs:
        for place in places:
            a, b = found.get((*place, *first)), found.get((*place, *second))
            if a is None or b is None:
                continue
            why = a.why or b.why
            if a.k != b.k and a.quantity != "pass" and not why:
                why = f"not compared: {a.k} samples a prompt against {b.k}"
            pair = difference({} if why else a.values, b.values, alpha)
            c = pair.contrast
            why = why or ("" if c.n else "not measured: no item has a value in both")
            rows += _rows(a, None, b, (c.diff, c.low, c.high, c.p), c.n, pair.n_seeds, why)
    return rows


def _place(one: Series) -> tuple[object, ...]:
    """What two series that are compared have in common."""
    return (one.model, one.capability, one.suite, one.quantity, one.counted_from, one.at)


def _rows(
    one: Series,
    seed: int | None,
    reference: Series | None,
    numbers: tuple[float | None, float | None, float | None, float | None],
    n: int,
    n_seeds: int,
    why: str,
) -> list[NarrowingRow]:
    """The row of one number, and for an entropy that of its exponential: of a difference, the ratio."""
    value, low, high, p = numbers
    row = NarrowingRow(
        model=one.model,
        capability=one.capability,
        arm=one.arm,
        seed=seed,
        suite=one.suite,
        condition=one.condition,
        quantity=one.quantity,
        counted_from=one.counted_from,
        at=one.at,
        at_end=one.at_end,
        reference_arm=reference.arm if reference else None,
        reference_condition=reference.condition if reference else None,
        value=value,
        ci_low=low,
        ci_high=high,
        p=p,
        n=n,
        n_seeds=n_seeds,
        why=why,
    )
    if one.quantity != "entropy":
        return [row]
    raised = {k: None if x is None else math.exp(x) for k, x in (("value", value), ("ci_low", low), ("ci_high", high))}
    return [row, row.model_copy(update={"quantity": "branching", **raised})]
