"""The rules of an answer's sentences: a family's pattern opens the sentence, and the sentence adds next to nothing.

A rule is a function from what is known so far and a sentence to a family, or None. To add one: write it, give its
patterns, and say which first words can open it.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from prefixlab.data import patterns as p
from prefixlab.data.sentences import Sentence
from prefixlab.data.words import Task
from prefixlab.records import Family


@dataclass(slots=True)
class Answer:
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


Rule = Callable[[Answer, str, Sentence], Family | None]


def _greeting(a: Answer, text: str, s: Sentence) -> Family | None:
    return "praise" if p.GREETING.match(text) else None


def _praise(a: Answer, text: str, s: Sentence) -> Family | None:
    if p.THANKS.match(text) and not a.adds(text, 2, 0.34):
        return "praise"
    if (p.PRAISE.match(text) or p.GLAD.match(text)) and not a.adds(text, 2, 0.3):
        return "praise"
    return None


def _apology(a: Answer, text: str, s: Sentence) -> Family | None:
    hedged = p.AS_AN_AI.match(text) and p.BUT_HERE.search(text) and not a.adds(text, 2, 0.2)
    return "disclaimer" if hedged or (p.APOLOGY.match(text) and not a.adds(text, 2, 0.3)) else None


def _foreign(a: Answer, text: str, s: Sentence) -> Family | None:
    if not p.FOREIGN.match(text):
        return None
    return "framing" if s.colon else "compliance"


def _framing(a: Answer, text: str, s: Sentence) -> Family | None:
    answers = not s.colon and a.adds(text, 2, 0.4)
    return "framing" if p.FRAMING.match(text) and not answers else None


def _start(a: Answer, text: str, s: Sentence) -> Family | None:
    return "compliance" if p.GO.match(text) else None


def _offer(a: Answer, text: str, s: Sentence) -> Family | None:
    return "compliance" if p.OFFER.match(text) and not a.adds(text, 3, 0.35) else None


def _manners(a: Answer, text: str, s: Sentence) -> Family | None:
    """How the answer will be given, after a courtesy."""
    meant = a.end and (p.MANNERS.match(text) or p.BEST.match(text))
    if not meant or (p.TELLS.search(text) and not p.ABOUT_ANSWER.search(text)):
        return None
    return None if a.adds(text, 2, 0.1) else "compliance"


def _usage(a: Answer, text: str, s: Sentence) -> Family | None:
    """How to use what was announced: "You can adapt it to your needs."."""
    used = a.announced and not a.later(s) and p.USAGE.match(text)
    return "framing" if used and not a.adds(text, 3, 0.3) else None


def _cue(a: Answer, text: str, s: Sentence) -> Family | None:
    if not p.LEAD.match(text) or p.SPECIFIC_START.match(text):
        return None
    later = a.later(s)
    return None if a.adds(text, 0 if later else 1 + s.colon, 0 if later else 0.15) else "reasoning_cue"


def _purpose(a: Answer, text: str, s: Sentence) -> Family | None:
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


def _asked(a: Answer, text: str, s: Sentence) -> Family | None:
    """The task told again: You are asking ..., The question is about ...."""
    if not p.ASKED.match(text) or p.FIRST.match(text) or (a.announced and a.later(s)):
        return None
    return None if a.adds(text, 1, 0.1) else "restating"


def lead_in(a: Answer, text: str, s: Sentence) -> Family | None:
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


_PATTERNS: dict[Rule, tuple[re.Pattern[str], ...]] = {
    _greeting: (p.GREETING,),
    _praise: (p.THANKS, p.PRAISE, p.GLAD),
    _apology: (p.AS_AN_AI, p.APOLOGY),
    _foreign: (p.FOREIGN,),
    _framing: (p.FRAMING,),
    _start: (p.GO,),
    _offer: (p.OFFER,),
    _manners: (p.MANNERS, p.BEST),
    _cue: (p.LEAD,),
    _usage: (p.USAGE,),
    _purpose: (p.TO_DO,),
    _asked: (p.ASKED,),
}
"""A rule can only hold where one of its patterns matches."""
# Which rules a first word can open; the order of the table is the order they are tried in.
_OPENERS: tuple[tuple[Rule, str], ...] = (
    (_greeting, "hello hi hey greetings good welcome bonjour hola hallo namaste"),
    (
        _praise,
        "good many thanks thank that this it what a an such quite indeed really very truly absolutely pretty "
        "great ah oh wow excellent interesting wonderful fantastic fascinating important thoughtful tricky "
        "classic fun lovely nice brilliant deep profound insightful complex challenging tough amazing "
        "terrific valid smart common creative delightful super timely big hard difficult unique intriguing "
        "thought exciting cool i congratulations hope",
    ),
    (_apology, "i my sincere apologies sorry unfortunately please while although but however as"),
    (
        _foreign,
        "bien certainement voici avec claro por desde aquí con aqui com certo certamente ecco gerne natürlich "
        "selbstverständlich klar hier natuurlijk",
    ),
    (_framing, "here below down the following please see find as presenting behold this these now so well and then"),
    (_start, "let shall so"),
    (_offer, "i we let allow it here happy glad always how and so as"),
    (_manners, "however but that and also as i the"),
    (_cue, "so now let i we shall"),
    (_usage, "you feel just please make be remember"),
    (_purpose, "in if to"),
    (_asked, "so you the your this given it we i when regarding"),
)
RULES: dict[str, tuple[Rule, ...]] = {}
for _rule, _words in _OPENERS:
    for _word in _words.split():
        RULES[_word] = (*RULES.get(_word, ()), _rule)


FOREIGN_RULES: tuple[Rule, ...] = (_foreign,)
"""Of sentences that begin outside the Latin letters."""
NEED_THE_END = frozenset(word for word, rules in RULES.items() if {_greeting, _start, _foreign} & set(rules))
"""First words of rules whose patterns reach to the sentence's end."""
ANY: dict[tuple[Rule, ...], re.Pattern[str]] = {
    rules: re.compile("|".join(f"(?:{pattern.pattern})" for rule in rules for pattern in _PATTERNS[rule]))
    for rules in {*RULES.values(), FOREIGN_RULES}
}
"""All patterns of some rules in one, to pass over most sentences at once."""
