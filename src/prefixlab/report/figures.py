"""Charts of a report, each defined once in Vega-Altair: drawn on the page, written as SVG and PDF for paper."""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import vl_convert

from prefixlab.analysis.rows import ResultRow
from prefixlab.report import tables
from prefixlab.report.charts.base import PAPER, Figure, merged
from prefixlab.report.charts.curves import curve_figures
from prefixlab.report.tables import RunData

__all__ = ["Figure", "figures", "javascript", "svg", "write"]


def figures(data: RunData) -> list[Figure]:
    """Every figure that the run has numbers for, in the order of the sections; declared comparisons first."""
    alpha = data.study.analysis.alpha
    shown = tables.main_rows(data.cells, data.results)
    declared = {(c.capability, c.suite, c.protocol, c.metric, c.condition) for c in data.contrasts if c.primary}
    found = [
        *curve_figures(shown, alpha, declared),
    ]
    return _named_apart(found)


def _named_apart(found: Sequence[Figure]) -> list[Figure]:
    """Figures whose names differ, whatever characters their names lost."""
    seen: dict[str, int] = {}
    made = []
    for figure in found:
        seen[figure.name.lower()] = n = seen.get(figure.name.lower(), 0) + 1
        made.append(figure if n == 1 else replace(figure, name=f"{figure.name}-{n}"))
    return made


def write(made: Iterable[Figure], folder: Path) -> None:
    """Write NAME.svg, NAME.pdf and NAME.csv of every figure, black on white.

    Args:
        made: Figures.
        folder: Made if missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for figure in made:
        drawn = svg(figure.spec)
        (folder / f"{figure.name}.svg").write_text(drawn, encoding="utf-8")
        (folder / f"{figure.name}.pdf").write_bytes(vl_convert.svg_to_pdf(drawn))
        with (folder / f"{figure.name}.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([figure.table.columns, *figure.table.rows])


def svg(spec: dict[str, Any]) -> str:
    """A chart as SVG text, black on white."""
    return str(vl_convert.vegalite_to_svg(spec | {"config": merged(PAPER, spec.get("config", {})) | INK}))


INK = {"background": PAPER["background"]}
"""What a file has whatever the chart says."""


def curves(rows: Sequence[ResultRow]) -> dict[str, dict[str, Any]]:
    """Specifications of the curves by name."""
    return {f.name: f.spec for f in curve_figures(rows, 0.05)}


@cache
def javascript() -> str:
    """Vega, Vega-Lite and vega-embed as one script, for a page without a network."""
    # In a function of its own: the bundle's top level would claim short names such as $ for itself.
    return f"(() => {{{vl_convert.javascript_bundle('window.vegaEmbed = vegaEmbed;')}}})();"
