"""What all charts share: the figure's record, colours that colour-blind readers can tell apart, words of captions.

Colour is never alone: series differ in shape or dash as well. Colours of text, axes and background are left to whoever
draws: the page has its own, files get `PAPER`.
"""

import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar

import altair as alt

from prefixlab.analysis.rows import BASE, REFERENCE, ResultRow
from prefixlab.analysis.stats import proportion

Section = Literal["answer", "curves", "tradeoffs", "tokens", "data"]
Number = float | int | str | None

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8a8f98", "#a08a00")
"""Okabe-Ito without its black and its yellow, which are lost on a dark or a light page; grey and ochre stand in."""
SHAPES = (
    "circle",
    "square",
    "triangle-up",
    "cross",
    "triangle-down",
    "triangle-right",
    "triangle-left",
    "M-1,-1H1L-1,1H1Z",
)
DASHES: tuple[list[int], ...] = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3], [4, 1], [10, 4], [1, 3], [6, 2, 1, 2, 1, 2])
MOST = len(PALETTE)
"""Series of one chart; with more it is split, or some are left out and named."""
QUIET = "#8a8f98"
"""Grey that is seen on white and on black: reference lines and claims."""
FAMILY_COLORS = ("#0072B2", "#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#F0E442", "#D55E00", "#c9ced6")
"""Of the families of openings, in records' order; grey for parts without an opening."""
CLAIM = "claimed in arXiv 2601.01624"
SIZES: dict[str, Any] = {
    "background": "transparent",
    "view": {"stroke": None},
    "axis": {"labelFontSize": 11, "titleFontSize": 12, "labelLimit": 340, "titleLimit": 420},
    "legend": {"labelFontSize": 11, "titleFontSize": 11, "labelLimit": 260, "symbolStrokeWidth": 2},
    "header": {"labelFontSize": 12, "titleFontSize": 12, "labelLimit": 420},
    "title": {"fontSize": 13, "anchor": "start", "limit": 620, "subtitleFontSize": 11},
    "text": {"fontSize": 11},
}
"""Sizes that survive in print; colours are not among them."""
_INK = {"labelColor": "#000000", "titleColor": "#000000"}
PAPER: dict[str, Any] = {
    "background": "#ffffff",
    "font": "Helvetica, Arial, sans-serif",
    "axis": {**_INK, "gridColor": "#dddddd", "domainColor": "#666666", "tickColor": "#666666"},
    "legend": _INK,
    "header": _INK,
    "title": {"color": "#000000", "subtitleColor": "#000000"},
    "text": {"color": "#000000"},
    "rule": {"color": "#000000"},
}
"""Colours of a chart that is written to a file."""


@dataclass(frozen=True)
class Table:
    """The numbers of a chart; None where something was not measured."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Number, ...], ...]


@dataclass(frozen=True)
class Figure:
    """One chart, for the page and for paper."""

    name: str
    """A safe file stem, unique in a report."""
    section: Section
    title: str
    caption: str
    """One or two sentences with n, seeds and the type of interval, from the data."""
    spec: dict[str, Any] = field(repr=False)
    """Vega-Lite."""
    table: Table = field(repr=False)
    """The numbers drawn."""
    primary: bool = False
    """Whether it shows a comparison that the study declared."""


class ArmLike(Protocol):
    """What rows of every kind say about an arm."""

    @property
    def arm(self) -> str:
        """Name."""
        ...

    @property
    def ratio(self) -> float | None:
        """Share of samples with the prefix."""
        ...

    @property
    def position(self) -> str | None:
        """Where it stands."""
        ...

    @property
    def prefix_set(self) -> str | None:
        """Whose treatment it is or belongs to."""
        ...

    @property
    def control(self) -> str | None:
        """Which control it is."""
        ...


Arm = TypeVar("Arm", bound=ArmLike)


def stem(*parts: str) -> str:
    """A file stem of ASCII letters, digits, - and _, at most 150 characters."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", "-".join(p for p in parts if p))[:150]


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings as one; `above` wins."""
    found = dict(below)
    for key, value in above.items():
        inner = found.get(key)
        found[key] = merged(inner, value) if isinstance(value, Mapping) and isinstance(inner, Mapping) else value
    return found


def spec_of(chart: Any) -> dict[str, Any]:
    """A chart's Vega-Lite specification with our sizes."""
    made: dict[str, Any] = chart.to_dict(validate=False)  # a quarter of the time; tests draw every kind of chart
    made["config"] = SIZES
    return made


def values(rows: Sequence[Mapping[str, Any]]) -> Any:
    """Rows as inline data, numbers rounded to what a chart can show."""
    # A tuple, since Altair copies lists whenever a chart is built upon another.
    return alt.Data(values=tuple({k: rounded(v) if isinstance(v, float) else v for k, v in r.items()} for r in rows))


def rounded(value: float | None) -> float | None:
    """Five significant digits; None for what is no number."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.5g}")


def points(value: float | None) -> float | None:
    """A share in percent points."""
    return None if value is None else rounded(100 * value)


def domain(ends: Iterable[float | None], *, least: float, within: tuple[float, float] | None = None) -> list[float]:
    """An axis that holds all ends with some room, and is not so short that noise looks large.

    Args:
        ends: What must be on it.
        least: Its least length.
        within: Natural limits, obeyed unless an end lies outside.
    """
    known = [e for e in ends if e is not None and math.isfinite(e)] or [0.0]
    low, high = min(known), max(known)
    room = max(0.05 * (high - low), (least - (high - low)) / 2, 1e-9)
    start, stop = low - room, high + room
    if within and low >= within[0] and high <= within[1]:
        if start < within[0]:
            start, stop = within[0] - 0.02 * least, max(stop, min(within[1], within[0] + least))
        if stop > within[1]:
            start, stop = min(start, max(within[0], within[1] - least)), within[1] + 0.02 * least
    return [float(f"{start:.6g}"), float(f"{stop:.6g}")]


def scales(names: Sequence[str], legend: Any, *, marked: bool = True) -> tuple[Any, Any, Any]:
    """Colour, shape and dash of up to `MOST` series; the legend shows shapes where they are marked, else dashes.

    Args:
        names: Of the series, in the data's column `series`.
        legend: For colour with shape, or with dash.
        marked: Whether shapes are drawn. If so the dash needs the names in a column of its own, `dash`, for a legend
            of one column draws everything into its symbols.
    """
    n = len(names)
    field = "dash:N" if marked else "series:N"

    def scale(values: Sequence[Any], more: Sequence[str] = ()) -> Any:
        return alt.Scale(domain=[*names, *more], range=list(values[:n]) + [values[0]] * len(more))

    # Vega-Lite joins the legends of equal domains, left out or not: with one name more, the dash's is another.
    own = scale(DASHES, [" "] if marked else [])
    return (
        alt.Color("series:N", title=None, legend=legend, scale=scale(PALETTE)),
        alt.Shape("series:N", title=None, legend=legend, scale=scale(SHAPES)),
        alt.StrokeDash(field, title=None, legend=None if marked else legend, scale=own),
    )


def below(columns: int = 2, *, marked: bool = True) -> Any:
    """A legend under the chart, of marks or of lines."""
    if marked:
        return alt.Legend(orient="bottom", columns=columns, symbolSize=80, symbolOpacity=1)
    return alt.Legend(orient="bottom", columns=columns, symbolSize=250, symbolOpacity=1, symbolType="stroke")


def order(arm: ArmLike) -> tuple[Any, ...]:
    """Base, r000, native, treatments by set, position and ratio, controls."""
    place = {BASE: 0, REFERENCE: 1, "native": 2}.get(arm.arm, 4 if arm.control else 3)
    return place, arm.prefix_set or "", arm.position or "", arm.ratio or 0.0, arm.arm


def readable(arms: Iterable[Arm], most: int = MOST) -> tuple[list[Arm], str]:
    """At most `most` arms in order, and a sentence that names those left out.

    Lower ratios go first, then controls, then treatments from the end.
    """
    every = sorted({a.arm: a for a in arms}.values(), key=order)
    if len(every) <= most:
        return every, ""
    top: dict[tuple[Any, ...], float] = {}
    for a in every:
        family = (a.prefix_set, a.position, a.control)
        top[family] = max(top.get(family, 0.0), a.ratio or 0.0)
    kept = [a for a in every if (a.ratio or 0.0) >= top[a.prefix_set, a.position, a.control]][:most]
    names = {a.arm for a in kept}
    left = [a.arm for a in every if a.arm not in names]
    return kept, f" Not drawn, to keep it readable: {', '.join(left)}."


def several(numbers: Iterable[int], one: str, many: str = "") -> str:
    """`64 prompts`, or `60 to 64 prompts`."""
    known = sorted(set(numbers))
    if not known:
        return f"no {many or one + 's'}"
    what = one if known[-1] == 1 else many or f"{one}s"
    return f"{known[0]:,} {what}" if len(known) == 1 else f"{known[0]:,} to {known[-1]:,} {what}"


def level(alpha: float) -> str:
    """`95%`."""
    return f"{100 - 100 * alpha:.3g}%"


def spread(at: Sequence[float], gap: float) -> list[float]:
    """Places of labels near `at`, in its order, no two closer than `gap`."""
    ranks = sorted(range(len(at)), key=lambda i: at[i])
    made = list(at)
    for before, after in itertools.pairwise(ranks):
        made[after] = max(made[after], made[before] + gap)
    return made


def interval_kind(row: ResultRow, alpha: float) -> str:
    """How the interval of a level was made, read from its numbers; empty where there is none."""
    if row.ci_low is None or row.ci_high is None or row.value is None:
        return ""
    if row.n_seeds > 1:
        return "seed-by-prompt"
    if not 0 <= row.value <= 1:
        return "t over prompts"
    wilson = proportion(round(row.value * row.n_prompts), row.n_prompts, alpha)
    same = all(
        a is not None and abs(a - b) < 1e-9
        for a, b in ((wilson.value, row.value), (wilson.low, row.ci_low), (wilson.high, row.ci_high))
    )
    return "Wilson over prompts" if same else "t over prompts"


def _kinds(rows: Sequence[ResultRow], alpha: float) -> list[str]:
    return list(dict.fromkeys(k for r in rows if (k := interval_kind(r, alpha))))


def measured_with(rows: Sequence[ResultRow], alpha: float) -> str:
    """n, seeds and interval of levels, for a caption."""
    by_kind = {kind: [r for r in rows if interval_kind(r, alpha) == kind] for kind in _kinds(rows, alpha)}
    kinds = [k + (" (base)" if len(by_kind) > 1 and {r.arm for r in of} == {BASE} else "") for k, of in by_kind.items()]
    trained = [r.n_seeds for r in rows if r.arm != BASE]
    seeds = several(trained, "training seed") if trained else "the untuned model"
    said = f"n = {several([r.n_prompts for r in rows], 'prompt')}, {seeds}; "
    said += f"{level(alpha)} intervals: {' and '.join(reversed(kinds))}" if kinds else "no intervals"
    return said + (" (the variance of training is not in them)." if kinds and 1 in trained else ".")


def listed(rows: Sequence[ResultRow]) -> Table:
    """Levels as a table."""
    columns = ("arm", "suite", "condition", "metric", "value (%)", "low (%)", "high (%)", "prompts", "seeds", "status")
    return Table(
        columns,
        tuple(
            (
                *(r.arm, r.suite, r.condition, r.metric),
                *(points(r.value), points(r.ci_low), points(r.ci_high)),
                *(r.n_prompts, r.n_seeds, r.status),
            )
            for r in rows
        ),
    )
