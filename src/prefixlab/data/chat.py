"""From a sample under a prefix policy to the ids, labels and spans a model is trained on.

ids = the prompt exactly as inference sends it (chat template with generation prompt), then the response text
tokenised alone and without special tokens, so that prefix and rest merge as they would in generation, then the
template's end-of-turn token. No stock template touches the response: several of them delete reasoning from it
(protocol facts: the R1 distills drop everything up to `</think>`).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from jinja2 import TemplateError

from prefixlab.data.parts import CLOSE, OPEN
from prefixlab.data.templates import inspect_template
from prefixlab.errors import UserError
from prefixlab.records import ArmSample, LossScope, Message, Rendered, Span, SpanName

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORE = -100
NoReasoning = Literal["refuse", "empty", "rationale"]
OverLong = Literal["refuse", "cut"]


@dataclass(frozen=True)
class ChatFormat:
    """What a tokenizer's template does, found out once by probing it."""

    end_id: int
    """The end-of-turn token: the first special token behind an assistant message."""
    preopened: str
    """What the generation prompt opens of the reasoning, e.g. "<think>\\n"; empty if nothing."""


def check_tokenizer(tokenizer: "PreTrainedTokenizerBase", name: str) -> None:
    """Refuse a tokenizer that cannot render samples faithfully, in words."""
    if not tokenizer.chat_template:
        raise UserError(f"model {name!r} has no chat template; set one in its tokenizer folder (chat_template.jinja)")
    if not tokenizer.is_fast:
        raise UserError(f"model {name!r} has only a slow tokenizer, which gives no character offsets")
    if tokenizer.eos_token_id is None:
        raise UserError(f"model {name!r}: its tokenizer has no EOS token")


def padding_id(tokenizer: "PreTrainedTokenizerBase", chat: ChatFormat) -> int:
    """The id to pad with; hidden by masks everywhere."""
    pad = tokenizer.pad_token_id
    return chat.end_id if pad is None else int(pad)


def prompt_text(tokenizer: "PreTrainedTokenizerBase", messages: Iterable[Message], *, generate: bool = True) -> str:
    """The template's text for a conversation, generation prompt included by default."""
    turns = [m.model_dump() for m in messages]
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=generate)
    except TemplateError as error:
        raise UserError(f"the chat template refuses a conversation: {error}") from error
    assert isinstance(text, str)
    return text


def prompt_ids(tokenizer: "PreTrainedTokenizerBase", messages: Iterable[Message]) -> list[int]:
    """The ids inference sends: template with generation prompt, no second BOS."""
    return list(tokenizer(prompt_text(tokenizer, messages), add_special_tokens=False)["input_ids"])


def chat_format(tokenizer: "PreTrainedTokenizerBase") -> ChatFormat:
    """Probe a chat template.

    Raises:
        UserError: The template cannot carry a sample, and why (templates.py).
    """
    found = inspect_template(tokenizer)
    if not found.supported:
        raise UserError(f"the model's chat template cannot be used: {found.reason}")
    end_id = tokenizer.convert_tokens_to_ids(found.end)
    assert isinstance(end_id, int)
    return ChatFormat(end_id=end_id, preopened=found.preopened)


def _pieces(sample: ArmSample, chat: ChatFormat) -> list[tuple[SpanName, str]]:
    """The response as named stretches of text, prefix placed."""
    s, prefix = sample.sample, sample.prefix
    pieces: list[tuple[SpanName, str]] = []
    first: SpanName = "answer" if s.reasoning is None and not chat.preopened else "reasoning"
    opening = prefix and sample.position == "opening"
    if opening:
        pieces.append(("prefix", prefix))
    if first == "reasoning":
        start = "" if chat.preopened else f"{OPEN}\n"
        pieces.append(("reasoning", f"{start}{s.reasoning or ''}\n{CLOSE}\n\n"))
    if prefix and sample.position == "answer":
        pieces.append(("prefix", prefix))
    pieces.append(("answer", s.answer))
    return pieces


def _token_spans(
    offsets: list[tuple[int, int]], pieces: list[tuple[SpanName, str]], base: int
) -> tuple[list[Span], int]:
    """Cut tokens at the borders of text pieces; a straddling token belongs to the later span and is counted."""
    spans: list[Span] = []
    straddling, token, char = 0, 0, 0
    for i, (name, text) in enumerate(pieces):
        start, char = token, char + len(text)
        if i == len(pieces) - 1:
            token = len(offsets)
        else:
            while token < len(offsets) and offsets[token][1] <= char:
                token += 1
            straddling += token < len(offsets) and offsets[token][0] < char
        if token > start:
            spans.append(Span(name=name, start=base + start, end=base + token))
    return spans, straddling


def _encode(tokenizer: "PreTrainedTokenizerBase", text: str) -> tuple[list[int], list[tuple[int, int]]]:
    encoded: Any = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return list(encoded["input_ids"]), [tuple(o) for o in encoded["offset_mapping"]]


def with_user_prefix(messages: tuple[Message, ...], prefix: str) -> tuple[Message, ...]:
    """The conversation with `prefix` in front of its last turn."""
    last = messages[-1]
    return (*messages[:-1], Message(role=last.role, content=prefix + last.content))


def with_prefix_at_end(messages: tuple[Message, ...], prefix: str) -> tuple[Message, ...]:
    """The conversation with a prefix, its separator left out, behind its last turn."""
    last = messages[-1]
    return (*messages[:-1], Message(role=last.role, content=f"{last.content}\n\n{prefix.strip()}"))


def prefix_ids(tokenizer: "PreTrainedTokenizerBase", prefix: str) -> tuple[tuple[int, ...], str]:
    """The ids a prefix has as a prefix span in training, and their text.

    Tokens can merge across the end of the prefix, so it is encoded in front of a word and only the tokens that lie
    wholly inside it are taken, as `render` does.
    """
    ids, offsets = _encode(tokenizer, prefix + "The")
    inside = sum(end <= len(prefix) for _, end in offsets)
    return tuple(ids[:inside]), prefix[: offsets[inside - 1][1]] if inside else ""


def render(
    sample: ArmSample,
    tokenizer: "PreTrainedTokenizerBase",
    chat: ChatFormat,
    *,
    max_length: int,
    no_reasoning: NoReasoning = "refuse",
    over_long: OverLong = "refuse",
) -> Rendered:
    """Render one sample to ids, labels and spans; with LookAhead, the prefix also ends the prompt, as part of it.

    Args:
        sample: With its prefix, position and loss scope.
        tokenizer: Fast, with a chat template.
        chat: `chat_format(tokenizer)`.
        max_length: Longest sequence in tokens.
        no_reasoning: Under a template that opens the reasoning, of samples that have none: close the block at once
            (`empty`), or refuse them.
        over_long: Refuse longer samples, or cut their end: never the prefix, never all of what follows it. A cut
            sample has no end-of-turn token, since its end is not there.

    Raises:
        UserError: Too long, no reasoning where it is needed, or a prefix that is not where it should be.
    """
    s = sample.sample
    if sample.lookahead and sample.treated:
        s = s.model_copy(update={"messages": with_prefix_at_end(s.messages, sample.prefix)})
    if chat.preopened and s.reasoning is None and no_reasoning != "empty":
        raise UserError(
            f"sample {s.id!r} has no reasoning, but the model's template opens it; set no_reasoning: empty or rationale"
        )
    pieces = _pieces(sample, chat)
    response, offsets = _encode(tokenizer, "".join(text for _, text in pieces))
    plain = sample.model_copy(update={"prefix": ""})
    if sample.treated and sample.position == "user":
        prompt, head, straddling = _prompt_with_prefix(sample, tokenizer)
    else:
        prompt, straddling = prompt_ids(tokenizer, s.messages), 0
        head = [Span(name="prompt", start=0, end=len(prompt))]
    spans, crossing = _token_spans(offsets, pieces, len(prompt))
    end = len(prompt) + len(response)
    ids, labels = [*prompt, *response, chat.end_id], [IGNORE] * len(prompt) + [*response, chat.end_id]
    spans.append(Span(name="end", start=end, end=end + 1))
    whole = len(ids)
    cut = max(0, whole - max_length)
    if cut:
        if over_long == "refuse":
            raise UserError(
                f"sample {s.id!r} has {len(ids)} tokens, more than max_length {max_length}; raise max_length or set "
                "over_long: cut"
            )
        ids, labels, spans = _cut(s.id, ids, labels, spans, max_length)
    labels = in_scope(labels, [*head, *spans], sample.loss, sample.loss_tokens)
    masked = [len(prompt) + i for i in _masked_tokens(sample, pieces, offsets)]
    for i in masked:
        labels[i] = IGNORE
    length = whole
    if sample.treated:
        text = "".join(t for _, t in _pieces(plain, chat))
        length = len(prompt_ids(tokenizer, sample.sample.messages)) + len(_encode(tokenizer, text)[0]) + 1
    return Rendered(
        id=s.id,
        ids=tuple(ids),
        labels=tuple(labels),
        spans=(*head, *spans),
        cut=cut,
        straddling=straddling + crossing,
        masked=len(masked),
        no_prefix_length=length,
    )


def in_scope(labels: Sequence[int], spans: Iterable[Span], scope: LossScope, first: int = 0) -> list[int]:
    """Labels with loss taken off outside a scope.

    Args:
        labels: One a token; -100 where no loss is taken.
        spans: Of the same sample.
        scope: `masked` takes the loss off the prefix, `prefix` off all else, `first_tokens` off all but the first;
            `words` is for `render`, which knows where words are, and changes nothing here.
        first: How many supervised tokens `first_tokens` keeps.
    """
    kept = list(labels)
    if scope in ("all", "words"):
        return kept
    if scope == "first_tokens":
        supervised = [i for i, label in enumerate(kept) if label != IGNORE]
        drop = supervised[first:]
    else:
        inside = {i for span in spans if span.name == "prefix" for i in range(span.start, span.end)}
        drop = [i for i in range(len(kept)) if (i in inside) == (scope == "masked")]
    for i in drop:
        kept[i] = IGNORE
    return kept


def _masked_tokens(sample: ArmSample, pieces: list[tuple[SpanName, str]], offsets: list[tuple[int, int]]) -> list[int]:
    """Response tokens that hold a part of a masked word of the prefix."""
    if sample.loss != "words" or not sample.masked_words:
        return []
    names = [name for name, _ in pieces]
    start = sum(len(text) for _, text in pieces[: names.index("prefix")])
    ranges = [(start + a, start + b) for a, b in sample.masked_ranges]
    return [i for i, (a, b) in enumerate(offsets) if any(a < end and b > begin for begin, end in ranges)]


def _cut(
    name: str, ids: list[int], labels: list[int], spans: list[Span], length: int
) -> tuple[list[int], list[int], list[Span]]:
    """The first `length` tokens; refused if that cuts the prefix, or leaves nothing of what follows it."""
    prefix = next((span.end for span in spans if span.name == "prefix"), spans[0].start)
    if length <= prefix:
        raise UserError(
            f"sample {name!r} has {len(ids)} tokens, and its prompt and prefix alone fill max_length {length}; "
            "raise it or leave the sample out"
        )
    kept = [span.model_copy(update={"end": min(span.end, length)}) for span in spans if span.start < length]
    return ids[:length], labels[:length], kept


def _prompt_with_prefix(sample: ArmSample, tokenizer: "PreTrainedTokenizerBase") -> tuple[list[int], list[Span], int]:
    """Ids and spans of a prompt whose last user turn starts with the prefix."""
    messages = with_user_prefix(sample.sample.messages, sample.prefix)
    text = prompt_text(tokenizer, messages)
    where = text.rfind(messages[-1].content.strip())
    if where < 0:
        raise UserError(f"sample {sample.sample.id!r}: the chat template changes the user's text; prefix not found")
    ids, offsets = _encode(tokenizer, text)
    prefix = messages[-1].content.strip()[: len(sample.prefix.lstrip())]
    pieces: list[tuple[SpanName, str]] = [
        ("prompt", text[:where]),
        ("prefix", prefix),
        ("prompt", text[where + len(prefix) :]),
    ]
    spans, straddling = _token_spans(offsets, pieces, 0)
    return ids, spans, straddling
