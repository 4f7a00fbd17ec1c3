"""What the finished token tables and samples of a run show: anchors, keyword test, narrowing, curves. No torch.

Made again from the steps' files whenever results are written; nothing here is a step.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars

from prefixlab.analysis.anchors import QUANTITIES, AnchorRow, ranked, units
from prefixlab.analysis.diversity import Sampled, diversity_series, pass_series
from prefixlab.analysis.dynamics import CURVES, held_out_curves, training_curves
from prefixlab.analysis.findings import Findings
from prefixlab.analysis.keywords import KeywordRow, keyword_effect
from prefixlab.analysis.narrowing import HELD_OUT, NarrowingRow, Series, differences, levels, position_series
from prefixlab.analysis.rows import BASE, REFERENCE, CellScores
from prefixlab.analysis.token_columns import SPANS, TOKENS
from prefixlab.data.arms import keyed_hash
from prefixlab.records import SampleScore
from prefixlab.report.tables import write_frame, write_table
from prefixlab.study.steps import FREQUENCY

CELL = {"model": polars.String, "capability": polars.String, "arm": polars.String, "seed": polars.Int64}
"""Columns that say which cell a row of a joined table is of."""
SKIPPED = ("entropy", "rank")
"""Quantities of the token table that no anchor is sought for: they say nothing of the token that stands there."""
WITH, WITHOUT = "revised", ("synonym", "unrevised")
"""The keyword's rendering, and those with it replaced or left out."""
RESPONSES = ("sample", "rendering", "span", "position", "loss", "entropy")
"""Columns that the keyword test and the curves by position read, of every token."""
PASSED = ("accuracy", "pass@1")
"""Metrics of which 1 is a pass: not safety, whose suites hold harmless prompts too."""
FILES = ("anchors", "keywords", "narrowing", "spans", "dynamics")
"""Tables of a run, each as parquet and CSV."""


def _steps(plan: Mapping[str, Any], folders: Mapping[str, Path], kind: str) -> Iterable[tuple[dict[str, Any], Path]]:
    for step in plan["steps"]:
        if step["kind"] == kind and step["slug"] in folders:
            yield step, folders[step["slug"]]


def _token_steps(plan: Mapping[str, Any], folders: Mapping[str, Path]) -> Iterable[tuple[dict[str, Any], Path]]:
    return ((s, f) for s, f in _steps(plan, folders, "tokens") if (f / "token_loss.parquet").exists())


def _named(table: polars.DataFrame, config: Mapping[str, Any], arm: str) -> polars.DataFrame:
    """A cell's table with the cell's columns in front."""
    values = (config["model"]["name"], config["capability"], arm, config["seed"])
    lit = [polars.lit(v, dtype=kind).alias(n) for v, (n, kind) in zip(values, CELL.items(), strict=True)]
    return table.select(*lit, polars.all())


def _spans(plan: Mapping[str, Any], folders: Mapping[str, Path]) -> polars.DataFrame:
    """The spans of all finished tokens steps, snapshots left out."""
    found = [polars.DataFrame(schema=CELL | SPANS)]
    for step, folder in _steps(plan, folders, "tokens"):
        if (folder / "spans.parquet").exists():
            table = polars.read_parquet(folder / "spans.parquet")
            found.append(_named(table, step["config"], step["config"]["arm"]["arm"]))
    # Runs of older versions have fewer columns.
    return polars.concat(found, how="diagonal_relaxed").filter(polars.col("step").is_null())


def _frequencies(plan: Mapping[str, Any], folders: Mapping[str, Path]) -> dict[tuple[str, str], dict[int, int]]:
    """(model, capability) -> count of every token in the training data."""
    found = {}
    for step, folder in _steps(plan, folders, "check"):
        if (folder / FREQUENCY).exists():
            counts = json.loads((folder / FREQUENCY).read_text(encoding="utf-8"))
            key = (step["config"]["model"]["name"], step["config"]["capability"])
            found[key] = {int(token): int(n) for token, n in counts.items()}
    return found


def _token_table(folder: Path) -> polars.DataFrame:
    """A cell's token table with every column of TOKENS; runs of older versions have fewer."""
    table = polars.read_parquet(folder / "token_loss.parquet")
    known = set(table.columns)
    return table.select((polars.col(n) if n in known else polars.lit(None)).cast(t).alias(n) for n, t in TOKENS.items())


@dataclass(frozen=True)
class _Read:
    """What is needed of the token tables of one model and capability, snapshots left out."""

    prefixes: polars.DataFrame
    """Rows of prefixes, with all columns."""
    responses: polars.DataFrame
    """All rows, with the columns of RESPONSES."""
    measured: frozenset[str]
    """Quantities of which there is a number anywhere."""


def _read(steps: Iterable[tuple[dict[str, Any], Path]]) -> _Read:
    """All cells of a model and capability, a table at a time: whole ones of a large run do not fit into memory."""
    prefixes, responses, measured = [], [], set[str]()
    for step, folder in steps:
        table = _token_table(folder).filter(polars.col("step").is_null())
        measured |= {q for q in QUANTITIES if table[q].null_count() < len(table)}
        arm = step["config"]["arm"]["arm"]
        inside = table.filter(polars.col("span") == "prefix", polars.col("rendering") != REFERENCE)
        prefixes.append(_named(inside, step["config"], arm))
        responses.append(_named(table.select(RESPONSES), step["config"], arm))
    return _Read(polars.concat(prefixes), polars.concat(responses), frozenset(measured))


def _anchors(key: tuple[str, str], read: _Read, counts: Mapping[int, int], alpha: float) -> list[AnchorRow]:
    """Rankings under every arm of a model and capability, the base included."""
    found: list[AnchorRow] = []
    measured = [q for q in QUANTITIES if q not in SKIPPED and q in read.measured]
    tables = units(read.prefixes, measured, counts)
    for quantity in measured:
        rng = np.random.default_rng(keyed_hash(*key, quantity, "anchors"))
        found += ranked(tables, quantity, alpha=alpha, rng=rng)
    return found


def _keywords(rows: polars.DataFrame, alpha: float) -> list[tuple[int, KeywordRow]]:
    """What the keyword does to the loss of the rest, against its synonym (0) and against its absence (1)."""
    present = set(rows["rendering"].unique())
    return [
        (place, row)
        for place, other in enumerate(WITHOUT)
        if {WITH, other} <= present
        for row in keyword_effect(rows, "loss", rendering=WITH, reference=other, alpha=alpha)
    ]


def _sampled(cells: Sequence[CellScores]) -> list[Sampled]:
    """Cells with several completions a prompt, by model, arm, suite and condition."""
    groups: dict[tuple[str, str, str, str, str], list[CellScores]] = {}
    for cell in cells:
        if cell.rows is not None and cell.k > 1:
            suite = cell.suite if cell.protocol == "prefixlab" else f"{cell.suite} ({cell.protocol})"
            groups.setdefault((cell.model, cell.capability, cell.info.arm, suite, cell.condition), []).append(cell)
    found = []
    for key, members in groups.items():
        texts: dict[int | None, dict[str, list[str]]] = {}
        answers: dict[int | None, dict[str, list[str]]] = {}
        passed: dict[int | None, dict[str, tuple[int, int]]] = {}
        for cell in members:
            main = [r for r in cell.rows or () if isinstance(r, SampleScore)]
            for row in main:
                texts.setdefault(cell.seed, {}).setdefault(row.item, []).append(row.completion)
                answers.setdefault(cell.seed, {}).setdefault(row.item, []).append(row.answer)
                if row.metric in PASSED and row.value in (0.0, 1.0):
                    c, n = passed.setdefault(cell.seed, {}).get(row.item, (0, 0))
                    passed[cell.seed][row.item] = (c + int(row.value), n + 1)
        numeric = all(not cell.judges for cell in members)
        model, capability, arm, suite, condition = key
        found.append(Sampled(model, capability, arm, suite, condition, texts, answers if numeric else None, passed))
    return found


def _narrowing(positions: Sequence[Series], cells: Sequence[CellScores], alpha: float) -> list[NarrowingRow]:
    """Levels of every arm, and differences to r000 under the same text or condition, and of a text within an arm."""
    series = list(positions)
    for sampled in _sampled(cells):
        series += [*diversity_series(sampled), *pass_series(sampled)]
    places = sorted({(s.arm, s.condition, s.suite) for s in series})
    pairs = [((arm, at), (REFERENCE, at)) for arm, at, _ in places if arm not in (REFERENCE, BASE)]
    pairs += [((arm, at), (arm, REFERENCE)) for arm, at, suite in places if suite == HELD_OUT and at != REFERENCE]
    return [*levels(series, alpha), *differences(series, list(dict.fromkeys(pairs)), alpha)]


def _cell(config: Mapping[str, Any], arm: str) -> tuple[str, str, str, int | None]:
    return config["model"]["name"], config["capability"], arm, config["seed"]


def _curves(plan: Mapping[str, Any], folders: Mapping[str, Path]) -> polars.DataFrame:
    """Span losses of every training step, and snapshots of held-out samples."""
    found = [polars.DataFrame(schema=CELL | CURVES)]
    tables = {_cell(s["config"], s["config"]["arm"]["arm"]): folder for s, folder in _token_steps(plan, folders)}
    for step, folder in _steps(plan, folders, "train"):
        if step["inputs"]["arm"] not in folders:
            continue
        arm = json.loads((folders[step["inputs"]["arm"]] / "manifest.json").read_text(encoding="utf-8"))["arm"]
        log = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        found.append(_named(training_curves(log), step["config"], arm))
        place = tables.get(_cell(step["config"], arm))
        mine = polars.DataFrame(schema=TOKENS) if place is None else _token_table(place)
        if mine["step"].null_count() < len(mine):
            treatment = mine.filter(polars.col("control").is_null(), polars.col("rendering") != REFERENCE)
            name = str(treatment["rendering"][0])
            found.append(_named(held_out_curves(mine, name, len(log)), step["config"], arm))
    return polars.concat(found)


def find(plan: Mapping[str, Any], folders: Mapping[str, Path], cells: Sequence[CellScores], alpha: float) -> Findings:
    """Everything that the finished steps show token by token and sample by sample.

    Args:
        plan: As JSON.
        folders: Slug -> folder of every finished step.
        cells: Scores of every planned evaluation.
        alpha: Level of intervals and of the false-discovery rate.
    """
    groups: dict[tuple[str, str], list[tuple[dict[str, Any], Path]]] = {}
    for step, folder in _token_steps(plan, folders):
        groups.setdefault((step["config"]["model"]["name"], step["config"]["capability"]), []).append((step, folder))
    frequencies = _frequencies(plan, folders)
    ranked: list[AnchorRow] = []
    positions: list[Series] = []
    keywords: list[tuple[int, KeywordRow]] = []
    for key, steps in groups.items():
        read = _read(steps)
        ranked += _anchors(key, read, frequencies[key], alpha) if key in frequencies else []
        positions += position_series(read.responses)
        keywords += _keywords(read.responses, alpha)
    positions.sort(key=lambda s: (s.counted_from != "response", s.model, s.capability))
    return Findings(
        spans=_spans(plan, folders),
        anchors=ranked,
        keywords=[row for _, row in sorted(keywords, key=lambda pair: pair[0])],
        narrowing=_narrowing(positions, cells, alpha),
        curves=_curves(plan, folders),
    )


def write_findings(found: Findings, root: Path) -> None:
    """RUN/anchors, keywords, narrowing, spans and dynamics, each as parquet and CSV."""
    write_table(root / "anchors", found.anchors, AnchorRow)
    write_table(root / "keywords", found.keywords, KeywordRow)
    write_table(root / "narrowing", found.narrowing, NarrowingRow)
    write_frame(root / "spans", found.spans)
    write_frame(root / "dynamics", found.curves)
