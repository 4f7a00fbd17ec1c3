"""What a gain costs: one objective against another with the arms that no other beats, and attacks by their length."""

from collections.abc import Iterable, Sequence
from typing import Any

import altair as alt

from prefixlab.analysis.advice import ACCURACY, ATTACK, OVER_REFUSAL, SAFETY
from prefixlab.analysis.rows import BASE, REFERENCE, Front, FrontArm, ResultRow
from prefixlab.report.charts.base import (
    PALETTE,
    QUIET,
    SHAPES,
    Figure,
    Table,
    below,
    domain,
    listed,
    measured_with,
    order,
    points,
    readable,
    scales,
    several,
    spec_of,
    stem,
    values,
)

PAIRS = ((ACCURACY, SAFETY), (ACCURACY, ATTACK), (OVER_REFUSAL, SAFETY))
"""(across, upwards)."""
SIDE = (400, 300)
LEAST = 20.0
KINDS = ("treatment", "control", "r000", "native data")


def _best(arms: Sequence[FrontArm], across: str, up: str) -> list[str]:
    """Arms that no other beats on both objectives, by point estimate."""

    def turned(arm: FrontArm) -> tuple[float, float]:
        x, y = arm.values[across] or 0.0, arm.values[up] or 0.0
        return (-x if across == OVER_REFUSAL else x), y

    return [
        a.arm
        for a in arms
        if not any(
            turned(b) != turned(a) and turned(b)[0] >= turned(a)[0] and turned(b)[1] >= turned(a)[1] for b in arms
        )
    ]


def _labels(marks: Sequence[dict[str, Any]], x: Sequence[float], y: Sequence[float]) -> list[dict[str, Any]]:
    """A place for every name that covers no other name and no mark, where there is one."""
    across, up = (SIDE[0] / (x[1] - x[0]), SIDE[1] / (y[1] - y[0]))
    at = [((m["x"] - x[0]) * across, (y[1] - m["y"]) * up) for m in marks]
    taken = [(px - 6, py - 6, px + 6, py + 6) for px, py in at]
    found = []
    for mark, (px, py) in zip(marks, at, strict=True):
        wide = 5.6 * len(mark["arm"])
        options = [
            (side, py + dy, px + 9 if side == "left" else px - 9 - wide)
            for dy in (0, -13, 13, -26, 26, -39, 39)
            for side in ("left", "right")
        ]
        free = [
            o
            for o in options
            if o[2] >= 0
            and not any(
                o[2] < r and o[2] + wide > left and o[1] - 6 < low and o[1] + 6 > top for left, top, r, low in taken
            )
        ]
        side, py, left = (free or options)[0]
        taken.append((left, py - 6, left + wide, py + 6))
        edge = left if side == "left" else left + wide
        found.append({"arm": mark["arm"], "x": x[0] + edge / across, "y": y[1] - py / up, "side": side})
    return found


def _pair(front: Front, across: str, up: str, where: str, n: str) -> Figure | None:
    """One objective against another."""
    arms = [a for a in front.arms if a.values.get(across) is not None and a.values.get(up) is not None]
    if len(arms) < 2:
        return None
    arms.sort(key=order)
    best = _best(arms, across, up)
    marks: list[dict[str, Any]] = [
        {
            "arm": a.arm,
            "x": points(a.values[across]),
            "y": points(a.values[up]),
            "series": {REFERENCE: "r000", "native": "native data"}.get(a.arm, "control" if a.control else "treatment"),
            "best": a.arm in best,
        }
        for a in arms
    ]
    xs = domain([m["x"] for m in marks], least=LEAST, within=(0.0, 100.0))
    ys = domain([m["y"] for m in marks], least=LEAST, within=(0.0, 100.0))
    less = " (%; less is better)" if across == OVER_REFUSAL else " (%)"
    x = alt.X("x:Q", title=across + less, scale=alt.Scale(domain=xs, nice=False))
    y = alt.Y("y:Q", title=f"{up} (%)", scale=alt.Scale(domain=ys, nice=False))
    kinds = [k for k in KINDS if any(m["series"] == k for m in marks)]
    at = [KINDS.index(k) for k in kinds]
    color = alt.Color(
        "series:N", title=None, legend=below(4), scale=alt.Scale(domain=kinds, range=[PALETTE[i] for i in at])
    )
    shape = alt.Shape(
        "series:N", title=None, legend=below(4), scale=alt.Scale(domain=kinds, range=[SHAPES[i] for i in at])
    )
    line = alt.Chart(values([m for m in marks if m["best"]])).mark_line(color=QUIET, strokeDash=[4, 3])
    layers: list[Any] = [line.encode(x=x, y=y)]
    layers.append(
        alt.Chart(values(marks))
        .mark_point(filled=True, size=90, opacity=1)
        .encode(x=x, y=y, color=color, shape=shape, tooltip=["arm:N", "x:Q", "y:Q"])
    )
    labels = _labels(marks, xs, ys)
    for side in ("left", "right"):
        some = [one for one in labels if one["side"] == side]
        if some:
            layers.append(alt.Chart(values(some)).mark_text(align=side).encode(x=x, y=y, text="arm:N"))
    title = f"Trained for {where}: {up} against {across}"
    chart = alt.layer(*layers).properties(width=SIDE[0], height=SIDE[1], title=title)
    said = (
        f"{n}; point estimates without intervals, exploratory. Dashed: arms that no other arm beats on both; intervals "
        "of the differences to r000 are in the table."
    )
    rows = tuple(
        (a.arm, *(c for o in (across, up) for c in (points(a.values[o]), *_against(a, o))), int(a.arm in best))
        for a in arms
    )
    columns = tuple(c for o in (across, up) for c in (f"{o} (%)", f"better than r000 by ({o}, points)", "low", "high"))
    name = stem("tradeoff", front.model, front.capability, up, across)
    return Figure(name, "tradeoffs", title, said, spec_of(chart), Table(("arm", *columns, "on the line"), rows))


def _against(arm: FrontArm, objective: str) -> tuple[float | None, float | None, float | None]:
    diff, low, high = arm.against_r000.get(objective, (None, None, None))
    return points(diff), points(low), points(high)


def front_figures(fronts: Iterable[Front], rows: Sequence[ResultRow]) -> list[Figure]:
    """Pairs of objectives of every model and capability, where at least two arms have both.

    Args:
        fronts: Of the advice.
        rows: Of results.parquet, for the numbers of prompts and seeds.
    """
    every = list(fronts)
    models, found = {f.model for f in every}, []
    for front in every:
        own = [r for r in rows if (r.model, r.capability) == (front.model, front.capability)]
        own = [r for r in own if r.seed is None and r.arm != BASE and r.value is not None]
        n = f"n = {several([r.n_prompts for r in own], 'prompt')}"
        n += f" a suite and metric, {several([r.n_seeds for r in own], 'training seed')}"
        where = f"{front.capability} ({front.model})" if len(models) > 1 else front.capability
        found += [_pair(front, across, up, where, n) for across, up in PAIRS]
    return [f for f in found if f is not None]


def attack_figures(rows: Iterable[ResultRow], alpha: float) -> list[Figure]:
    """Attack success by the number of forced tokens, one figure a model, capability, suite, protocol and attack.

    Args:
        rows: Of results.parquet.
        alpha: 1 - the intervals' level.
    """
    groups: dict[tuple[str, ...], list[ResultRow]] = {}
    for r in rows:
        if r.metric == "safe@1" and r.seed is None and r.value is not None:
            groups.setdefault((r.model, r.capability, r.suite, r.protocol), []).append(r)
    found, models = [], {key[0] for key in groups}
    for (model, capability, suite, protocol), group in groups.items():
        for attack in ("attack_opening", "attack_answer"):
            mine = [r for r in group if r.condition.startswith(f"{attack}@")]
            if not mine:
                continue
            arms, left = readable(mine)
            kept = {a.arm for a in arms}
            shown = [r for r in (*mine, *(r for r in group if r.condition == "bare")) if r.arm in kept]
            title = f"Trained for {capability}: {attack} on {suite}"
            title += "" if protocol == "prefixlab" else f" ({protocol})"
            title += f" · {model}" if len(models) > 1 else ""
            spec = _attack_spec(shown, [a.arm for a in arms], title)
            said = "Unsafe answers by the number of tokens forced upon the model"
            said += " (0: no attack)" if any(r.condition == "bare" for r in shown) else ""
            said += f": {measured_with(shown, alpha)}{left}"
            name = stem(attack, model, capability, suite, protocol)
            found.append(Figure(name, "tradeoffs", title, said, spec, listed(sorted(shown, key=_by_arm))))
    return found


def _by_arm(row: ResultRow) -> tuple[Any, ...]:
    return (*order(row), _depth(row))


def _depth(row: ResultRow) -> int:
    return int(row.condition.partition("@")[2] or 0)


def _attack_spec(rows: Sequence[ResultRow], arms: Sequence[str], title: str) -> dict[str, Any]:
    """Lines of arms over k; intervals stand a little apart."""
    depths = sorted({_depth(r) for r in rows})
    apart = (depths[-1] - depths[0] or 1) / 130

    def turned(value: float | None) -> float | None:
        return None if value is None else points(1 - value)

    marks: list[dict[str, Any]] = [
        {
            "k": _depth(r) + apart * (arms.index(r.arm) - (len(arms) - 1) / 2),
            "value": turned(r.value),
            "low": turned(r.ci_high),
            "high": turned(r.ci_low),
            "series": r.arm,
            "dash": r.arm,
            "depth": _depth(r),
            "n": r.n_prompts,
        }
        for r in rows
    ]
    ends = [m[e] for m in marks for e in ("low", "high", "value")]
    scale = alt.Scale(domain=domain(ends, least=LEAST, within=(0.0, 100.0)), nice=False, zero=False)
    title_y = "unsafe answers (%)"
    y, low = alt.Y("value:Q", title=title_y, scale=scale), alt.Y("low:Q", title=title_y, scale=scale)
    room = 6 * apart
    x = alt.X(
        "k:Q",
        title="forced tokens (k)",
        axis=alt.Axis(values=depths, grid=False),
        scale=alt.Scale(domain=[depths[0] - room, depths[-1] + room], nice=False),
    )
    color, shape, dash = scales(arms, below(2))
    base = alt.Chart(values(marks)).encode(x=x, color=color, tooltip=["series:N", "depth:Q", "value:Q", "n:Q"])
    layers = (
        base.mark_rule(strokeWidth=1.3, opacity=0.7).encode(y=low, y2="high:Q"),
        base.mark_line(strokeWidth=1.6).encode(y=y, strokeDash=dash),
        base.mark_point(filled=True, size=65, opacity=1).encode(y=y, shape=shape),
    )
    return spec_of(alt.layer(*layers).properties(width=480, height=280, title=title))
