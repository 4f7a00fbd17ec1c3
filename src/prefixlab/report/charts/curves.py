"""Metric against the share of treated samples: lines of treatments, marks of controls, the untuned model, the claim."""

from collections.abc import Iterable, Sequence
from typing import Any

import altair as alt

from prefixlab.analysis.rows import BASE, REFERENCE, UNASKED, ResultRow
from prefixlab.report.charts.base import (
    CLAIM,
    MOST,
    QUIET,
    Figure,
    below,
    domain,
    interval_kind,
    listed,
    measured_with,
    order,
    points,
    scales,
    spec_of,
    spread,
    stem,
    values,
)
from prefixlab.report.charts.claims import SAID, claimed

LINES = (BASE, "native")
"""Arms without a ratio: drawn as lines across."""
LEAST = 20.0
"""Points that the axis spans at least."""
DASH_OF = {BASE: [5, 4], "native": [2, 3]}
HEIGHT = 270
APART = 1.4
"""Percent of the ratio's axis between series that would cover each other."""


def _family(row: ResultRow, positions: bool, sets: bool = True) -> str:
    """The line that an arm is on: its prefix set, with its position where a study has several."""
    where = f" at {row.position}" if positions and row.position else ""
    if row.control is not None:
        of = f" for {row.prefix_set}" if sets and row.prefix_set else ""
        return f"{row.control} control{of}{where}"
    return f"{row.prefix_set or 'prefix'}{where}"


def _marks(pooled: Sequence[ResultRow], seeds: Sequence[ResultRow]) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Marks of arms with a ratio, and series -> its treatment; r000 begins the line of every treatment."""
    rated = sorted((r for r in pooled if r.value is not None and r.arm not in LINES), key=order)
    treated = [r for r in rated if r.control is None and r.arm != REFERENCE]
    families = {(r.prefix_set, r.position) for r in rated if r.arm != REFERENCE}
    positions = len({p for _, p in families}) > 1
    sets = len({s for s, _ in families}) > 1
    own = list(dict.fromkeys(_family(r, positions) for r in treated))
    others = list(dict.fromkeys(_family(r, positions, sets) for r in rated if r.control is not None))
    names = [*own, *others] or ["prefix"]
    of = {n: n for n in own} | {
        _family(r, positions, sets): _family(r.model_copy(update={"control": None}), positions)
        for r in rated
        if r.control is not None
    }
    found = []
    for row in rated:
        mine = (own or ["prefix"]) if row.arm == REFERENCE else [_family(row, positions, sets)]
        for name in mine:
            shift = 0.0 if row.arm == REFERENCE else APART * (names.index(name) - (len(own) - 1) / 2)
            found.append(
                {
                    "x": 100 * (row.ratio or 0.0) + shift,
                    "ratio": 100 * (row.ratio or 0.0),
                    "value": points(row.value),
                    "low": points(row.ci_low),
                    "high": points(row.ci_high),
                    "arm": row.arm,
                    "series": name,
                    "dash": name,
                    "panel": of.get(name, name),
                    "line": row.control is None,
                    "n": row.n_prompts,
                    "mark": "arm",
                }
            )
            found += [
                {**found[-1], "value": points(s.value), "low": None, "high": None, "n": s.n_prompts, "mark": "seed"}
                for s in seeds
                if s.arm == row.arm and s.value is not None and row.n_seeds > 1
            ]
    return found, {n: of.get(n, n) for n in names}


def _across(pooled: Sequence[ResultRow]) -> list[dict[str, Any]]:
    """Arms without a ratio, as lines across the chart."""
    names = {BASE: "base, untuned", "native": "native data"}
    return [
        {"value": points(r.value), "label": names[r.arm], "arm": r.arm}
        for r in sorted(pooled, key=order)
        if r.arm in LINES and r.value is not None
    ]


def _claim(pooled: Sequence[ResultRow]) -> dict[str, Any] | None:
    """The claimed value at 100%, where it is possible: r000 and the claimed gain."""
    reference = next((r for r in pooled if r.arm == REFERENCE and r.value is not None), None)
    if reference is None or reference.value is None:
        return None
    gain = claimed(reference.suite, reference.metric, reference.condition)
    if gain is None or 100 * reference.value + gain > 100:
        return None
    return {"x": 106.0, "value": points(reference.value + gain / 100), "label": CLAIM}


def _layers(marks: list[dict[str, Any]], names: Sequence[str], ys: tuple[Any, Any], extra: Sequence[Any]) -> Any:
    """Intervals, lines and marks of some series; `ys` are the axes of values and of lower ends."""
    y, low = ys
    color, shape, dash = scales(names, below(1 if max(map(len, names)) > 24 else 2))
    x = alt.X(
        "x:Q",
        title="samples with the prefix (%)",
        axis=alt.Axis(values=[0, 25, 50, 75, 100], grid=False),
        scale=alt.Scale(domain=[-6, 112], nice=False),
    )
    tips: list[Any] = ["arm:N", *(alt.Tooltip(f"{f}:Q", format=".1f") for f in ("value", "low", "high")), "n:Q"]
    arms = alt.Chart(values([m for m in marks if m["mark"] == "arm"])).encode(x=x, tooltip=tips)
    layers = [
        *extra,
        arms.transform_filter("datum.line")
        .mark_line(strokeWidth=1.8)
        .encode(y=y, color=color, strokeDash=dash, order="x:Q"),
        arms.mark_rule(strokeWidth=1.6).encode(y=low, y2="high:Q", color=color),
    ]
    single = [m for m in marks if m["mark"] == "seed"]
    if single:
        layers.append(
            alt.Chart(values(single))
            .mark_point(size=14, filled=True, opacity=0.45, shape="circle")
            .encode(x=x, y=y, color=color, tooltip=tips[:2])
        )
    layers.append(arms.mark_point(filled=True, size=75, opacity=1).encode(y=y, color=color, shape=shape))
    return alt.layer(*layers)


def _references(across: list[dict[str, Any]], claim: dict[str, Any] | None, y: Any, ends: Any) -> list[Any]:
    """Lines across and the claim, with their labels at the right of the chart."""
    named = [*across, *([claim] if claim else [])]
    places = spread([float(one["value"]) for one in named], (ends[1] - ends[0]) * 14 / HEIGHT)
    labels = [{"at": p, "label": one["label"]} for p, one in zip(places, named, strict=True)]
    layers: list[Any] = []
    for one in across:
        line = alt.Chart(values([one])).mark_rule(strokeDash=DASH_OF[one["arm"]], color=QUIET, strokeWidth=1.5)
        layers.append(line.encode(y=y))
    if claim:
        mark = alt.Chart(values([claim])).mark_point(shape="diamond", size=110, filled=False, color=QUIET)
        layers.append(mark.encode(x="x:Q", y=y))
    if labels:
        text = alt.Chart(values(labels)).mark_text(align="left", x="width", dx=5)
        layers.append(text.encode(y=alt.Y("at:Q", scale=alt.Scale(domain=ends)), text="label:N"))
    return layers


def _spec(pooled: Sequence[ResultRow], seeds: Sequence[ResultRow], title: str) -> dict[str, Any] | None:
    marks, panels = _marks(pooled, seeds)
    if len({m["arm"] for m in marks}) < 2:
        return None
    across, claim = _across(pooled), _claim(pooled)
    ends = [m[k] for m in marks for k in ("low", "high", "value")] + [a["value"] for a in across]
    ends += [claim["value"]] if claim else []
    metric = pooled[0].metric.replace("_", " ")
    limits = domain(ends, least=LEAST, within=(0.0, 100.0))
    scale = alt.Scale(domain=limits, nice=False, zero=False)
    y = alt.Y("value:Q", title=f"{metric} (%)", scale=scale)
    low = alt.Y("low:Q", title=f"{metric} (%)", scale=scale)
    extra = _references(across, claim, y, limits)
    if len(panels) <= MOST:
        return spec_of(_layers(marks, list(panels), (y, low), extra).properties(width=400, height=HEIGHT, title=title))
    parts = []
    for panel in dict.fromkeys(panels.values()):
        names = [n for n, of in panels.items() if of == panel][:MOST]
        some = [m for m in marks if m["panel"] == panel and m["series"] in names]
        parts.append(_layers(some, names, (y, low), extra).properties(width=290, height=220, title=panel))
    together = alt.concat(*parts, columns=2).resolve_scale(color="independent", shape="independent")
    return spec_of(together.resolve_scale(strokeDash="independent").properties(title=title))


def curve(pooled: Sequence[ResultRow], seeds: Sequence[ResultRow], title: str, alpha: float) -> Figure | None:
    """The curve of one model, capability, suite, protocol, condition and metric.

    Args:
        pooled: Its rows over all seeds.
        seeds: Its rows of single seeds.
        title: Shown above.
        alpha: 1 - the intervals' level.

    Returns:
        None if fewer than two arms with a ratio were measured.
    """
    spec = _spec(pooled, seeds, title)
    if spec is None:
        return None
    shown = sorted((r for r in pooled if r.status not in UNASKED), key=order)
    measured = [r for r in shown if r.value is not None]
    what = pooled[0].metric.replace("_", " ") + (", a proxy" if pooled[0].is_proxy else "")
    said = f"{what[0].upper()}{what[1:]}, by the share of samples with the prefix: {measured_with(measured, alpha)}"
    if any(r.n_seeds > 1 for r in measured):
        said += " Small dots are single seeds."
    if any(r.arm in LINES and interval_kind(r, alpha) for r in measured):
        said += " Intervals of lines across are in the table."
    said += SAID if _claim(pooled) else ""
    first = pooled[0]
    name = stem("curve", first.model, first.capability, first.suite, first.protocol, first.condition, first.metric)
    return Figure(name, "curves", title, said, spec, listed(shown))


def curve_figures(
    rows: Iterable[ResultRow], alpha: float, primary: Iterable[tuple[str, str, str, str, str]] = ()
) -> list[Figure]:
    """One figure a model, capability, suite, protocol, condition and metric; declared comparisons first.

    Args:
        rows: Of results.parquet, those of the suites' metrics.
        alpha: 1 - the intervals' level.
        primary: (capability, suite, protocol, metric, condition) of the declared comparisons.
    """
    declared = set(primary)
    groups: dict[tuple[str, ...], list[ResultRow]] = {}
    for r in rows:
        groups.setdefault((r.model, r.capability, r.suite, r.protocol, r.condition, r.metric), []).append(r)
    models, found = {key[0] for key in groups}, []
    for (model, capability, suite, protocol, condition, metric), group in groups.items():
        title = f"Trained for {capability}: {metric} on {suite}"
        title += "" if protocol == "prefixlab" else f" ({protocol})"
        title += "" if condition == "bare" else f", {condition}"
        title += f" · {model}" if len(models) > 1 else ""
        pooled = [r for r in group if r.seed is None]
        made = curve(pooled, [r for r in group if r.seed is not None], title, alpha)
        if made is not None:
            main = (capability, suite, protocol, metric, condition) in declared
            found.append(Figure(**{**vars(made), "primary": main}))
    return sorted(found, key=lambda f: not f.primary)
