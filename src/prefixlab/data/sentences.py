"""Leading sentences of a part, and leading clauses up to their colon. Rules for prose; code and lists end it."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from prefixlab.records import Family

HEAD = 1_600
"""Code points of a part in which a prefix can end."""
MAX_SENTENCES = 12
_MARKS = '¡¿*_"“”#> ☺️✨👋😊🙂🌟🎉😀😄💡🤔'
_STOP = re.compile(r"[.!?…。！？:：\n]")
_TAIL = re.compile(r"[.!?…。！？]+([\"'”’)\]*_`]*)")
_SPACE = re.compile(r"\s+")
_COMMON = re.compile(r"[^.!?…。！？:：\n]{3,}[.!?](?=[ \n])")
_BLOCK_STARTS = frozenset("#-*+•–—0123456789`~|>$\\<_[{")
_ABBREVIATION = re.compile(
    r"(?:\b(?:e\.g|i\.e|etc|vs|dr|mr|mrs|ms|prof|st|jr|sr|no|fig|eq|approx|u\.s|u\.k|inc|ltd|co)|(?:^|[\s.(])(?-i:[A-HJ-Z]))$",
    re.IGNORECASE,
)
BLOCK = re.compile(
    r"(?:#{1,6}\s|[-*+•–—]\s|\*{0,3}\d{1,3}[.)]\s|```|~~~|\||>|\$\$|\\\[|\\begin|<(?!think)[A-Za-z!/]|(?:[-*_]\s*){3,}$|\[|\{)",
    re.MULTILINE,
)
"""What begins a list, heading, code fence, table, quotation, formula or markup: content, never prose."""


@dataclass(frozen=True, slots=True)
class Opening:
    """The prefix of a part: [0, end) in code points of the part without its leading white space."""

    end: int
    """For the family `refusal`: the end of the refusing sentence, which is content by default."""
    family: Family


def normal(sentence: str) -> str:
    """A sentence as patterns want it: lower case, straight apostrophes, no marks of emphasis around it."""
    said = sentence.strip(_MARKS)
    while said and said[0] > "\u2000" and not said[0].isalnum():
        said = said[1:].lstrip(_MARKS)
    return said.replace("**", "").replace("’", "'").lower()


@dataclass(slots=True)
class Sentence:
    """One sentence or clause: text[start:end], white space around it left out."""

    text: str
    start: int
    end: int
    colon: bool
    """Whether it ends with a colon."""
    line_end: bool
    """Whether a colon ends it and nothing follows on its line."""
    paragraph: int
    """0 in the first paragraph; blank lines begin a new one."""


def _ends(text: str, at: int, end: int, quoted: bool) -> bool:
    """Whether the stop at `at` (its marks reach to `end`) ends a sentence.

    It does not after an abbreviation, nor where a quoted question stands inside a sentence.
    """
    if text[at] == "." and end == at + 1 and _ABBREVIATION.search(text, max(0, at - 8), at):
        return end >= len(text) or text[end] == "\n"
    if quoted or text[at] == "…" or text.startswith("..", at):
        return not text[end : end + 40].lstrip()[:1].islower() or text[end : end + 1] == "\n"
    return True


def _end_of(text: str, start: int, colons: bool) -> tuple[int, bool]:
    """Where the sentence that starts at `start` ends, and whether a colon ends it; -1 if it does not end."""
    at = start
    while found := _STOP.search(text, at):
        at = found.start()
        mark = text[at]
        if mark == "\n":
            return at, False
        if mark in ":：":
            at += 1
            while text.startswith("*", at):
                at += 1
            if mark == "：" or at >= len(text) or text[at].isspace():
                line_end = at >= len(text) or text[at] in "\r\n" or not text[at : _line_end(text, at)].strip()
                if colons or line_end:
                    return at, True
            continue
        tail = _TAIL.match(text, at)
        assert tail is not None
        begin, at = at, tail.end()
        apart = mark in "。！？" or at >= len(text) or text[at].isspace() or text[at] > "\u2fff"
        if apart and _ends(text, begin, at, bool(tail.group(1))):
            return at, False
    return -1, False


def _line_end(text: str, at: int) -> int:
    found = text.find("\n", at)
    return len(text) if found < 0 else found


def leading_sentences(text: str, limit: int, *, colons: bool) -> Iterator[Sentence]:
    """Sentences from the start of a text until a block begins.

    Args:
        text: A part without leading white space.
        limit: Code points to look at; a sentence that reaches beyond them is not yielded.
        colons: Whether a colon inside a line ends a sentence; a colon at the end of a line always does.
    """
    head = text[:limit]
    start, paragraph = 0, 0
    while start < len(head):
        gap = _SPACE.match(head, start) if head[start].isspace() else None
        if gap:
            paragraph += head.count("\n", start, gap.end()) > 1
            start = gap.end()
        if start >= len(head) or (head[start] in _BLOCK_STARTS and BLOCK.match(head, start)):
            return
        common = _COMMON.match(head, start)
        if common:
            end = common.end()
            last = head[end - 5 : end - 1]
            if last.isalpha() and last.islower() and last != "prox":
                yield Sentence(head[start:end], start, end, False, False, paragraph)
                start = end
                continue
        end, colon = _end_of(head, start, colons)
        if end < 0:
            if len(head) < len(text):
                return
            end = len(head)
        body = head[start:end].rstrip()
        end = start + len(body)
        colon = colon or body.endswith((":", ":**", "："))
        line_end = colon and not head[end : _line_end(head, end)].strip()
        yield Sentence(body, start, end, colon, line_end, paragraph)
        start = end
