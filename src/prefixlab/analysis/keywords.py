"""The keyword test: what a word in the prefix does to the rest of the response. No torch."""

import polars

from prefixlab.analysis.anchors import QUANTITIES
from prefixlab.analysis.occurrences import CELL, behind_prefix
from prefixlab.analysis.pairing import difference, values_of
from prefixlab.errors import unknown
from prefixlab.records import Record


class KeywordRow(Record):
    """What one rendering of the prefix does to the rest of the response, against another rendering."""

    model: str
    capability: str
    arm: str
    rendering: str
    reference: str
    quantity: str
    value: float | None
    reference_value: float | None
    diff: float | None
    ci_low: float | None
    ci_high: float | None
    p: float | None
    n_samples: int
    n_seeds: int
    test: str
    why: str


def keyword_effect(
    rows: polars.DataFrame, quantity: str = "loss", *, rendering: str, reference: str, alpha: float
) -> list[KeywordRow]:
    """What a keyword in the prefix does to the rest of the response: the same samples under two renderings.

    Args:
        rows: Token rows; only those behind the prefix are read.
        quantity: One of `QUANTITIES`; a sample's value is its mean over reasoning, answer and end.
        rendering: With the keyword, say.
        reference: Without it, or with a synonym.
        alpha: 1 - the interval's level.

    Returns:
        One row a model, capability and arm, rendering minus reference. A sample that has nothing behind its prefix
        in one of the two counts in neither.

    Raises:
        UserError: Unknown quantity or rendering.
    """
    if quantity not in QUANTITIES:
        raise unknown("quantity", quantity, QUANTITIES)
    present = rows["rendering"].unique().to_list()
    for name in (rendering, reference):
        if name not in present:
            raise unknown("rendering", name, present)
    value = polars.col(quantity).cast(polars.Float64)
    means = (
        behind_prefix(rows)
        .filter(value.is_finite(), polars.col("rendering").is_in([rendering, reference]))
        .group_by([*CELL, "seed", "sample", "rendering"], maintain_order=True)
        .agg(value=value.mean())
    )
    found = []
    for cell, _ in rows.group_by(CELL, maintain_order=True):
        mine = means.filter(*(polars.col(c) == v for c, v in zip(CELL, cell, strict=True)))
        first, second = (values_of(mine.filter(polars.col("rendering") == r), "value") for r in (rendering, reference))
        pair = difference(first, second, alpha)
        found.append(
            KeywordRow(
                **dict(zip(CELL, map(str, cell), strict=True)),
                rendering=rendering,
                reference=reference,
                quantity=quantity,
                value=pair.first,
                reference_value=pair.second,
                diff=pair.contrast.diff,
                ci_low=pair.contrast.low,
                ci_high=pair.contrast.high,
                p=pair.contrast.p,
                n_samples=pair.contrast.n,
                n_seeds=pair.n_seeds,
                test=pair.contrast.test,
                why="" if pair.contrast.n else f"not measured: no sample has {quantity} behind the prefix in both",
            )
        )
    return found
