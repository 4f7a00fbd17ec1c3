"""Charts of a report, each defined once in Vega-Altair: drawn on the page, written as SVG and PDF for paper."""

import csv
import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import polars
import vl_convert

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

__all__ = ["Figure", "figures", "javascript", "svg", "write"]


def figures(data: RunData) -> list[Figure]:
    """Every figure that the run has numbers for, section by section; declared comparisons first."""
    alpha = data.study.analysis.alpha
    shown = tables.main_rows(data.cells, data.results)
    declared = {(c.capability, c.suite, c.protocol, c.metric, c.condition) for c in data.contrasts if c.primary}
    stripped = stripped_figure(_stripped(data))
    curves_file = data.root / "dynamics.parquet"
    return _named_apart(
        [
            *effect_figures(data.contrasts, alpha),
            *curve_figures(shown, alpha, declared),
            *front_figures([a.front for a in data.advice], shown),
            *attack_figures(shown, alpha),
            *grid_figures(shown, alpha),
            *token_figures(_token_parts(data), alpha),
            *anchor_figures(read_rows(data.root, "anchors", AnchorRow), alpha),
            *(dynamics_figures(polars.read_parquet(curves_file)) if curves_file.exists() else ()),
            *treatment_figures(_checks(data)),
            *([stripped] if stripped else ()),
        ]
    )


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


@cache
def javascript() -> str:
    """Vega, Vega-Lite and vega-embed as one script, for a page without a network."""
    # In a function of its own: the bundle's top level would claim short names such as $ for itself.
    return f"(() => {{{vl_convert.javascript_bundle('window.vegaEmbed = vegaEmbed;')}}})();"
