"""What the finished token tables and samples of a run show: anchors, keyword test, narrowing, curves. No torch.

Made again from the steps' files whenever results are written; nothing here is a step.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars

from prefixlab.analysis.anchors import QUANTITIES, AnchorRow, anchors
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


@dataclass
class _Read:
    """What is needed of the token tables of one model and capability; of a large run they do not fit into memory."""

    prefixes: list[polars.DataFrame] = field(default_factory=list)
    """Rows of prefixes, with all columns."""
    responses: list[polars.DataFrame] = field(default_factory=list)
    """All rows, with the columns of RESPONSES."""
    measured: set[str] = field(default_factory=set)
    """Quantities of which there is a number anywhere."""

    def add(self, table: polars.DataFrame, named: Callable[[polars.DataFrame], polars.DataFrame]) -> None:
        """Keep what is needed of a cell's table, snapshots left out."""
        self.measured |= {q for q in QUANTITIES if table[q].null_count() < len(table)}
        prefix = table.filter(polars.col("span") == "prefix", polars.col("rendering") != REFERENCE)
        self.prefixes.append(named(prefix))
        self.responses.append(named(table.select(RESPONSES)))


def _token_table(folder: Path) -> polars.DataFrame:
    """A cell's token table with every column of TOKENS; runs of older versions have fewer."""
    table = polars.read_parquet(folder / "token_loss.parquet")
    missing = [polars.lit(None, dtype=TOKENS[n]).alias(n) for n in TOKENS if n not in table.columns]
    return table.with_columns(missing).select(list(TOKENS))


def _read(plan: Mapping[str, Any], folders: Mapping[str, Path]) -> dict[tuple[str, str], _Read]:
    """(model, capability) -> what all its cells show, in the plan's order."""
    found: dict[tuple[str, str], _Read] = {}
    for step, folder in _steps(plan, folders, "tokens"):
        config = step["config"]
        if (folder / "token_loss.parquet").exists():
            mine = found.setdefault((config["model"]["name"], config["capability"]), _Read())
            table = _token_table(folder).filter(polars.col("step").is_null())
            mine.add(table, lambda t, c=config: _named(t, c, c["arm"]["arm"]))  # type: ignore[misc]
    return found


def _anchors(
    read: Mapping[tuple[str, str], _Read], frequency: Mapping[tuple[str, str], Mapping[int, int]], alpha: float
) -> list[AnchorRow]:
    """Rankings under every model, capability and arm, the base included."""
    found: list[AnchorRow] = []
    for key, mine in read.items():
        counts = frequency.get(key)
        if counts is None:
            continue
        prefixes = polars.concat(mine.prefixes)
        for quantity in QUANTITIES:
            if quantity not in SKIPPED and quantity in mine.measured:
                rng = np.random.default_rng(keyed_hash(*key, quantity, "anchors"))
                found += anchors(prefixes, quantity, alpha=alpha, rng=rng, frequency=counts)
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
    tables = {
        _cell(step["config"], step["config"]["arm"]["arm"]): folder
        for step, folder in _steps(plan, folders, "tokens")
        if (folder / "token_loss.parquet").exists()
    }
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
    read = _read(plan, folders)
    ranked = _anchors(read, _frequencies(plan, folders), alpha)
    positions: list[Series] = []
    keywords: list[tuple[int, KeywordRow]] = []
    for _, mine in sorted(read.items(), key=lambda pair: pair[0]):
        rows = polars.concat(mine.responses)
        positions += position_series(rows)
        keywords += _keywords(rows, alpha)
        mine.responses.clear()
    positions.sort(key=lambda s: s.counted_from != "response")  # keeps the order of models within
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
