"""What a run amounts to, and its tables as Parquet and CSV."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin

import polars

from prefixlab.analysis.rows import UNASKED, Advice, CellScores, ContrastRow, ResultRow, Verdict
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
    advice: Sequence[Advice]
    folders: dict[str, Path]
    """Slug -> folder of every finished step."""
    seconds: dict[str, float]
    """Slug -> wall-clock seconds of every finished step."""

    def done(self, kind: str) -> list[tuple[dict[str, Any], Path]]:
        """(Configuration, folder) of the finished steps of a kind, in the plan's order."""
        steps = [s for s in self.plan["steps"] if s["kind"] == kind and s["slug"] in self.folders]
        return [(s["config"], self.folders[s["slug"]]) for s in steps]


def _schema(record: type[Record]) -> dict[str, Any]:
    """Column types of a record, the same whether a column is full, null or the table empty."""
    schema = {}
    for name, field in record.model_fields.items():
        kind: Any = field.annotation
        if isinstance(kind, UnionType):
            kind = next(a for a in get_args(kind) if a is not type(None))
        schema[name] = polars.String if get_origin(kind) is Literal else _TYPES[kind]
    return schema


def frame(rows: Sequence[Record], record: type[Record]) -> polars.DataFrame:
    """Rows as a table with the record's columns."""
    return polars.DataFrame([r.model_dump() for r in rows], schema=_schema(record))


def write_table(stem: Path, rows: Sequence[Record], record: type[Record]) -> None:
    """Write stem.parquet and stem.csv, each in one move."""
    write_frame(stem, frame(rows, record))


def write_frame(stem: Path, table: polars.DataFrame) -> None:
    """The same of a table."""
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


def who(model: str, capability: str, several: bool) -> str:
    """The capability, with the model where a run has several."""
    return f"{capability} ({model})" if several else capability


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


def train_by_test(cells: Sequence[CellScores], rows: Sequence[ResultRow]) -> list[dict[str, Any]]:
    """One table a model, capability, suite and metric that was tested under several conditions: arms by conditions."""
    named = {(c.model, c.capability, c.suite, c.protocol, m) for c in cells for m in c.metrics}
    models = {c.model for c in cells}
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    for row in pooled(rows):
        key = (row.model, row.capability, row.suite, row.protocol, row.metric)
        if key not in named:
            continue
        name = f"{row.capability} · {row.suite} · {row.metric}{' (proxy)' if row.is_proxy else ''}"
        name += "" if row.protocol == "prefixlab" else f" · {row.protocol}"
        name += "" if len(models) == 1 else f" · {row.model}"
        table = found.setdefault(key, {"name": name, "arms": {}})
        shown = percent(row.value) if row.status == "measured" else row.status.replace("_", " ")
        table["arms"].setdefault(row.arm, {})[row.condition] = shown
    for table in found.values():
        table["conditions"] = sorted({c for arm in table["arms"].values() for c in arm}, key=condition_order)
    return [t for t in found.values() if len(t["conditions"]) > 1]


def condition_order(name: str) -> tuple[int, str, int]:
    """Key that sorts conditions: the usual ones, then attacks by their length."""
    kind, _, k = name.partition("@")
    return (
        ("bare", "user_prefix", "prefill").index(kind) if not k and kind in ("bare", "user_prefix", "prefill") else 3,
        kind,
        int(k or 0),
    )


def main_rows(cells: Sequence[CellScores], rows: Sequence[ResultRow]) -> list[ResultRow]:
    """Rows of the suites' metrics; diagnostics have a table of their own."""
    named = {(c.capability, c.suite, c.protocol, m) for c in cells for m in c.metrics}
    return [r for r in rows if (r.capability, r.suite, r.protocol, r.metric) in named]


def diagnostic_rows(cells: Sequence[CellScores], rows: Sequence[ResultRow]) -> list[ResultRow]:
    """Pooled rows that are no metric of their suite."""
    main = {id(r) for r in main_rows(cells, rows)}
    return [r for r in pooled(rows) if id(r) not in main and r.value is not None]


SAME_SOURCE = "same source family"


def same_source(plan: Mapping[str, Any]) -> set[tuple[str, str]]:
    """(capability, suite) pairs whose training data name the suite as a source of theirs."""
    return {
        (capability, o["suite"])
        for capability, about in plan["summary"].items()
        for o in about.get("overlap", ())
        if o["n_same_source"]
    }


def suite_text(row: ResultRow | ContrastRow) -> str:
    """Suite, with protocol and condition where they are not the usual ones."""
    name = row.suite if row.protocol == "prefixlab" else f"{row.suite} ({row.protocol})"
    return name if row.condition == "bare" else f"{name}, {row.condition}"


def _tested(row: ResultRow, related: Collection[tuple[str, str]]) -> str:
    """Suite with protocol and condition where they are not the usual ones, and its kinship to the training data."""
    name = suite_text(row)
    return f"{name} [{SAME_SOURCE}]" if (row.capability, row.suite) in related else name


def text_rows(rows: Sequence[ResultRow], related: Collection[tuple[str, str]] = ()) -> list[tuple[str, ...]]:
    """The pooled rows as people read them, in HEADER's columns; `related` is `same_source`'s."""
    lines: list[tuple[str, ...]] = []
    several = len({r.model for r in rows}) > 1
    for r in pooled(rows):
        if r.status in UNASKED:  # said once, below the table, not in every row
            continue
        lines.append(
            (
                who(r.model, r.capability, several),
                r.arm,
                _tested(r, related),
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


def markdown(rows: Sequence[ResultRow], related: Collection[tuple[str, str]] = ()) -> str:
    """The result table in Markdown."""
    lines = ["| " + " | ".join(HEADER) + " |", "|" + " --- |" * len(HEADER)]
    lines += ["| " + " | ".join(cells) + " |" for cells in text_rows(rows, related)]
    return "\n".join(lines) + "\n"
