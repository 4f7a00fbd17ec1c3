"""What a run amounts to, and its tables as Parquet and CSV."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, get_args

import polars

from prefixlab.analysis.rows import CellScores, ContrastRow, ResultRow, Verdict
from prefixlab.config import Study
from prefixlab.records import Record

_TYPES: dict[type, Any] = {str: polars.String, int: polars.Int64, float: polars.Float64, bool: polars.Boolean}


@dataclass(frozen=True)
class RunData:
    """Everything the report shows, read from files."""

    root: Path
    study: Study
    plan: dict[str, Any]
    cells: Sequence[CellScores]
    results: Sequence[ResultRow]
    contrasts: Sequence[ContrastRow]
    verdicts: Sequence[Verdict]
    folders: dict[str, Path]
    """Slug -> folder of every finished step."""
    seconds: dict[str, float]
    """Slug -> wall-clock seconds of every finished step."""


def _schema(record: type[Record]) -> dict[str, Any]:
    """Column types of a record, the same whether a column is full, null or the table empty."""
    schema = {}
    for name, field in record.model_fields.items():
        kind: Any = field.annotation
        if isinstance(kind, UnionType):
            kind = next(a for a in get_args(kind) if a is not type(None))
        schema[name] = _TYPES[kind]
    return schema


def frame(rows: Sequence[Record], record: type[Record]) -> polars.DataFrame:
    """Rows as a table with the record's columns."""
    return polars.DataFrame([r.model_dump() for r in rows], schema=_schema(record))


def write_table(stem: Path, rows: Sequence[Record], record: type[Record]) -> None:
    """Write stem.parquet and stem.csv, each in one move."""
    table = frame(rows, record)
    for suffix, write in ((".parquet", table.write_parquet), (".csv", table.write_csv)):
        scratch = stem.with_name(f".{stem.name}.new{suffix}")
        write(scratch)
        scratch.replace(stem.with_suffix(suffix))


def percent(value: float | None, *, sign: bool = False) -> str:
    """A share in percent points with one digit; a dash where there is none."""
    if value is None:
        return "–"
    return f"{100 * value:+.1f}" if sign else f"{100 * value:.1f}"


def p_text(value: float | None) -> str:
    """A p value with sensible digits."""
    if value is None:
        return "–"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


HEADER = (
    "capability",
    "arm",
    "suite",
    "metric",
    "value",
    "interval",
    "n",
    "invalid",
    "truncated",
    "diff to r000",
    "interval of diff",
    "p",
    "p Holm",
)


def interval(low: float | None, high: float | None, *, sign: bool = False) -> str:
    """Two ends, or a dash."""
    return "–" if low is None or high is None else f"{percent(low, sign=sign)} to {percent(high, sign=sign)}"


def pooled(rows: Sequence[ResultRow]) -> list[ResultRow]:
    """Rows over all seeds."""
    return [r for r in rows if r.seed is None]


def text_rows(rows: Sequence[ResultRow]) -> list[tuple[str, ...]]:
    """The pooled rows as people read them, in HEADER's columns."""
    lines: list[tuple[str, ...]] = []
    for r in pooled(rows):
        lines.append(
            (
                r.capability,
                r.arm,
                r.suite if r.condition == "bare" else f"{r.suite}, {r.condition}",
                r.metric + (" (proxy)" if r.is_proxy else ""),
                percent(r.value) if r.status == "measured" else r.status,
                interval(r.ci_low, r.ci_high),
                str(r.n_prompts),
                str(r.n_invalid),
                str(r.n_truncated),
                percent(r.diff, sign=True),
                interval(r.diff_ci_low, r.diff_ci_high, sign=True),
                p_text(r.p),
                p_text(r.p_holm),
            )
        )
    return lines


def markdown(rows: Sequence[ResultRow]) -> str:
    """The result table in Markdown."""
    lines = ["| " + " | ".join(HEADER) + " |", "|" + " --- |" * len(HEADER)]
    lines += ["| " + " | ".join(cells) + " |" for cells in text_rows(rows)]
    return "\n".join(lines) + "\n"
