"""The audit as one HTML page that needs no network: charts as SVG, tables, examples. Texts of the data are escaped."""

from importlib.resources import files
from typing import Any

import altair as alt
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from prefixlab.data.audit import Audit
from prefixlab.records import FAMILIES
from prefixlab.report.audit_text import NAMES
from prefixlab.report.charts.base import FAMILY_COLORS
from prefixlab.report.figures import svg


def _scale(present: list[str]) -> alt.Scale:
    names = [*FAMILIES, "none"]
    kept = [n for n in names if n in present]
    return alt.Scale(domain=[NAMES[n] for n in kept], range=[FAMILY_COLORS[names.index(n)] for n in kept])


def _svg(chart: Any) -> Markup:
    config = chart.configure(font="Helvetica, Arial, sans-serif", background="#ffffff").configure_view(stroke=None)
    return Markup(svg(config.to_dict()))  # our own chart; its labels are escaped by the renderer


def _bars(counts: dict[str, dict[str, int]], height: int) -> Markup:
    """One bar a row of `counts` (row -> family -> parts), as shares."""
    present = {family for row in counts.values() for family, n in row.items() if n}
    rows = []
    for label, row in counts.items():
        total = sum(row.values())
        for order, family in enumerate([*FAMILIES, "none"]):
            if row.get(family):
                rows.append(
                    {
                        "row": label,
                        "family": NAMES[family],
                        "share": row[family] / total,
                        "order": order,
                        "n": row[family],
                    }
                )
    axis = alt.Axis(format="%", title="share of parts", grid=False)
    legend = alt.Legend(title=None, orient="bottom", columns=4, columnPadding=18)
    chart = (
        alt.Chart(alt.Data(values=rows))
        .mark_bar(stroke="#ffffff", strokeWidth=0.5)
        .encode(
            x=alt.X("share:Q", axis=axis, scale=alt.Scale(domain=[0, 1])),
            y=alt.Y("row:N", sort=list(counts), title=None, axis=alt.Axis(labelLimit=260)),
            color=alt.Color("family:N", scale=_scale(sorted(present)), legend=legend),
            order="order:Q",
        )
        .properties(width=620, height=height, padding={"left": 20, "right": 20, "top": 6, "bottom": 6})
    )
    return _svg(chart)


def part_counts(audit: Audit) -> dict[str, dict[str, int]]:
    """Parts by family, parts without an opening included."""
    return {
        f"{name} (n = {part.n:,})": {**part.families, "none": part.n - sum(part.families.values())}
        for name, part in audit.parts.items()
        if part.n
    }


def family_chart(audit: Audit) -> Markup:
    """Families of each part as stacked bars, SVG."""
    counts = part_counts(audit)
    return _bars(counts, 46 * len(counts))


def source_chart(audit: Audit) -> Markup | None:
    """The same by source, for the twenty largest."""
    if not audit.sources:
        return None
    rows = {f"{name} (n = {sum(row.values()):,})": row for name, row in list(audit.sources.items())[:20]}
    return _bars(rows, 26 * len(rows) + 10)


def audit_page(audit: Audit) -> str:
    """The HTML page."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((files("prefixlab.report") / "templates" / "audit.html.j2").read_text("utf-8"))
    page = template.render(
        audit=audit,
        names=NAMES,
        parts={name: part for name, part in audit.parts.items() if part.n},
        chart=family_chart(audit),
        sources=source_chart(audit),
        own=[t for t in audit.templates if not t.listed and not t.generic],
    )
    return page.encode("utf-8", "replace").decode("utf-8")
