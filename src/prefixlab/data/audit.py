"""The audit of a data set: how many responses open with a prefix, of which family, in which words, at what cost.

Counting is tally.py's; here counts become a record.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from prefixlab.data.labels import LabelFile
from prefixlab.data.layouts import Part, Turns, Unusable, layout_of, nothing_usable, row_parts
from prefixlab.data.mining import Direction, Node, Words, is_generic, select, template_text
from prefixlab.data.openings import find_opening
from prefixlab.data.parts import PartName
from prefixlab.data.rows import RawRow, iter_rows
from prefixlab.data.surrogates import sound
from prefixlab.data.tally import LISTED, PARTS, Reading, Tally, batches, tallies
from prefixlab.records import FAMILIES, Record

MAX_SOURCES = 100


class TemplateCount(Record):
    """One mined template."""

    id: str
    part: PartName
    template: str
    """Common words, "{...}" where openings differ."""
    n: int
    """Parts that have it and no longer template; in very large files judged from every n-th part."""
    share: float
    """Of the parts of that name."""
    family: str
    """What the rules say of its examples; empty where they see no prefix."""
    listed: bool
    """Whether the rules know it; False: a style of this data set's own, or a habit of its language."""
    generic: bool
    """Made of generic words only."""
    example: str


class PartAudit(Record):
    """What was found in all reasonings, or in all answers."""

    n: int
    n_prefix: int
    share: float | None
    """Parts with a prefix / parts; None where there are none."""
    families: dict[str, int]
    """By the family of the first prefix sentence; refusals are content and are not in n_prefix."""
    prefix_words: int
    """Words in prefixes, counted at spaces and line ends."""
    prefix_characters: int
    characters: int
    prefix_tokens: int | None = None
    tokens: int | None = None
    examples: dict[str, tuple[str, ...]]
    """By family: openings with " ‖ " where the prefix ends, cut short."""


class Skipped(Record):
    """A row that could not be used."""

    row: int
    reason: str


class Audit(Record):
    """What `prefixlab audit` finds."""

    source: str
    n_rows: int
    """All rows, skipped ones included."""
    n_used: int
    n_skipped: int
    skipped: tuple[Skipped, ...]
    """The first ones."""
    skipped_by_reason: dict[str, int]
    layouts: dict[str, int]
    parts: dict[PartName, PartAudit]
    templates: tuple[TemplateCount, ...]
    slots: dict[str, int]
    """Unfilled slots such as {{name}}, with the number of parts that hold them."""
    slot_rows: tuple[int, ...]
    """The first rows with one."""
    source_column: str | None
    sources: dict[str, dict[str, int]]
    """By value of the source column: parts, and parts by family."""
    model: str | None = None


def _part_audit(tally: Tally, name: PartName) -> PartAudit:
    families = {f: tally.families[name, f] for f in FAMILIES if tally.families[name, f]}
    n = sum(count for (part, _), count in tally.families.items() if part == name)
    with_prefix = sum(count for family, count in families.items() if family != "refusal")
    amounts = tally.amounts[name]
    return PartAudit(
        n=n,
        n_prefix=with_prefix,
        share=with_prefix / n if n else None,
        families=families,
        examples={f: tuple(tally.examples.get((name, f), ())) for f in families},
        **asdict(amounts),
    )


Place = tuple[str, Direction, Words]
"""Part and node of its tree."""


def _templates(tally: Tally, name: PartName, share: float) -> list[tuple[Place, TemplateCount]]:
    """Mined templates of one part. Those read backwards stay only where no forward template has the same openings."""
    tree = tally.trees[name]
    n, mined = tally.parts[name], tally.mined[name]
    chosen = select(tree, mined, share)
    seen = {lead for direction, words, _ in chosen if direction == "start" for lead in tree[direction, words].examples}
    found: list[tuple[Place, TemplateCount]] = []
    for direction, words, count in chosen:
        node: Node = tree[direction, words]
        if direction == "end" and sum(lead in seen for lead in node.examples) * 2 >= len(node.examples):
            continue
        families = Counter(family for _, family in node.examples)
        family, votes = families.most_common(1)[0]
        known = bool(family) and votes * 2 >= len(node.examples)
        made = TemplateCount(
            id="",
            part=name,
            template=template_text(words, direction, node.examples),
            n=round(count * n / mined),
            share=count / mined,
            family=family if known else "",
            listed=known,
            generic=is_generic(words),
            example=" ".join(node.examples[0][0][:160].split()),
        )
        found.append(((name, direction, words), made))
    return found


def audit(
    source: str,
    *,
    columns: Mapping[str, str] | None = None,
    turns: Turns = "all",
    split: str | None = None,
    revision: str | None = None,
    min_share: float = 0.005,
    workers: int | None = None,
    labels: Path | None = None,
    count_tokens: Callable[[Sequence[str]], int] | None = None,
    progress: Callable[[float | None, int], None] = lambda done, rows: None,
) -> Audit:
    """Audit a data set.

    Args:
        source: File, folder saved by `datasets`, or hub id.
        columns: Explicit mapping with the keys prompt, response, reasoning.
        turns: Every assistant turn, or the last.
        split: Of a hub data set or a saved DatasetDict.
        revision: Of a hub data set.
        min_share: Smallest share of the parts that a mined template must have.
        workers: Processes for large line files; one a CPU by default.
        labels: Parquet file to write, one row a part (labels.py).
        count_tokens: Tokens of some texts together; needs a second reading of the source.
        progress: Told the share done (None: unknown) and the rows so far.

    Raises:
        UserError: The source cannot be read, or no row of it can be used.
    """
    total = Tally()
    file = LabelFile(labels) if labels else None
    how = Reading(columns or {}, turns, labels=labels is not None)
    for tally, done in tallies(source, how, split=split, revision=revision, workers=workers):
        if file:
            file.add(tally.labels, total.n_rows)
        total.add(tally)
        progress(done, total.n_rows)
    if not total.n_used:
        first = next((r for r in iter_rows(source, split=split, revision=revision)), None)
        raise nothing_usable(source, total.n_rows, first.value if first else None, total.reasons, columns)
    found, places = summarise(source, total, min_share)
    if file:
        file.finish(places)
    if count_tokens:
        found = _with_tokens(found, iter_rows(source, split=split, revision=revision), how, count_tokens)
    return found


def _with_tokens(
    found: Audit, rows: Iterator[RawRow], how: Reading, count_tokens: Callable[[Sequence[str]], int]
) -> Audit:
    """The audit with tokens of prefixes and parts, from a second reading."""
    sums: Counter[tuple[PartName, str]] = Counter()
    for batch in batches(rows, 256):
        texts: dict[tuple[PartName, str], list[str]] = {}
        for raw in batch:
            for part in _usable_parts(raw, how):
                opening = find_opening(part.text, part.prompt, part.name)
                texts.setdefault((part.name, "tokens"), []).append(sound(part.text))
                if opening and opening.family != "refusal":
                    texts.setdefault((part.name, "prefix_tokens"), []).append(sound(part.text[: opening.end]))
        for key, some in texts.items():
            sums[key] += count_tokens(some)
    parts = {
        name: part.model_copy(update={kind: sums[name, kind] for kind in ("tokens", "prefix_tokens")})
        for name, part in found.parts.items()
    }
    return found.model_copy(update={"parts": parts})


def _usable_parts(raw: RawRow, how: Reading) -> list[Part]:
    layout = layout_of(raw.value, how.columns) if raw.value is not None else None
    try:
        return list(row_parts(raw.value, layout, how.turns)) if raw.value is not None and layout else []
    except Unusable:
        return []


def summarise(source: str, total: Tally, min_share: float) -> tuple[Audit, dict[Place, str]]:
    """The audit's record from all counts, and the ids of its templates."""
    parts = {name: _part_audit(total, name) for name in PARTS}
    mined = [found for name in PARTS if parts[name].n for found in _templates(total, name, min_share)]
    places = {place: f"t{i:02d}" for i, (place, _) in enumerate(mined, 1)}
    templates = [t.model_copy(update={"id": places[place]}) for place, t in mined]
    column = Counter({c: 0 for c, _, _ in total.sources})
    for (c, _, _), n in total.sources.items():
        column[c] += n
    chosen = column.most_common(1)[0][0] if column else None
    sources: dict[str, dict[str, int]] = {}
    for (c, value, family), n in total.sources.items():
        if c == chosen:
            sources.setdefault(value, {})[family or "none"] = n
    ranked = sorted(sources.items(), key=lambda item: -sum(item[1].values()))[:MAX_SOURCES]
    found = Audit(
        source=source,
        n_rows=total.n_rows,
        n_used=total.n_used,
        n_skipped=total.n_rows - total.n_used,
        skipped=tuple(Skipped(row=row, reason=why) for row, why in total.skipped[:LISTED]),
        skipped_by_reason=dict(total.reasons.most_common(50)),
        layouts=dict(total.layouts),
        parts=parts,
        templates=tuple(templates),
        slots=dict(total.slots.most_common(50)),
        slot_rows=tuple(total.slot_rows[:LISTED]),
        source_column=chosen if len(sources) > 1 else None,
        sources=dict(ranked) if len(sources) > 1 else {},
    )
    return found, places
