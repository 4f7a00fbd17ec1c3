"""Targets rewritten by a stronger model: what it is asked, how its reply is read, where the new text goes in the row.

Nothing here asks a model. The instructions are a text file with placeholders; two ship with the package
(instructions/), and any other can be given. A teacher replies in blocks, `<reasoning>` and `<answer>`, never with
`<think>`, which servers and clients cut out of a reply; in the data the reasoning then stands inside `<think>`.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from prefixlab.data.layouts import Turn, Unusable, layout_of, no_layout_for, nothing_usable, parts_of, value_at
from prefixlab.data.layouts import with_value as put
from prefixlab.data.openings import find_opening
from prefixlab.data.parts import CLOSE, OPEN
from prefixlab.data.rows import iter_rows
from prefixlab.data.sources import BUILTIN_DATA, content_id
from prefixlab.errors import UserError, unknown

Mode = Literal["rewrite", "correct"]
Form = Literal["row", "think", "plain"]
"""Reasoning in the new targets: where the row has some (`row`), everywhere (`think`), nowhere (`plain`)."""
PLACEHOLDERS = ("prompt", "response", "form", "tag")
NEEDED = ("prompt", "response", "form")
_PLACE = re.compile(r"(?<![\w\\}])\{([A-Za-z_]+)\}")
"""A placeholder; \\boxed{x} is none."""
_BLOCKS = re.compile(r"\s*(?:<reasoning>(.*)</reasoning>\s*)?<answer>(.*)</answer>\s*", re.DOTALL)
_TAGS = ("<reasoning>", "</reasoning>", "<answer>", "</answer>")
TWO = """Reply with exactly these two blocks, and write nothing before, between or behind them:
<reasoning>
the steps that lead to the answer
</reasoning>
<answer>
the answer that the user reads
</answer>"""
ONE = """Reply with exactly this block, and write nothing before or behind it:
<answer>
the response that the user reads
</answer>"""
AGAIN = "\n\nAn earlier reply of yours could not be used: {reason}. Write it again, and follow every rule above."


@dataclass(frozen=True, slots=True)
class Target:
    """One response to be rewritten."""

    row: int
    """0-based row of the source."""
    id: str
    prompt: str
    """The last user turn."""
    shown: str
    """The conversation before the response, as the teacher reads it."""
    reasoning: str | None
    answer: str
    value: dict[str, Any]
    """The whole row."""
    turn: Turn
    """The response's place in it."""

    @property
    def text(self) -> str:
        """The response as one text."""
        return target_text(self.reasoning, self.answer)

    def thinks(self, form: Form) -> bool:
        """Whether the new target has a reasoning part."""
        return form == "think" or (form == "row" and self.reasoning is not None)


@dataclass(frozen=True, slots=True)
class Reply:
    """What a teacher wrote, in its parts."""

    reasoning: str | None
    answer: str


def target_text(reasoning: str | None, answer: str) -> str:
    """A response with literal `<think>`, as the arms are written."""
    return answer if reasoning is None else f"{OPEN}\n{reasoning}\n{CLOSE}\n\n{answer}"


def load_instructions(path: Path | None, mode: Mode) -> str:
    """The instructions' text: a file of the user's, or the one that ships for the mode.

    Raises:
        UserError: The file cannot be read, lacks a placeholder, or has one that nothing is known of.
    """
    if path is None:
        return (files("prefixlab.data") / "instructions" / f"{mode}.txt").read_text(encoding="utf-8")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"instructions {str(path)!r} cannot be read as UTF-8 text ({error})") from error
    found = set(_PLACE.findall(text))
    for name in sorted(found - set(PLACEHOLDERS)):
        raise unknown("placeholder", f"{{{name}}}", [f"{{{p}}}" for p in PLACEHOLDERS], where=str(path))
    missing = [f"{{{name}}}" for name in NEEDED if name not in found]
    if missing:
        raise UserError(
            f"instructions {str(path)!r}: {missing[0]} is missing; a file of instructions needs "
            "{prompt}, {response} and {form} (the form of the reply), and may use {tag}"
        )
    return text


def fill(instructions: str, target: Target, form: Form, reason: str = "") -> str:
    """What the teacher is asked about one response.

    Args:
        instructions: With placeholders.
        target: The response.
        form: Where reasoning is wanted.
        reason: Why its last reply could not be used; empty at the first attempt.
    """
    # No text can name its own hash, so nothing in the data can close the marks around it.
    tag = hashlib.sha256(f"{target.shown}\x1f{target.text}".encode("utf-8", "surrogatepass")).hexdigest()[:10]
    known = {
        "prompt": target.shown,
        "response": target.text,
        "form": TWO if target.thinks(form) else ONE,
        "tag": tag,
    }
    text = _PLACE.sub(lambda m: known.get(m[1], m[0]), instructions)
    return text + AGAIN.format(reason=reason) if reason else text


def read_reply(text: str, thinks: bool) -> Reply | str:
    """The parts of a teacher's reply, or why it has none. Text outside the blocks is a preface, and no part.

    Args:
        text: The whole reply.
        thinks: Whether a reasoning is wanted.
    """
    if not text.strip():
        return "the reply is empty"
    for tag in _TAGS:
        if text.count(tag) > 1:
            return f"{tag} stands there more than once"
    found = _BLOCKS.fullmatch(text)
    if found is None:
        if "<answer>" in text and "</answer>" in text:
            outside = re.sub(r"<(reasoning|answer)>.*?</\1>", "", text, flags=re.DOTALL).strip()
            return f"text stands outside the blocks: {outside[:60]!r}"
        return "the reply has no <answer> block" if "<answer>" not in text else "the <answer> block never closes"
    reasoning, answer = found[1], found[2].strip()
    if not answer:
        return "the answer is empty"
    if thinks and not (reasoning or "").strip():
        return "the reasoning is missing or empty"
    if not thinks and reasoning is not None:
        return "a reasoning block is there, and none was asked for"
    if any(tag in text for tag in (OPEN, CLOSE)):
        return "a think tag stands in the text"
    return Reply(reasoning.strip() if reasoning is not None else None, answer)


def left_opening(reply: Reply, prompt: str) -> str:
    """Which part still opens with a prefix, by the audit's own matcher; empty where none does."""
    parts: tuple[tuple[Literal["reasoning", "answer"], str | None], ...] = (
        ("reasoning", reply.reasoning),
        ("answer", reply.answer),
    )
    for name, text in parts:
        found = find_opening(text, prompt, name) if text else None
        if found is not None and text and found.family != "refusal":
            return f"the {name} opens with a prefix ({found.family}): {text[: found.end][:80]!r}"
    return ""


def rewritten_row(target: Target, reply: Reply) -> dict[str, Any]:
    """The row with another response, everything else as it was."""
    turn, value = target.turn, target.value
    text = target_text(reply.reasoning, reply.answer)
    if turn.reasoning is not None:
        value = put(value, turn.reasoning[0], reply.reasoning or "")
        text = reply.answer
    whole = value_at(value, turn.path)
    end = turn.start + len(turn.text)
    return dict(put(value, turn.path, whole[: turn.start] + text + whole[end:]))


def _shown(turns: Sequence[Turn]) -> str:
    """A conversation for the teacher: the user's turn alone where there is only that."""
    if len(turns) == 1:
        return turns[0].text
    return "\n\n".join(f"[{turn.role}]\n{turn.text}" for turn in turns)


def target_of(row: int, value: dict[str, Any], columns: Mapping[str, str]) -> Target:
    """The last response of a row.

    Raises:
        Unusable: Why there is none to rewrite.
    """
    layout = layout_of(value, columns)
    if layout is None:
        raise Unusable(no_layout_for(value))
    if layout[0] == "preference":
        raise Unusable("a preference pair; rewriting one side would teach the other's form")
    turns = layout[1](value)
    texts = {part.name: part.text for part in parts_of(turns, "last")}
    at = max(i for i, t in enumerate(turns) if t.role == "assistant")
    before = turns[:at]
    if any(t.role == "tool" for t in before):
        raise Unusable("holds tool calls, which cannot be shown to a teacher")
    if not before or before[-1].role != "user" or not before[-1].text.strip():
        raise Unusable("the turn before the response must be the user's, and not empty")
    own = value.get(columns.get("id", "id"))
    prompt = before[-1].text
    return Target(
        row=row,
        id=str(own) if own is not None else content_id(prompt, turns[at].text),
        prompt=prompt,
        shown=_shown(before),
        reasoning=texts.get("reasoning"),
        answer=texts.get("answer", ""),
        value=value,
        turn=turns[at],
    )


def _values(
    source: str, split: str | None, revision: str | None, config: str | None
) -> list[tuple[dict[str, Any] | None, str]]:
    kind, _, name = source.partition(":")
    if kind != "builtin":
        return [(raw.value, raw.error) for raw in iter_rows(source, split=split, revision=revision, config=config)]
    if name not in BUILTIN_DATA:
        raise unknown("built-in data set", name, BUILTIN_DATA, where="DATA")
    rows: list[dict[str, Any]] = [
        {"id": s.id, "prompt": s.prompt, "response": target_text(s.reasoning, s.answer)} for s in BUILTIN_DATA[name]()
    ]
    return [(row, "") for row in rows]


def read_targets(
    source: str,
    columns: Mapping[str, str],
    *,
    split: str | None = None,
    revision: str | None = None,
    config: str | None = None,
) -> tuple[list[Target], list[tuple[int, str]]]:
    """All responses of a source, and the rows (0-based) that have none, with the reason.

    Raises:
        UserError: Missing, unreadable, or without any usable row.
    """
    targets: list[Target] = []
    skipped: list[tuple[int, str]] = []
    first, n = None, 0
    for n, (value, error) in enumerate(_values(source, split, revision, config), 1):
        first = value if n == 1 else first
        try:
            if value is None:
                raise Unusable(error)
            targets.append(target_of(n - 1, value, columns))
        except Unusable as reason:
            skipped.append((n - 1, str(reason)))
    if not targets:
        raise nothing_usable(source, n, first, Counter(why for _, why in skipped), columns)
    return targets, skipped
