"""Short facts, as in SimpleQA and PopQA: does an accepted answer stand in the reply?

This is a PROXY. OpenAI's SimpleQA has a model as its grader, PopQA takes any alias anywhere in the text. Here an alias
counts where it stands as whole words, is not denied ("not Paris but Lyon") and is the only candidate ("Paris or Lyon"
is a hedge). Case, accents, punctuation, articles, the order of dates, middle initials, and number words up to twenty
make no difference. It cannot see a paraphrase, a longer name around an alias, or candidates joined in other ways.

    grade_fact("It was signed on 5 March 1990.", ["March 5, 1990"])
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

from prefixlab.data.words import word_set
from prefixlab.errors import UserError
from prefixlab.evals.numeric import number


@dataclass(frozen=True)
class FactGraded:
    """Correct, incorrect, or not attempted."""

    correct: bool | None
    """None where nothing was attempted: an empty reply, or one that says it does not know."""
    answer: str
    """The accepted answer that was found, else the beginning of the reply."""
    reason: str = ""

    @property
    def attempted(self) -> bool:
        """Whether the reply gives an answer at all."""
        return self.correct is not None


@dataclass(frozen=True)
class _Word:
    text: str
    """Folded: lower case, no accents, digits for number words."""
    raw: str
    gap: str
    """What stands between it and the word before."""

    @property
    def initial(self) -> bool:
        return len(self.raw) <= 3 and self.raw.isalpha() and self.raw.isupper()

    @property
    def named(self) -> bool:
        """Whether it could begin or end a name or be a number."""
        return self.raw[0].isupper() or self.raw[0].isdigit()


def _list(text: str) -> list[str]:
    return text.split()


_COUNTS = _list(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty"
)
_DIGITS = {word: str(value) for value, word in enumerate(_COUNTS)}
_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_MONTHS = _list("january february march april may june july august september october november december")
_MONTH = {name[:n]: name for name in _MONTHS for n in (3, len(name))} | {"sept": "september"}
_ARTICLES = word_set("the a an")
_LETTERS = str.maketrans("øØłŁđĐıð’‘−", "oOlLdDid''-") | str.maketrans(
    {"æ": "ae", "Æ": "Ae", "œ": "oe", "Œ": "Oe", "ß": "ss", "þ": "th"}
)
_ISO = re.compile(r"\b(\d{4})-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])\b")
_TOKEN = re.compile(
    r"(?P<number>(?:(?<![\w)])-)?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?)(?P<tail>[^\W\d_]*)|(?P<word>[^\W_]+)"
)
_ORDINALS = word_set("st nd rd th")
_STOP = re.compile(r"[!?;\n]")
_BREAK = re.compile(r"[.,;:!?()\n]")
_CODES = word_set(
    "am an and are as at be but by ca can de do es go he if ii in is it la le me my na no not of on one or so sri the "
    "to up us was we who"
)
"""Words that are also country codes and the like: as an alias they count in capitals only, or as the whole reply."""

_DENIALS = word_set("not never isnt wasnt arent werent neither nor unlike than excluding")
_DENIED_AFTER = re.compile(r"(?:is|was|are|were) (?:not|never|wrong|incorrect)(?! (?:only|just))\b|(?:isnt|wasnt)\b")
_FILLERS = word_set("the a an in at on by of from for to as called named city town country actually really born with")
_AROUND_OR = word_set(
    "the a an perhaps maybe possibly probably likely it he she they that could might may be is was in by at on either "
    "also even from"
)
_AFTER_OR = word_set("so thereabouts more less fewer earlier later simply just otherwise rather better known called")
_CORRECTION = re.compile(r"(?:^|[.!?\n…—-]\s*)(?:no[,.]? )?(?:wait|scratch that|correction|i mean)\b[,:.!]?", re.I)
_ABSTAINS = re.compile(
    r"\b(?:do not|don't|dont|did not|didn't) (?:\w+ ){0,2}(?:know|recall|remember|have (?:\w+ ){0,3}"
    r"(?:information|access|knowledge|data|details|records?|answer))\b"
    r"|\bi(?:'m| am)(?: \w+)? (?:not (?:\w+ )?(?:sure|certain|aware|familiar|able)|unable|unsure|uncertain)\b"
    r"|\b(?:cannot|can't|can not|could not|couldn't|unable to) (?:\w+ ){0,2}(?:find|answer|verify|confirm|provide|"
    r"determine|recall|say|tell|help|assist|access|identify|give)\b"
    r"|\b(?:have|there is|there's|found) (?:no|not enough|insufficient) (?:\w+ ){0,2}"
    r"(?:information|data|records?|knowledge|idea|answer|clue)\b"
    r"|\b(?:is|are|was|were|remains?) (?:currently |still )?"
    r"(?:unknown|unclear|not (?:\w+ )?(?:known|available|clear))\b"
    r"|^\W*(?:unknown|n/?a|no idea|not sure|none)\W*$",
    re.IGNORECASE,
)
_GUESSES = re.compile(
    r"\b(?:i(?:'d| would)? (?:\w+ )?(?:think|believe|guess|say)|my (?:best )?guess|probably|perhaps|possibly|"
    r"(?:might|may|could) (?:be|have been))\b",
    re.IGNORECASE,
)


def _folded(text: str) -> str:
    """Plain letters in their case; no accents, apostrophes or possessives; ISO dates spelt out."""
    text = unicodedata.normalize("NFKD", text.translate(_LETTERS))
    text = "".join(c for c in text if not unicodedata.combining(c))
    text = re.sub(r"(?<=\w)'s\b", "", text).replace("'", "").replace("&", " and ").replace("%", " percent ")
    return _ISO.sub(lambda m: f"{int(m[3])} {_MONTHS[int(m[2]) - 1]} {m[1]}", text)


def _tokens(text: str) -> list[_Word]:
    """Words and numbers in order; dotted initials are one word, "1.5 million" is one number."""
    words: list[_Word] = []
    at = 0
    for found in _TOKEN.finditer(text):
        gap, at, raw = text[at : found.start()], found.end(), found.group()
        digits = found["number"] and number(found["number"])
        if digits:
            tail = found["tail"].casefold()
            folded = digits if not tail or tail in _ORDINALS else raw.casefold()
        else:
            folded = raw.casefold()
            folded = _DIGITS.get(folded, folded)
        last = words[-1] if words else None
        if last and gap.strip() == "." and len(raw) == 1 and raw.isupper() and last.initial:
            words[-1] = _Word(last.text + folded, last.raw + raw, last.gap)
        elif last and folded in _SCALES and not gap.strip() and (size := number(last.text)) and "/" not in size:
            words[-1] = _Word(number(str(Fraction(size) * _SCALES[folded])) or folded, last.raw, last.gap)
        else:
            words.append(_Word(folded, raw, gap))
    return words


def _day(word: _Word) -> bool:
    return word.raw[0].isdigit() and word.text.isdecimal() and 1 <= int(word.text) <= 31


def _ordered_dates(words: list[_Word]) -> list[_Word]:
    """The words with dates as day, month, year, whatever their order was, and months in full."""
    out = list(words)
    for i, word in enumerate(words):
        month = _MONTH.get(word.text)
        if month is None:
            continue
        before = out[i - 1] if i and not _STOP.search(word.gap) else None
        after = words[i + 1] if i + 1 < len(words) and not _STOP.search(words[i + 1].gap) else None
        full = _Word(month, word.raw, word.gap)
        if before and before.text == "of" and i > 1 and _day(out[i - 2]):
            out[i - 1], out[i] = full, _Word("of", "of", " ")
        elif (before and _day(before)) or (after and re.fullmatch(r"\d{4}", after.text)):
            out[i] = full
        elif after and _day(after):
            out[i], out[i + 1] = _Word(after.text, after.raw, word.gap), _Word(month, word.raw, " ")
    return [w for i, w in enumerate(out) if not (w.text == "of" and i and out[i - 1].text in _MONTHS)]


def _words(text: str) -> list[_Word]:
    return _ordered_dates(_tokens(_folded(text)))


def _match(alias: Sequence[_Word], words: Sequence[_Word], start: int) -> int | None:
    """Where the alias ends that begins at `start`, None if none does. Articles and middle initials may be missing."""
    i, j = 0, start
    while i < len(alias):
        here = words[j] if j < len(words) else None
        if here and alias[i].text == here.text:
            i, j = i + 1, j + 1
        elif 0 < i < len(alias) - 1 and alias[i].initial and not (here and here.initial):
            i += 1
        elif i and here and (here.text in _ARTICLES or (here.initial and alias[i].named and not alias[i].initial)):
            j += 1
        else:
            return None
    return j


def _in_date(words: Sequence[_Word], at: int) -> bool:
    """Whether the word is the day of a date, which is no count."""
    return _day(words[at]) and at + 1 < len(words) and words[at + 1].text in _MONTHS


@dataclass(frozen=True)
class _Place:
    target: str
    start: int
    end: int


def _places(words: Sequence[_Word], aliases: Sequence[tuple[str, list[_Word]]]) -> Iterator[_Place]:
    """Where aliases stand. A code such as "US" or "IT" needs its capitals, or to be the whole reply."""
    shouting = all(w.raw.isupper() for w in words if w.raw.isalpha())
    for target, alias in aliases:
        first = alias[0].text
        code = len(alias) == 1 and (first in _CODES or (len(first) == 1 and first.isascii() and first.isalpha()))
        for start in range(len(words)):
            if words[start].text != first or (len(alias) == 1 and _in_date(words, start)):
                continue
            if code and len(words) > 1 and (shouting or not words[start].raw.isupper()):
                continue
            end = _match(alias, words, start)
            if end is not None:
                yield _Place(target, start, end)


def _denied(words: Sequence[_Word], place: _Place) -> bool:
    """Whether a denial stands right before ("not in Paris", "rather than Paris") or behind ("Paris is not it")."""
    at = place.start
    while at > 0 and not _BREAK.search(words[at].gap):
        at -= 1
        if words[at].text in _DENIALS or (words[at].text == "instead" and words[at + 1].text == "of"):
            return True
        if words[at].text not in _FILLERS:
            break
    behind = words[place.end : place.end + 3]
    if not behind or _BREAK.search(behind[0].gap):
        return False
    return _DENIED_AFTER.match(" ".join(w.text for w in behind)) is not None


def _hedged(words: Sequence[_Word], place: _Place, taken: Sequence[_Place]) -> bool:
    """Whether "or" or a slash joins it to a candidate that is not accepted."""
    named = words[place.start].named

    def rival(at: int, step: int) -> bool:
        joined = False
        while 0 <= at < len(words):
            gap = words[at if step > 0 else at + 1].gap
            if re.search(r"[.;!?\n]", gap):
                return False
            joined = joined or "/" in gap or words[at].text == "or"
            if words[at].text != "or" and (words[at].text not in _AROUND_OR or words[at].raw[0].isupper()):
                break
            at += step
        else:
            return False
        if not joined or words[at].text in _AFTER_OR or any(t.start <= at < t.end for t in taken):
            return False
        return words[at].named or not named

    return rival(place.end, 1) or rival(place.start - 1, -1)


def _echoed(words: Sequence[_Word], place: _Place, question: Sequence[_Word]) -> bool:
    """Whether the alias stands there as a part of a longer phrase of the question, such as "capital of Luxembourg"."""
    asked = f" {' '.join(w.text for w in question)} "

    def in_question(start: int, end: int) -> bool:
        return start >= 0 and end <= len(words) and f" {' '.join(w.text for w in words[start:end])} " in asked

    start, end = place.start, place.end
    if not in_question(start, end):
        return False
    while in_question(start - 1, end):
        start -= 1
    while in_question(start, end + 1):
        end += 1
    around = [*words[start : place.start], *words[place.end : end]]
    return any(w.text not in _FILLERS | _CODES | _AROUND_OR for w in around)


def _repeats(words: Sequence[_Word], question: Sequence[_Word]) -> bool:
    """Whether a reply of some length has no word that the question does not have."""
    asked = {w.text for w in question}
    content = [w.text for w in words if w.text not in _FILLERS | _CODES | _AROUND_OR]
    return len(content) > 2 and all(w in asked for w in content)


def _aliases(targets: Sequence[str]) -> list[tuple[str, list[_Word]]]:
    found = []
    for target in targets:
        words = _words(target)
        kept = [w for w in words if w.text not in _ARTICLES] or words
        if kept:
            found.append((target, kept))
    if not found:
        raise UserError(f"no accepted answer has a letter or a digit: {list(targets)!r}")
    return found


def grade_fact(text: str | None, targets: Sequence[str], question: str = "") -> FactGraded:
    """Grade a reply against every accepted answer.

    Args:
        text: The answer part of a completion.
        targets: Accepted answers, each on its own enough.
        question: Where given, its own words repeated are no answer.

    Raises:
        UserError: No accepted answer has a letter or a digit.
    """
    aliases = _aliases(targets)
    reply = (text or "").replace("*", "").strip()
    shown = reply.split("\n", 1)[0][:120]
    corrected = list(_CORRECTION.finditer(reply))
    said = reply[corrected[-1].end() :] if corrected and reply[corrected[-1].end() :].strip() else reply
    words, asked = _words(said), _words(question)
    if not words:
        return FactGraded(None, "", "the reply is empty")
    places = [p for p in _places(words, aliases) if not (asked and _echoed(words, p, asked))]
    stated = [p for p in places if not _denied(words, p)]
    hedges = [p for p in stated if _hedged(words, p, places)]
    if hedges:
        return FactGraded(False, shown, f"{hedges[0].target!r} is one of several candidates")
    if stated:
        return FactGraded(True, stated[0].target)
    if places:
        return FactGraded(False, shown, f"{places[0].target!r} is denied")
    if _ABSTAINS.search(reply.replace("’", "'")) and not _GUESSES.search(reply):
        return FactGraded(None, shown, "the reply says that it does not know")
    if asked and _repeats(words, asked):
        return FactGraded(None, shown, "the reply only repeats the question")
    return FactGraded(False, shown)
