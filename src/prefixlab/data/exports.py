"""Arms in the layouts of other trainers, and back: messages, prompt_completion, alpaca, sharegpt.

Reasoning stands inside `<think>` in the response's text. Four more columns carry the treatment: `prefix_start` and
`prefix_end`, code points of the prefix (with its separator) in the text it stands in, 0 and 0 where there is none;
`prefix_field`, "response" or "prompt"; `prefix_loss`, false where the span must carry no loss (the arm `masked`). Arms
that take the loss off single words have a fifth one, `prefix_no_loss`: [start, end) of these words in the same text.
What else an arm's loss leaves out (`prefix`, `first_tokens`) and LookAhead are in the arm's manifest only.
alpaca and sharegpt are read by trainers that know no loss spans, so arms that mask loss cannot be written in them.
"""

from collections.abc import Iterable
from typing import Any, Literal, get_args

from prefixlab.config import LOSS_CONTROLS
from prefixlab.data.layouts import layout_of
from prefixlab.data.parts import CLOSE, OPEN, find_parts
from prefixlab.errors import UserError
from prefixlab.records import ArmManifest, ArmSample, Message, Position, Sample, word_ranges

Format = Literal["messages", "prompt_completion", "alpaca", "sharegpt"]
FORMATS: tuple[Format, ...] = get_args(Format)
WITHOUT_SPANS = ("alpaca", "sharegpt")
Row = dict[str, Any]
_SHAREGPT = {"user": "human", "assistant": "gpt", "system": "system"}


def response_text(arm: ArmSample) -> tuple[str, int, int]:
    """A response as one text with literal `<think>`, and where the prefix is in it (0, 0: nowhere).

    At `opening` the prefix is the first thing inside the reasoning, where there is one.
    """
    s, text, start = arm.sample, "", 0
    prefix = arm.prefix if arm.position != "user" else ""
    if s.reasoning is not None:
        text = f"{OPEN}\n"
        if arm.position == "opening":
            start, text = len(text), text + prefix
        text += f"{s.reasoning}\n{CLOSE}\n\n"
    if arm.position == "answer" or s.reasoning is None:
        start, text = len(text), text + prefix
    text += s.answer
    return (text, start, start + len(prefix)) if prefix else (text, 0, 0)


def _prompts(arm: ArmSample) -> tuple[list[Message], int]:
    """The conversation before the response, user prefix included, and the length of that prefix."""
    messages = list(arm.sample.messages)
    prefix = arm.prefix if arm.position == "user" else ""
    messages[-1] = messages[-1].model_copy(update={"content": prefix + messages[-1].content})
    return messages, len(prefix)


def export_row(arm: ArmSample, layout: Format) -> Row:
    """One sample of an arm in a layout."""
    text, start, end = response_text(arm)
    messages, in_prompt = _prompts(arm)
    dumped = [m.model_dump() for m in messages]
    answer = {"role": "assistant", "content": text}
    row: Row = {"id": arm.sample.id}
    if layout == "messages":
        row["messages"] = [*dumped, answer]
    elif layout == "prompt_completion":
        row |= {"prompt": dumped, "completion": [answer]}
    elif layout == "sharegpt":
        turns = [*messages, Message(role="assistant", content=text)]
        row["conversations"] = [{"from": _SHAREGPT[m.role], "value": m.content} for m in turns if m.role != "system"]
        row["system"] = "\n".join(m.content for m in messages if m.role == "system")
    else:
        turns = [m for m in messages if m.role != "system"]
        pairs = [[turns[i].content, turns[i + 1].content] for i in range(0, len(turns) - 1, 2)]
        row |= {"instruction": turns[-1].content, "input": "", "output": text, "history": pairs}
        row["system"] = "\n".join(m.content for m in messages if m.role == "system")
    field = "prompt" if in_prompt else "response" if end else ""
    where = (0, in_prompt) if in_prompt else (start, end)
    span = {"prefix_field": field, "prefix_start": where[0], "prefix_end": where[1]}
    row |= {**span, "prefix_loss": arm.loss != "masked"}
    if arm.loss == "words":
        row["prefix_no_loss"] = [[where[0] + a, where[0] + b] for a, b in arm.masked_ranges]
    return row


def check_layout(layout: Format, control: str | None) -> None:
    """Refuse a layout whose readers know no spans for an arm that takes loss off some.

    Raises:
        UserError: The layout cannot carry that control.
    """
    if control in LOSS_CONTROLS and layout in WITHOUT_SPANS:
        raise UserError(
            f"format {layout!r} cannot carry the control {control!r} (no span without loss); use messages or "
            "prompt_completion, or leave the control out"
        )


def export_rows(arms: Iterable[ArmSample], layout: Format, *, control: str | None) -> list[Row]:
    """All samples of an arm in a layout.

    Args:
        arms: The samples.
        layout: One of FORMATS.
        control: Of the arm.

    Raises:
        UserError: The layout cannot carry the arm.
    """
    check_layout(layout, control)
    arms = list(arms)
    rows = [export_row(arm, layout) for arm in arms]
    usual = ("user", "assistant")
    if layout == "alpaca" and any(m.role != usual[i % 2] for a in arms for i, m in enumerate(_turns(a))):
        raise UserError("format 'alpaca' needs alternating turns that begin with the user's; use messages or sharegpt")
    return rows


def _turns(arm: ArmSample) -> list[Message]:
    return [m for m in arm.sample.messages if m.role != "system"]


def import_row(row: Row, about: ArmManifest) -> ArmSample:
    """The sample that `export_row` wrote; the template's index is not kept.

    Raises:
        UserError: Columns are missing or do not fit the text.
    """
    try:
        layout = layout_of(row)
        field, start, end = row["prefix_field"], row["prefix_start"], row["prefix_end"]
        turns = layout[1](row) if layout else []
        *before, last = turns
    except (KeyError, ValueError) as error:
        raise UserError(f"arm {about.arm!r}: a row without the columns of an export ({error})") from error
    messages = [Message.model_validate({"role": t.role, "content": t.text}) for t in before]
    prefix, text = "", last.text
    if field == "prompt":
        said = messages[-1].content
        prefix = said[start:end]
        messages[-1] = messages[-1].model_copy(update={"content": said[:start] + said[end:]})
    elif field == "response":
        prefix, text = text[start:end], text[:start] + text[end:]
    reasoning, answer = _split(text)
    position: Position | None = about.position
    sample = Sample(id=str(row["id"]), messages=tuple(messages), reasoning=reasoning, answer=answer)
    return ArmSample(
        sample=sample,
        position=position,
        prefix=prefix,
        template=None,
        eligible=True,
        loss=about.loss,
        loss_tokens=about.loss_tokens,
        lookahead=about.lookahead,
        masked_words=_masked_words(row, prefix) if about.loss == "words" else (),
    )


def _masked_words(row: Row, prefix: str) -> tuple[int, ...]:
    """Indices of the words that `prefix_no_loss` names.

    Raises:
        UserError: The column is missing, or names something else than words of the prefix.
    """
    words = [[row["prefix_start"] + a, row["prefix_start"] + b] for a, b in word_ranges(prefix)]
    spans = row.get("prefix_no_loss")
    if not isinstance(spans, list) or any(span not in words for span in spans):
        raise UserError(f"sample {row['id']!r}: prefix_no_loss {spans!r} are no words of its prefix")
    return tuple(words.index(span) for span in spans)


def _split(text: str) -> tuple[str | None, str]:
    """Undo `response_text` without a prefix: exact where it wrote the reasoning's tags itself."""
    opened = f"{OPEN}\n"
    if not text.startswith(opened):
        return None, text
    reasoning, answer = find_parts(text)
    if reasoning is None:
        return None, text
    head, _, tail = text[len(opened) :].partition(f"\n{CLOSE}\n\n")
    if tail.endswith(text[answer.start : answer.end]):
        return head, tail
    return text[reasoning.start : reasoning.end], text[answer.start : answer.end]
