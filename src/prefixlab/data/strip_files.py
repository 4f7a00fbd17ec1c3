"""`prefixlab strip`: a data file without its openings, a record of what was removed, and the way back."""

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal

import polars

from prefixlab.data.layouts import (
    Turns,
    Unusable,
    layout_of,
    no_layout_for,
    nothing_usable,
    parts_of,
    rejected_turns,
    value_at,
    with_value,
)
from prefixlab.data.rewrite_rows import edit_row
from prefixlab.data.rows import DAMAGED, RawRow, is_hub_id, iter_rows, open_bytes, suffix_of
from prefixlab.data.strip import Cut, cut_opening, uncut
from prefixlab.data.writing import check_writable, encoded, whole, write_rows
from prefixlab.errors import UserError
from prefixlab.records import Family, Record

Mode = Literal["raw", "records"]
LISTED = 20
"""Skipped rows that a report lists one by one."""


class RemovedPart(Record):
    """What was removed from one part."""

    path: tuple[str | int, ...]
    """Where the text is in the row."""
    start: int
    """Offset of the part in that text, in code points, before anything was removed."""
    part: Literal["reasoning", "answer"]
    turn: int
    removed: str
    lowered: str
    family: Family


class RemovedRow(Record):
    """What was removed from one row."""

    row: int
    """0-based; in the mode `records`, of the stripped file."""
    raw: str | None
    """The row's JSON text as it came (JSON and JSONL files)."""
    parts: tuple[RemovedPart, ...]


class StripReport(Record):
    """First line of a record file, and what `prefixlab strip` says."""

    source: str
    stripped: str
    mode: Mode
    """`raw`: restoring gives the source back byte for byte; `records`: row for row."""
    source_sha256: str | None
    stripped_sha256: str
    n_rows: int
    n_skipped: int
    n_dropped: int
    """Unreadable rows that are not in the output (never in the mode `raw`)."""
    skipped: dict[str, int]
    first_skipped: tuple[tuple[int, str], ...]
    """Row (0-based) and reason of the first ones."""
    n_changed_rows: int
    removed: dict[str, int]
    """Parts by family."""
    families: tuple[Family, ...]


def _row_cuts(
    row: dict[str, Any], columns: Mapping[str, str], turns: Turns, families: tuple[Family, ...]
) -> tuple[dict[tuple[str | int, ...], str], list[RemovedPart]]:
    """New texts by path, and what was removed, last place first within a text."""
    layout = layout_of(row, columns)
    if layout is None:
        raise Unusable(no_layout_for(row))
    cuts: list[tuple[Any, Cut]] = []
    parts = list(parts_of(layout[1](row), turns))
    if layout[0] == "preference":
        parts += parts_of(rejected_turns(row), "last")  # one side alone would teach the other's opening
    for part in parts:
        cut = cut_opening(part.text, part.prompt, part.name, families)
        if cut is not None:
            cuts.append((part, cut))
    changes: dict[tuple[str | int, ...], str] = {}
    removed = []
    for part, cut in sorted(cuts, key=lambda c: -c[0].start):
        text = changes.get(part.path, value_at(row, part.path))
        changes[part.path] = text[: part.start] + cut.rest + text[part.start + len(part.text) :]
        removed.append(
            RemovedPart(
                path=part.path,
                start=part.start,
                part=part.name,
                turn=part.turn,
                removed=cut.removed,
                lowered=cut.lowered,
                family=cut.family,
            )
        )
    return changes, removed


def _is_raw(source: str, out: Path) -> bool:
    lines, kinds = (".jsonl", ".ndjson"), suffix_of(out)
    if is_hub_id(source) or not Path(source).expanduser().is_file():
        return False
    own = suffix_of(Path(source))
    return out.suffix == kinds and ((own in lines and kinds in lines) or (own == ".json" and kinds == ".json"))


def parquet_schema(source: str, out: Path) -> Mapping[str, Any] | None:
    """Types of the columns where a Parquet file becomes a Parquet file."""
    both = source.lower().endswith(".parquet") and out.suffix.lower() == ".parquet"
    return polars.read_parquet_schema(source) if both and not is_hub_id(source) else None


@dataclass
class _Reading:
    """What one pass over the rows gathers."""

    raw_mode: bool
    n_rows: int = 0
    first: dict[str, Any] | None = None
    """The first row, where it can be read."""
    plain: list[dict[str, Any]] = field(default_factory=list)
    """Rows of the output (mode `records`)."""
    edits: list[tuple[int, int, bytes]] = field(default_factory=list)
    """Changes of the source's bytes (mode `raw`): offset, length, new bytes."""
    kept: list[RemovedRow] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    listed: list[tuple[int, str]] = field(default_factory=list)
    removed: Counter[str] = field(default_factory=Counter)

    def add(self, row: RawRow, columns: Mapping[str, str], turns: Turns, families: tuple[Family, ...]) -> None:
        """Strip one row."""
        if not self.n_rows:
            self.first = row.value
        self.n_rows += 1
        changes: dict[tuple[str | int, ...], str] = {}
        removed: list[RemovedPart] = []
        try:
            if row.value is None:
                raise Unusable(row.error)
            changes, removed = _row_cuts(row.value, columns, turns, families)
        except Unusable as error:
            self.skipped[str(error)] += 1
            if len(self.listed) < LISTED:
                self.listed.append((row.index, str(error)))
        if changes:
            self.removed.update(part.family for part in removed)
            where = row.index if self.raw_mode else len(self.plain)
            own = row.raw.decode() if self.raw_mode else None
            self.kept.append(RemovedRow(row=where, raw=own, parts=tuple(removed)))
        if row.value is None:
            return
        if not self.raw_mode:
            value = row.value
            for place, text in changes.items():
                value = with_value(value, place, text)
            self.plain.append(value)
        elif changes:
            self.edits.append((row.start, len(row.raw), edit_row(row.raw, row.value, changes)))

    def report(self, source: str, out: Path, written: Path, families: tuple[Family, ...]) -> StripReport:
        """The report of a pass whose output is at `written`, and will be at `out`."""
        n_skipped = sum(self.skipped.values())
        return StripReport(
            source=source,
            stripped=out.name,
            mode="raw" if self.raw_mode else "records",
            source_sha256=_sha256(Path(source).expanduser()) if self.raw_mode else None,
            stripped_sha256=_sha256(written),
            n_rows=self.n_rows,
            n_skipped=n_skipped,
            n_dropped=0 if self.raw_mode else self.n_rows - len(self.plain),
            skipped=dict(self.skipped.most_common(50)),
            first_skipped=tuple(self.listed),
            n_changed_rows=len(self.kept),
            removed=dict(self.removed),
            families=families,
        )


def strip_file(
    source: str,
    out: Path,
    record: Path,
    *,
    families: tuple[Family, ...],
    columns: Mapping[str, str] | None = None,
    turns: Turns = "all",
    split: str | None = None,
    revision: str | None = None,
    progress: Callable[[int], None] = lambda rows: None,
) -> StripReport:
    """Write `source` without its openings to `out`, and what was removed to `record`.

    Raises:
        UserError: Unreadable source, no usable row, an output that is there already, or of another format.
    """
    _check_outputs(out, record, families)
    found = _Reading(_is_raw(source, out))
    for row in iter_rows(source, split=split, revision=revision):
        found.add(row, columns or {}, turns, families)
        if found.n_rows % 1000 == 0:
            progress(found.n_rows)
    if found.n_rows == sum(found.skipped.values()):
        raise nothing_usable(source, found.n_rows, found.first, found.skipped, columns)
    content = None if found.raw_mode else encoded(found.plain, out, parquet_schema(source, out))
    with whole(out) as stripped, whole(record) as notes:  # the record takes its place first: no output is without one
        if content is None:
            _write_edited(Path(source).expanduser(), stripped, found.edits)
        else:
            stripped.write_bytes(content)
        report = found.report(source, out, stripped, families)
        notes.write_text("".join(json.dumps(r.model_dump()) + "\n" for r in (report, *found.kept)), encoding="ascii")
    return report


def _check_outputs(out: Path, record: Path, families: tuple[Family, ...]) -> None:
    if out.resolve() == record.resolve():
        raise UserError(f"{str(out)!r} cannot be both the stripped file and its record")
    if not families:
        raise UserError("no family is chosen, so nothing would be removed")
    for path in (out, record):
        if path.exists():
            raise UserError(f"{str(path)!r} is there already; choose a new name or remove it")
    check_writable(out)


def _sha256(path: Path) -> str:
    """Of the (decompressed) bytes of a file."""
    digest = hashlib.sha256()
    with open_bytes(path) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _copy(source: BinaryIO, out: BinaryIO, size: int) -> None:
    while size > 0 and (block := source.read(min(size, 1 << 20))):
        out.write(block)
        size -= len(block)


def _write_edited(source: Path, out: Path, edits: Iterable[tuple[int, int, bytes]]) -> None:
    """Copy a (decompressed) file, with other bytes at some places: (offset, length, new bytes), in order."""
    at = 0
    with open_bytes(source) as file, out.open("wb") as target:
        for start, length, new in edits:
            _copy(file, target, start - at)
            file.read(length)
            target.write(new)
            at = start + length
        shutil.copyfileobj(file, target)


def read_record(path: Path) -> tuple[StripReport, list[RemovedRow]]:
    """Read a record file.

    Raises:
        UserError: Missing or damaged.
    """
    try:
        lines = [line for line in path.read_text(encoding="utf-8").split("\n") if line]
        report, *rows = [json.loads(line) for line in lines]
        return StripReport.model_validate(report), [RemovedRow.model_validate(row) for row in rows]
    except (OSError, ValueError) as error:
        raise UserError(f"record {str(path)!r} is missing or damaged; it is written by prefixlab strip") from error


def restore_file(stripped: Path, record: Path, out: Path) -> StripReport:
    """Undo `strip_file`.

    Raises:
        UserError: The file is not the one the record belongs to, or `out` is there already.
    """
    report, rows = read_record(record)
    if out.exists():
        raise UserError(f"{str(out)!r} is there already; choose a new name or remove it")
    try:
        found = _sha256(stripped)
    except DAMAGED:
        found = ""
    if found != report.stripped_sha256:
        raise UserError(f"{str(stripped)!r} is missing or not the file that {str(record)!r} was written with")
    check_writable(out)
    if report.mode == "raw" and not _is_raw(str(stripped), out):
        raise UserError(f"cannot write {str(out)!r}: {str(stripped)!r} is restored in its own format")
    by_row = {r.row: r for r in rows}
    if report.mode == "raw":
        edits = [
            (r.start, len(r.raw), (by_row[r.index].raw or "").encode("utf-8"))
            for r in iter_rows(str(stripped))
            if r.index in by_row
        ]
        with whole(out) as back:
            _write_edited(stripped, back, edits)
            if _sha256(back) != report.source_sha256:
                raise UserError(f"{str(out)!r} would differ from the source; please report this with the record file")
        return report
    restored = []
    usable = (r for r in iter_rows(str(stripped)) if r.value is not None)
    for raw in usable:
        value: dict[str, Any] = raw.value or {}
        for part in reversed(by_row[raw.index].parts if raw.index in by_row else ()):
            text = value_at(value, part.path)
            head, tail = text[: part.start], text[part.start :]
            value = with_value(value, part.path, head + uncut(tail, part.removed, part.lowered))
        restored.append(value)
    write_rows(out, restored, parquet_schema(str(stripped), out))
    return report
