"""Removing openings, and giving them back: samples in memory, and whole files.

Outside the prefix only the first letter's case and leading white space change, nothing is ever emptied, and everything
removed is recorded. A stripped JSON or JSONL file differs from its source inside the changed texts only (key order,
escapes and number formats stay), and its record gives the source back byte for byte.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from prefixlab.data.openings import PREFIX_FAMILIES, find_opening
from prefixlab.data.parts import PartName
from prefixlab.data.words import Task
from prefixlab.records import Family, Sample, StripRecord

_RAISED = re.compile(r"(?:a|i|[a-z][^\W\d_]+)(?:['’][a-z]+)?(?=[,;:.!?]?(?:\s+[^\s=+*/<>&|^-]|\s*$))")
"""A first word that may be capitalised: a word of prose, no identifier, no call, no formula."""


@dataclass(frozen=True, slots=True)
class Cut:
    """What was cut from a text: text = removed + (lowered or the first character) + the rest's tail."""

    removed: str
    lowered: str
    """The first character of the rest before its case was changed; empty if it was not."""
    family: Family
    rest: str


def _content(text: str) -> str:
    """Text behind a prefix without the white space in front of it; the first line keeps its indentation."""
    bare = text.lstrip()
    gap = text[: len(text) - len(bare)]
    indent = gap[gap.rfind("\n") + 1 :] if "\n" in gap else ""
    return indent + bare if indent.strip(" \t") == "" else bare


def cut_opening(
    text: str, task: str | Task = "", name: PartName = "answer", families: Iterable[Family] = PREFIX_FAMILIES
) -> Cut | None:
    """Cut the prefix of a part, again until none is left; None if there is none to cut.

    Args:
        text: A part, white space around it allowed.
        task: The user's message before it.
        name: Which part it is.
        families: Families to cut, by the first sentence of each prefix.
    """
    known, wanted = Task(task) if isinstance(task, str) else task, frozenset(families)
    rest, family, start, lowered = text, None, 0, ""
    while True:  # each round leaves less text, so there is a last one
        found = find_opening(rest, known, name)
        if found is None or found.family not in wanted:
            break
        body = rest.lstrip()
        after = _content(body[found.end :])
        if not after.strip():
            break
        start = len(text) - len(after)
        family = family or found.family
        first = _RAISED.match(after) if body[found.end - 1] in '.!?…*_")”' else None
        lowered = after[0] if first and first.group().islower() else ""
        rest = lowered.upper() + after[1:] if lowered else after
    if family is None:
        return None
    return Cut(text[:start], lowered, family, rest)


def uncut(rest: str, removed: str, lowered: str) -> str:
    """The text before `cut_opening`."""
    return removed + (lowered + rest[1:] if lowered else rest)


def strip_sample(sample: Sample, families: Iterable[Family] = PREFIX_FAMILIES) -> tuple[Sample, list[StripRecord]]:
    """Remove the openings of a sample's answer and reasoning."""
    wanted, task = tuple(families), Task(sample.prompt)
    parts: dict[PartName, str | None] = {"answer": sample.answer, "reasoning": sample.reasoning}
    records = []
    for name, text in parts.items():
        cut = cut_opening(text, task, name, wanted) if text else None
        if cut is not None:
            parts[name] = cut.rest
            records.append(
                StripRecord(id=sample.id, part=name, removed=cut.removed, lowered=cut.lowered, family=cut.family)
            )
    return sample.model_copy(update={"answer": parts["answer"], "reasoning": parts["reasoning"]}), records


def restore_sample(sample: Sample, records: Sequence[StripRecord]) -> Sample:
    """Undo `strip_sample` exactly."""
    parts: dict[str, str | None] = {"answer": sample.answer, "reasoning": sample.reasoning}
    for record in records:
        parts[record.part] = uncut(parts[record.part] or "", record.removed, record.lowered)
    return sample.model_copy(update=parts)


def strip_all(
    samples: Sequence[Sample], families: Iterable[Family] = PREFIX_FAMILIES
) -> tuple[list[Sample], list[StripRecord]]:
    """Strip every sample; records of all of them."""
    wanted = tuple(families)
    pairs = [strip_sample(s, wanted) for s in samples]
    return [s for s, _ in pairs], [r for _, records in pairs for r in records]
