"""Chat templates: which ones carry a sample faithfully, and why the others are refused.

A template is supported if what inference sends (the prompt, with its generation prompt) can be followed by the plain
text of a response and one end-of-turn token, and the template itself writes an assistant's message that way. It may
open the reasoning by itself (R1), close an empty one (Qwen3 without thinking), or write an empty block before an
answer. It is refused if it takes no plain text, if it hides the text behind a header that the model writes, or if it
writes no end of turn.
"""

from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from prefixlab.data.parts import CLOSE, OPEN
from prefixlab.records import Record

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROBE = "prefixlab end-of-turn probe"
_USER = {"role": "user", "content": "Hello"}


class TemplateReport(Record):
    """What a template does with a conversation of a user's and an assistant's message."""

    supported: bool
    reason: str
    """Why it is refused; empty if it is supported."""
    end: str
    """The end-of-turn token: the first special token behind the assistant's text."""
    generation: str
    """What the generation prompt adds to the conversation."""
    preopened: str
    """What the generation prompt opens of the reasoning, e.g. "<think>\\n"; empty if nothing."""
    header: str
    """What the template writes between the generation prompt and an answer without reasoning."""
    drops_reasoning: bool
    """Whether the template drops the reasoning of an assistant's message: a prefix in it would vanish."""
    takes_system: bool


def _refused(reason: str) -> TemplateReport:
    return TemplateReport(
        supported=False,
        reason=reason,
        end="",
        generation="",
        preopened="",
        header="",
        drops_reasoning=False,
        takes_system=False,
    )


def template_text(tokenizer: "PreTrainedTokenizerBase", messages: list[dict[str, Any]], *, generate: bool) -> str:
    """The template's text for messages; errors of the template as they come."""
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generate)
    assert isinstance(text, str)
    return text


def special_tokens(tokenizer: "PreTrainedTokenizerBase") -> set[str]:
    """Texts of all special tokens, those only marked as added included."""
    found = {str(t) for t in tokenizer.all_special_tokens}
    return found | {str(t) for t in tokenizer.added_tokens_decoder.values() if t.special}


def _is_reasoning(text: str) -> bool:
    """Whether a text is nothing but an opened, or opened and closed, empty reasoning."""
    return not text.replace(OPEN, "").replace(CLOSE, "").strip()


def _drops(tokenizer: "PreTrainedTokenizerBase") -> bool:
    thought = "prefixlab reasoning probe"
    message = {"role": "assistant", "content": f"{OPEN}\n{thought}\n{CLOSE}\n\n{PROBE}"}
    try:
        return thought not in template_text(tokenizer, [_USER, message], generate=False)
    except TemplateError:
        return True


def _end(tail: str, special: set[str]) -> str:
    """The first special token of the text behind the assistant's message."""
    starts = {t: tail.find(t) for t in special if t and t in tail}
    return min(starts, key=lambda t: (starts[t], -len(t))) if starts else ""


def _common(first: str, second: str) -> int:
    """Length of the common start of two texts."""
    pairs = zip(first, second, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))


def inspect_template(tokenizer: "PreTrainedTokenizerBase") -> TemplateReport:
    """Probe a tokenizer's chat template and classify it."""
    if not tokenizer.chat_template:
        return _refused("there is no chat template; set one in the tokenizer's folder (chat_template.jinja)")
    try:
        prompt = template_text(tokenizer, [_USER], generate=True)
        bare = template_text(tokenizer, [_USER], generate=False)
        text = template_text(tokenizer, [_USER, {"role": "assistant", "content": PROBE}], generate=False)
    except (TemplateError, TypeError, AttributeError, ValueError) as error:
        return _refused(f"it takes no plain text messages ({str(error).splitlines()[0] if str(error) else 'error'})")
    if _USER["content"] not in prompt:
        return _refused("it takes no plain text messages (the user's text is not in the prompt)")
    if prompt == bare:
        return _refused("it has no generation prompt, so nothing marks where the response begins")
    if text.count(PROBE) != 1:
        return _refused("it drops the assistant's message" if PROBE not in text else "it repeats the message")
    head, tail = text.split(PROBE)
    special = special_tokens(tokenizer)
    end = _end(tail, special)
    if not end or tail[: tail.find(end)].strip():
        return _refused("it writes no end-of-turn token behind the assistant's text")
    same = _common(prompt, head)
    sent, header = prompt[same:], head[same:]
    if not _is_reasoning(sent) or not _is_reasoning(header):
        shown = header.strip() or sent.strip()
        return _refused(f"a header that the model writes itself stands before the text: {shown[:60]!r}")
    where = prompt.rfind(OPEN)
    open_at_end = where >= 0 and not prompt[where + len(OPEN) :].strip()
    try:
        template_text(tokenizer, [{"role": "system", "content": "S"}, _USER], generate=True)
        takes_system = True
    except (TemplateError, TypeError, AttributeError, ValueError):
        takes_system = False
    return TemplateReport(
        supported=True,
        reason="",
        end=end,
        generation=prompt[_common(prompt, bare) :],
        preopened=prompt[where:] if open_at_end else "",
        header=header,
        drops_reasoning=_drops(tokenizer),
        takes_system=takes_system,
    )


def set_template_options(tokenizer: "PreTrainedTokenizerBase", **options: bool) -> None:
    """Fix options of a template, e.g. enable_thinking=False, for every later use of the tokenizer."""
    settings = "".join(f"{{%- set {name} = {str(value).lower()} -%}}" for name, value in options.items())
    tokenizer.chat_template = settings + str(tokenizer.chat_template)
