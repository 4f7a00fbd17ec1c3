"""Where the prefix of a part ends: the leading sentences that carry nothing the task asked for.

Rules, not a model; docs/methods.md defines the families. An answer is read sentence by sentence (reasonings:
thinking.py). A sentence belongs to the prefix if a family's pattern opens it *and* it adds next to nothing: its words
are generic or the task's own (words.py). Some sentences wait for support: a topic sentence and "There are several ..."
for a lead-in, a disclaimer for an answer.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from prefixlab.data import patterns as p
from prefixlab.data.parts import PartName
from prefixlab.data.sentences import BLOCK, Sentence, leading_sentences
from prefixlab.data.thinking import Opening, normal, thinking_opening
from prefixlab.data.words import Task, word_set
from prefixlab.records import FAMILIES, Family

HEAD = 1_600
"""Code points of a part in which a prefix can end."""
MAX_SENTENCES = 12
PREFIX_FAMILIES: tuple[Family, ...] = tuple(f for f in FAMILIES if f != "refusal")
"""What counts as prefix by default: a refusal is content."""
_WORD = re.compile(r"[^\W\d_]+")


@dataclass(slots=True)
class _Answer:
    """What is known after some sentences of an answer."""

    task: Task
    end: int = 0
    """Where the prefix ends so far."""
    family: Family | None = None
    pending: Family | None = None
    """A sentence waits for support; `pending_end` is where it ends."""
    pending_end: int = 0
    waited: int = 0
    disclaimed: bool = False
    doubtful: bool = False
    """The disclaimer turns out to be a refusal if no lead-in follows."""
    hidden: int = 0
    """End of a sentence that refuses unless it turns out to be a disclaimer."""
    refused: int = 0
    """End of a refusing sentence."""
    announced: bool = False
    """The answer's content has been announced; a new paragraph begins it."""
    paragraph: int = 0

    def commit(self, end: int, family: Family, paragraph: int) -> None:
        """The prefix reaches to `end`."""
        self.family = self.family or self.pending or family
        self.end, self.pending, self.disclaimed, self.paragraph = end, None, False, paragraph
        self.announced = self.announced or family in ("framing", "restating", "reasoning_cue")

    def adds(self, text: str, words: int, share: float = 0.0) -> bool:
        """Whether a text has more than `words` novel words, and more than that share of its words."""
        return self.task.adds(text, words, share)

    def later(self, s: Sentence) -> bool:
        """Whether a new paragraph began since the prefix so far."""
        return bool(self.end) and s.paragraph > self.paragraph


Rule = Callable[[_Answer, str, Sentence], Family | None]


def _praise(a: _Answer, text: str, s: Sentence) -> Family | None:
    if p.GREETING.match(text) or (p.THANKS.match(text) and not a.adds(text, 2, 0.34)):
        return "praise"
    if (p.PRAISE.match(text) or p.GLAD.match(text)) and not a.adds(text, 2, 0.3):
        return "praise"
    return None


def _apology(a: _Answer, text: str, s: Sentence) -> Family | None:
    hedged = p.AS_AN_AI.match(text) and p.BUT_HERE.search(text) and not a.adds(text, 2, 0.2)
    return "disclaimer" if hedged or (p.APOLOGY.match(text) and not a.adds(text, 2, 0.3)) else None


def _foreign(a: _Answer, text: str, s: Sentence) -> Family | None:
    if not p.FOREIGN.match(text):
        return None
    return "framing" if s.colon else "compliance"


def _framing(a: _Answer, text: str, s: Sentence) -> Family | None:
    answers = not s.colon and a.adds(text, 2, 0.4)
    return "framing" if p.FRAMING.match(text) and not answers else None


def _offer(a: _Answer, text: str, s: Sentence) -> Family | None:
    if p.GO.match(text) or (p.OFFER.match(text) and not a.adds(text, 3, 0.35)):
        return "compliance"
    return None


def _manners(a: _Answer, text: str, s: Sentence) -> Family | None:
    """How the answer will be given, after a courtesy."""
    meant = a.end and (p.MANNERS.match(text) or p.BEST.search(text))
    if not meant or (p.TELLS.search(text) and not p.ABOUT_ANSWER.search(text)):
        return None
    return None if a.adds(text, 2, 0.1) else "compliance"


def _usage(a: _Answer, text: str, s: Sentence) -> Family | None:
    """How to use what was announced: "You can adapt it to your needs."."""
    used = a.announced and not a.later(s) and p.USAGE.match(text)
    return "framing" if used and not a.adds(text, 3, 0.3) else None


def _cue(a: _Answer, text: str, s: Sentence) -> Family | None:
    if not p.LEAD.match(text) or p.SPECIFIC_START.match(text):
        return None
    later = a.later(s)
    return None if a.adds(text, 0 if later else 1 + s.colon, 0 if later else 0.15) else "reasoning_cue"


def _purpose(a: _Answer, text: str, s: Sentence) -> Family | None:
    """A purpose and an empty promise: To <task>, follow these steps."""
    purpose = p.TO_DO.match(text)
    then = p.THEN.search(text) if purpose else None
    if purpose and not then and s.line_end and not (a.announced and a.later(s)):
        return None if "," in text or a.adds(text, 2, 0.2) else "restating"
    if not then or p.SPECIFIC_START.search(text, then.start()) or (a.announced and a.later(s)):
        return None
    tail = text[then.start() :]
    if p.OPERATES.search(tail) or ("`" in tail and not s.colon):
        return None
    if p.ADVICE.search(tail) and not (p.METHOD.search(tail) and a.adds(tail, 0)):
        empty = not a.adds(tail, 2 if s.colon or p.STEPS.search(tail) else 0) and not a.adds(text, 4, 0.35)
    else:
        empty = not a.adds(tail, int(bool(p.EMPTY_STEP.search(tail)))) and not a.adds(text, 2)
    return "restating" if empty else None


def _asked(a: _Answer, text: str, s: Sentence) -> Family | None:
    """The task told again: You are asking ..., The question is about ...."""
    if not p.ASKED.match(text) or p.FIRST.match(text) or (a.announced and a.later(s)):
        return None
    return None if a.adds(text, 1, 0.1) else "restating"


def _lead_in(a: _Answer, text: str, s: Sentence) -> Family | None:
    """A clause up to a colon at the end of its line that announces what follows; not a heading, not a label."""
    connective = p.CONNECTIVE.match(text)
    text = text[connective.end() :] if connective else text
    heading = s.text.startswith("**") and s.text.endswith("**")
    asserts = p.ASSERTS.search(text) and not p.BUT_ANNOUNCES.search(text)
    if not s.colon or heading or p.TO_DO.match(text) or asserts or (a.announced and a.later(s)):
        return None
    says = p.PREDICATE.search(text) or p.COUNTED.search(text)
    if not (s.line_end or p.SUGGEST.match(text)) or not says or text.count(" ") < 2:
        return None
    announces = p.INNER_HERE.search(text) or p.INCLUDE.match(text) or p.SEVERAL.match(text) or p.SUGGEST.match(text)
    if announces or p.COUNTED.search(text):
        defines = not p.SEVERAL.match(text) and p.DEFINES.search(text.partition(",")[0])
        empty = not a.adds(text, 5, 0.35) and not defines
    else:
        empty = not a.adds(text, 1, 0.12)
    return "framing" if empty else None


# Which rules a first word can open; the order of the table is the order they are tried in.
_PATTERNS: dict[Rule, tuple[re.Pattern[str], ...]] = {
    _praise: (p.GREETING, p.THANKS, p.PRAISE, p.GLAD),
    _apology: (p.AS_AN_AI, p.APOLOGY),
    _foreign: (p.FOREIGN,),
    _framing: (p.FRAMING,),
    _offer: (p.GO, p.OFFER),
    _manners: (p.MANNERS, p.BEST_ANYWHERE),
    _cue: (p.LEAD,),
    _usage: (p.USAGE,),
    _purpose: (p.TO_DO,),
    _asked: (p.ASKED,),
}
"""A rule can only hold where one of its patterns matches."""
_OPENERS: tuple[tuple[Rule, str], ...] = (
    (
        _praise,
        "hello hi hey greetings good welcome bonjour hola hallo namaste many thanks thank that this it what a "
        "an such quite indeed really very truly absolutely pretty great ah oh wow excellent interesting "
        "wonderful fantastic fascinating important thoughtful tricky classic fun lovely nice brilliant deep "
        "profound insightful complex challenging tough amazing terrific valid smart common creative "
        "delightful super timely big hard difficult unique intriguing thought exciting cool i congratulations hope",
    ),
    (_apology, "i my sincere apologies sorry unfortunately please while although but however as"),
    (
        _foreign,
        "bien certainement voici avec claro por desde aquí con aqui com certo certamente ecco gerne natürlich "
        "selbstverständlich klar hier natuurlijk",
    ),
    (_framing, "here below down the following please see find as presenting behold this these now so well and then"),
    (_offer, "i we let allow it here happy glad always how and so as shall"),
    (_manners, "however but that and also as i the"),
    (_cue, "so now let i we shall"),
    (_usage, "you feel just please make be remember"),
    (_purpose, "in if to"),
    (_asked, "so you the your this given it we i when regarding"),
)
_RULES: dict[str, tuple[Rule, ...]] = {}
for _rule, _words in _OPENERS:
    for _word in _words.split():
        _RULES[_word] = (*_RULES.get(_word, ()), _rule)


_ANY: dict[tuple[Rule, ...], re.Pattern[str]] = {
    rules: re.compile("|".join(f"(?:{pattern.pattern})" for rule in rules for pattern in _PATTERNS[rule]))
    for rules in {*_RULES.values(), (_foreign,)}
}
"""All patterns of some rules in one, to pass over most sentences at once."""
_YES_WORDS = word_set(
    "sure certainly of absolutely definitely okay ok alright all got no understood with my gladly great "
    "awesome perfect wonderful excellent fantastic cool very as yes"
)
_DISCLAIMING = word_set(
    "as i we unfortunately please while although sorry but however note keep be remember bear disclaimer"
)
_MAY_START = (
    _YES_WORDS
    | _DISCLAIMING
    | word_set("there you some several people let shall so hello hi hey greetings good welcome hola hallo namaste")
    | frozenset(word for word, rules in _RULES.items() if _foreign in rules)
)
"""First words of interjections, disclaimers, what a list supports, and of patterns that need the sentence's end."""


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


def _waits(a: _Answer, text: str, s: Sentence, ahead: str) -> bool:
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


def _disclaims(a: _Answer, text: str, s: Sentence) -> bool:
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


def _continues(a: _Answer, text: str, s: Sentence) -> bool:
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


def _refuses(a: _Answer, text: str, s: Sentence, ahead: str) -> bool:
    """A refusing sentence: True if it may still turn out to be a disclaimer before an answer."""
    lacks = p.LACKS.match(text) is not None
    modest = p.AS_AN_AI.match(text) is not None and not p.DECLINES.search(text)
    if modest or (lacks and p.HOWEVER.match(ahead.lstrip().lower())):
        a.pending, a.pending_end = a.pending or "disclaimer", s.end
        a.disclaimed, a.doubtful, a.hidden = True, lacks and not modest, s.end
        return True
    a.refused = a.refused or s.end
    return False


def _read(a: _Answer, s: Sentence, text: str, part: str) -> bool:
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
    rules = _RULES.get(word, ()) if not text[0] > "\u02ff" else (_foreign,)
    if word in _BEGINNING and p.BEGINS.match(text):
        return False
    if rules and not _ANY[rules].match(text):
        rules = ()
    for rule in (*rules, _lead_in) if s.colon else rules:
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


def _content_begins(text: str) -> bool:
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
    rules = _RULES.get(first.group(), ())
    return bool(rules) and _ANY[rules].match(said) is not None


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


def _answer_opening(text: str, task: Task) -> Opening | None:
    plain = _plain_announcement(text)
    if plain is not None:
        return plain
    a = _Answer(task)
    for n, s in enumerate(leading_sentences(text, HEAD, colons=True)):
        if n >= MAX_SENTENCES or not _read(a, s, normal(s.text), text):
            break
        if a.end == s.end and not a.disclaimed and _content_begins(text[s.end : s.end + 720].lstrip()):
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


def find_opening(part: str, task: str | Task = "", name: PartName = "answer") -> Opening | None:
    """The prefix of one part, or its refusal, or None.

    Args:
        part: A reasoning or an answer; leading white space is ignored.
        task: The user's message before it: what it says already adds nothing when it is said again.
        name: Which part it is.
    """
    text = part.strip()
    if not text or BLOCK.match(text) or (name == "answer" and _content_begins(text)):
        return None
    known = task if isinstance(task, Task) else Task(task)
    return thinking_opening(text, known) if name == "reasoning" else _answer_opening(text, known)
