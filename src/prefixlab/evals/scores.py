"""scores.jsonl: one SampleScore a line; read and written without Inspect."""

import json
from collections.abc import Sequence
from pathlib import Path

from prefixlab.records import SampleScore, jsonl_lines


def write_scores(path: Path, rows: Sequence[SampleScore]) -> None:
    """scores.jsonl: one SampleScore a line."""
    path.write_bytes(b"".join(r.model_dump_json().encode("utf-8", "surrogatepass") + b"\n" for r in rows))


def read_scores(path: Path) -> list[SampleScore]:
    """Read what `write_scores` wrote."""
    return [SampleScore.model_validate(json.loads(line)) for line in jsonl_lines(path)]
