"""Training rows that are also test prompts: the same text, a long shared stretch, or the same source.

A prompt is compared as its words: lower case, no punctuation, no line breaks; signs and decimal points stay with the
number they belong to, since two sums that differ in a sign are two problems. Near overlap is a shared stretch of 13
words, the length used for GPT-3 (arXiv 2005.14165, appendix C). Words that open or close most prompts of a suite are
its instruction ("Write the final answer in ...") and not what is asked: they are left out. Paraphrases and translations
are not found.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from prefixlab.records import EvalItem, Record, Sample

NEAR = 13
"""Words of a shared stretch that make two texts near."""
SHORT = 4
"""Test prompts with fewer words count for exact overlap only."""
PROBE = 6
"""Words that are looked up first, at every STEP-th place of a text: each stretch of NEAR words holds one such place."""
STEP = NEAR - PROBE + 1
INSTRUCTION = 4
"""Opening or closing words that most prompts of a suite share are an instruction if they are at least so many."""
FEW = 10
"""Suites with fewer prompts have no instruction: what they share may be chance."""
N_PAIRS = 5
NO_SOURCE = frozenset({"", "custom", "original", "other", "unknown", "none", "nan", "synthetic", "train", "test"})
"""What a source column says where it names nobody."""

_OPERAND = r"[\s$({\[\\]*(?=-?\d|[a-z]\b|(?<=\\)[a-z])"
_SIGN = re.compile(
    r"[-+*/=<>^.,](?:(?<=\.)(?=\d)|(?<=\d,)(?=\d{3}(?!\d))"
    rf"|(?:(?<=\+)|(?:(?<=[=^])|(?<=[<>])=)(?=\W*\w))(?:{_OPERAND})?"
    r"|(?<=-)(?=\d)(?<![\w)\]}$].)(?<![\w)\]}$] .)"
    rf"|(?<=[-*/<>])(?:(?<=[\d)\]}}$].)|(?<=[\d)\]}}$] .)|(?<=\b[a-z].)|(?<=\b[a-z] .))\*?{_OPERAND})"
)
"""Signs that carry meaning: + = ^ anywhere, - * / < > between operands, a minus in front of a number."""
_VARIANTS = (("−", "-"), ("–", "-"), ("×", "*"), ("⋅", "*"), ("÷", "/"), ("≤", "<="), ("≥", ">="))
_KEPT = "+-*/=<>^"
_GOES_ON = frozenset("+-*/<>^")
"""Signs behind a shorter calculation that make it a part of another one."""
_MARKED = {sign: chr(n) for n, sign in enumerate(_KEPT, 1)} | {".": "\x0e"}
"""A sign on its way through the removal of punctuation is a control character."""
_UNMARK: dict[int, str] = {ord(mark): sign for sign, mark in _MARKED.items()}
_WORDS_ONLY = {c: chr(c) if chr(c).isalnum() else " " for c in range(128)} | _UNMARK
_NO_WORD = re.compile(r"(?:[^\w\x01-\x08\x0e]|_)+")
_UNSPACED = re.compile(r"[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]")
"""Scripts without spaces: each character is a word."""


class Overlap(Record):
    """What a training set shares with one suite. Ids are in the order of the training set."""

    suite: str
    exact: tuple[str, ...]
    """Training ids whose prompt is a test prompt."""
    near: tuple[str, ...]
    """Further ids whose prompt or response shares NEAR words in a row with a test prompt, or holds a shorter one."""
    pairs: tuple[tuple[str, str], ...]
    """A few (training id, test id), exact ones first."""
    same_source: tuple[str, ...]
    """Sources that both sides name, as the training set spells them."""
    n_same_source: int
    """Training samples from these sources, whether or not their texts overlap."""


def _mark(match: re.Match[str]) -> str:
    sign, rest = match.group()[0], match.group()[1:]
    if sign in ".,":
        return _MARKED["."] if sign == "." else ""
    return " " + _MARKED[sign] + (_MARKED["="] if rest.startswith("=") else "")


def normalise(text: str) -> str:
    """The words of a text with single spaces between them, signs in front: "What is 12 - 7?" is "what is 12 -7"."""
    if text.isascii():
        return " ".join(_SIGN.sub(_mark, text.lower()).translate(_WORDS_ONLY).split())
    for sign, plain in _VARIANTS:
        text = text.replace(sign, plain)
    text = _SIGN.sub(_mark, unicodedata.normalize("NFKC", text).casefold())
    return " ".join(_UNSPACED.sub(r" \g<0> ", _NO_WORD.sub(" ", text)).translate(_UNMARK).split())


def _instruction(prompts: Sequence[list[str]]) -> list[str]:
    """The words that open more than half of the prompts; none if they are too few to be an instruction."""
    left, shared = list(prompts), list[str]()
    while len(left) * 2 > len(prompts) >= FEW:
        at = len(shared)
        words = Counter(p[at] for p in left if len(p) > at)
        word, count = words.most_common(1)[0] if words else ("", 0)
        if count * 2 <= len(prompts):
            break
        left = [p for p in left if len(p) > at and p[at] == word]
        shared.append(word)
    return shared if len(shared) >= INSTRUCTION else []


def _own(prompts: Sequence[list[str]]) -> list[range]:
    """Where each prompt's own words stand: all but the instruction, or all of a prompt that is nothing else."""
    opening = _instruction(prompts)
    closing = _instruction([p[::-1] for p in prompts])[::-1]
    places = []
    for p in prompts:
        start = len(opening) if p[: len(opening)] == opening else 0
        end = len(p) - len(closing) if closing and p[-len(closing) :] == closing else len(p)
        places.append(range(start, end) if start < end else range(len(p)))
    return places


def _holds(text: str, phrase: str) -> bool:
    """Whether a text holds a phrase, and no calculation goes on behind it; spaces stand around both."""
    at = text.find(phrase)
    while at >= 0:
        if text[at + len(phrase) : at + len(phrase) + 1] not in _GOES_ON:
            return True
        at = text.find(phrase, at + 1)
    return False


@dataclass(frozen=True)
class _Index:
    """The prompts of one suite, ready to be looked up; values are test ids."""

    exact: dict[str, str]
    stretches: dict[str, str]
    probes: frozenset[tuple[str, ...]]
    phrases: dict[str, list[tuple[str, str]]]
    """Prompts of SHORT to NEAR - 1 words, by their rarest word."""

    def near(self, text: str) -> str | None:
        """The id of a test prompt that a normalised text is near to."""
        words = text.split()
        if not self.probes.isdisjoint(zip(*(words[i::STEP] for i in range(PROBE)), strict=False)):
            for start in range(len(words) - NEAR + 1):
                found = self.stretches.get(" ".join(words[start : start + NEAR]))
                if found is not None:
                    return found
        if self.phrases:
            padded = f" {text} "
            for word in sorted(self.phrases.keys() & set(words)):
                for phrase, ident in self.phrases[word]:
                    if _holds(padded, phrase):
                        return ident
        return None


def _index(tests: Sequence[EvalItem]) -> _Index:
    prompts = [normalise(t.messages[-1].content).split() for t in tests]
    count = Counter(word for words in prompts for word in words)
    exact: dict[str, str] = {}
    stretches: dict[str, str] = {}
    probes: set[tuple[str, ...]] = set()
    phrases: dict[str, list[tuple[str, str]]] = {}
    for test, words, place in zip(tests, prompts, _own(prompts), strict=True):
        own = words[place.start : place.stop]
        for known in (words, own):
            if known:
                exact.setdefault(" ".join(known), test.id)
        # Stretches lie within the prompt's own words, or around them where they are too few.
        first, last = place.start, place.stop - NEAR
        for i in range(max(0, min(first, last)), min(max(first, last), len(words) - NEAR) + 1):
            stretch = words[i : i + NEAR]
            stretches.setdefault(" ".join(stretch), test.id)
            probes.update(tuple(stretch[k : k + PROBE]) for k in range(STEP))
        phrase = own if len(own) >= SHORT else words
        if SHORT <= len(phrase) < NEAR:
            rarest = min(phrase, key=lambda w: (count[w], w))
            phrases.setdefault(rarest, []).append((f" {' '.join(phrase)} ", test.id))
    return _Index(exact, stretches, frozenset(probes), phrases)


def _names(source: str) -> set[str]:
    """The sources that a text names, without case and punctuation: "TDC/Harm-Bench" names tdc and harmbench."""
    return {re.sub(r"[\W_]+", "", name.casefold()) for name in re.split(r"[/,;&+]", source)} - NO_SOURCE


def find_overlaps(
    samples: Sequence[Sample],
    suites: Mapping[str, Sequence[EvalItem]],
    source_names: Mapping[str, Sequence[str]],
) -> list[Overlap]:
    """Overlap of a training set with each suite; the training texts are normalised once.

    Args:
        samples: Training samples.
        suites: Test items by name of the suite.
        source_names: By name of the suite, further names that training sets call it or its sources by.
    """
    indexes = {suite: _index(tests) for suite, tests in suites.items()}
    exact: dict[str, dict[str, str]] = {suite: {} for suite in suites}
    near: dict[str, dict[str, str]] = {suite: {} for suite in suites}
    for sample in samples:
        prompt = normalise(sample.prompt)
        response = normalise(f"{sample.reasoning or ''}\n{sample.answer}")
        for suite, index in indexes.items():
            if prompt in index.exact:
                exact[suite][sample.id] = index.exact[prompt]
            elif (test := index.near(prompt) or index.near(response)) is not None:
                near[suite][sample.id] = test
    spelled = Counter(s.source for s in samples)
    found = []
    for suite in suites:
        ours = set().union(*(_names(name) for name in (suite, *source_names.get(suite, ()))))
        same = sorted(source for source in spelled if _names(source) & ours)
        found.append(
            Overlap(
                suite=suite,
                exact=tuple(exact[suite]),
                near=tuple(near[suite]),
                pairs=tuple([*exact[suite].items(), *near[suite].items()][:N_PAIRS]),
                same_source=tuple(same),
                n_same_source=sum(spelled[source] for source in same),
            )
        )
    return found
