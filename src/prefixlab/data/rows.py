"""Rows of a file, a folder saved by `datasets`, or a hub data set, one at a time and with what is wrong with them.

A row that cannot be read is yielded with its error and counted by the caller; a file that cannot be read at all is
one. JSON and JSONL rows carry their own bytes, so that a file can be given back byte for byte.
"""

import bz2
import csv
import gzip
import io
import json
import lzma
import sys
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import orjson
import polars
import zstandard

from prefixlab.errors import UserError

Row = dict[str, Any]
COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")
FORMATS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow")
ROWS_KEYS = ("data", "rows", "train", "examples", "instances", "samples", "items")
SLICE = 20_000
DAMAGED = (lzma.LZMAError, zlib.error, zstandard.ZstdError, EOFError, OSError)
"""What reading a file raises that cannot be read to its end."""
CHUNK = 1 << 17
"""Bytes of a compressed file that are read at once."""
BOM = b"\xef\xbb\xbf"


@dataclass(slots=True)
class RawRow:
    """One row. `value` is None exactly where `error` says why."""

    index: int
    """0-based, counted over all rows, unreadable ones included."""
    value: Row | None
    error: str = ""
    raw: bytes = b""
    """The row's own bytes in JSON and JSONL (without the line end); empty elsewhere."""
    start: int = 0
    """Offset of `raw` in the (decompressed) file, in bytes."""


def suffix_of(path: Path) -> str:
    """The format's suffix, compression left out: "a.jsonl.gz" -> ".jsonl"."""
    name = path.name.lower()
    for packed in COMPRESSIONS:
        name = name.removesuffix(packed)
    return Path(name).suffix


class _Zst(io.RawIOBase):
    """A Zstandard file of one or more frames; zstandard's own reader takes one that was cut off for a whole one."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._frame: zstandard.ZstdDecompressionObj | None = None
        self._packed = b""
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            self._packed = self._packed or self._file.read(CHUNK)
            if not self._packed:
                if self._frame is not None:
                    raise EOFError("Compressed file ended before the end-of-stream marker was reached")
                return 0
            self._frame = self._frame or zstandard.ZstdDecompressor().decompressobj()
            self._ready = memoryview(self._frame.decompress(self._packed))
            self._packed = b""
            if self._frame.eof:
                self._packed, self._frame = self._frame.unused_data, None
        size = min(len(buffer), len(self._ready))
        buffer[:size] = self._ready[:size]
        self._ready = self._ready[size:]
        return size

    def close(self) -> None:
        self._file.close()
        super().close()


def open_bytes(path: Path) -> BinaryIO:
    """Open a plain or compressed file for reading bytes."""
    last = path.suffix.lower()
    if last == ".gz":
        return cast(BinaryIO, gzip.open(path, "rb"))
    if last == ".bz2":
        return cast(BinaryIO, bz2.open(path, "rb"))
    if last == ".xz":
        return cast(BinaryIO, lzma.open(path, "rb"))
    if last == ".zst":
        return cast(BinaryIO, io.BufferedReader(_Zst(path)))
    return path.open("rb")


def parse_row(raw: bytes, index: int, start: int = 0) -> RawRow:
    """One JSON row; the standard library's parser decides where the fast one refuses (NaN, lone surrogates)."""
    try:
        value = orjson.loads(raw)
        if type(value) is dict:
            for inner in value.values():
                if type(inner) is float and not -(2.0**63) < inner < 2.0**63:
                    value = json.loads(raw)  # orjson turns whole numbers beyond 64 bits into floats
                    break
            return RawRow(index, value, "", raw, start)
    except orjson.JSONDecodeError:
        try:
            value = json.loads(raw.decode("utf-8"))
        except UnicodeDecodeError as error:
            return RawRow(index, None, f"not valid UTF-8 ({error.reason} at byte {error.start})", raw, start)
        except ValueError as error:
            return RawRow(index, None, f"not valid JSON ({str(error).partition(':')[0]})", raw, start)
        except RecursionError:
            return RawRow(index, None, "not valid JSON (nested too deeply)", raw, start)
    if not isinstance(value, dict):
        return RawRow(index, None, f"a row must be a JSON object, not {type(value).__name__}", raw, start)
    return RawRow(index, value, "", raw, start)


def jsonl_rows(file: Iterable[bytes]) -> Iterator[RawRow]:
    """Rows of the lines of a file; blank lines are no rows."""
    index = start = 0
    for line in file:
        raw = line.strip(b" \t\r\n")
        if raw == BOM:
            raw = b""
        if raw:
            lead = line.index(raw)
            if start == 0 and raw.startswith(BOM):
                raw, lead = raw[3:], lead + 3
            yield parse_row(raw, index, start + lead)
            index += 1
        start += len(line)


def _json_rows(path: Path, split: str | None) -> Iterator[RawRow]:
    """Rows of a .json file: an array, the array of rows in an object, one object that is a row, or lines of objects."""
    with open_bytes(path) as file:
        data = file.read()
    if _is_jsonl(data):
        yield from jsonl_rows(io.BytesIO(data))
        return
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not valid UTF-8 ({error.reason} at byte {error.start})") from error
    at = len(text) - len(text.lstrip("\ufeff \t\r\n"))
    try:
        if text[at : at + 1] != "[":
            loaded = json.loads(text[at:])
            if _is_one_row(loaded):
                raw = data.strip().removeprefix(BOM)
                yield RawRow(0, loaded, "", raw, data.index(raw))
                return
            at = _place_of(_rows_key(loaded, path, split), text, at)
        yield from _array_rows(text, at)
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error})") from error


def _is_jsonl(data: bytes) -> bool:
    """Whether a .json file holds one object a line, as many do."""
    lines = [line for line in data[:4_000_000].split(b"\n", 3) if line.strip()]
    if not lines or not lines[0].lstrip(b"\xef\xbb\xbf \t").startswith(b"{"):
        return False
    return parse_row(lines[0].strip().removeprefix(BOM), 0).value is not None and len(lines) > 1


def _is_one_row(loaded: Any) -> bool:
    """Whether the content of a .json file is a row itself: an object with messages, or without any list."""
    if not isinstance(loaded, dict):
        return False
    if {"messages", "conversations"} & set(loaded):
        return True
    return not any(isinstance(v, list) for v in loaded.values()) and len(loaded) > 1


def _rows_key(loaded: Any, path: Path, split: str | None) -> str:
    """The key of the one array of rows in a JSON object such as {"data": [...]}; of several, the split's."""
    lists = [k for k, v in loaded.items() if isinstance(v, list)] if isinstance(loaded, dict) else []
    named = [k for k in ROWS_KEYS if k in lists] or lists
    if not named:
        raise UserError(f"{path}: holds no rows; a JSON file must be a list of objects, or one object with such a list")
    if split is not None and len(named) > 1 and split in named:
        return split
    if len(named) > 1:
        raise UserError(f"{path}: holds several lists ({', '.join(named)}); name one of them as split")
    return named[0]


def _place_of(wanted: str, text: str, at: int) -> int:
    """Where the value of a key starts in the JSON object at `at`."""
    decoder, place = json.JSONDecoder(), _skip(text, at + 1)
    while True:
        key, end = decoder.raw_decode(text, place)
        place = _skip(text, _skip(text, end) + 1)
        if key == wanted:
            return place
        _, end = decoder.raw_decode(text, place)
        place = _skip(text, _skip(text, end) + 1)


def _skip(text: str, at: int) -> int:
    while text[at : at + 1] in (" ", "\t", "\r", "\n") and at < len(text):
        at += 1
    return at


def _array_rows(text: str, at: int) -> Iterator[RawRow]:
    """Elements of the JSON array at `at`, each with its own bytes."""
    decoder, index, byte, seen = json.JSONDecoder(), 0, 0, 0
    at = _skip(text, at + 1)
    while text[at : at + 1] != "]":
        value, end = decoder.raw_decode(text, at)
        byte, seen = byte + len(text[seen:at].encode()), at
        raw = text[at:end].encode()
        problem = "" if isinstance(value, dict) else f"a row must be a JSON object, not {type(value).__name__}"
        yield RawRow(index, None if problem else value, problem, raw, byte)
        index, at = index + 1, _skip(text, end)
        if text[at : at + 1] == ",":
            at = _skip(text, at + 1)
        elif text[at : at + 1] != "]":
            raise json.JSONDecodeError("Expecting ',' delimiter", text, at)


def _csv_rows(path: Path) -> Iterator[RawRow]:
    csv.field_size_limit(sys.maxsize)
    with open_bytes(path) as file:
        lines = (line.decode("utf-8-sig" if n == 0 else "utf-8") for n, line in enumerate(file))
        reader = csv.DictReader(lines, delimiter="\t" if suffix_of(path) == ".tsv" else ",")
        try:
            names = list(reader.fieldnames or ())
            twice = next((n for i, n in enumerate(names) if n in names[:i]), None)
            if twice is not None:
                raise UserError(f"{path}: two columns are named {twice!r}; rename one of them")
            for index, row in enumerate(reader):
                extra = row.pop(None, None)
                yield RawRow(index, None, f"{len(extra)} fields too many") if extra else RawRow(index, dict(row))
        except (csv.Error, UnicodeDecodeError) as error:
            raise UserError(f"{path}, line {reader.line_num + 1}: not valid CSV in UTF-8 ({error})") from error


def _table_rows(path: Path) -> Iterator[RawRow]:
    try:
        with open_bytes(path) as file:
            if suffix_of(path) == ".parquet" and path.suffix.lower() == ".parquet":
                table = polars.scan_parquet(path)
                total = int(table.select(polars.len()).collect().item())
                for offset in range(0, total, SLICE):
                    for n, row in enumerate(table.slice(offset, SLICE).collect().iter_rows(named=True)):
                        yield RawRow(offset + n, row)
                return
            data = file.read()
        frame = polars.read_parquet(data) if suffix_of(path) == ".parquet" else _read_arrow(data)
        for index, row in enumerate(frame.iter_rows(named=True)):
            yield RawRow(index, row)
    except (polars.exceptions.PolarsError, OSError) as error:
        raise UserError(f"{path}: not valid {suffix_of(path)[1:]} ({str(error).splitlines()[0]})") from error


def _read_arrow(data: bytes) -> polars.DataFrame:
    """An Arrow file is a stream (as `datasets` writes it) or a file with a footer."""
    return polars.read_ipc(data) if data.startswith(b"ARROW1") else polars.read_ipc_stream(data)


def _folder_rows(path: Path, split: str | None) -> Iterator[RawRow]:
    """Rows of a folder written by `datasets`' save_to_disk: one data set, or one folder a split."""
    folder = path
    if (path / "dataset_dict.json").exists():
        splits = json.loads((path / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
        chosen = split or (splits[0] if len(splits) == 1 else "train")
        if chosen not in splits:
            raise UserError(f"folder {str(path)!r}: no split {chosen!r}; splits there: {', '.join(splits)}")
        folder = path / chosen
    state = folder / "state.json"
    if not state.exists():
        raise UserError(
            f"{str(path)!r} is a folder without state.json or dataset_dict.json, so not one saved by datasets; "
            "give a file in it"
        )
    files = [folder / f["filename"] for f in json.loads(state.read_text(encoding="utf-8"))["_data_files"]]
    index = 0
    for file in files:
        for row in _table_rows(file):
            yield RawRow(index, row.value)
            index += 1


def is_hub_id(source: str) -> bool:
    """Whether a source names a hub data set ("owner/name") and no file or folder of that name is there."""
    path = Path(source).expanduser()
    return source.count("/") == 1 and not path.exists() and suffix_of(path) not in FORMATS and source[0] not in "./~"


def iter_rows(
    source: str, *, split: str | None = None, revision: str | None = None, config: str | None = None
) -> Iterator[RawRow]:
    """Rows of a local file, a folder saved by `datasets`, or a hub data set.

    Args:
        source: Path, or "owner/name" on the hub.
        split: Of a hub data set or a saved DatasetDict; "train" by default.
        revision: Of a hub data set.
        config: Named part of a hub data set that has several.

    Raises:
        UserError: Missing, of an unknown format, or unreadable as a whole.
    """
    if is_hub_id(source):
        from prefixlab.data.hub import load_rows  # noqa: PLC0415  (the hub's client: a third of a second)

        for index, row in enumerate(load_rows(source, split, revision, config)):
            yield RawRow(index, dict(row))
        return
    path = Path(source).expanduser()
    if not path.exists():
        raise UserError(f"data file {source!r} does not exist")
    if path.is_dir():
        yield from _folder_rows(path, split)
        return
    suffix = suffix_of(path)
    try:
        if suffix in (".jsonl", ".ndjson"):
            with open_bytes(path) as file:
                yield from jsonl_rows(file)
        elif suffix == ".json":
            yield from _json_rows(path, split)
        elif suffix in (".csv", ".tsv"):
            yield from _csv_rows(path)
        elif suffix in (".parquet", ".arrow"):
            yield from _table_rows(path)
        else:
            allowed = ", ".join(FORMATS)
            raise UserError(
                f"data file {source!r}: unknown format {suffix!r}; allowed: {allowed}, "
                f"each also with {', '.join(COMPRESSIONS)}, and folders saved by datasets"
            )
    except DAMAGED as error:
        raise UserError(f"{source}: cannot be read ({error})") from error
