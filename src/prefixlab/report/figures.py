"""Charts of a report, each defined once in Vega-Altair: drawn on the page, written as SVG and PDF for paper."""

import csv
import json
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import polars
import vl_convert
from altair.utils.schemapi import debug_mode

from prefixlab.analysis.anchors import AnchorRow
from prefixlab.analysis.rows import ArmInfo
from prefixlab.data.check import TreatmentCheck
from prefixlab.report import tables
from prefixlab.report.charts.anchors import anchor_figures, dynamics_figures
from prefixlab.report.charts.base import PAPER, Figure, merged
from prefixlab.report.charts.curves import curve_figures
from prefixlab.report.charts.data import Stripped, stripped_figure, treatment_figures
from prefixlab.report.charts.effects import effect_figures
from prefixlab.report.charts.grid import grid_figures
from prefixlab.report.charts.tokens import TokenPart, token_figures
from prefixlab.report.charts.tradeoffs import attack_figures, front_figures
from prefixlab.report.findings import read_rows
from prefixlab.report.tables import RunData

__all__ = ["Figure", "Writer", "figures", "javascript", "svg", "write"]


def figures(data: RunData) -> Iterator[Figure]:
    """Every figure that the run has numbers for, section by section; declared comparisons first."""
    with debug_mode(False):  # no validation of every part of every chart: a quarter of the time
        yield from _named_apart(_figures(data))


def _figures(data: RunData) -> Iterator[Figure]:
    alpha = data.study.analysis.alpha
    shown = tables.main_rows(data.cells, data.results)
    declared = {(c.capability, c.suite, c.protocol, c.metric, c.condition) for c in data.contrasts if c.primary}
    stripped = stripped_figure(_stripped(data))
    curves_file = data.root / "dynamics.parquet"
    yield from effect_figures(data.contrasts, alpha)
    yield from curve_figures(shown, alpha, declared)
    yield from front_figures([a.front for a in data.advice], shown)
    yield from attack_figures(shown, alpha)
    yield from grid_figures(shown, alpha)
    yield from token_figures(_token_parts(data), alpha)
    yield from anchor_figures(read_rows(data.root, "anchors", AnchorRow), alpha)
    if curves_file.exists():
        yield from dynamics_figures(polars.read_parquet(curves_file))
    yield from treatment_figures(_checks(data))
    if stripped:
        yield stripped


def _token_parts(data: RunData) -> list[TokenPart]:
    return [
        TokenPart(c["model"]["name"], c["capability"], _info(c["arm"]), c["seed"], folder / "token_loss.parquet")
        for c, folder in data.done("tokens")
    ]


def _info(arm: dict[str, Any]) -> ArmInfo:
    return ArmInfo.model_validate({**dict.fromkeys(ArmInfo.model_fields), **arm})


def _checks(data: RunData) -> list[TreatmentCheck]:
    return [
        TreatmentCheck.model_validate_json((folder / "check.json").read_text(encoding="utf-8"))
        for _, folder in data.done("check")
    ]


def _stripped(data: RunData) -> list[Stripped]:
    """What the data steps' strip records say, the first opening of each part."""
    found = []
    for config, folder in data.done("data"):
        n = json.loads((folder / "data.json").read_text(encoding="utf-8"))["n"]
        first: dict[tuple[str, str], str] = {}
        with (folder / "strip.jsonl").open(encoding="utf-8") as lines:
            for line in lines:
                record = json.loads(line)
                first.setdefault((record["id"], record["part"]), record["family"])
        parts: dict[str, dict[str, int]] = {}
        for (_, part), family in first.items():
            parts.setdefault(part, {})[family] = parts.get(part, {}).get(family, 0) + 1
        found.append(Stripped(config["capability"], n, parts))
    return found


def _named_apart(found: Iterable[Figure]) -> Iterator[Figure]:
    """Figures whose names differ, whatever characters their names lost."""
    seen: dict[str, int] = {}
    for figure in found:
        seen[figure.name.lower()] = n = seen.get(figure.name.lower(), 0) + 1
        yield figure if n == 1 else replace(figure, name=f"{figure.name}-{n}")


class Writer:
    """Writes NAME.svg, NAME.pdf and NAME.csv of figures, black on white, while the next ones are made.

    One thread, so that the names inside the SVG files do not depend on timing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._pool = ThreadPoolExecutor(max_workers=1)
        self._written: list[Future[None]] = []

    def add(self, figure: Figure) -> Figure:
        """Have a figure written."""
        self._written.append(self._pool.submit(_write, figure, self.folder))
        return figure

    def finish(self) -> None:
        """Wait until all are written; what failed is raised here."""
        self._pool.shutdown()
        for one in self._written:
            one.result()


def _write(figure: Figure, folder: Path) -> None:
    drawn = svg(figure.spec)
    (folder / f"{figure.name}.svg").write_text(drawn, encoding="utf-8")
    (folder / f"{figure.name}.pdf").write_bytes(vl_convert.svg_to_pdf(drawn))
    with (folder / f"{figure.name}.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([figure.table.columns, *figure.table.rows])


def write(made: Iterable[Figure], folder: Path) -> None:
    """Write the files of every figure.

    Args:
        made: Figures.
        folder: Made if missing.
    """
    writer = Writer(folder)
    for figure in made:
        writer.add(figure)
    writer.finish()


def svg(spec: dict[str, Any]) -> str:
    """A chart as SVG text, black on white."""
    return str(vl_convert.vegalite_to_svg(spec | {"config": merged(PAPER, spec.get("config", {})) | INK}))


INK = {"background": PAPER["background"]}
"""What a file has whatever the chart says."""


@cache
def javascript() -> str:
    """Vega, Vega-Lite and vega-embed as one script, for a page without a network."""
    # In a function of its own: the bundle's top level would claim short names such as $ for itself.
    return f"(() => {{{vl_convert.javascript_bundle('window.vegaEmbed = vegaEmbed;')}}})();"
