"""Which columns hold what: layouts of SFT data, recognised by their columns, one function a layout.

A layout turns a row into its conversation turns. Every assistant text knows its place in the row, so that it can be
changed there and nowhere else. Layouts: messages, sharegpt, preference, alpaca, prompt/completion (and its many other
names), and text with a chat template inside.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from prefixlab.data.parts import PartName, find_parts
from prefixlab.errors import UserError

Row = dict[str, Any]
Path = tuple[str | int, ...]
Turns = Literal["all", "last"]
PROMPT_COLUMNS = ("prompt", "question", "query", "problem", "user", "instruction", "input")
RESPONSE_COLUMNS = ("response", "completion", "answer", "output", "solution", "assistant", "generation", "target")
REASONING_KEYS = ("reasoning_content", "reasoning", "thinking", "thought")
_REASONING = frozenset(REASONING_KEYS)
ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "function_call": "call",
    "tool_call": "call",
}
LAYOUTS = (
    "messages (role, content)",
    "conversations (from, value)",
    "chosen and rejected",
    "instruction, input, output",
    "prompt and completion (or question and answer, prompt and response, ...)",
    "text with a chat template inside",
)


class Unusable(Exception):
    """Why a row has no response that can be used; becomes its line in the list of skipped rows."""


@dataclass(slots=True)
class Turn:
    """One turn. `text` is row[path][start:end]."""

    role: str
    text: str
    path: Path
    start: int = 0
    reasoning: tuple[Path, str] | None = None
    """Place and text of a reasoning that the row keeps in a field of its own."""


@dataclass(slots=True)
class Part:
    """One part of one response: `text` is the string at `path`, from `start`, without surrounding white space."""

    turn: int
    """0-based number of the assistant's turn in its row."""
    name: PartName
    text: str
    path: Path
    start: int
    prompt: str
    """The user's turn before it."""


def _text(content: Any, path: Path, where: str) -> tuple[str, Path]:
    """Text of a content field: a string, or a list with one text piece."""
    if isinstance(content, str):
        return content, path
    if content is None:
        raise Unusable(f"{where} is null")
    if isinstance(content, list):
        pieces = [(i, p) for i, p in enumerate(content) if isinstance(p, dict) and p.get("type", "text") == "text"]
        if len(pieces) == len(content) == 1:
            i, piece = pieces[0]
            key = next((k for k in ("text", "value", "content") if isinstance(piece.get(k), str)), None)
            if key:
                return piece[key], (*path, i, key)
        kinds = sorted({str(p.get("type")) if isinstance(p, dict) else type(p).__name__ for p in content})
        raise Unusable(f"{where} is a list of {', '.join(kinds) or 'nothing'}; only one piece of text can be used")
    raise Unusable(f"{where} must be text, found {type(content).__name__}")


def _turns(value: Any, path: Path) -> list[Turn]:
    """Turns of a list of messages, in either naming (role and content, from and value)."""
    if not isinstance(value, list):
        raise Unusable(f"{path[0]} must be a list of turns, found {'null' if value is None else type(value).__name__}")
    turns = []
    for i, entry in enumerate(value):
        where = f"{path[0]}[{i}]"
        if not isinstance(entry, dict):
            raise Unusable(f"{where} must be an object with role and content, found {type(entry).__name__}")
        said, key = entry.get("role", entry.get("from")), "content" if "content" in entry else "value"
        role = ROLES.get(said.lower()) if isinstance(said, str) else None
        if role is None:
            raise Unusable(f"{where}: unknown role {said!r}; known: {', '.join(ROLES)}")
        if role in ("tool", "call") or (entry.get("tool_calls") and not entry.get(key)):
            turns.append(Turn("tool", "", (*path, i)))
            continue
        text, place = _text(entry.get(key), (*path, i, key), f"{where}.{key}")
        own = next((k for k in REASONING_KEYS if isinstance(entry.get(k), str) and entry[k].strip()), None)
        turns.append(Turn(role, text, place, reasoning=((*path, i, own), entry[own]) if own else None))
    return turns


def _messages(row: Row) -> list[Turn]:
    return _turns(row["messages"], ("messages",))


def _sharegpt(row: Row) -> list[Turn]:
    turns = _turns(row["conversations"], ("conversations",))
    system = row.get("system")
    return [Turn("system", system, ("system",)), *turns] if isinstance(system, str) and system.strip() else turns


def _side(row: Row, name: str) -> list[Turn]:
    """Turns of a column that is a text, one message, or a list of messages that ends with the response."""
    value = row[name]
    if isinstance(value, list):
        if not value:
            raise Unusable(f"{name} is an empty list")
        return _turns(value, (name,))
    if isinstance(value, dict):
        (turn,) = _turns([value], (name,))
        return [Turn("assistant", turn.text, (name, *turn.path[2:]), reasoning=None)]
    return [Turn("assistant", *_text(value, (name,), name))]


def _one(turns: list[Turn], name: str) -> Turn:
    """The only turn of a column."""
    if len(turns) != 1:
        raise Unusable(f"{name} must be one message, not {len(turns)}")
    return turns[0]


def _context(row: Row, columns: Sequence[str]) -> list[Turn]:
    """The conversation before a response that has a column of its own."""
    name = next((c for c in columns if row.get(c) not in (None, "", [])), None)
    if name is None:
        raise Unusable(f"no prompt: {' or '.join(c for c in columns if c in row) or 'its column'} is empty or missing")
    if isinstance(row[name], list):
        return _turns(row[name], (name,))
    text, path = _text(row[name], (name,), name)
    turns = [Turn("user", text, path)]
    system = row.get("system")
    return [Turn("system", system, ("system",)), *turns] if isinstance(system, str) and system.strip() else turns


def _preference(row: Row, side: str = "chosen") -> list[Turn]:
    chosen = _side(row, side)
    if len(chosen) > 1:
        return chosen
    return [*_context(row, ("conversations", "messages", *PROMPT_COLUMNS)), *chosen]


def rejected_turns(row: Row) -> list[Turn]:
    """The other side of a preference pair.

    Raises:
        Unusable: It cannot be read.
    """
    return _preference(row, "rejected")


def _alpaca(row: Row) -> list[Turn]:
    name = "output" if "output" in row else "response"
    turn = _one(_context({"instruction": row["instruction"]}, ("instruction",)), "instruction")
    extra = row.get("input")
    if isinstance(extra, str) and extra.strip():
        turn = Turn("user", f"{turn.text}\n{extra}", turn.path)
    system = row.get("system")
    first = [Turn("system", system, ("system",))] if isinstance(system, str) and system.strip() else []
    reasoning = next((((k,), row[k]) for k in REASONING_KEYS if isinstance(row.get(k), str) and row[k].strip()), None)
    answer = _one(_side(row, name), name)
    past = row.get("history")
    earlier = []
    for i, pair in enumerate(past if isinstance(past, list) else []):
        if not (isinstance(pair, list) and len(pair) == 2):
            raise Unusable(f"history[{i}] must be a question and its answer")
        for j, role in enumerate(("user", "assistant")):
            earlier.append(Turn(role, *_text(pair[j], ("history", i, j), f"history[{i}][{j}]")))
    return [*first, *earlier, turn, Turn("assistant", answer.text, answer.path, reasoning=reasoning)]


def _pair(row: Row) -> list[Turn]:
    response = next(c for c in RESPONSE_COLUMNS if c in row)
    prompts = tuple(c for c in PROMPT_COLUMNS if c != response)
    answer = _side(row, response)
    own = next((k for k in REASONING_KEYS if isinstance(row.get(k), str) and row[k].strip()), None)
    if own and len(answer) == 1:
        answer[0].reasoning = ((own,), row[own])
    return [*_context(row, prompts), *answer]


# Chat templates as they are found inside texts: (marker of the user's turn, of the assistant's turn, of a turn's end).
_MARKERS = (
    (r"<\|im_start\|>user\n", r"<\|im_start\|>assistant\n", r"<\|im_end\|>"),
    (
        r"<\|start_header_id\|>user<\|end_header_id\|>\s*",
        r"<\|start_header_id\|>assistant<\|end_header_id\|>\s*",
        r"<\|eot_id\|>",
    ),
    (r"<start_of_turn>user\n", r"<start_of_turn>model\n", r"<end_of_turn>"),
    (r"<｜User｜>", r"<｜Assistant｜>", r"<｜end▁of▁sentence｜>"),
    (r"<\|user\|>\s*", r"<\|assistant\|>\s*", r"<\|end\|>|</s>|<\|endoftext\|>"),
    (r"\[INST\]\s*", r"\[/INST\]\s*", r"</s>"),
    (
        r"(?m)^### (?:Instruction|Human|User):\s*",
        r"(?m)^### (?:Response|Assistant|Output):\s*",
        r"</s>|(?m:^### (?!Input:))",
    ),
    (
        r"(?m)(?:^|(?<=</s>))(?:USER|Human|User): |\A(?:(?!ASSISTANT:)[\s\S])*?\sUSER: ",
        r"(?m)(?:^|(?<=\s))(?:ASSISTANT|Assistant): ?",
        r"</s>|<\|endoftext\|>",
    ),
)
_TEMPLATES = tuple(tuple(map(re.compile, markers)) for markers in _MARKERS)


def _text_layout(row: Row) -> list[Turn]:
    text, path = _text(row["text"], ("text",), "text")
    for user, assistant, end in _TEMPLATES:
        marks = sorted(
            [(m.start(), m.end(), "user") for m in user.finditer(text)]
            + [(m.start(), m.end(), "assistant") for m in assistant.finditer(text)]
        )
        if "assistant" not in (role for _, _, role in marks):
            continue
        turns = []
        for i, (_, begin, role) in enumerate(marks):
            stop = marks[i + 1][0] if i + 1 < len(marks) else len(text)
            closed = end.search(text, begin, stop)
            stop = closed.start() if closed else stop
            turns.append(Turn(role, text[begin:stop], path, begin))
        return turns
    raise Unusable("text holds no chat template we know (ChatML, Llama 2 and 3, Gemma, R1, Phi-3, Alpaca, Vicuna)")


def _mapped(columns: Mapping[str, str]) -> Callable[[Row], list[Turn]]:
    """The layout of an explicit column mapping: prompt, response and, if wanted, reasoning."""
    response, own = columns["response"], columns.get("reasoning")

    def read(row: Row) -> list[Turn]:
        usual = (c for c in PROMPT_COLUMNS if c in row and c != response)
        prompt = columns.get("prompt") or next(usual, None)
        missing = [c for c in (response, prompt) if c and c not in row]
        if missing:
            raise Unusable(f"no column {missing[0]!r}; columns there: {', '.join(map(str, row))}")
        answer = _side(row, response)
        if own and isinstance(row.get(own), str) and row[own].strip():
            answer[-1].reasoning = ((own,), row[own])
        return [*(_context(row, (prompt,)) if prompt else []), *answer]

    return read


def layout_of(row: Row, columns: Mapping[str, str] | None = None) -> tuple[str, Callable[[Row], list[Turn]]] | None:
    """Name and reader of a row's layout, None if it has none we know.

    Args:
        row: Any row of the file.
        columns: Explicit mapping with the keys prompt, response and reasoning; a response is needed at least.
    """
    if columns and "response" in columns:
        return "columns", _mapped(columns)
    if columns and ("prompt" in columns or "reasoning" in columns):
        response = next((c for c in RESPONSE_COLUMNS if c in row and c not in columns.values()), None)
        return ("columns", _mapped({**columns, "response": response})) if response else None
    if "chosen" in row and "rejected" in row:
        return "preference", _preference
    if "messages" in row:
        return "messages", _messages
    if "conversations" in row:
        return "sharegpt", _sharegpt
    if "instruction" in row and ("output" in row or "response" in row):
        return "alpaca", _alpaca
    response = next((c for c in RESPONSE_COLUMNS if c in row), None)
    if response and any(c in row for c in PROMPT_COLUMNS if c != response):
        return "pair", _pair
    if "text" in row:
        return "text", _text_layout
    return None


def no_layout_for(row: Iterable[Any]) -> str:
    """Why a row with these columns has no layout."""
    return f"no layout fits the columns {', '.join(map(str, row)) or '(none)'}"


def no_layout(row: Row, where: str) -> UserError:
    """The error for a file whose rows fit no layout: says what was tried and how to say it oneself."""
    return UserError(
        f"{where}: {no_layout_for(row)}; tried: {'; '.join(LAYOUTS)}; "
        "name the columns with --column prompt=NAME --column response=NAME"
    )


def nothing_usable(
    source: str, n_rows: int, first: Row | None, reasons: Counter[str], columns: Mapping[str, str] | None = None
) -> UserError:
    """The error for a source without any usable row: the layouts that were tried, or the commonest reason.

    Args:
        source: What was read.
        n_rows: Its rows, all of them skipped.
        first: The first row, None where it cannot be read.
        reasons: Rows by why they were skipped.
        columns: Explicit mapping that they were read with.
    """
    if not n_rows:
        return UserError(f"{source}: holds no rows")
    if first is not None and layout_of(first, columns) is None:
        return no_layout(first, source)
    ((reason, count),) = reasons.most_common(1)
    return UserError(f"{source}: none of {n_rows} rows can be used; {count} of them: {reason}")


def _assistant_turns(turns: list[Turn]) -> list[tuple[int, int]]:
    """(number among assistant turns, index) of the turns that hold a response."""
    places = [i for i, t in enumerate(turns) if t.role == "assistant"]
    return list(enumerate(places))


def parts_of(turns: list[Turn], which: Turns = "all") -> Iterator[Part]:
    """Reasoning and answer of every assistant turn, or of the last one; empty parts are left out.

    Raises:
        Unusable: No assistant turn has any text.
    """
    numbered = _assistant_turns(turns)
    if not numbered:
        raise Unusable("no assistant turn")
    found = False
    for number, at in numbered if which == "all" else numbered[-1:]:
        turn = turns[at]
        prompt = next((t.text for t in reversed(turns[:at]) if t.role == "user"), "")
        reasoning, answer = find_parts(turn.text)
        if turn.reasoning is not None:
            path, text = turn.reasoning
            own = text.strip()
            found = True
            yield Part(number, "reasoning", own, path, len(text) - len(text.lstrip()), prompt)
        elif reasoning is not None and reasoning.end > reasoning.start:
            found = True
            text = turn.text[reasoning.start : reasoning.end]
            yield Part(number, "reasoning", text, turn.path, turn.start + reasoning.start, prompt)
        if answer.end > answer.start:
            found = True
            text = turn.text[answer.start : answer.end]
            yield Part(number, "answer", text, turn.path, turn.start + answer.start, prompt)
    if not found:
        raise Unusable("empty response")


def row_parts(row: Row, layout: tuple[str, Callable[[Row], list[Turn]]], which: Turns) -> Iterable[Part]:
    """Parts of a row. Most rows of most files are two texts without reasoning; they are read without detours."""
    name, read = layout
    if name == "alpaca" and "output" in row and "system" not in row and "history" not in row:
        prompt, response, extra, column = row["instruction"], row["output"], row.get("input"), "output"
    elif name == "pair" and "prompt" in row and "response" in row and "system" not in row:
        prompt, response, extra, column = row["prompt"], row["response"], "", "response"
    else:
        return parts_of(read(row), which)
    plain = isinstance(prompt, str) and isinstance(response, str) and not extra and prompt
    if not plain or "think>" in response or not _REASONING.isdisjoint(row):
        return parts_of(read(row), which)
    text = response.strip()
    if not text:
        raise Unusable("empty response")
    start = response.find(text[0]) if text is not response else 0
    return (Part(0, "answer", text, (column,), start, prompt),)


def value_at(row: Any, path: Path) -> Any:
    """The value at a path of keys and indices."""
    for key in path:
        row = row[key]
    return row


def with_value(row: Any, path: Path, value: Any) -> Any:
    """A copy of the row (copied along the path only) with another value at the path."""
    if not path:
        return value
    copy = row.copy()
    copy[path[0]] = with_value(row[path[0]], path[1:], value)
    return copy
