"""The treatment check: after tokenisation, in the very ids and labels that are trained on.

Training does not start unless every arm passes (design law 2: the treatment is verified after tokenisation).
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from jinja2 import TemplateError

from prefixlab.data.chat import (
    IGNORE,
    ChatFormat,
    NoReasoning,
    OverLong,
    in_scope,
    prompt_ids,
    render,
    with_prefix_at_end,
)
from prefixlab.data.exports import export_row
from prefixlab.errors import UserError
from prefixlab.records import ArmSample, Record, Rendered, Sample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


NATIVE = "native"


class ArmCheck(Record):
    """What was found in the ids and labels of one arm."""

    arm: str
    n: int
    n_treated: int
    n_prefix_in_ids: int
    """Treated samples whose prefix span decodes to the prefix, at its place."""
    n_equal_reference: int
    """Untreated samples whose ids and labels equal those of r000: all of them, but in `native`, which is unstripped."""
    n_untreated: int
    n_straddling: int
    """Tokens that cover the border of two spans."""
    n_cut: int
    """Samples whose end was cut because they were too long."""
    n_bad_end: int
    """Uncut samples that do not end with the end-of-turn token, supervised."""
    n_prompt_differs: int
    """Samples whose ids do not start with exactly what inference sends."""
    n_prompt_supervised: int
    """Samples with loss on a prompt token: always 0 in a sound arm."""
    n_masked_tokens: int = 0
    """Tokens without loss in an arm that takes it off words of the prefix."""
    n_mask_wrong: int = 0
    """Samples of such an arm in which other tokens lack loss than those that hold a part of these words."""
    n_no_loss: int = 0
    """Samples without a single supervised token (with loss on the prefix alone: those that cannot carry it)."""
    prefix_tokens_mean: float
    """Mean tokens of a treated sample's prefix span."""
    supervised_share: float
    """Supervised tokens / all tokens."""
    tokens: int
    longest: int

    @property
    def ok(self) -> bool:
        """Whether the arm may be trained on."""
        return (
            self.n_prefix_in_ids == self.n_treated
            and (self.arm == NATIVE or self.n_equal_reference == self.n_untreated)
            and not (self.n_bad_end or self.n_prompt_differs or self.n_prompt_supervised or self.n_mask_wrong)
        )


class TreatmentCheck(Record):
    """All arms of one capability under one tokenizer."""

    model: str
    capability: str
    arms: tuple[ArmCheck, ...]
    identical: tuple[tuple[str, str], ...]
    """Pairs of arms whose (ids, labels) are the same throughout."""

    def problems(self) -> list[str]:
        """One sentence for each thing that must not be; empty if training may start."""
        found = [
            f"arm {a.arm!r}: {a.n_prefix_in_ids} of {a.n_treated} treated samples carry their prefix in the ids, "
            f"{a.n_equal_reference} of {a.n_untreated} untreated ones equal r000, {a.n_bad_end} end wrongly, "
            f"{a.n_prompt_differs} prompts differ from inference, {a.n_prompt_supervised} have loss on the prompt, "
            f"{a.n_mask_wrong} lack loss on other tokens than those of their masked words"
            for a in self.arms
            if not a.ok
        ]
        found += [f"arm {a.arm!r}: no token of it carries loss" for a in self.arms if not a.supervised_share]
        declared = [pair for pair in self.identical if NATIVE not in pair]
        found += [f"arms {a!r} and {b!r} are the same ids and labels" for a, b in declared]
        return found


class TemplateLoss(Record):
    """What is left of one arm when its messages are rendered by the model's own chat template."""

    arm: str
    n: int
    n_treated: int
    n_lost: int
    """Treated samples whose rendered text no longer holds the prefix."""
    n_same_as_r000: int
    """Treated samples whose rendered text is the text of r000."""
    n_failed: int
    """Samples that the template refuses to render."""


class TemplateRendering(Record):
    """All arms, rendered as a trainer would that hands messages to the template."""

    model: str
    arms: tuple[TemplateLoss, ...]
    identical: tuple[tuple[str, str], ...]

    def problems(self) -> list[str]:
        """One sentence for each arm that loses its treatment."""
        lost = [
            f"arm {a.arm!r}: the model's own template loses the prefix of {a.n_lost} of {a.n_treated} treated samples"
            for a in self.arms
            if a.n_lost
        ]
        lost += [f"arm {a.arm!r}: the template refuses {a.n_failed} of {a.n} samples" for a in self.arms if a.n_failed]
        pairs = [pair for pair in self.identical if NATIVE not in pair]
        return lost + [f"arms {a!r} and {b!r} are the same text" for a, b in pairs]


def template_rendering(
    arms: Mapping[str, Sequence[ArmSample]], tokenizer: "PreTrainedTokenizerBase", *, model: str
) -> TemplateRendering:
    """Render every arm's messages through the model's own template, and look for the prefixes in the text."""

    def rendered(row: ArmSample) -> str | None:
        messages = export_row(row, "messages")["messages"]
        try:
            text = tokenizer.apply_chat_template(messages, tokenize=False)
        except (TemplateError, ValueError, TypeError):
            return None
        return str(text)

    texts = {name: {row.sample.id: rendered(row) for row in rows} for name, rows in arms.items()}
    reference = texts.get("r000", {})
    found = []
    for name, rows in arms.items():
        treated = [row for row in rows if row.treated]
        found.append(
            TemplateLoss(
                arm=name,
                n=len(rows),
                n_treated=len(treated),
                n_lost=sum(row.prefix.strip() not in (texts[name][row.sample.id] or "") for row in treated),
                n_same_as_r000=sum(texts[name][row.sample.id] == reference.get(row.sample.id) for row in treated),
                n_failed=sum(text is None for text in texts[name].values()),
            )
        )
    names = list(arms)
    masked = {name for name, rows in arms.items() if any(row.loss in ("masked", "words") for row in rows)}
    same = [
        (a, b)
        for i, a in enumerate(names)
        for b in names[i + 1 :]
        if texts[a] == texts[b] and None not in texts[a].values() and a not in masked and b not in masked
    ]
    return TemplateRendering(model=model, arms=tuple(found), identical=tuple(same))


def token_frequencies(samples: Iterable[Sample], tokenizer: "PreTrainedTokenizerBase") -> dict[int, int]:
    """How often each token occurs in the samples' responses, reasoning and answer each tokenised alone."""
    counts: Counter[int] = Counter()
    texts = [text for s in samples for text in (s.reasoning, s.answer) if text]
    if texts:
        for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]:
            counts.update(ids)
    return dict(sorted(counts.items()))


def render_arm(
    rows: Sequence[ArmSample],
    tokenizer: "PreTrainedTokenizerBase",
    chat: ChatFormat,
    *,
    max_length: int,
    no_reasoning: NoReasoning,
    over_long: OverLong = "refuse",
) -> list[Rendered]:
    """Render every sample of an arm."""
    return [
        render(r, tokenizer, chat, max_length=max_length, no_reasoning=no_reasoning, over_long=over_long) for r in rows
    ]


def _prefix_found(row: ArmSample, rendered: Rendered, tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether the prefix span's ids decode to the prefix (a straddling last token may take its tail along)."""
    span = rendered.span("prefix")
    if span is None:
        return False
    text = tokenizer.decode(list(rendered.ids[span.start : span.end]), clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text == row.prefix or (rendered.straddling > 0 and bool(text.strip()) and row.prefix.startswith(text))


def _tokens_of_masked_words(row: ArmSample, rendered: Rendered, tokenizer: "PreTrainedTokenizerBase") -> set[int]:
    """Tokens that hold a part of a word whose loss is off: found in the ids, by decoding the prefix token by token.

    The token behind the prefix is looked at too, since it may begin inside it.
    """
    span = rendered.span("prefix")
    if span is None:
        return set()
    found, text = set(), ""
    for at in range(span.start, min(span.end + 1, len(rendered.ids))):
        # A character whose bytes are not complete yet decodes to U+FFFD; its later bytes belong to it.
        start = len(text.rstrip("\ufffd"))
        text = str(tokenizer.decode(list(rendered.ids[span.start : at + 1]), clean_up_tokenization_spaces=False))
        if any(start < end and len(text) > begin for begin, end in row.masked_ranges):
            found.add(at)
    return found


def check_arm(
    name: str,
    rows: Sequence[ArmSample],
    rendered: Sequence[Rendered],
    reference: Mapping[str, Rendered],
    tokenizer: "PreTrainedTokenizerBase",
    chat: ChatFormat,
) -> ArmCheck:
    """Check one arm against r000, whose rendered samples are given by id."""
    found = equal = bad_end = differs = supervised_prompt = prefix_tokens = no_loss = masked = mask_wrong = 0
    for row, sample in zip(rows, rendered, strict=True):
        if row.treated:
            found += _prefix_found(row, sample, tokenizer)
            span = sample.span("prefix")
            prefix_tokens += span.end - span.start if span else 0
        else:
            other = reference[row.sample.id]
            labels = in_scope(other.labels, other.spans, row.loss, row.loss_tokens)
            equal += (sample.ids, list(sample.labels)) == (other.ids, labels)
        if row.loss == "words" and row.treated:
            first = next(s.end for s in sample.spans if s.name == "prompt")
            silent = {i for i in range(first, len(sample.ids)) if sample.labels[i] == IGNORE}
            masked += len(silent)
            mask_wrong += silent != _tokens_of_masked_words(row, sample, tokenizer)
        ends = row.loss in ("all", "masked", "words")
        last = sample.labels[-1] if ends else sample.ids[-1]
        bad_end += not sample.cut and not (sample.ids[-1] == last == chat.end_id)
        no_loss += sample.n_supervised == 0
        if row.position != "user" or not row.treated:
            look = row.lookahead and row.treated
            messages = row.sample.messages
            sent = prompt_ids(tokenizer, with_prefix_at_end(messages, row.prefix) if look else messages)
            differs += list(sample.ids[: len(sent)]) != sent
            supervised_prompt += any(label != -100 for label in sample.labels[: len(sent)])
        else:
            response = next(s for s in sample.spans if s.name in ("reasoning", "answer"))
            supervised_prompt += any(label != -100 for label in sample.labels[: response.start])
    tokens = sum(len(r.ids) for r in rendered)
    treated = sum(r.treated for r in rows)
    return ArmCheck(
        arm=name,
        n=len(rows),
        n_treated=treated,
        n_prefix_in_ids=found,
        n_equal_reference=equal,
        n_untreated=len(rows) - treated,
        n_straddling=sum(r.straddling for r in rendered),
        n_cut=sum(r.cut > 0 for r in rendered),
        n_bad_end=bad_end,
        n_prompt_differs=differs,
        n_prompt_supervised=supervised_prompt,
        n_masked_tokens=masked,
        n_mask_wrong=mask_wrong,
        n_no_loss=no_loss,
        prefix_tokens_mean=prefix_tokens / treated if treated else 0.0,
        supervised_share=sum(r.n_supervised for r in rendered) / tokens,
        tokens=tokens,
        longest=max(len(r.ids) for r in rendered),
    )


def check_arms(
    arms: Mapping[str, Sequence[ArmSample]],
    tokenizer: "PreTrainedTokenizerBase",
    chat: ChatFormat,
    *,
    model: str,
    capability: str,
    max_length: int,
    no_reasoning: NoReasoning,
    over_long: OverLong = "refuse",
) -> TreatmentCheck:
    """Render and check all arms of a capability.

    Raises:
        UserError: A sample cannot be rendered (its id and the reason).
    """
    if "r000" not in arms:
        raise UserError("the treatment check needs the arm r000 to compare with")
    rendered = {
        name: render_arm(rows, tokenizer, chat, max_length=max_length, no_reasoning=no_reasoning, over_long=over_long)
        for name, rows in arms.items()
    }
    reference = {r.id: r for r in rendered["r000"]}
    keys = {name: frozenset((r.id, r.ids, r.labels) for r in samples) for name, samples in rendered.items()}
    names = list(arms)
    same = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :] if keys[a] == keys[b]]
    checks = [check_arm(name, arms[name], rendered[name], reference, tokenizer, chat) for name in names]
    return TreatmentCheck(model=model, capability=capability, arms=tuple(checks), identical=tuple(same))
