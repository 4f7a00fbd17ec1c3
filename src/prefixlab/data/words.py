"""What a sentence adds: its words that are neither the task's own nor generic."""

import re
from importlib.resources import files

STEM = 5
"""Words are compared by their first letters, so that "determine", "determined" and "determining" are one."""
_WORD = re.compile(r"\w+")
_ALPHA = re.compile(r"[^\W\d_]+")
_ABOUT_MODEL = re.compile(
    r"\b(?:are|do|did|have|were) you\b|\byou (?:feel|think|like|prefer)\b|\bchatgpt\b|\byourself\b"
)
"""A question about the model: what it says of itself is the answer."""
PROMPT_LIMIT = 20_000
"""Code points of a task that are compared with; longer ones are cut in the middle."""


def _generic_stems() -> frozenset[str]:
    lines = (files("prefixlab.data") / "generic_words.txt").read_text(encoding="utf-8").splitlines()
    found = _ALPHA.findall(" ".join(line for line in lines if not line.startswith("#")).lower())
    return frozenset(word[:STEM] for word in found)


def word_set(text: str) -> frozenset[str]:
    """The words of a text, as they stand."""
    return frozenset(text.split())


GENERIC = _generic_stems()
"""Stems of generic_words.txt."""


def stems(text: str) -> list[str]:
    """Stems of the words and numbers of a text, in order."""
    return [word[:STEM] for word in _WORD.findall(text.lower())]


def _says(text: str, stem: str) -> bool:
    """Whether a text in lower case has a word with that stem (a stem shorter than STEM is a whole word)."""
    at = text.find(stem)
    while at >= 0:
        end = at + len(stem)
        if not (at and text[at - 1].isalnum()) and (len(stem) == STEM or not text[end : end + 1].isalnum()):
            return True
        at = text.find(stem, at + 1)
    return False


class Task:
    """The words of a task. They are looked up one by one, which is cheaper than taking every task apart."""

    __slots__ = ("_text", "about_model")

    def __init__(self, text: str) -> None:
        whole = text if len(text) <= PROMPT_LIMIT else text[: PROMPT_LIMIT // 2] + text[-PROMPT_LIMIT // 2 :]
        self._text = whole.lower()
        self.about_model = _ABOUT_MODEL.search(self._text, 0, 600) is not None

    def novelty(self, sentence: str) -> tuple[int, int]:
        """(novel words, words) of a sentence. A novel number counts three times; one-letter words not at all."""
        found = [s for s in stems(sentence) if len(s) > 1 or s.isdigit()]
        return sum(_weight(s) for s in found if s not in GENERIC and not _says(self._text, s)), len(found)

    def echoes(self, sentence: str) -> bool:
        """Whether a sentence has a word of the task's that is not generic."""
        return any(s not in GENERIC and _says(self._text, s) for s in stems(sentence))

    def adds(self, sentence: str, words: int, share: float) -> bool:
        """Whether a sentence has more than `words` novel words, and more than that share of its words."""
        found = [s for s in stems(sentence) if len(s) > 1 or s.isdigit()]
        left = max(words, share * len(found))
        for stem in found:
            if stem not in GENERIC and not _says(self._text, stem):
                left -= _weight(stem)
                if left < 0:
                    return True
        return False


def _weight(stem: str) -> int:
    return 3 if stem.isdigit() else 1
