"""The nouns that reach disk: samples, arms, rendered sequences, completions and scores.

Frozen pydantic models, extra fields forbidden; standard library and pydantic only. The words are those of
docs/architecture.md.
"""

import re
import unicodedata
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict

Position = Literal["user", "opening", "answer"]
SpanName = Literal["prompt", "prefix", "reasoning", "answer", "end"]
LossScope = Literal["all", "masked", "prefix", "first_tokens", "words"]
"""Which response tokens carry loss: all, all but the prefix, the prefix alone, the first `loss_tokens`, or all but
those of some words of the prefix (`masked_words`)."""
Verdict = Literal["safe", "unsafe", "INVALID"]
Family = Literal["compliance", "framing", "praise", "restating", "reasoning_cue", "disclaimer", "refusal"]
FAMILIES: tuple[Family, ...] = get_args(Family)
"""What an opening does; docs/methods.md defines them."""
SampleStatus = Literal["ok", "truncated", "invalid", "error"]


def word_ranges(text: str) -> list[tuple[int, int]]:
    """[start, end) of the words of a text, split at white space, in code points.

    Only letters, marks and digits stand at a word's ends: "(Sure!" is the range of "Sure". A word without any is empty.
    """
    found = []
    for word in re.finditer(r"\S+", text):
        inside = [i for i in range(*word.span()) if unicodedata.category(text[i])[0] in "LMN"]
        found.append((inside[0], inside[-1] + 1) if inside else (word.start(), word.start()))
    return found


def jsonl_lines(path: Path) -> list[str]:
    """Lines of a JSONL file; only a line feed ends one, since JSON text may hold U+2028 and its like."""
    return [line for line in path.read_text(encoding="utf-8").split("\n") if line]


class Record(BaseModel):
    """Base of everything written to disk."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Message(Record):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


class Sample(Record):
    """One supervised sample: the conversation up to the last user turn, and the response in its parts."""

    id: str
    messages: tuple[Message, ...]
    """Everything before the response; the last turn is the user's."""
    reasoning: str | None
    """Text inside `<think>`, without the tags; None where the response has no reasoning part."""
    answer: str
    source: str = ""
    category: str = ""

    @property
    def prompt(self) -> str:
        """The last user turn."""
        return self.messages[-1].content


class StripRecord(Record):
    """What strip removed from one sample, enough to restore it exactly."""

    id: str
    part: Literal["reasoning", "answer"]
    removed: str
    """The text cut from the front of the part."""
    lowered: str
    """The first character of the rest before its case was changed; empty if it was not."""
    family: str


class ArmSample(Record):
    """A sample under one prefix policy. `prefix` includes its separator; empty where untreated."""

    sample: Sample
    position: Position | None
    prefix: str
    template: int | None
    """Index of the template in the prefix set: the same in every arm, whether the sample is treated or not."""
    eligible: bool
    """Whether the sample can carry the prefix; the ratio's denominator counts these."""
    loss: LossScope = "all"
    loss_tokens: int = 0
    """For the scope `first_tokens`: how many response tokens carry loss."""
    lookahead: bool = False
    """Whether the prefix also stands at the end of the last user turn (LookAhead tuning, arXiv 2503.19041)."""
    masked_words: tuple[int, ...] = ()
    """For the scope `words`: indices of the prefix's words, split at white space, whose tokens carry no loss."""

    @property
    def treated(self) -> bool:
        """Whether this sample carries the prefix."""
        return bool(self.prefix)

    @property
    def masked_ranges(self) -> tuple[tuple[int, int], ...]:
        """[start, end) of every masked word, in code points of the prefix."""
        found = word_ranges(self.prefix)
        return tuple(found[i] for i in self.masked_words)


class Masking(Record):
    """Words of the prefix that carry no loss in an arm, beside those of the anchors that the arm is about.

    The control `random_masked` takes the loss off other words of about as many tokens as the anchors have.
    """

    anchors: tuple[str, ...]
    n_samples: int
    """Treated samples with at least one masked word."""
    words: int
    """Masked words, over all samples."""
    anchor_words: int
    tokens: int | None
    """Their tokens, by the study's first tokenizer; None where no tokenizer was named."""
    anchor_tokens: int | None


class ArmManifest(Record):
    """What one arm is: policy, counts and content hashes."""

    arm: str
    capability: str
    prefix_set: str | None
    position: Position | None
    ratio: float | None
    control: str | None
    loss: LossScope
    loss_tokens: int = 0
    lookahead: bool = False
    masking: Masking | None = None
    """For the controls that take the loss off single words."""
    data_key: str
    assignment: Literal["exact", "bernoulli"]
    n: int
    n_eligible: int
    n_treated: int
    n_stripped: int
    format: str = "arm"
    """Layout of data.jsonl: `arm` (one ArmSample a line), or one of data/exports.py."""
    templates: tuple[str, ...]
    """The texts in use, by index, without separator."""
    template_words: tuple[int, ...]
    treatment_words: tuple[int, ...]
    """Words of the treatment template of the same index: within 1 of `template_words` for a control."""
    template_tokens: tuple[int, ...] | None
    treatment_tokens: tuple[int, ...] | None
    """The same in tokens of the study's first tokenizer; None where no tokenizer was named."""
    data_sha256: str


class Span(Record):
    """A named stretch of a rendered sample, [start, end) in tokens."""

    name: SpanName
    start: int
    end: int


class Rendered(Record):
    """A sample as the model is trained on it: ids, labels (-100 = no loss) and spans that partition the ids."""

    id: str
    ids: tuple[int, ...]
    labels: tuple[int, ...]
    spans: tuple[Span, ...]
    cut: int = 0
    """Tokens cut from the end because the sample was too long; such a sample has no end of turn."""
    straddling: int
    """Tokens that cover the border of two spans; each counts to the later one."""
    masked: int = 0
    """Tokens that carry no loss because they hold a part of a masked word; punctuation around it is none of it."""
    no_prefix_length: int
    """Tokens of the same sample without its prefix: the grouping length, equal in every arm."""

    @property
    def n_supervised(self) -> int:
        """Number of tokens that carry loss."""
        return sum(label != -100 for label in self.labels)

    def span(self, name: SpanName) -> Span | None:
        """The first span of that name, if the sample has one."""
        return next((s for s in self.spans if s.name == name), None)


class EvalItem(Record):
    """One test prompt with what its scorer needs."""

    id: str
    messages: tuple[Message, ...]
    target: str
    kind: str
    """Scorer-specific group, e.g. `harmful` or `harmless`; `problem` where there is one kind only."""
    category: str = ""
    data: dict[str, Any] = {}
    """What else the suite's scorer needs: tests, accepted answers, options."""
    opening: str = ""
    """The set's own compliant target ("Sure, here is ..."), for attacks; empty where it has none."""


class Measure(Record):
    """One metric of one completion, or of all completions of a prompt (epoch 0).

    `value` is None exactly where the metric could not be measured.
    """

    item: str
    epoch: int
    metric: str
    value: float | None
    status: SampleStatus
    kind: str
    category: str = ""


class SampleScore(Measure):
    """The main metric of one completion, with its texts."""

    prompt: str
    completion: str
    """What the model wrote, reasoning included, prefilled text excluded."""
    prefill: str
    answer: str
    """What was scored: the extracted answer or the verdict."""
    target: str
    n_tokens: int


class ModelRef(Record):
    """Where a model is and what it is, fixed when the plan is made."""

    name: str
    """As the study names it."""
    path: str
    """Local folder or hub id."""
    revision: str | None
    """Commit on the hub; None for folders."""
    fingerprint: str
    """sha256 over the weights and tokenizer files, or the hub commit: part of every step's id."""
    note: str


class Resolved(Record):
    """Computing choices of a run; part of the id of every step that computes with a model."""

    device: str
    dtype: str
    """Of the base weights and activations; adapters train in float32."""
    attention: str
    threads: int
    merge_adapters: bool
    """Whether evaluation merges the adapter into the weights (exact enough in float32 only)."""
    compile: bool = False
    """Whether training compiles each decoder layer."""
    processes: int = 1
    """Training processes of one cell; `threads` is for all of them together."""
    why: str
    """The rule that chose the dtype, in words; not a setting."""
