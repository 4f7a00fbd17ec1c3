"""Loss, entropy and KL by position behind the prefix, from the token tables; read column by column, arm by arm."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import altair as alt
import polars

from prefixlab.analysis.intervals import t_quantile
from prefixlab.analysis.occurrences import behind_prefix
from prefixlab.analysis.rows import REFERENCE, ArmInfo
from prefixlab.report.charts.base import (
    Figure,
    Table,
    below,
    domain,
    level,
    readable,
    rounded,
    scales,
    several,
    spec_of,
    stem,
    values,
)

FIRST = 64
"""Positions drawn."""
QUANTITIES = {"loss": "token loss", "entropy": "entropy of the next token", "kl": "KL to the base"}
FEWEST = 3
"""Samples that a mean is of at least; and half of those of the first position, so that the line stays of one kind."""
LEAST = {"loss": 0.5, "entropy": 0.5, "kl": 0.05}
"""What the axis spans at least."""


@dataclass(frozen=True)
class TokenPart:
    """One finished token table: what one adapter (or the base) made of the held-out samples."""

    model: str
    capability: str
    info: ArmInfo
    seed: int | None
    path: Path
    """token_loss.parquet."""


def _one(part: TokenPart) -> polars.DataFrame:
    """Rendering, sample, position behind the prefix and quantities of one table; snapshots left out."""
    scan = polars.scan_parquet(part.path)
    present = scan.collect_schema().names()
    if "step" in present:
        scan = scan.filter(polars.col("step").is_null())
    drawn = [q for q in QUANTITIES if q in present]
    control = polars.col("control") if "control" in present else polars.lit(None, dtype=polars.String)
    about = [polars.lit(v).alias(n) for n, v in (("model", part.model), ("capability", part.capability))]
    table = scan.select(
        *("sample", "rendering", "span"),
        control.alias("control"),
        polars.col("position") if "position" in present else polars.lit(None, dtype=polars.Int64).alias("position"),
        *(polars.col(q).cast(polars.Float64) for q in drawn),
        *about,
        polars.lit(part.info.arm).alias("arm"),
        polars.lit(part.seed, dtype=polars.Int64).alias("seed"),
    ).collect()
    absent = [polars.lit(None, dtype=polars.Float64).alias(q) for q in QUANTITIES if q not in drawn]
    return (
        behind_prefix(table)
        .filter(polars.col("position") < FIRST, polars.col("control").is_null())
        .with_columns(*absent)
        .select("arm", "rendering", "seed", "sample", "position", *QUANTITIES)
    )


def _means(parts: Sequence[TokenPart], alpha: float) -> polars.DataFrame:
    """Mean over samples of each arm, rendering, quantity and position; the seeds of a sample are averaged first."""
    rows = polars.concat([_one(p) for p in parts])
    long = rows.unpivot(
        on=list(QUANTITIES),
        index=["arm", "rendering", "seed", "sample", "position"],
        variable_name="quantity",
        value_name="value",
    ).filter(polars.col("value").is_finite())
    key = ["arm", "rendering", "quantity", "position"]
    made = (
        long.group_by(*key, "sample")
        .agg(polars.col("value").mean(), polars.col("seed").n_unique().alias("seeds"))
        .group_by(key)
        .agg(
            polars.col("value").mean(),
            polars.col("value").std().alias("sd"),
            polars.len().alias("n"),
            polars.col("seeds").max(),
        )
        .sort(key)
    )
    t = {n: t_quantile(1 - alpha / 2, n - 1) / n**0.5 for n in made["n"].unique().to_list() if n > 1}
    half = polars.col("sd") * polars.col("n").replace_strict(t, default=None, return_dtype=polars.Float64)
    enough = polars.max_horizontal(polars.lit(FEWEST), polars.col("n").max().over("rendering", "quantity") / 2)
    return made.with_columns(  # none of the quantities can be below 0
        low=polars.max_horizontal(polars.col("value") - half, polars.lit(0.0)), high=polars.col("value") + half
    ).filter(polars.col("n") >= enough)


def token_figures(parts: Sequence[TokenPart], alpha: float) -> list[Figure]:
    """One figure a model, capability, quantity and text, of the first positions behind the prefix.

    Args:
        parts: Token tables of the finished cells.
        alpha: 1 - the intervals' level.
    """
    groups: dict[tuple[str, str], list[TokenPart]] = {}
    for part in parts:
        groups.setdefault((part.model, part.capability), []).append(part)
    models, found = {m for m, _ in groups}, []
    for (model, capability), mine in groups.items():
        arms, left = readable([p.info for p in mine])
        names = [a.arm for a in arms]
        table = _means([p for p in mine if p.info.arm in names], alpha)
        where = f"{capability} · {model}" if len(models) > 1 else capability
        for (quantity, rendering), rows in table.group_by("quantity", "rendering", maintain_order=True):
            if rows["position"].n_unique() < 2:
                continue
            made = _figure(str(quantity), str(rendering), rows, names, where, (alpha, left))
            name = stem("positions", model, capability, str(quantity), str(rendering))
            found.append((str(quantity), Figure(name, "tokens", *made)))
    order = {q: i for i, q in enumerate(QUANTITIES)}
    return [figure for _, figure in sorted(found, key=lambda f: order[f[0]])]


def _figure(
    quantity: str, rendering: str, rows: polars.DataFrame, names: list[str], where: str, about: tuple[float, str]
) -> tuple[str, str, dict[str, Any], Table]:
    """Title, caption, specification and numbers."""
    alpha, left = about
    shown = [n for n in names if n in set(rows["arm"])]
    marks = [
        {"series": r["arm"], "p": r["position"], "v": r["value"], "low": r["low"], "high": r["high"], "n": r["n"]}
        for r in rows.iter_rows(named=True)
    ]
    text = "without a prefix" if rendering == REFERENCE else f"with the prefix of “{rendering}”"
    title = f"{QUANTITIES[quantity][0].upper()}{QUANTITIES[quantity][1:]} by position, {where}, read {text}"
    axis = f"{QUANTITIES[quantity]} (nats)"
    ends = [m[k] for m in marks for k in ("v", "low", "high")]
    scale = alt.Scale(domain=domain([0.0, *ends], least=LEAST[quantity]), nice=False)
    x = alt.X(
        "p:Q",
        title="position behind the prefix (tokens)" if rendering != REFERENCE else "position in the response (tokens)",
        scale=alt.Scale(domain=[-0.5, max(m["p"] for m in marks) + 0.5], nice=False),
        axis=alt.Axis(grid=False),
    )
    color, _, dash = scales(shown, below(2, marked=False), marked=False)
    base = alt.Chart(values(marks)).encode(x=x, color=color)
    bands = base.mark_area(opacity=0.12).encode(y=alt.Y("low:Q", title=axis, scale=scale), y2="high:Q")
    lines = base.mark_line(strokeWidth=1.6).encode(
        y=alt.Y("v:Q", title=axis, scale=scale), strokeDash=dash, tooltip=["series:N", "p:Q", "v:Q", "n:Q"]
    )
    at = [int(p) for p in rows["position"]]
    first, last = (max(int(n) for p, n in zip(at, rows["n"], strict=True) if p == end) for end in (min(at), max(at)))
    seeds = several([int(s) for s in rows["seeds"]], "training seed")
    said = (
        f"Means over held-out samples, as far as half of them reach: n = {first} at the first position, {last} at the "
        f"last; {seeds}, averaged first; bands: {level(alpha)} t intervals over samples, cut at 0 and without the "
        "variance of training."
    )
    table = Table(
        ("arm", "position", axis, "low", "high", "samples"),
        tuple(
            (r["arm"], r["position"], rounded(r["value"]), rounded(r["low"]), rounded(r["high"]), r["n"])
            for r in rows.iter_rows(named=True)
        ),
    )
    chart = alt.layer(bands, lines).properties(width=520, height=280, title=title)
    return title, said + left, spec_of(chart), table
