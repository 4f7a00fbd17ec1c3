"""What a model wrote, in its parts, with every malformed reasoning block named.

A tag is `<think>` or `</think>`, with capital letters and blanks inside the brackets tolerated; other names
(`<thinking>`, `<tool_call>`) are text. A tag in quotation marks or backticks is talked about and closes nothing. A bare
tag in the middle of a sentence counts: losing an answer is seen in the counts, thinking that is scored as an answer is
not (lm-evaluation-harness#3382). Data files are read by data/parts.py, on which this rests.
"""

import re
from dataclasses import dataclass
from typing import Literal

from prefixlab.data.parts import CLOSE, OPEN, QUOTES, find_parts

ReasoningState = Literal["none", "closed", "empty", "unclosed", "reopened", "stray_close"]
"""State of the reasoning of a turn, prefilled text included.

- `none`: no reasoning part.
- `closed`: one block with text in it, opened (by template, prefill or model) and closed once. The only valid one.
- `empty`: as `closed`, with nothing in it.
- `unclosed`: opened and never closed, truncated or not. The answer is empty.
- `reopened`: another block begins after the first one.
- `stray_close`: a closing tag where nothing is open: the first tag of a text (vllm#13125), or a second one in a row.
"""
_TAG = re.compile(r"<[ \t]*(/?)[ \t]*think[ \t]*>", re.IGNORECASE)
_CLOSING_QUOTES = "`'\"”’»"


@dataclass(frozen=True)
class Parsed:
    """A completion in its parts, as the scorer sees it."""

    reasoning: str | None
    """Text of all blocks, a blank line between them; None where there is no block."""
    answer: str
    """What a reader sees: the text outside the blocks, in front of a first closed block too."""
    truncated: bool
    state: ReasoningState


def _plain_tags(text: str) -> str:
    """Tags in one spelling; a closing tag right behind the end of a quotation moves to a line of its own."""

    def plain(match: re.Match[str]) -> str:
        before, after = text[: match.start()][-1:], text[match.end() : match.end() + 1]
        behind_quote = before != "" and before in QUOTES
        if behind_quote and after != "" and after in _CLOSING_QUOTES:
            return match.group()
        return (("\n" if behind_quote else "") + CLOSE) if match.group(1) else OPEN

    return _TAG.sub(plain, text)


def _first_tag(text: str) -> re.Match[str] | None:
    """The first tag that does not stand in quotation marks."""
    for match in _TAG.finditer(text):
        around = text[match.start() - 1 : match.start()] if match.start() else "", text[match.end() : match.end() + 1]
        if not any(c and c in QUOTES + _CLOSING_QUOTES for c in around):
            return match
    return None


def _block(text: str) -> tuple[str, str | None]:
    """Reasoning that a text begins inside of, and what follows its closing tag (None if it never closes)."""
    inner, rest = find_parts(text, preopened=True)
    assert inner is not None
    reasoning = text[inner.start : inner.end]
    while reasoning.startswith(OPEN):
        reasoning = reasoning[len(OPEN) :].lstrip()
    closed = text[inner.end :].lstrip().startswith(CLOSE)
    return reasoning, text[rest.start : rest.end] if closed else None


def _answer(text: str) -> tuple[list[str], list[str], ReasoningState]:
    """What follows the first block: pieces of answer, pieces of reasoning, and the state that they make."""
    shown: list[str] = []
    thought: list[str] = []
    state: ReasoningState = "closed"
    rest: str | None = text
    while rest is not None and (tag := _first_tag(rest)):
        before, behind = rest[: tag.start()].strip(), rest[tag.end() :]
        if tag.group(1):
            # What stands in front of a second closing tag was still thinking, unless nothing comes after it.
            (thought if behind.strip() else shown).append(before)
            state = "stray_close" if state == "closed" else state
            rest = behind
        else:
            shown.append(before)
            reasoning, rest = _block(behind)
            thought.append(reasoning)
            state = "reopened"
    return [*shown, (rest or "").strip()], thought, state


def parse_output(text: str, *, preopened: bool, prefill: str = "", truncated: bool = False) -> Parsed:
    """The parts of a model's turn.

    Args:
        text: What the model wrote.
        preopened: Whether the template's generation prompt ends inside `<think>`.
        prefill: Text of the model's own turn that was put in front; it may open, or open and close, the reasoning.
        truncated: Whether the model was stopped at the token limit.
    """
    whole = _plain_tags(prefill + text)
    lead, first = "", None if preopened else _first_tag(whole)
    if not preopened:
        if first is None:
            return Parsed(None, whole.strip(), truncated, "none")
        if first.group() == OPEN:
            lead, whole = whole[: first.start()].strip(), whole[first.start() :]
    reasoning, rest = _block(whole)
    if rest is None:
        return Parsed(reasoning, "", truncated, "unclosed")
    shown, thought, state = _answer(rest)
    if state == "closed":
        state = "stray_close" if first is not None and first.group() == CLOSE else state if reasoning else "empty"
    return Parsed(
        "\n\n".join(piece for piece in (reasoning, *thought) if piece),
        "\n\n".join(piece for piece in (lead, *shown) if piece),
        truncated,
        state,
    )
