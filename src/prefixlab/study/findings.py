"""What the finished token tables and samples of a run show: anchors, keyword test, narrowing, curves. No torch.

Made again from the steps' files whenever results are written; nothing here is a step.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
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


def joined(plan: Mapping[str, Any], folders: Mapping[str, Path], file: str, schema: dict[str, Any]) -> polars.DataFrame:
    """One table of all finished tokens steps, snapshots included."""
    found = [polars.DataFrame(schema=CELL | schema)]
    for step, folder in _steps(plan, folders, "tokens"):
        if (folder / file).exists():
            found.append(_named(polars.read_parquet(folder / file), step["config"], step["config"]["arm"]["arm"]))
    return polars.concat(found, how="diagonal_relaxed")  # runs of older versions have fewer columns


def _frequencies(plan: Mapping[str, Any], folders: Mapping[str, Path]) -> dict[tuple[str, str], dict[int, int]]:
    """(model, capability) -> count of every token in the training data."""
    found = {}
    for step, folder in _steps(plan, folders, "check"):
        if (folder / FREQUENCY).exists():
            counts = json.loads((folder / FREQUENCY).read_text(encoding="utf-8"))
            key = (step["config"]["model"]["name"], step["config"]["capability"])
            found[key] = {int(token): int(n) for token, n in counts.items()}
    return found


def _anchors(
    tokens: polars.DataFrame, frequency: Mapping[tuple[str, str], Mapping[int, int]], alpha: float
) -> list[AnchorRow]:
    """Rankings under every model, capability and arm, the base included."""
    found: list[AnchorRow] = []
    for key, mine in tokens.group_by("model", "capability", maintain_order=True):
        counts = frequency.get((str(key[0]), str(key[1])))
        if counts is None:
            continue
        for quantity in QUANTITIES:
            if quantity not in SKIPPED and mine[quantity].null_count() < len(mine):
                rng = np.random.default_rng(keyed_hash(*key, quantity, "anchors"))
                found += anchors(mine, quantity, alpha=alpha, rng=rng, frequency=counts)
    return found


def _keywords(tokens: polars.DataFrame, alpha: float) -> list[KeywordRow]:
    """What the keyword does to the loss of the rest, against its synonym and against its absence."""
    present = set(tokens["rendering"])
    return [
        row
        for other in WITHOUT
        if {WITH, other} <= present
        for row in keyword_effect(tokens, "loss", rendering=WITH, reference=other, alpha=alpha)
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


def _narrowing(tokens: polars.DataFrame, cells: Sequence[CellScores], alpha: float) -> list[NarrowingRow]:
    """Levels of every arm, and differences to r000 under the same text or condition, and of a text within an arm."""
    series: list[Series] = list(position_series(tokens))
    for sampled in _sampled(cells):
        series += [*diversity_series(sampled), *pass_series(sampled)]
    places = sorted({(s.arm, s.condition, s.suite) for s in series})
    pairs = [((arm, at), (REFERENCE, at)) for arm, at, _ in places if arm not in (REFERENCE, BASE)]
    pairs += [((arm, at), (arm, REFERENCE)) for arm, at, suite in places if suite == HELD_OUT and at != REFERENCE]
    return [*levels(series, alpha), *differences(series, list(dict.fromkeys(pairs)), alpha)]


def _curves(plan: Mapping[str, Any], folders: Mapping[str, Path], tokens: polars.DataFrame) -> polars.DataFrame:
    """Span losses of every training step, and snapshots of held-out samples."""
    found = [polars.DataFrame(schema=CELL | CURVES)]
    for step, folder in _steps(plan, folders, "train"):
        if step["inputs"]["arm"] not in folders:
            continue
        arm = json.loads((folders[step["inputs"]["arm"]] / "manifest.json").read_text(encoding="utf-8"))["arm"]
        log = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        found.append(_named(training_curves(log), step["config"], arm))
        config = step["config"]
        mine = tokens.filter(
            polars.col("model") == config["model"]["name"],
            polars.col("capability") == config["capability"],
            polars.col("arm") == arm,
            polars.col("seed") == config["seed"],
        )
        treatment = mine.filter(polars.col("control").is_null(), polars.col("rendering") != REFERENCE)
        if mine["step"].null_count() < len(mine):
            name = str(treatment["rendering"][0])
            found.append(_named(held_out_curves(mine.select(list(TOKENS)), name, len(log)), config, arm))
    return polars.concat(found)


def find(plan: Mapping[str, Any], folders: Mapping[str, Path], cells: Sequence[CellScores], alpha: float) -> Findings:
    """Everything that the finished steps show token by token and sample by sample.

    Args:
        plan: As JSON.
        folders: Slug -> folder of every finished step.
        cells: Scores of every planned evaluation.
        alpha: Level of intervals and of the false-discovery rate.
    """
    everything = joined(plan, folders, "token_loss.parquet", TOKENS)
    tokens = everything.filter(polars.col("step").is_null())
    return Findings(
        tokens=tokens,
        spans=joined(plan, folders, "spans.parquet", SPANS).filter(polars.col("step").is_null()),
        anchors=_anchors(tokens, _frequencies(plan, folders), alpha),
        keywords=_keywords(tokens, alpha),
        narrowing=_narrowing(tokens, cells, alpha),
        curves=_curves(plan, folders, everything),
    )


def write_findings(found: Findings, root: Path) -> None:
    """RUN/anchors, keywords, narrowing, spans and dynamics, each as parquet and CSV."""
    write_table(root / "anchors", found.anchors, AnchorRow)
    write_table(root / "keywords", found.keywords, KeywordRow)
    write_table(root / "narrowing", found.narrowing, NarrowingRow)
    write_frame(root / "spans", found.spans)
    write_frame(root / "dynamics", found.curves)
