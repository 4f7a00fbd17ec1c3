"""scores.jsonl and measures.jsonl: one row a line; read and written without Inspect."""

import json
from collections.abc import Sequence
from pathlib import Path

from prefixlab.records import Measure, SampleScore, jsonl_lines

MEASURES = "measures.jsonl"


def write_scores(path: Path, rows: Sequence[Measure]) -> None:
    """One row a line."""
    path.write_bytes(b"".join(r.model_dump_json().encode("utf-8", "surrogatepass") + b"\n" for r in rows))


def read_scores(path: Path) -> list[SampleScore]:
    """Main metrics with their texts, as `write_scores` wrote them."""
    return [SampleScore.model_validate(json.loads(line)) for line in jsonl_lines(path)]


def read_measures(path: Path) -> list[Measure]:
    """All other measures; none where an older version wrote none."""
    return [Measure.model_validate(json.loads(line)) for line in jsonl_lines(path)] if path.exists() else []
