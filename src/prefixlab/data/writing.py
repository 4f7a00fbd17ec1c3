"""Writing rows as JSONL, JSON, CSV, TSV or Parquet. A file appears whole or not at all, however the writer ends."""

import csv
import io
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars

from prefixlab.errors import UserError

WRITABLE = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")


def check_writable(path: Path) -> None:
    """Refuse a path whose format or folder is none to write to.

    Raises:
        UserError: Another suffix, a compressed file, or a folder that is not there.
    """
    if path.suffix.lower() not in WRITABLE:
        raise UserError(f"cannot write {str(path)!r}; allowed: {', '.join(WRITABLE)}, not compressed")
    if not path.parent.is_dir():
        raise UserError(f"cannot write {str(path)!r}: there is no folder {str(path.parent)!r}")


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to. It becomes `path` where the block ends well; an error removes it.

    A killed process leaves NAME.part, which the next writer overwrites.
    """
    part = path.with_name(f"{path.name}.part")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def encoded(rows: list[dict[str, Any]], path: Path, schema: Mapping[str, Any] | None = None) -> bytes:
    """Rows in the format that the path's suffix names.

    Args:
        rows: All rows of the file.
        path: Where they will be written; only its name is looked at.
        schema: Types of a Parquet file's columns.

    Raises:
        UserError: Another suffix, or values that the format cannot hold.
    """
    suffix = path.suffix.lower()
    if suffix in (".jsonl", ".ndjson"):
        text = "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
        return text.encode("utf-8", "surrogatepass")
    if suffix == ".json":
        return json.dumps(rows, ensure_ascii=False, indent=1, default=str).encode("utf-8", "surrogatepass")
    if suffix in (".csv", ".tsv"):
        return _separated(rows, path, "\t" if suffix == ".tsv" else ",")
    if suffix == ".parquet":
        buffer = io.BytesIO()
        try:
            polars.DataFrame(rows, schema=schema, infer_schema_length=None).write_parquet(buffer)
        except (polars.exceptions.PolarsError, TypeError, UnicodeEncodeError) as error:
            why = f"the rows do not fit one table ({str(error).splitlines()[0]})"
            raise UserError(f"cannot write {str(path)!r}: {why}; write .jsonl") from error
        return buffer.getvalue()
    raise UserError(f"cannot write {str(path)!r}; allowed: {', '.join(WRITABLE)}, not compressed")


def _separated(rows: list[dict[str, Any]], path: Path, delimiter: str) -> bytes:
    nested = next((k for row in rows for k, v in row.items() if isinstance(v, (list, dict))), None)
    if nested is not None:
        raise UserError(f"cannot write {str(path)!r}: column {nested!r} holds lists or objects; write .jsonl")
    buffer = io.StringIO(newline="")
    names = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(buffer, names, delimiter=delimiter, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    try:
        return buffer.getvalue().encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(f"cannot write {str(path)!r}: a text holds half a surrogate pair; write .jsonl") from error


def write_rows(path: Path, rows: list[dict[str, Any]], schema: Mapping[str, Any] | None = None) -> None:
    """Write rows as the format that the suffix names; `schema`: types of a Parquet file's columns.

    Raises:
        UserError: Another suffix, or values that the format cannot hold.
    """
    content = encoded(rows, path, schema)
    with whole(path) as part:
        part.write_bytes(content)
