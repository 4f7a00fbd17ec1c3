"""`prefixlab strip`: a data file without its openings, a record of what was removed, and the way back."""

import csv
import hashlib
import io
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Literal

import polars

from prefixlab.data.layouts import Turns, Unusable, layout_of, no_layout, parts_of, rejected_turns, value_at, with_value
from prefixlab.data.rewrite_rows import edit_row
from prefixlab.data.rows import RawRow, is_hub_id, iter_rows, open_bytes, suffix_of
from prefixlab.data.strip import Cut, cut_opening, uncut
from prefixlab.errors import UserError
from prefixlab.records import Family, Record

Mode = Literal["raw", "records"]
WRITABLE = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")


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
        raise Unusable(f"no layout fits the columns {', '.join(map(str, row)) or '(none)'}")
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


def _writable(path: Path) -> None:
    if path.suffix.lower() not in WRITABLE:
        raise UserError(f"cannot write {str(path)!r}; allowed: {', '.join(WRITABLE)}, not compressed")
    if not path.parent.is_dir():
        raise UserError(f"cannot write {str(path)!r}: there is no folder {str(path.parent)!r}")


def write_rows(path: Path, rows: list[dict[str, Any]], schema: Mapping[str, Any] | None = None) -> None:
    """Write rows as the format that the suffix names; `schema`: types of a Parquet file's columns.

    Raises:
        UserError: Another suffix, or values that the format cannot hold.
    """
    suffix = path.suffix.lower()
    if suffix in (".jsonl", ".ndjson"):
        text = "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
    elif suffix == ".json":
        path.write_bytes(json.dumps(rows, ensure_ascii=False, indent=1, default=str).encode("utf-8", "surrogatepass"))
    elif suffix in (".csv", ".tsv"):
        nested = next((k for row in rows for k, v in row.items() if isinstance(v, (list, dict))), None)
        if nested is not None:
            raise UserError(f"cannot write {str(path)!r}: column {nested!r} holds lists or objects; write .jsonl")
        names = list(dict.fromkeys(name for row in rows for name in row))
        buffer = io.StringIO(newline="")
        writer = csv.DictWriter(buffer, names, delimiter="\t" if suffix == ".tsv" else ",", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        try:
            path.write_text(buffer.getvalue(), encoding="utf-8", newline="")
        except UnicodeEncodeError as error:
            path.unlink(missing_ok=True)
            raise UserError(f"cannot write {str(path)!r}: a text holds half a surrogate pair; write .jsonl") from error
    elif suffix == ".parquet":
        try:
            polars.DataFrame(rows, schema=schema, infer_schema_length=None).write_parquet(path)
        except (polars.exceptions.PolarsError, TypeError, UnicodeEncodeError) as error:
            why = f"the rows do not fit one table ({str(error).splitlines()[0]})"
            raise UserError(f"cannot write {str(path)!r}: {why}; write .jsonl") from error
    else:
        _writable(path)


def _schema(source: str, out: Path) -> Mapping[str, Any] | None:
    """Types of the columns where a Parquet file becomes a Parquet file."""
    both = source.lower().endswith(".parquet") and out.suffix.lower() == ".parquet"
    return polars.read_parquet_schema(source) if both and not is_hub_id(source) else None


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
    if out.resolve() == record.resolve():
        raise UserError(f"{str(out)!r} cannot be both the stripped file and its record")
    if not families:
        raise UserError("no family is chosen, so nothing would be removed")
    for path in (out, record):
        if path.exists():
            raise UserError(f"{str(path)!r} is there already; choose a new name or remove it")
    _writable(out)
    raw_mode = _is_raw(source, out)
    plain: list[dict[str, Any]] = []
    edits: list[tuple[int, int, bytes]] = []
    kept: list[RemovedRow] = []
    skipped: Counter[str] = Counter()
    listed: list[tuple[int, str]] = []
    counts: Counter[str] = Counter()
    n_rows = 0
    first: RawRow | None = None
    for row in iter_rows(source, split=split, revision=revision):
        n_rows += 1
        first = first or row
        if n_rows % 1000 == 0:
            progress(n_rows)
        changes: dict[tuple[str | int, ...], str] = {}
        removed: list[RemovedPart] = []
        try:
            if row.value is None:
                raise Unusable(row.error)
            changes, removed = _row_cuts(row.value, columns or {}, turns, families)
        except Unusable as error:
            skipped[str(error)] += 1
            if len(listed) < 20:
                listed.append((row.index, str(error)))
        value = row.value or {}
        if changes:
            counts.update(part.family for part in removed)
            where = row.index if raw_mode else len(plain)
            kept.append(RemovedRow(row=where, raw=row.raw.decode() if raw_mode else None, parts=tuple(removed)))
        if raw_mode and changes:
            edits.append((row.start, len(row.raw), edit_row(row.raw, row.value, changes)))
        elif not raw_mode and row.value is not None:
            for place, text in changes.items():
                value = with_value(value, place, text)
            plain.append(value)
    if n_rows == sum(skipped.values()):
        if first is not None and first.value is not None and layout_of(first.value, columns) is None:
            raise no_layout(first.value, source)
        why = f"; {skipped.most_common(1)[0][0]}" if skipped else ""
        raise UserError(f"{source}: none of {n_rows} rows can be used{why}")
    if raw_mode:
        _write_edited(Path(source).expanduser(), out, edits)
    else:
        write_rows(out, plain, _schema(source, out))
    report = StripReport(
        source=source,
        stripped=out.name,
        mode="raw" if raw_mode else "records",
        source_sha256=_sha256(Path(source).expanduser()) if raw_mode else None,
        stripped_sha256=_sha256(out),
        n_rows=n_rows,
        n_skipped=sum(skipped.values()),
        n_dropped=0 if raw_mode else n_rows - len(plain),
        skipped=dict(skipped.most_common(50)),
        first_skipped=tuple(listed),
        n_changed_rows=len(kept),
        removed=dict(counts),
        families=families,
    )
    lines = [json.dumps(r.model_dump()) + "\n" for r in (report, *kept)]
    record.write_text("".join(lines), encoding="ascii")
    return report


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
    if not stripped.is_file() or _sha256(stripped) != report.stripped_sha256:
        raise UserError(f"{str(stripped)!r} is missing or not the file that {str(record)!r} was written with")
    _writable(out)
    if report.mode == "raw" and not _is_raw(str(stripped), out):
        raise UserError(f"cannot write {str(out)!r}: {str(stripped)!r} is restored in its own format")
    by_row = {r.row: r for r in rows}
    if report.mode == "raw":
        edits = [
            (r.start, len(r.raw), (by_row[r.index].raw or "").encode("utf-8"))
            for r in iter_rows(str(stripped))
            if r.index in by_row
        ]
        _write_edited(stripped, out, edits)
        if _sha256(out) != report.source_sha256:
            raise UserError(f"{str(out)!r} differs from the source; please report this with the record file")
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
    write_rows(out, restored, _schema(str(stripped), out))
    return report
