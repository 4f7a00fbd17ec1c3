"""scores.jsonl and measures.jsonl: one row a line; read and written without Inspect."""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter

from prefixlab.records import Measure, SampleScore

MEASURES = "measures.jsonl"
Row = TypeVar("Row", bound=Measure)
_SCORES, _MEASURES = TypeAdapter(list[SampleScore]), TypeAdapter(list[Measure])


def write_scores(path: Path, rows: Sequence[Measure]) -> None:
    """One row a line."""
    path.write_bytes(b"".join(r.model_dump_json().encode("utf-8", "surrogatepass") + b"\n" for r in rows))


def read_scores(path: Path) -> list[SampleScore]:
    """Main metrics with their texts, as `write_scores` wrote them."""
    return _read(path, _SCORES)


def read_measures(path: Path) -> list[Measure]:
    """All other measures; none where an older version wrote none."""
    return _read(path, _MEASURES) if path.exists() else []


def _read(path: Path, kind: TypeAdapter[list[Row]]) -> list[Row]:
    """All lines in one call, which is several times as fast as one call a line and shares equal strings."""
    rows = kind.validate_json(b"[" + b",".join(line for line in path.read_bytes().split(b"\n") if line) + b"]")
    # A large run has half a million rows, and the set of its fields is most of what pydantic keeps of one. Lines hold
    # nearly always the same fields, so that one set does for all rows that have these.
    shared: dict[frozenset[str], set[str]] = {}
    for row in rows:
        same = shared.setdefault(frozenset(row.model_fields_set), row.model_fields_set)
        object.__setattr__(row, "__pydantic_fields_set__", same)
    return rows
