"""Forest plot of the contrasts that the study declared: difference, interval, zero, margin, and what a paper claims."""

from collections.abc import Sequence
from typing import Any

import altair as alt

from prefixlab.analysis.rows import ContrastRow
from prefixlab.report.charts.base import (
    CLAIM,
    PALETTE,
    QUIET,
    SHAPES,
    Figure,
    Table,
    domain,
    level,
    points,
    several,
    spec_of,
    stem,
    values,
)
from prefixlab.report.charts.claims import SAID, claimed, could_apply

KINDS = ("treatment − r000", "control − r000", "treatment − control", "native − r000")
TOGETHER = 26
"""Rows of one figure; with more, each capability has its own."""
LEAST = 20.0
"""Points that the axis spans at least."""
COLUMNS = (
    *("capability", "suite", "metric", "condition", "arm", "reference", "difference (points)"),
    *("low (points)", "high (points)", "margin (points)", "prompts", "seeds", "claimed (points)"),
)


def _kind(row: ContrastRow, controls: set[str]) -> str:
    if row.comparison == "vs_control":
        return KINDS[2]
    if row.arm == "native":
        return KINDS[3]
    return KINDS[1] if row.arm in controls else KINDS[0]


def _claims(rows: Sequence[ContrastRow], controls: set[str]) -> dict[int, float]:
    """Index of a row -> claimed points: for the largest ratio of each treatment, against r000."""
    found: dict[int, float] = {}
    for i, r in enumerate(rows):
        gain = claimed(r.suite, r.metric, r.condition)
        mine = r.comparison == "vs_r000" and could_apply(r.arm, "control" if r.arm in controls else None)
        top = max((o.ratio or 0.0 for o in rows if o.comparison == "vs_r000" and o.arm not in controls), default=0.0)
        if gain is not None and mine and (r.ratio or 0.0) >= top:
            found[i] = gain
    return found


def _panel(rows: Sequence[ContrastRow], controls: set[str], limits: list[float], title: str, kinds: list[str]) -> Any:
    """One capability's rows; `kinds` are those that the whole figure shows."""
    ordered = sorted(rows, key=lambda r: (KINDS.index(_kind(r, controls)), r.ratio or 0.0))
    claims = _claims(ordered, controls)
    marks: list[dict[str, Any]] = [
        {
            "row": f"{r.arm} − {r.reference}",
            "diff": points(r.diff),
            "low": points(r.ci_low),
            "high": points(r.ci_high),
            "series": _kind(r, controls),
            "n": r.n_prompts,
            "seeds": r.n_seeds,
            "claim": claims.get(i),
            "none": None if r.diff is not None else "not measured",
        }
        for i, r in enumerate(ordered)
    ]
    scale = alt.Scale(domain=limits, nice=False)
    metric = rows[0].metric.replace("_", " ")
    better = "" if rows[0].higher_is_better else "; less is better"
    text = f"difference of {metric} (points{better})"
    x = alt.X("diff:Q", title=text, scale=scale)
    y = alt.Y("row:N", title=None, sort=[m["row"] for m in marks])
    at = [KINDS.index(k) for k in kinds]
    colors = alt.Scale(domain=kinds, range=[PALETTE[i] for i in at])
    legend = alt.Legend(orient="bottom", columns=2, symbolSize=80, symbolOpacity=1)
    color = alt.Color("series:N", title=None, scale=colors, legend=legend)
    shapes = alt.Scale(domain=kinds, range=[SHAPES[i] for i in at])
    shape = alt.Shape("series:N", title=None, scale=shapes, legend=legend)
    tips: list[Any] = ["row:N", *(alt.Tooltip(f"{f}:Q", format="+.1f") for f in ("diff", "low", "high")), "n:Q"]
    base = alt.Chart(values(marks)).encode(y=y, tooltip=tips)
    margin = 100 * rows[0].margin
    band = alt.Chart(values([{"low": max(-margin, limits[0]), "high": min(margin, limits[1])}]))
    ends = alt.X("low:Q", title=text, scale=scale)
    layers = [
        band.mark_rect(color=QUIET, opacity=0.2).encode(x=ends, x2="high:Q"),
        alt.Chart(values([{"diff": 0}])).mark_rule(strokeWidth=1).encode(x=x),
        base.mark_rule(strokeWidth=2).encode(x=ends, x2="high:Q", color=color),
        base.mark_point(filled=True, size=75, opacity=1).encode(x=x, color=color, shape=shape),
        base.transform_filter("datum.none").mark_text(align="left", dx=4, x=0).encode(text="none:N"),
    ]
    if claims:
        drawn = [{**m, "label": CLAIM} for m in marks if m["claim"] is not None]
        claim = alt.Chart(values(drawn)).encode(y=y)
        mark = claim.mark_point(shape="diamond", size=130, filled=False, color=QUIET, strokeWidth=2)
        layers.append(mark.encode(x=alt.X("claim:Q", title=text, scale=scale)))
        layers.append(claim.mark_text(align="left", x="width", dx=5).encode(text="label:N"))
    return alt.layer(*layers).properties(width=380, height=alt.Step(22), title=title)


def _title(row: ContrastRow, several_models: bool) -> str:
    name = f"{row.capability}: {row.metric} on {row.suite}"
    name += "" if row.protocol == "prefixlab" else f" ({row.protocol})"
    name += "" if row.condition == "bare" else f", {row.condition}"
    return f"{name} · {row.model}" if several_models else name


def _figure(groups: dict[str, list[ContrastRow]], alpha: float, name: str) -> Figure:
    rows = [r for group in groups.values() for r in group]
    controls = {(r.model, r.capability, r.reference) for r in rows if r.comparison == "vs_control"}
    named = {t: {c for m, k, c in controls if (m, k) == (g[0].model, g[0].capability)} for t, g in groups.items()}
    every = {t: _claims(g, named[t]) for t, g in groups.items()}
    ends = [e for r in rows for e in (points(r.diff), points(r.ci_low), points(r.ci_high))]
    ends += [100 * s * r.margin for r in rows for s in (-1, 1)] + [c for g in every.values() for c in g.values()]
    limits = domain([0.0, *ends], least=LEAST)
    present = {_kind(r, named[t]) for t, g in groups.items() for r in g}
    kinds_shown = [k for k in KINDS if k in present]
    parts = [_panel(g, named[t], limits, t, kinds_shown) for t, g in groups.items()]
    chart = alt.vconcat(*parts).resolve_scale(color="shared", shape="shared") if len(parts) > 1 else parts[0]
    measured = [r for r in rows if r.diff is not None]
    tests = sorted({r.test.split("; ")[-1] for r in measured if r.ci_low is not None and r.test})
    kinds = f"{level(alpha)} intervals ({', '.join(tests)})" if tests else "no intervals"
    margins = sorted({points(r.margin) or 0.0 for r in rows})
    said = (
        f"Declared comparisons on the same prompts: n = {several([r.n_prompts for r in measured], 'prompt')}, "
        f"{several([r.n_seeds for r in measured], 'training seed')}; {kinds}, not adjusted for their number; shaded: "
        f"the margin of ±{' or '.join(f'{m:g}' for m in margins)} points that does not matter."
    )
    said += " One seed: the variance of training is not in the intervals." if 1 in {r.n_seeds for r in measured} else ""
    said += SAID if any(every.values()) else ""
    table = tuple(
        (
            *(r.capability, r.suite, r.metric, r.condition, r.arm, r.reference),
            *(points(r.diff), points(r.ci_low), points(r.ci_high), points(r.margin), r.n_prompts, r.n_seeds),
            every[t].get(i),
        )
        for t, g in groups.items()
        for i, r in enumerate(g)
    )
    title = "Effects of the prefix" if len(groups) > 1 else f"Effects of the prefix, {next(iter(groups))}"
    return Figure(name, "answer", title, said, spec_of(chart), Table(COLUMNS, table), primary=True)


def effect_figures(rows: Sequence[ContrastRow], alpha: float) -> list[Figure]:
    """Forest plots of the declared contrasts: treatments and controls against r000, treatments against controls.

    Args:
        rows: Of contrasts.parquet.
        alpha: 1 - the intervals' level.

    Returns:
        One figure, one a model and capability where there are many rows, none where nothing was measured.
    """
    declared = [r for r in rows if r.primary and r.comparison in ("vs_r000", "vs_control")]
    if all(r.diff is None for r in declared):
        return []
    models = len({r.model for r in declared}) > 1
    groups: dict[str, list[ContrastRow]] = {}
    for r in declared:
        groups.setdefault(_title(r, models), []).append(r)
    groups = {t: g for t, g in groups.items() if any(r.diff is not None for r in g)}
    if sum(map(len, groups.values())) <= TOGETHER:
        return [_figure(groups, alpha, "effects")]
    names = {t: stem("effects", g[0].model if models else "", g[0].capability) for t, g in groups.items()}
    return [_figure({t: g}, alpha, names[t]) for t, g in groups.items()]
