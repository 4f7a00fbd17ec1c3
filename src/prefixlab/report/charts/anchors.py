"""Words that stand out against matched control words, and span by span along training."""

from collections.abc import Iterable, Sequence
from typing import Any

import altair as alt
import polars

from prefixlab.analysis.anchors import AnchorRow
from prefixlab.analysis.rows import BASE
from prefixlab.report.charts.base import (
    MOST,
    PALETTE,
    QUIET,
    Figure,
    Table,
    below,
    domain,
    level,
    rounded,
    scales,
    several,
    spec_of,
    stem,
    values,
)

SHOWN = 8
"""Words of one ranking."""
PANELS = 6
"""Rankings of one figure."""
DRAWN = ("loss", "kl", "logit_gradient", "contribution", "token_gradient")
"""Quantities whose rankings are drawn; the report lists the others, anchors.csv holds all of them."""
ALONG = ("loss", "logit_gradient", "contribution", "token_gradient")
"""Quantities drawn along training; dynamics.csv holds all of them."""


def anchor_figures(rows: Iterable[AnchorRow], alpha: float) -> list[Figure]:
    """One figure a model, capability and measured quantity: the highest ranks of the base and of trained treatments.

    Args:
        rows: Of anchors.parquet.
        alpha: 1 - the intervals' level, and the false-discovery rate.
    """
    groups: dict[tuple[str, str, str], dict[str, list[AnchorRow]]] = {}
    for row in rows:
        shown = row.arm == BASE or row.arm.startswith(f"{row.rendering}-")
        if row.unit == "word" and row.quantity in DRAWN and row.rank is not None and row.excess is not None and shown:
            arms = groups.setdefault((row.model, row.capability, row.quantity), {})
            arms.setdefault(row.arm, []).append(row)
    models, found = {key[0] for key in groups}, []
    for (model, capability, quantity), arms in groups.items():
        where = f"{capability} · {model}" if len(models) > 1 else capability
        title = (
            f"Words that stand out by {'KL to the base' if quantity == 'kl' else quantity.replace('_', ' ')}, {where}"
        )
        kept = {arm: sorted(mine, key=lambda r: r.rank or 0)[:SHOWN] for arm, mine in list(arms.items())[:PANELS]}
        drawn = [r for mine in kept.values() for r in mine]
        over = " or ".join(dict.fromkeys(r.interval_over for r in drawn))
        said = (
            f"Excess over control words of the same place and frequency, the {SHOWN} highest ranks; n = "
            f"{several([r.n_samples for r in drawn], 'sample')}, {several([r.n_seeds for r in drawn], 'training seed')}"
            f"; {level(alpha)} intervals over {over}. Filled: announced against the spread between words at a "
            f"false-discovery rate of {100 * alpha:.3g}%, which the intervals do not hold."
        )
        said += f" Not drawn: {', '.join(list(arms)[PANELS:])}." if len(arms) > PANELS else ""
        table = Table(
            ("arm", "rank", "word", "mean", "expected", "excess", "low", "high", "q", "announced", "samples", "seeds"),
            tuple(
                (
                    *(r.arm, r.rank, r.word, rounded(r.mean), rounded(r.expected), rounded(r.excess)),
                    *(rounded(r.ci_low), rounded(r.ci_high), rounded(r.q), "yes" if r.announced else "no"),
                    *(r.n_samples, r.n_seeds),
                )
                for r in drawn
            ),
        )
        name = stem("anchors", model, capability, quantity)
        found.append(Figure(name, "tokens", title, said, _ranking_spec(kept, title), table))
    return found


def _ranking_spec(arms: dict[str, list[AnchorRow]], title: str) -> dict[str, Any]:
    """A panel an arm. Facets of one chart, since Altair takes a quarter of a second for every panel it joins."""
    drawn = [r for mine in arms.values() for r in mine]
    ends = domain([0.0, *(e for r in drawn for e in (r.ci_low, r.ci_high, r.excess))], least=0.5)
    scale = alt.Scale(domain=ends, nice=False)
    text = "excess (ln ratio)" if drawn[0].scale == "log" else "excess (difference)"
    marks = [
        {"arm": arm, "word": r.word, "place": place, "v": r.excess, "low": r.ci_low, "high": r.ci_high}
        | {"told": r.announced, "q": r.q, "zero": 0}
        for arm, mine in arms.items()
        for place, r in enumerate(mine)
    ]
    y = alt.Y("word:N", title=None, sort=alt.EncodingSortField("place", op="min"))
    color = alt.condition(f"datum.arm == '{BASE}'", alt.value(QUIET), alt.value(PALETTE[0]))
    x, low = alt.X("v:Q", title=text, scale=scale), alt.X("low:Q", title=text, scale=scale)
    tooltip = ["word:N", "v:Q", "low:Q", "high:Q", "q:Q"]
    base = alt.Chart().encode(y=y, tooltip=tooltip, color=color)
    layers: list[Any] = [
        alt.Chart().mark_rule(strokeWidth=1).encode(x=alt.X("zero:Q", title=text, scale=scale)),
        base.mark_rule(strokeWidth=1.8).encode(x=low, x2="high:Q"),
        base.transform_filter("!datum.told").mark_point(size=70, filled=False, strokeWidth=2).encode(x=x),
        base.transform_filter("datum.told").mark_point(size=80, filled=True, opacity=1).encode(x=x),
    ]
    panel = alt.layer(*layers, data=values(marks)).properties(width=220, height=alt.Step(20))
    faceted = panel.facet(facet=alt.Facet("arm:N", title=None, sort=list(arms)), columns=2)
    return spec_of(faceted.resolve_scale(y="independent").resolve_axis(x="independent").properties(title=title))


def dynamics_figures(curves: polars.DataFrame) -> list[Figure]:
    """Spans of held-out samples along training, where snapshots were kept: one figure a model, capability, quantity.

    Args:
        curves: dynamics.parquet.
    """
    if curves.is_empty():
        return []
    held = curves.filter(
        polars.col("source") == "held_out", polars.col("unit") == "span", polars.col("quantity").is_in(ALONG)
    )
    key = ["model", "capability", "quantity", "arm", "name", "step"]
    numbers = held.group_by(key).agg(
        polars.col("value").mean(),
        polars.col("value").min().alias("low"),
        polars.col("value").max().alias("high"),
        polars.col("n").max(),
        polars.col("seed").n_unique().alias("seeds"),
    )
    models, found = set(held["model"]), []
    for (model, capability, quantity), rows in numbers.sort(key).group_by(key[:3], maintain_order=True):
        if rows["step"].n_unique() < 2:
            continue
        where = f"{capability} · {model}" if len(models) > 1 else str(capability)
        title = f"{str(quantity).replace('_', ' ').capitalize()} along training, {where}"
        arms = list(dict.fromkeys(rows["arm"]))
        left = f" Not drawn: {', '.join(arms[MOST:])}." if len(arms) > MOST else ""
        seeds = [int(s) for s in rows["seeds"]]
        said = (
            f"Means over n = {several([int(n) for n in rows['n']], 'held-out sample')} read with the treatment's "
            f"prefix, {several(seeds, 'training seed')}; "
            + ("bands are the range over seeds, no intervals." if max(seeds) > 1 else "no intervals.")
        )
        shown = rows.filter(polars.col("arm").is_in(arms[:MOST]))
        table = Table(
            ("arm", "span", "step", "value", "lowest seed", "highest seed", "samples", "seeds"),
            tuple(shown.select("arm", "name", "step", "value", "low", "high", "n", "seeds").iter_rows()),
        )
        name = stem("training", str(model), str(capability), str(quantity))
        spec = _dynamics_spec(shown, arms[:MOST], str(quantity), title)
        found.append(Figure(name, "tokens", title, said + left, spec, table))
    return found


def _dynamics_spec(rows: polars.DataFrame, arms: Sequence[str], quantity: str, title: str) -> dict[str, Any]:
    """A panel a span, as facets; unseen points hold each panel's axis open, so that noise does not look large."""
    color, shape, dash = scales(arms, below(2))
    spans = list(dict.fromkeys(rows["name"]))
    marks = [
        {"series": r["arm"], "dash": r["arm"], "span": r["name"], **{k: r[k] for k in ("step", "value", "low", "high")}}
        for r in rows.to_dicts()
    ]
    steps = sorted({int(m["step"]) for m in marks})
    for span in spans:
        ends = domain([e for m in marks if m["span"] == span for e in (m["low"], m["high"])], least=0.1)
        marks += [{"series": arms[0], "dash": arms[0], "span": span, "step": steps[0], "end": end} for end in ends]
    scale = alt.Scale(nice=False, zero=False)
    unit = f"{quantity.replace('_', ' ')} (nats)" if quantity == "loss" else quantity.replace("_", " ")
    axis = alt.Axis(grid=False, values=steps if len(steps) < 8 else alt.Undefined)
    x = alt.X("step:Q", title="optimiser step", axis=axis)
    y, low, end = (alt.Y(f"{name}:Q", title=unit, scale=scale) for name in ("value", "low", "end"))
    base = alt.Chart().encode(x=x, color=color).transform_filter("isValid(datum.value)")
    layers = (
        base.mark_area(opacity=0.12).encode(y=low, y2="high:Q"),
        base.mark_line(strokeWidth=1.6).encode(y=y, strokeDash=dash),
        base.mark_point(filled=True, size=55, opacity=1).encode(y=y, shape=shape),
        alt.Chart().mark_point(opacity=0).encode(x=x, y=end).transform_filter("isValid(datum.end)"),
    )
    panel = alt.layer(*layers, data=values(marks)).properties(width=240, height=180)
    faceted = panel.facet(facet=alt.Facet("span:N", title=None, sort=spans), columns=2)
    return spec_of(faceted.resolve_scale(y="independent").resolve_axis(x="independent").properties(title=title))
