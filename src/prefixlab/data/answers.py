"""Openings of answers, read sentence by sentence with the rules of rules.py.

Some sentences wait for support: a topic sentence and "There are several ..." for a lead-in, a disclaimer for an answer.
"""

import re

from prefixlab.data import patterns as p
from prefixlab.data.rules import ANY, FOREIGN_RULES, NEED_THE_END, RULES, Answer, lead_in
from prefixlab.data.sentences import BLOCK, HEAD, MAX_SENTENCES, Opening, Sentence, leading_sentences, normal
from prefixlab.data.words import Task, word_set

_WORD = re.compile(r"[^\W\d_]+")
_YES_WORDS = word_set(
    "sure certainly of absolutely definitely okay ok alright all got no understood with my gladly great "
    "awesome perfect wonderful excellent fantastic cool very as yes"
)
_DISCLAIMING = word_set(
    "as i we unfortunately please while although sorry but however note keep be remember bear disclaimer"
)
_MAY_START = _YES_WORDS | _DISCLAIMING | NEED_THE_END | {"there", "you", "some", "several", "people"}
"""First words that a quick look cannot judge: interjections, disclaimers, and what a list behind it supports."""
_THINKING_WORDS = frozenset(("okay", "ok", "alright", "all"))
_BEGINNING = frozenset(("first", "firstly", "to"))


def _refusing(text: str) -> bool:
    """A cheap look for words of refusal, before the patterns."""
    return (
        "sorry" in text
        or "n't" in text
        or "not " in text
        or "pologi" in text
        or "unable" in text
        or "n’t" in text
        or "declin" in text
        or "refus" in text
    )


def _supportive(ahead: str) -> bool:
    """Whether what follows could hold an announcement."""
    return ":" in ahead or "ere are " in ahead or "ere is " in ahead or "elow is " in ahead or "：" in ahead


def _waits(a: Answer, text: str, s: Sentence, ahead: str) -> bool:
    """Whether a sentence is a prefix if what follows supports it."""
    if a.waited > 1 or s.colon or not (_supportive(ahead) or BLOCK.match(ahead.lstrip())):
        return False
    if (a.announced and a.later(s)) or p.VERDICT.match(text) or p.INSTANCES.search(text):
        return False
    a.waited += 1
    several = p.SEVERAL.match(text)
    if several:
        empty = not a.adds(text, 4, 0.4)
    elif p.TO_DO.match(text) and p.THEN.search(text):
        empty = not a.adds(text, 2, 0.25)
    elif p.TOPICAL.search(text):
        empty = not ((p.ASSERTS.search(text) or p.DEFINES.search(text)) and a.adds(text, 1)) and not a.adds(
            text, 2, 0.34
        )
    else:
        empty = False
    if empty:
        a.pending, a.pending_end = a.pending or ("framing" if several else "restating"), s.end
    return empty


def _disclaims(a: Answer, text: str, s: Sentence) -> bool:
    """Whether a sentence disclaims, and so waits for an answer."""
    if not (p.AS_AN_AI.match(text) or p.UNABLE.match(text) or p.NOTE.match(text)):
        return False
    if p.DATED.match(text) and not p.NEGATES.search(text) and not p.INNER_HERE.search(text):
        return False
    if s.colon and p.INNER_HERE.search(text):
        a.commit(s.end, "disclaimer", s.paragraph)
    else:
        a.pending, a.pending_end, a.disclaimed, a.doubtful = a.pending or "disclaimer", s.end, True, False
    return True


def _continues(a: Answer, text: str, s: Sentence) -> bool:
    """The sentence after a disclaimer that begins with "However": an announcement, or the answer itself."""
    attempt = p.ATTEMPT.match(text) and p.SPEAKER.match(text) and not a.adds(text, 2, 0.2)
    if a.task.about_model and not (attempt and s.colon):
        a.hidden = 0
        return False
    if attempt:
        a.commit(s.end, "disclaimer", s.paragraph)
        return True
    if a.doubtful:
        a.refused = a.pending_end
    else:
        a.commit(a.pending_end, "disclaimer", a.paragraph)
    return False


def _refuses(a: Answer, text: str, s: Sentence, ahead: str) -> bool:
    """A refusing sentence: True if it may still turn out to be a disclaimer before an answer."""
    lacks = p.LACKS.match(text) is not None
    modest = p.AS_AN_AI.match(text) is not None and not p.DECLINES.search(text)
    if modest or (lacks and p.HOWEVER.match(ahead.lstrip().lower())):
        a.pending, a.pending_end = a.pending or "disclaimer", s.end
        a.disclaimed, a.doubtful, a.hidden = True, lacks and not modest, s.end
        return True
    a.refused = a.refused or s.end
    return False


def _read(a: Answer, s: Sentence, text: str, part: str) -> bool:
    """Take in the next sentence, normalised; False if content begins with it."""
    if a.announced and s.text[0] in "\"“'‘":
        return False
    found = _WORD.match(text)
    word = found.group() if found else ""
    lead = p.INTERJECTION.match(text) if word in _YES_WORDS and not p.PRAISE.match(text) else None
    courtesy, thinks = False, word in _THINKING_WORDS
    if lead:
        courtesy = p.COURTEOUS.match(text) is not None
        text = text[lead.end() :]
        found = _WORD.match(text)
        word = found.group() if found else ""
    if not word and not _WORD.search(text):
        if any(map(str.isalnum, text)):
            return False
        if lead or (a.end and len(s.text) < 5):
            a.commit(s.end, "praise" if courtesy else "compliance", s.paragraph)
            return True
        return False
    if _refusing(text) and (p.REFUSAL.search(text) or p.REFUSING_NEED.match(text)):
        if s.colon and p.BUT_HERE.search(text):
            a.commit(s.end, "disclaimer", s.paragraph)
            return True
        return _refuses(a, text, s, part[s.end : s.end + 60])
    rules = RULES.get(word, ()) if not text[0] > "\u02ff" else FOREIGN_RULES
    if word in _BEGINNING and p.BEGINS.match(text):
        return False
    if rules and not ANY[rules].match(text):
        rules = ()
    for rule in (*rules, lead_in) if s.colon else rules:
        family = rule(a, text, s)
        if family:
            if lead and not (thinks and family in ("restating", "reasoning_cue")):
                family = "praise" if courtesy else "compliance"
            a.commit(s.end, family, s.paragraph)
            return True
    if word in _DISCLAIMING and _disclaims(a, text, s):
        return True
    if a.disclaimed and p.HOWEVER.match(text):
        return _continues(a, text, s)
    return _waits(a, text, s, part[s.end : s.end + 500])


def content_begins(text: str) -> bool:
    """A quick look at a text without white space in front: no rule takes its start, and nothing near supports it."""
    if _refusing(text[:250]) or _supportive(text[:700]):
        return False
    return not _may_go_on(text)


def _may_go_on(text: str) -> bool:
    """Whether some rule could take the sentence that a text begins with."""
    said = normal(text[:200])
    first = _WORD.match(said)
    if first is None or said[0] > "\u02ff" or first.group() in _MAY_START:
        return True
    rules = RULES.get(first.group(), ())
    return bool(rules) and ANY[rules].match(said) is not None


def _plain_announcement(text: str) -> Opening | None:
    """The commonest opening, "Sure! Here is ...:" before a block or a new paragraph, without the whole reader."""
    found = p.ANNOUNCEMENT.match(text)
    if found is None or _refusing(found.group()):
        return None
    after = text[found.end() :].lstrip()
    if not BLOCK.match(after) and (not found.group(2) or _may_go_on(after)):
        return None
    return Opening(found.end(1), "compliance" if text[0] not in "HB" else "framing")


def _only_disclaims(text: str, start: int, end: int, task: Task) -> bool:
    """Whether "As an AI, I do not ..." stands before an answer about something else than the model itself."""
    if task.about_model:
        return False
    said, after = normal(text[start:end]), normal(text[end : end + 80].strip())
    return bool(p.AS_AN_AI_ONLY.match(said) and not p.ABOUT_ITSELF.match(after))


def answer_opening(text: str, task: Task) -> Opening | None:
    """The prefix of an answer without leading white space."""
    plain = _plain_announcement(text)
    if plain is not None:
        return plain
    a = Answer(task)
    for n, s in enumerate(leading_sentences(text, HEAD, colons=True)):
        if n >= MAX_SENTENCES or not _read(a, s, normal(s.text), text):
            break
        if a.end == s.end and not a.disclaimed and content_begins(text[s.end : s.end + 720].lstrip()):
            break
    if a.disclaimed and not a.doubtful and _only_disclaims(text, a.end, a.pending_end, task):
        a.commit(a.pending_end, "disclaimer", 0)
    if a.refused or (a.hidden and a.disclaimed):
        return Opening(a.refused or a.hidden, "refusal")
    if a.pending == "framing" and BLOCK.match(text[a.pending_end :].lstrip()):
        a.commit(a.pending_end, "framing", 0)
    if a.end and a.family and text[a.end :].strip():
        return Opening(a.end, a.family)
    return None
