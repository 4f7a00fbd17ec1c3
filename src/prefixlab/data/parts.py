"""Where reasoning and answer lie in a response, by offsets; a response is never changed by looking at it.

Reasoning models write `<think>` reasoning `</think>` answer. What occurs in real data: the opening tag is missing,
since the chat template wrote it; the closing tag is quoted inside the reasoning; the reasoning never closes.
"""

import re
from dataclasses import dataclass
from typing import Literal

PartName = Literal["reasoning", "answer"]
OPEN, CLOSE = "<think>", "</think>"
QUOTES = "`'\"“‘«"
_BLOCK_CLOSE = re.compile(r"(?m)^[ \t]*</think>[ \t]*$")


@dataclass(frozen=True, slots=True)
class Stretch:
    """[start, end) of a text, in code points, without surrounding white space."""

    start: int
    end: int


def _trimmed(text: str, start: int, end: int) -> Stretch:
    inner = text[start:end]
    body = inner.lstrip()
    start += len(inner) - len(body)
    return Stretch(start, start + len(body.rstrip()))


def _closing_tag(text: str, start: int) -> int:
    """Offset of the `</think>` that closes the reasoning, -1 if none does.

    A tag behind a quotation mark is talked about, not used. Where the first unquoted tag stands inside a line and
    another one stands alone on its line, the latter closes.
    """
    first = text.find(CLOSE, start)
    while first > 0 and text[first - 1] in QUOTES:
        first = text.find(CLOSE, first + len(CLOSE))
    if first < 0 or text.find(CLOSE, first + 1) < 0:
        return first
    alone = _BLOCK_CLOSE.search(text, start)
    return text.index(CLOSE, alone.start()) if alone else first


def find_parts(text: str, *, preopened: bool = False) -> tuple[Stretch | None, Stretch]:
    """Reasoning and answer of a response.

    Args:
        text: The whole response.
        preopened: Whether the template has written `<think>` already, so that the text starts inside the reasoning.

    Returns:
        (reasoning or None, answer). A reasoning that never closes is all of the rest, and its answer is empty.
    """
    if CLOSE not in text and OPEN not in text and not preopened:
        return None, _trimmed(text, 0, len(text))
    begin = len(text) - len(text.lstrip())
    opened = text.startswith(OPEN, begin)
    if opened:
        begin += len(OPEN)
    close = _closing_tag(text, begin)
    late = text.find(OPEN, begin) if not opened and not preopened else -1
    if 0 < late < close and text[late - 1] not in QUOTES:
        begin = late + len(OPEN)
    if not opened and not preopened and close < 0:
        return None, _trimmed(text, 0, len(text))
    if close < 0:
        return _trimmed(text, begin, len(text)), Stretch(len(text), len(text))
    return _trimmed(text, begin, close), _trimmed(text, close + len(CLOSE), len(text))


def split_response(text: str, *, preopened: bool = False) -> tuple[str | None, str]:
    """The two parts of a response as texts without surrounding white space; see `find_parts`."""
    reasoning, answer = find_parts(text, preopened=preopened)
    return text[reasoning.start : reasoning.end] if reasoning else None, text[answer.start : answer.end]
