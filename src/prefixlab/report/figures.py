"""Charts, each defined once in Vega-Altair and used on the page and as SVG."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import altair as alt
import vl_convert

from prefixlab.analysis.rows import BASE, REFERENCE, ResultRow
from prefixlab.report.tables import pooled

TREATMENT, CONTROL, UNTUNED = "#0072B2", "#D55E00", "#6b7280"
"""From the Okabe-Ito palette, distinct for colour-blind readers."""


def _points(r: ResultRow, sets: Sequence[str]) -> list[dict[str, Any]]:
    """Marks of one row: r000 begins the line of every prefix set, controls and `native` stand alone."""
    names = (
        [f"{r.control} control"]
        if r.control
        else [r.arm]
        if r.arm == "native"
        else [r.prefix_set]
        if r.prefix_set
        else sets
    )
    return [
        {
            "ratio": 100 * (r.ratio or 0.0),
            "x": 100 * (r.ratio or 0.0) + (4 if r.control else 0),
            "value": 100 * (r.value or 0.0),
            "low": None if r.ci_low is None else 100 * r.ci_low,
            "high": None if r.ci_high is None else 100 * r.ci_high,
            "arm": r.arm,
            "kind": f"prefix: {name}" if name in sets and not r.control else name,
            "group": "prefix" if name in sets and not r.control else "other",
            "n": r.n_prompts,
        }
        for name in names
    ]


def curve(rows: Sequence[ResultRow], title: str) -> dict[str, Any] | None:
    """Metric against ratio with intervals; controls as marks at their ratio, the base model as a line.

    Args:
        rows: Pooled rows of one model, capability, suite, condition and metric.
        title: Shown above.

    Returns:
        A Vega-Lite specification, or None if fewer than two arms were measured.
    """
    sets = sorted({r.prefix_set for r in rows if r.prefix_set and r.control is None}) or ["prefix"]
    points = [p for r in rows if r.value is not None and r.arm != BASE for p in _points(r, sets)]
    if len({p["arm"] for p in points}) < 2:
        return None
    kinds = [k for k in dict.fromkeys(str(p["kind"]) for p in sorted(points, key=lambda p: p["group"] != "prefix"))]
    palette = [TREATMENT, CONTROL, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
    color = alt.Color("kind:N", scale=alt.Scale(domain=kinds, range=palette[: len(kinds)]), title=None)
    base = alt.Chart(alt.Data(values=points)).encode(
        x=alt.X(
            "x:Q",
            title="samples with the prefix (%)",
            axis=alt.Axis(values=[0, 25, 50, 75, 100]),
            scale=alt.Scale(domain=[-4, 108], nice=False),
        ),
        tooltip=[
            "arm:N",
            alt.Tooltip("value:Q", format=".1f"),
            alt.Tooltip("low:Q", format=".1f"),
            alt.Tooltip("high:Q", format=".1f"),
            "n:Q",
        ],
    )
    metric = rows[0].metric.replace("_", " ")
    ends = [float(e) for p in points for e in (p["low"], p["high"], p["value"]) if e is not None]
    ends += [100 * r.value for r in rows if r.arm == BASE and r.value is not None]
    scale = alt.Scale(domain=[max(0.0, min(ends) - 3), min(100.0, max(ends) + 3)], nice=False)
    y = alt.Y("value:Q", title=f"{metric} (%)", scale=scale)
    layers: list[Any] = [
        base.mark_rule(strokeWidth=1.5).encode(
            y=alt.Y("low:Q", title=f"{metric} (%)", scale=scale), y2="high:Q", color=color
        ),
        base.transform_filter("datum.group == 'prefix'").mark_line(strokeWidth=2).encode(y=y, color=color),
        base.mark_point(filled=True, size=80, opacity=1).encode(
            y=y, color=color, shape=alt.Shape("kind:N", scale=alt.Scale(domain=kinds), title=None)
        ),
    ]
    untuned = next((r for r in rows if r.arm == BASE and r.value is not None), None)
    if untuned is not None and untuned.value is not None:
        line = alt.Chart(alt.Data(values=[{"value": 100 * untuned.value, "label": "base, untuned"}]))
        layers.append(line.mark_rule(strokeDash=[5, 4], color=UNTUNED).encode(y="value:Q"))
        layers.append(line.mark_text(align="left", dx=4, dy=-6, color=UNTUNED, x=0).encode(y="value:Q", text="label:N"))
    chart = alt.layer(*layers).properties(width=240, height=200, title=title).configure_legend(orient="bottom")
    spec: dict[str, Any] = chart.to_dict()
    return spec


def curves(rows: Sequence[ResultRow]) -> dict[str, dict[str, Any]]:
    """One chart a model, capability, suite, condition and metric, by file name."""
    groups: dict[tuple[str, ...], list[ResultRow]] = {}
    for r in pooled(rows):
        groups.setdefault((r.model, r.capability, r.suite, r.condition, r.metric), []).append(r)
    several = len({r.model for r in rows}) > 1
    charts = {}
    for (model, capability, suite, condition, metric), group in groups.items():
        title = f"trained for {capability}: {metric} on {suite}"
        title += "" if condition == "bare" else f", {condition}"
        title += f" ({model})" if several else ""
        spec = curve(group, title)
        if spec is not None and any(r.arm == REFERENCE for r in group):
            name = "-".join(p for p in ("curve", model if several else "", capability, suite, condition, metric) if p)
            charts["".join(c if c.isalnum() or c in "-_" else "_" for c in name)] = spec
    return charts


def svg(spec: dict[str, Any]) -> str:
    """A chart as SVG text."""
    return str(vl_convert.vegalite_to_svg(spec))


@cache
def javascript() -> str:
    """Vega, Vega-Lite and vega-embed as one script, for a page without a network."""
    # In a function of its own: the bundle's top level would claim short names such as $ for itself.
    return f"(() => {{{vl_convert.javascript_bundle('window.vegaEmbed = vegaEmbed;')}}})();"
