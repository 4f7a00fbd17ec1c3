"""Finding and removing openings: which leading sentences of a response carry nothing the task asked for.

Rules, not a model. A part (reasoning or answer) is cut into leading sentences, or the leading clause up to its
colon; a sentence is an opening if one of the families' patterns covers it whole. Several in a row are one prefix.
A refusal is recognised but is content. A response that is nothing but a prefix keeps it.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from prefixlab.records import Sample, StripRecord

_TOPIC = r"(?:[^.!?:\n]|\.(?=\S))*"
_NOUN = (
    r"(?:answer|solution|explanation|response|reply|list|version|example|breakdown|summary|overview|guide|code|"
    r"program|function|way|result|steps?|tips?|ideas?|facts?|story|poem|email|letter)"
)
FAMILIES: dict[str, str] = {
    "compliance": r"(?:sure(?: thing)?|certainly|of course|absolutely|no problem|okay|ok|alright|definitely|"
    r"(?:i'?d|i would) be (?:happy|glad) to help" + _TOPIC + r"|happy to help" + _TOPIC + r"|"
    r"i can (?:certainly )?help (?:you )?with that)",
    "framing": r"(?:here(?: is|'s|’s| are)|below (?:is|are)|the following (?:is|are))\b"
    + _TOPIC
    + _NOUN
    + r"\b"
    + _TOPIC,
    "praise": r"(?:(?:that'?s |what )?(?:a |an )?(?:great|good|excellent|interesting|wonderful|fantastic) "
    r"(?:question|idea)"
    + _TOPIC
    + r"|hello(?: there)?|hi(?: there)?|greetings|thank you for (?:asking|your question|the question)"
    + _TOPIC
    + r")",
    "reasoning_cue": r"(?:let(?:'s|’s| us| me) (?:think|reason|work|go|break|walk|solve|figure)\b"
    + _TOPIC
    + r"|(?:okay|ok|alright)?,? ?so,? i(?: need| have|'m going) to figure (?:this )?out"
    + _TOPIC
    + r")",
    "disclaimer": r"as an (?:ai|artificial intelligence)(?: language)? (?:model|assistant)\b,? i" + _TOPIC,
}
_MATCH = {name: re.compile(rf"(?:{p})[.!:,]*$", re.IGNORECASE) for name, p in FAMILIES.items()}
_LEAD = re.compile(r"(?:sure(?: thing)?|certainly|of course|absolutely|okay|ok|alright)[,!.]?\s+(?=\S)", re.IGNORECASE)
_SENTENCE = re.compile(r"\s*(?:[^.!?:\n]|[.](?=\S))+?(?:[.!?]+(?=\s|$)|:(?=\s)|$)", re.DOTALL)
_REFUSAL = re.compile(
    r"\b(?:i(?:'m| am) (?:very |really )?sorry|i apologi[sz]e|i (?:can(?:no|')t|won't|will not|am not able to|"
    r"am unable to|do not feel comfortable))\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Opening:
    """A prefix found at the start of a part: [0, end) in code points of the part without leading white space."""

    end: int
    family: str


def _family(sentence: str) -> str | None:
    """The family whose pattern covers the whole sentence, also behind a short compliance word."""
    text = sentence.strip()
    rest = _LEAD.sub("", text, count=1) if _LEAD.match(text) else text
    for name, pattern in _MATCH.items():
        if pattern.fullmatch(text) or (rest != text and pattern.fullmatch(rest)):
            return name
    return None


def find_opening(part: str) -> Opening | None:
    """The prefix of one part, or None.

    Args:
        part: A reasoning or an answer; leading white space is ignored.
    """
    text = part.strip()
    end, family = 0, ""
    while match := _SENTENCE.match(text, end):
        found = None if _REFUSAL.search(match.group()) else _family(match.group())
        if found is None or not match.group().strip():
            break
        end, family = match.end(), family or found
    if not end or not text[end:].strip():
        return None
    return Opening(end=len(text[:end].rstrip()), family=family)


def is_refusal(text: str) -> bool:
    """Whether the first sentences of a text refuse."""
    return bool(_REFUSAL.search(text.strip()[:200]))


def _strip_part(sample_id: str, part: str, name: str) -> tuple[str, StripRecord | None]:
    found = find_opening(part)
    if found is None:
        return part, None
    body = part.lstrip()
    rest = body[found.end :].lstrip()
    removed = part[: len(part) - len(rest)]
    first = rest[0]
    raised = first.upper() if first.isascii() and first.islower() else first
    record = StripRecord(
        id=sample_id,
        part="reasoning" if name == "reasoning" else "answer",
        removed=removed,
        lowered=first if raised != first else "",
        family=found.family,
    )
    return raised + rest[1:], record


def strip_sample(sample: Sample) -> tuple[Sample, list[StripRecord]]:
    """Remove the openings of a response; outside them only the first letter's case and leading space may change."""
    records: list[StripRecord] = []
    answer, record = _strip_part(sample.id, sample.answer, "answer")
    records += [record] if record else []
    reasoning = sample.reasoning
    if reasoning is not None:
        reasoning, record = _strip_part(sample.id, reasoning, "reasoning")
        records += [record] if record else []
    return sample.model_copy(update={"answer": answer, "reasoning": reasoning}), records


def restore_sample(sample: Sample, records: Sequence[StripRecord]) -> Sample:
    """Undo `strip_sample` exactly."""
    parts: dict[str, str | None] = {"answer": sample.answer, "reasoning": sample.reasoning}
    for record in records:
        text = parts[record.part] or ""
        parts[record.part] = record.removed + (record.lowered + text[1:] if record.lowered else text)
    return sample.model_copy(update=parts)


def strip_all(samples: Sequence[Sample]) -> tuple[list[Sample], list[StripRecord]]:
    """Strip every sample; records of all of them."""
    pairs = [strip_sample(s) for s in samples]
    return [s for s, _ in pairs], [r for _, records in pairs for r in records]
