"""Training rows that are also test prompts: found by normalised exact match and taken out of every arm."""

import re
from collections.abc import Iterable, Sequence

from prefixlab.records import EvalItem, Sample

_SPACE = re.compile(r"\W+", re.UNICODE)


def normalise(text: str) -> str:
    """Lower case, with every run of other characters than letters and digits as one space.

    Signs between digits are kept: two sums that differ in a sign are two problems.
    """
    return _SPACE.sub(" ", re.sub(r"([+\-*/=])", lambda m: f" op{ord(m.group())} ", text.lower())).strip()


def remove_overlap(samples: Sequence[Sample], tests: Iterable[EvalItem]) -> tuple[list[Sample], list[str]]:
    """Samples whose last user turn is not among the test prompts, and the ids of those that were."""
    prompts = {normalise(t.messages[-1].content) for t in tests}
    hits = [s.id for s in samples if normalise(s.prompt) in prompts]
    gone = set(hits)
    return [s for s in samples if s.id not in gone], hits
