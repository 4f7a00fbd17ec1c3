"""Trained arms by tested conditions, as a heat map beside the table of the same numbers."""

from collections.abc import Iterable
from typing import Any

import altair as alt

from prefixlab.analysis.rows import ResultRow
from prefixlab.report.charts.base import QUIET, Figure, Table, measured_with, order, points, spec_of, stem, values
from prefixlab.report.tables import condition_order

DARK = 70.0
"""Percent from which a cell is dark enough for white digits."""


def grid_figures(rows: Iterable[ResultRow], alpha: float) -> list[Figure]:
    """One heat map a model, capability, suite, protocol and metric that was tested under several conditions.

    Args:
        rows: Of results.parquet, those of the suites' metrics.
        alpha: 1 - the intervals' level.
    """
    groups: dict[tuple[str, ...], list[ResultRow]] = {}
    for r in rows:
        if r.seed is None:
            groups.setdefault((r.model, r.capability, r.suite, r.protocol, r.metric), []).append(r)
    models, found = {key[0] for key in groups}, []
    for (model, capability, suite, protocol, metric), group in groups.items():
        measured = [r for r in group if r.value is not None]
        if len({r.condition for r in measured}) < 2:
            continue
        group.sort(key=order)
        title = f"Trained for {capability}, by arm and test condition: {metric} on {suite}"
        title += "" if protocol == "prefixlab" else f" ({protocol})"
        title += f" · {model}" if len(models) > 1 else ""
        wide = max(((r.ci_high or 0) - (r.ci_low or 0)) / 2 for r in measured)
        said = f"Percent in each cell, a dash where nothing was measured: {measured_with(measured, alpha)} "
        said += f"The widest interval is ±{100 * wide:.0f} points."
        columns = ("arm", "condition", f"{metric} (%)", "low (%)", "high (%)", "prompts", "seeds", "status")
        table = Table(
            columns,
            tuple(
                (
                    *(r.arm, r.condition, points(r.value), points(r.ci_low), points(r.ci_high)),
                    *(r.n_prompts, r.n_seeds, r.status),
                )
                for r in group
            ),
        )
        name = stem("conditions", model, capability, suite, protocol, metric)
        found.append(Figure(name, "tradeoffs", title, said, _spec(group, title), table))
    return found


def _spec(rows: list[ResultRow], title: str) -> dict[str, Any]:
    """Cells and digits; no colour where nothing was measured."""
    cells: list[dict[str, Any]] = [
        {
            "arm": r.arm,
            "condition": r.condition,
            "value": points(r.value),
            "text": "–" if r.value is None else f"{100 * r.value:.1f}",
            "status": r.status.replace("_", " "),
        }
        for r in rows
    ]
    conditions = sorted({r.condition for r in rows}, key=condition_order)
    x = alt.X("condition:N", title="tested under", sort=conditions, axis=alt.Axis(orient="top", labelAngle=-35))
    y = alt.Y("arm:N", title=None, sort=list(dict.fromkeys(r.arm for r in rows)))
    base = alt.Chart(values(cells)).encode(x=x, y=y, tooltip=["arm:N", "condition:N", "value:Q", "status:N"])
    shares = all(0 <= (c["value"] or 0) <= 100 for c in cells)
    scale = alt.Scale(scheme="blues", domain=[0, 100]) if shares else alt.Scale(scheme="blues")
    color = alt.Color("value:Q", title="%", scale=scale, legend=alt.Legend(gradientLength=120))
    seen = base.transform_filter("datum.value !== null")
    layers = (
        seen.mark_rect(stroke=QUIET, strokeWidth=0.5).encode(color=color),
        seen.transform_filter(f"datum.value < {DARK}").mark_text(color="#000000").encode(text="text:N"),
        seen.transform_filter(f"datum.value >= {DARK}").mark_text(color="#ffffff").encode(text="text:N"),
        base.transform_filter("datum.value === null").mark_text().encode(text="text:N"),
    )
    return spec_of(alt.layer(*layers).properties(width=alt.Step(64), height=alt.Step(24), title=title))
