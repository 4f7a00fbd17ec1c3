"""Counting rows for an audit: one pass, in chunks, in several processes for large files of lines.

What comes back from a chunk is counts, trees and a few examples, so memory does not grow with the data.
"""

import gc
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from prefixlab.data.labels import Label
from prefixlab.data.layouts import Part, Turns, Unusable, layout_of, no_layout_for, row_parts
from prefixlab.data.mining import LEAD, Lead, Tree, chunk_tree, merge
from prefixlab.data.openings import find_opening
from prefixlab.data.parts import PartName
from prefixlab.data.rows import COMPRESSIONS, RawRow, is_hub_id, iter_rows, parse_row, suffix_of
from prefixlab.data.surrogates import sound

PARTS: tuple[PartName, ...] = ("reasoning", "answer")
RANGE = 12_000_000
"""Bytes of a line file that one task reads."""
ALONE = 24_000_000
"""Files up to this size are read by this process alone: starting others takes longer."""
CHUNK_ROWS = 20_000
MINED = 200_000
"""Parts that templates are mined from in large line files: every n-th, so that about so many are."""
SOURCE_COLUMNS = ("source", "dataset", "generator", "origin", "subset", "category", "model")
LISTED = 20
N_EXAMPLES = 5
_SLOT = re.compile(r"(?<![\\}\w^_{$])\{\{\s*([A-Za-z][\w .-]{0,40}?)\s*\}\}(?!\})")


@dataclass(slots=True)
class Amounts:
    """Sums over parts; words are counted at spaces and line ends."""

    prefix_words: int = 0
    prefix_characters: int = 0
    characters: int = 0

    def add(self, other: "Amounts") -> None:
        """Add the sums of other parts."""
        self.prefix_words += other.prefix_words
        self.prefix_characters += other.prefix_characters
        self.characters += other.characters


@dataclass(slots=True)
class Tally:
    """Counts of some rows; `add` puts those of following rows behind them."""

    n_rows: int = 0
    n_used: int = 0
    skipped: list[tuple[int, str]] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    layouts: Counter[str] = field(default_factory=Counter)
    families: Counter[tuple[PartName, str]] = field(default_factory=Counter)
    amounts: dict[PartName, Amounts] = field(default_factory=lambda: {"reasoning": Amounts(), "answer": Amounts()})
    examples: dict[tuple[PartName, str], list[str]] = field(default_factory=dict)
    parts: dict[PartName, int] = field(default_factory=lambda: {"reasoning": 0, "answer": 0})
    mined: dict[PartName, int] = field(default_factory=lambda: {"reasoning": 0, "answer": 0})
    """Parts whose openings are in the trees."""
    trees: dict[PartName, Tree] = field(default_factory=lambda: {"reasoning": {}, "answer": {}})
    slots: Counter[str] = field(default_factory=Counter)
    slot_rows: list[int] = field(default_factory=list)
    sources: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    labels: list[Label] = field(default_factory=list)

    def add(self, other: "Tally") -> None:
        """Add the counts of the rows after this tally's rows."""
        shift = self.n_rows
        self.n_rows += other.n_rows
        self.n_used += other.n_used
        self.skipped += [(row + shift, why) for row, why in other.skipped[: LISTED - len(self.skipped)]]
        for name in ("reasons", "layouts", "families", "slots", "sources"):
            getattr(self, name).update(getattr(other, name))
        for key, found in other.examples.items():
            mine = self.examples.setdefault(key, [])
            mine += found[: N_EXAMPLES - len(mine)]
        for part in PARTS:
            merge(self.trees[part], other.trees[part])
            self.amounts[part].add(other.amounts[part])
            self.parts[part] += other.parts[part]
            self.mined[part] += other.mined[part]
        self.slot_rows += [row + shift for row in other.slot_rows[: LISTED - len(self.slot_rows)]]


@dataclass(frozen=True, slots=True)
class Reading:
    """How rows are read: the options a worker needs."""

    columns: Mapping[str, str]
    turns: Turns
    labels: bool = False
    mine_every: int = 1
    """Templates are mined from every n-th part."""
    may_have_slots: bool = True
    """False where no "{{" is in what is read."""


@dataclass(frozen=True, slots=True)
class ByteRange:
    """Lines of a plain file that begin in [start, stop)."""

    path: Path
    start: int
    stop: int


def _source_of(row: dict[str, Any], columns: tuple[str, ...]) -> tuple[str, str] | None:
    for column in columns:
        value = row[column]
        if isinstance(value, str) and len(value) < 80:
            return column, value
    return None


def _count_part(tally: Tally, part: Part, row: int, leads: dict[PartName, list[Lead]], how: "Reading") -> str:
    """Count one part; its family, "" without an opening."""
    name, text = part.name, part.text
    opening = find_opening(text, part.prompt, name)
    amounts = tally.amounts[name]
    amounts.characters += len(text)
    family, end = "", 0
    if opening:
        family = opening.family
        if family != "refusal":
            end = opening.end
            amounts.prefix_characters += end
            amounts.prefix_words += text.count(" ", 0, end) + text.count("\n", 0, end) + 1
        found = tally.examples.setdefault((name, family), [])
        if len(found) < N_EXAMPLES:
            found.append(_example(text, opening.end))
    tally.families[name, family] += 1
    if how.may_have_slots and "{{" in text:
        names = {m.group(1) for m in _SLOT.finditer(text)}
        tally.slots.update(names)
        if names and len(tally.slot_rows) < LISTED and row not in tally.slot_rows:
            tally.slot_rows.append(row)
    seen = tally.parts[name]
    tally.parts[name] = seen + 1
    mined = seen % how.mine_every == 0
    if mined or how.labels:
        lead = sound(text[:LEAD])
        if mined:
            leads[name].append((lead, family))
        if how.labels:
            tally.labels.append((row, part.turn, name, end, family, lead))
    return family


def _example(text: str, end: int) -> str:
    text = sound(text[: end + 50])
    opening = text[:end] if end <= 220 else text[:140] + " […] " + text[end - 70 : end]
    return " ".join(f"{opening} ‖ {text[end : end + 50]}".split())


def tally_rows(rows: Iterable[RawRow], how: Reading) -> Tally:
    """Count some rows; the row numbers of the result start at 0. Rows that cannot be used are counted as skipped."""
    collecting = gc.isenabled()
    gc.disable()  # nothing here refers to itself, and looking for that takes a third of the time
    try:
        return _tally_rows(rows, how)
    finally:
        if collecting:
            gc.enable()


def _tally_rows(rows: Iterable[RawRow], how: Reading) -> Tally:
    tally = Tally()
    leads: dict[PartName, list[Lead]] = {"reasoning": [], "answer": []}
    layouts: dict[tuple[str, ...], Any] = {}
    first: int | None = None
    for raw in rows:
        first = raw.index if first is None else first
        index = raw.index - first
        tally.n_rows = index + 1
        try:
            if raw.value is None:
                raise Unusable(raw.error)
            shape = tuple(raw.value)
            if shape not in layouts:
                layouts[shape] = layout_of(raw.value, how.columns), tuple(c for c in SOURCE_COLUMNS if c in raw.value)
            layout, source_columns = layouts[shape]
            if layout is None:
                raise Unusable(no_layout_for(shape))
            source = _source_of(raw.value, source_columns) if source_columns else None
            for part in row_parts(raw.value, layout, how.turns):
                family = _count_part(tally, part, index, leads, how)
                if source and part.name == "answer":
                    tally.sources[(*source, family)] += 1
            tally.n_used += 1
            tally.layouts[layout[0]] += 1
        except Unusable as error:
            if len(tally.skipped) < LISTED:
                tally.skipped.append((index, str(error)))
            tally.reasons[re.sub(r"\[\d+\]", "[...]", str(error))] += 1
        for name in PARTS:
            if len(leads[name]) >= CHUNK_ROWS:
                _mine(tally, name, leads)
    for name in PARTS:
        if leads[name]:
            _mine(tally, name, leads)
    return tally


def _mine(tally: Tally, name: PartName, leads: dict[PartName, list[Lead]]) -> None:
    merge(tally.trees[name], chunk_tree(leads[name]))
    tally.mined[name] += len(leads[name])
    leads[name] = []


def tally_range(task: tuple[ByteRange, Reading]) -> Tally:
    """Count the rows of one byte range; what a worker process runs."""
    where, how = task
    with where.path.open("rb") as file:
        start = where.start
        if start:
            file.seek(start - 1)
            start += len(file.readline()) - 1
        if start >= where.stop:
            return Tally()
        data = file.read(where.stop - start)
        if not data.endswith(b"\n"):
            data += file.readline()
    if start == 0 and data.startswith(b"\xef\xbb\xbf"):
        data = data[3:]
    return tally_rows(_lines(data), replace(how, may_have_slots=b"{{" in data))


def _lines(data: bytes) -> Iterator[RawRow]:
    index = 0
    for line in data.split(b"\n"):
        if line and not line.isspace():
            yield parse_row(line, index)
            index += 1


def _is_plain_lines(source: str) -> Path | None:
    path = Path(source).expanduser()
    plain = not is_hub_id(source) and path.is_file() and path.suffix.lower() not in COMPRESSIONS
    return path if plain and suffix_of(path) in (".jsonl", ".ndjson") else None


def batches(rows: Iterator[RawRow], size: int) -> Iterator[list[RawRow]]:
    """Rows in lists of at most `size`."""
    batch: list[RawRow] = []
    for row in rows:
        batch.append(row)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _rows_about(path: Path, size: int) -> int:
    """How many rows a line file has, judged by its first megabyte."""
    with path.open("rb") as file:
        start = file.read(1_000_000)
    return round(size / len(start) * max(1, start.count(b"\n"))) if start else 0


def tallies(
    source: str,
    how: Reading,
    *,
    split: str | None = None,
    revision: str | None = None,
    workers: int | None = None,
) -> Iterator[tuple[Tally, float | None]]:
    """Tallies of the rows of a source, in order, each with the share of the source that is done (None: not known)."""
    path = _is_plain_lines(source)
    count = workers or os.cpu_count() or 1
    if path is None or not path.stat().st_size:
        for batch in batches(iter_rows(source, split=split, revision=revision), CHUNK_ROWS):
            yield tally_rows(batch, how), None
        return
    size = path.stat().st_size
    how = replace(how, mine_every=max(1, _rows_about(path, size) // MINED))
    ranges = [ByteRange(path, at, min(at + RANGE, size)) for at in range(0, size, RANGE)]
    if size <= ALONE or count == 1:
        for done, where in enumerate(ranges, 1):
            yield tally_range((where, how)), done / len(ranges)
        return
    with ProcessPoolExecutor(count, mp_context=get_context("spawn")) as pool:
        for done, tally in enumerate(pool.map(tally_range, [(r, how) for r in ranges]), 1):
            yield tally, done / len(ranges)
