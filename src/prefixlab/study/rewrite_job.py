"""The nouns of `prefixlab rewrite`: a job, what it will take, what it came to."""

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from prefixlab.config import JudgeConfig
from prefixlab.data.rewrite import Form, Mode, Reply, Target
from prefixlab.records import Record

ENVELOPE = 200
"""Tokens that a service may put around a request."""
State = Literal["rewritten", "kept", "refused", "open", "skipped"]
"""`kept`: judged safe, and left as it came. `refused`: no reply could be used. `open`: not asked, or not answered.
`skipped`: no response to work on."""
STATES: tuple[State, ...] = ("rewritten", "kept", "refused", "open", "skipped")
Stop = Literal["", "budget", "interrupted", "teacher", "judge", "failed"]


class RewriteJob(Record):
    """One call of `prefixlab rewrite`."""

    source: str
    out: Path
    teacher: str
    """Inspect's name, provider/model."""
    instructions: str
    """Text with placeholders."""
    mode: Mode = "rewrite"
    form: Form = "row"
    columns: dict[str, str] = Field(default_factory=dict)
    split: str | None = None
    revision: str | None = None
    config: str | None = None
    """Part of a hub data set that has several."""
    limit: int | None = Field(default=None, ge=1)
    temperature: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    max_tokens: int = Field(default=4096, ge=1)
    attempts: int = Field(default=3, ge=1)
    """Replies asked for, at most, for one response."""
    concurrency: int = Field(default=8, ge=1)
    retries: int = Field(default=5, ge=0)
    """Further tries of a request that got no reply."""
    timeout: int = Field(default=120, ge=1)
    """Seconds for one request."""
    budget: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """US dollars over all runs on the same output."""
    price_in: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """US dollars per million tokens read."""
    price_out: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    judge: JudgeConfig = JudgeConfig()
    """Of the mode `correct`."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.price_in is None) != (self.price_out is None):
            raise ValueError("--price-in and --price-out belong together: US dollars per million tokens")
        if self.budget is not None and self.price_in is None:
            raise ValueError("--budget needs --price-in and --price-out (US dollars per million tokens)")
        if "/" not in self.teacher:
            raise ValueError(f"--teacher {self.teacher!r}: write PROVIDER/MODEL, e.g. openai/gpt-4.1")
        return self

    @property
    def settings(self) -> dict[str, Any]:
        """What decides a reply, beside the row."""
        return {
            "teacher": self.teacher,
            "mode": self.mode,
            "form": self.form,
            "instructions": sha256(self.instructions.encode()).hexdigest(),
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
        }

    def cost(self, tokens_in: int, tokens_out: int) -> float | None:
        """US dollars; None without prices."""
        if self.price_in is None or self.price_out is None:
            return None
        return (tokens_in * self.price_in + tokens_out * self.price_out) / 1e6

    def most(self, text: str) -> tuple[int, int]:
        """Tokens that one request can read and write at most: one a byte of its text, and the longest reply."""
        return len(text.encode("utf-8", "replace")) + ENVELOPE, self.max_tokens

    @property
    def log_path(self) -> Path:
        """Requests and replies."""
        return self.out.with_name(self.out.name + ".answers.jsonl")

    @property
    def record_path(self) -> Path:
        """Report and rows."""
        return self.out.with_name(self.out.name + ".record.jsonl")


class Estimate(Record):
    """What a job will take, counted in characters and not by a tokenizer."""

    responses: int
    """Distinct ones, each asked about once."""
    tokens_in: int
    tokens_out: int
    """If every reply is as long as the response it is about."""
    cost: float | None
    """If every first reply can be used."""
    cost_at_most: float | None
    """If every response takes all its attempts, each with the longest reply."""


class RowRecord(Record):
    """What became of one row."""

    row: int
    """0-based row of the source."""
    id: str
    state: State
    reasons: tuple[str, ...] = ()
    """Why each reply could not be used, or why there is none."""
    keys: tuple[str, ...] = ()
    """Of its replies in the log."""
    tokens_in: int | None = None
    tokens_out: int | None = None
    cost: float | None = None
    final_answer: Literal["same", "not checkable"] | None = None
    same_as: int | None = None
    """Row with the same request and response, whose replies also serve this one, and where they are counted."""


class RewriteReport(Record):
    """First line of a record file, and what `prefixlab rewrite --json` prints."""

    source: str
    out: str
    settings: dict[str, Any]
    judge: str | None
    n_rows: int
    states: dict[str, int]
    final_answers: dict[str, int]
    """Rewritten rows by whether their final answer could be compared."""
    reasons: dict[str, int]
    """Refused replies, open and skipped rows by reason, without quoted text."""
    replies: int
    """Replies that were paid for, over all runs on this output."""
    unknown: int
    """Requests without a reply that may have cost something."""
    tokens_in: int
    tokens_out: int
    without_usage: int
    """Replies whose service did not say what they took; they are in no sum of tokens, and cost their most."""
    cost: float | None
    """US dollars over all runs, `unknown` ones at their most; None without prices."""
    stopped: Stop
    message: str
    """Why the run stopped before its end, or why a response has no reply."""


@dataclass(frozen=True)
class Work:
    """What there is to do."""

    targets: list[Target]
    skipped: list[tuple[int, str]]
    judged: bool
    """Whether the targets are known to be unsafe already."""
    notes: tuple[str, ...] = ()


@dataclass
class Outcome:
    """What a response came to."""

    state: State
    reply: Reply | None = None
    reasons: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    final_answer: Literal["same", "not checkable"] | None = None
