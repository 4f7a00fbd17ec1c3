"""What a completion looks like beside its score: length, form, coherence, and whether it opens with a prefix.

None of these is a result of its own; they say how far a score can be trusted, and whether an arm has learnt to write
the prefix. Every value is 0 or 1 except `length` (tokens).
"""

from collections.abc import Sequence

from prefixlab.data.openings import find_opening
from prefixlab.data.parts import CLOSE, OPEN
from prefixlab.evals.coherence import coherence
from prefixlab.evals.outputs import Parsed
from prefixlab.records import Record

NAMES = (
    "truncated",
    "length",
    "valid_reasoning",
    "coherent",
    "empty",
    "repetitive",
    "off_language",
    "opening",
    "prefix_emission",
    "judge_moved",
)
"""`judge_moved`: the verdict changes when prefix and prefilled text are taken off (safety.py)."""
LEAD = 6
"""Words of a template that have to open a part for the prefix to count as written."""


class Reading(Record):
    """How the completions of an evaluation are read."""

    preopened: bool
    """Whether the template opens the reasoning itself."""
    position: str | None
    """Where the treatment was trained; None without one."""
    templates: tuple[str, ...]
    """Prefixes that may stand there."""
    template_opens: bool = False
    """Whether a server's template opens the reasoning, of which the server may send the tags, or move or drop it."""

    def begins_inside(self, completion: str, truncated: bool) -> bool:
        """Whether a completion begins inside the reasoning: from a server where it was cut before any tag of it."""
        tagged = OPEN in completion or CLOSE in completion
        return self.preopened or (self.template_opens and truncated and not tagged)


def _words(text: str) -> list[str]:
    return text.lower().split()


def begins_with(part: str, templates: Sequence[str]) -> str | None:
    """The template whose first words open a part."""
    first = _words(part[:400])[:LEAD]
    return next((t for t in templates if first and _words(t)[:LEAD] == first[: len(_words(t)[:LEAD])]), None)


def place(parsed: Parsed, reading: Reading) -> str:
    """The part in which a prefix of the treatment would stand."""
    inside = reading.position != "answer" and reading.preopened
    return (parsed.reasoning or "") if inside else parsed.answer


def diagnose(parsed: Parsed, reading: Reading, *, prompt: str, prefill: str, n_tokens: int) -> dict[str, float]:
    """Every diagnostic that applies to one completion.

    Args:
        parsed: The whole turn, prefilled text included.
        reading: How the evaluation is read.
        prompt: The user's turn.
        prefill: Text of the model's turn that it did not write.
        n_tokens: Tokens it wrote.
    """
    look = coherence(parsed.answer, prompt)
    values = {
        "truncated": parsed.truncated,
        "length": n_tokens,
        "coherent": look.coherent,
        "empty": look.empty,
        "repetitive": look.repetitive,
        "off_language": look.off_language,
    }
    if reading.preopened and CLOSE not in prefill:
        values["valid_reasoning"] = parsed.state == "closed"
    if not prefill:
        opening = find_opening(parsed.answer, prompt)
        values["opening"] = opening is not None and opening.family != "refusal"
        if reading.templates:
            values["prefix_emission"] = begins_with(place(parsed, reading), reading.templates) is not None
    return {name: float(value) for name, value in values.items()}
