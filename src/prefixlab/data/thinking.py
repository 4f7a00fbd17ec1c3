"""Openings of reasonings: thinking aloud before the first thought ("Okay, so I need to figure out ...")."""

from prefixlab.data import patterns as p
from prefixlab.data.sentences import HEAD, MAX_SENTENCES, Opening, Sentence, leading_sentences, normal
from prefixlab.data.words import Task
from prefixlab.records import Family


def thinking_opening(text: str, task: Task) -> Opening | None:
    """The prefix of a reasoning without leading white space."""
    end, family, paragraph = 0, None, 0
    for n, s in enumerate(leading_sentences(text, HEAD, colons=False)):
        found = None if n >= MAX_SENTENCES else _family(s, task, first=n == 0, later=s.paragraph > paragraph)
        if found is None:
            break
        end, family, paragraph = s.end, family or found, s.paragraph
    if end and family and text[end:].strip():
        return Opening(end, family)
    return None


def _family(s: Sentence, task: Task, *, first: bool, later: bool) -> Family | None:
    """The family of one sentence of thinking aloud; `later`: a new paragraph began with it."""
    text = normal(s.text)
    lead = p.THINKING.match(text)
    rest = text[lead.end() :] if lead else text
    if p.FIRST.match(rest):
        return None
    novel, total = task.novelty(rest)
    if not total:
        return "reasoning_cue"
    recalls = bool(p.RECALL.match(rest))
    if p.VAGUE.match(rest) and novel <= (1 if recalls else max(1, 0.2 * total)):
        return "reasoning_cue"
    if p.SPECIFIC_START.match(rest):
        return "reasoning_cue" if not later and novel <= 2 and p.EMPTY_START.match(rest) else None
    if p.CUE.match(rest) and novel <= max(1, 0.15 * total):
        return "reasoning_cue"
    if recalls or later:
        return None
    if p.SELF_TASK.match(rest) and novel <= max(2, 0.25 * total):
        return "reasoning_cue" if lead else "restating"
    if p.SOUNDS.match(rest) and novel <= max(2, 0.34 * total):
        return "reasoning_cue"
    allowed = max(1, 0.15 * total) if total > 5 else 0
    if ((p.JUDGE.match(rest) and not p.DEFINES.search(rest)) or lead) and novel <= allowed:
        return "reasoning_cue"
    if p.TO_DO.match(rest) and (p.EMPTY_PLAN.search(rest) if p.STARTING.search(rest) or novel else True):
        return "restating" if novel <= max(2, 0.15 * total) else None
    return "restating" if not first and novel == 0 and (task.echoes(rest) or rest.endswith("?")) else None
