"""From a sample under a prefix policy to the ids, labels and spans a model is trained on.

ids = the prompt exactly as inference sends it (chat template with generation prompt), then the response text
tokenised alone and without special tokens, so that prefix and rest merge as they would in generation, then the
template's end-of-turn token. No stock template touches the response: several of them delete reasoning from it
(protocol facts: the R1 distills drop everything up to `</think>`).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from jinja2 import TemplateError

from prefixlab.data.parts import CLOSE, OPEN
from prefixlab.errors import UserError
from prefixlab.records import ArmSample, Message, Rendered, Span, SpanName

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORE = -100
NoReasoning = Literal["refuse", "empty"]
PROBE = "prefixlab end-of-turn probe"


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
        UserError: No special token follows an assistant message, or the template drops the message.
    """
    user = Message(role="user", content="Hello")
    text = prompt_text(tokenizer, [user, Message(role="assistant", content=PROBE)], generate=False)
    if PROBE not in text:
        raise UserError("the chat template drops the assistant's message")
    special = {str(t) for t in tokenizer.all_special_tokens}
    special |= {str(t) for t in tokenizer.added_tokens_decoder.values() if t.special}
    tail = text[text.rindex(PROBE) + len(PROBE) :]
    starts = {t: tail.find(t) for t in special if t and t in tail}
    if not starts:
        raise UserError("the chat template writes no end-of-turn token after an assistant message")
    end_id = tokenizer.convert_tokens_to_ids(min(starts, key=lambda t: (starts[t], -len(t))))
    assert isinstance(end_id, int)
    opened = prompt_text(tokenizer, [user])
    where = opened.rfind(OPEN)
    preopened = opened[where:] if where >= 0 and not opened[where + len(OPEN) :].strip() else ""
    return ChatFormat(end_id=end_id, preopened=preopened)


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
) -> Rendered:
    """Render one sample to ids, labels and spans.

    Args:
        sample: With its prefix, position and loss scope.
        tokenizer: Fast, with a chat template.
        chat: `chat_format(tokenizer)`.
        max_length: Longest sequence in tokens; longer samples are refused.
        no_reasoning: Under a template that opens the reasoning: refuse samples that have none, or close the block
            at once.

    Raises:
        UserError: Too long, no reasoning where it is needed, or a prefix that is not where it should be.
    """
    s = sample.sample
    if chat.preopened and s.reasoning is None and no_reasoning == "refuse":
        raise UserError(
            f"sample {s.id!r} has no reasoning, but the model's template opens it; set no_reasoning: empty in the study"
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
    ids = [*prompt, *response, chat.end_id]
    if len(ids) > max_length:
        raise UserError(f"sample {s.id!r} has {len(ids)} tokens, more than max_length {max_length}")
    labels = [IGNORE] * len(prompt) + [*response, chat.end_id]
    if sample.loss == "masked":
        for span in spans:
            if span.name == "prefix":
                labels[span.start : span.end] = [IGNORE] * (span.end - span.start)
    length = len(ids)
    if sample.treated:
        text = "".join(t for _, t in _pieces(plain, chat))
        length = len(prompt_ids(tokenizer, s.messages)) + len(_encode(tokenizer, text)[0]) + 1
    return Rendered(
        id=s.id,
        ids=tuple(ids),
        labels=tuple(labels),
        spans=(*head, *spans, Span(name="end", start=end, end=end + 1)),
        straddling=straddling + crossing,
        no_prefix_length=length,
    )


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
