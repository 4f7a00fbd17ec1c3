"""`prefixlab rewrite`: what it works on, what it says beforehand, and what it writes.

Beside the output F stand F.answers.jsonl (every request and reply, rewrite_log.py) and F.record.jsonl (a report, then
one line a row). Both are there from the first run on; F itself appears only when every row has come to its end, since
half a training file looks like a whole one. What a row comes to is worked out anew from its replies each time.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field, model_validator

from prefixlab.config import JudgeConfig
from prefixlab.data.layouts import Turn
from prefixlab.data.rewrite import Form, Mode, Reply, Target, fill, read_targets, rewritten_row
from prefixlab.data.sources import chosen
from prefixlab.data.strip_files import parquet_schema
from prefixlab.data.writing import encoded, whole
from prefixlab.errors import UserError
from prefixlab.evals.scores import read_scores
from prefixlab.records import Record
from prefixlab.study.rewrite_log import RewriteLog

CHARACTERS = 4
"""Characters a token, for estimates; a tokenizer of the teacher's is not at hand."""
ENVELOPE = 200
"""Tokens that a service may put around a request."""
State = Literal["rewritten", "kept", "refused", "open", "skipped"]
"""`kept`: judged safe, and left as it came. `refused`: no reply could be used. `open`: not asked, or not answered.
`skipped`: no response to work on."""
STATES: tuple[State, ...] = ("rewritten", "kept", "refused", "open", "skipped")
Number = TypeVar("Number", int, float)
Stop = Literal["", "budget", "interrupted", "teacher", "judge"]


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
    limit: int | None = Field(default=None, ge=1)
    temperature: float = Field(default=0.0, ge=0)
    max_tokens: int = Field(default=4096, ge=1)
    attempts: int = Field(default=3, ge=1)
    """Replies asked for, at most, for one response."""
    concurrency: int = Field(default=8, ge=1)
    retries: int = Field(default=5, ge=0)
    """Further tries of a request that got no reply."""
    timeout: int = Field(default=120, ge=1)
    """Seconds for one request."""
    budget: float | None = Field(default=None, gt=0)
    """US dollars over all runs on the same output."""
    price_in: float | None = Field(default=None, ge=0)
    """US dollars per million tokens read."""
    price_out: float | None = Field(default=None, ge=0)
    judge: JudgeConfig = JudgeConfig()
    """Of the mode `correct`."""

    @model_validator(mode="after")
    def _fits(self) -> "RewriteJob":
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

    def most(self, text: str) -> float | None:
        """What one request can cost at most: a token a byte of its text, and the longest reply."""
        return self.cost(len(text.encode("utf-8", "replace")) + ENVELOPE, self.max_tokens)

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
    """Why the run stopped before its end."""


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


def scored_files(source: str) -> list[Path]:
    """Scored completions at a path: a scores.jsonl, or all below a folder."""
    path = Path(source).expanduser()
    if path.is_file():
        return [path] if path.name == "scores.jsonl" else []
    return sorted(path.rglob("scores.jsonl")) if path.is_dir() else []


def _unsafe(files: Iterable[Path]) -> tuple[list[Target], int]:
    """The first unsafe completion of every prompt, and how many further ones there are."""
    found: dict[str, Target] = {}
    more = 0
    for path in files:
        for score in read_scores(path):
            if score.metric != "safe@1" or score.value != 0.0:
                continue
            if score.prompt in found:
                more += 1
                continue
            text = score.prefill + score.completion
            turns = [{"role": "user", "content": score.prompt}, {"role": "assistant", "content": text}]
            found[score.prompt] = Target(
                row=len(found),
                id=score.item,
                prompt=score.prompt,
                shown=score.prompt,
                reasoning=None,
                answer=text,
                value={"id": score.item, "messages": turns, "source": path.parent.name},
                turn=Turn("assistant", text, ("messages", 1, "content")),
            )
    return list(found.values()), more


def read_work(job: RewriteJob) -> Work:
    """The responses of a job.

    Raises:
        UserError: Nothing there, or nothing that can be used.
    """
    scored = scored_files(job.source) if job.mode == "correct" else []
    if scored:
        targets, more = _unsafe(scored)
        if not targets:
            raise UserError(f"{job.source!r}: no completion in {len(scored)} scores.jsonl is judged unsafe")
        notes = ["these prompts were used to test models: a model trained on them cannot be tested on them again"]
        notes += [f"{more} further unsafe completions of the same prompts are left out"] if more else []
        work = Work(targets, [], True, tuple(notes))
    else:
        if job.mode == "correct" and Path(job.source).suffix == ".eval":
            raise UserError(f"{job.source!r} is a log; score it with prefixlab score, and name that folder")
        found, skipped = read_targets(job.source, job.columns, split=job.split, revision=job.revision)
        work = Work(found, skipped, False)
    targets = chosen(work.targets, lambda t: t.id, "rewrite", job.limit)
    return Work(targets, work.skipped, work.judged, work.notes)


def first_texts(job: RewriteJob, targets: Sequence[Target]) -> dict[str, list[Target]]:
    """Targets by what the teacher is asked about them first."""
    found: dict[str, list[Target]] = {}
    for target in targets:
        found.setdefault(fill(job.instructions, target, job.form), []).append(target)
    return found


def estimate(job: RewriteJob, asked: Mapping[str, Sequence[Target]]) -> Estimate:
    """What a job will take."""
    read = sum(len(text) for text in asked) // CHARACTERS
    written = sum(len(same[0].text) for same in asked.values()) // CHARACTERS
    at_most = [job.most(text) for text in asked]
    return Estimate(
        responses=len(asked),
        tokens_in=read,
        tokens_out=written,
        cost=job.cost(read, written),
        cost_at_most=None if job.price_in is None else job.attempts * sum(most or 0.0 for most in at_most),
    )


def estimate_text(found: Estimate, job: RewriteJob) -> str:
    """An estimate as a line."""
    money = ""
    if found.cost is not None and found.cost_at_most is not None:
        money = (
            f"; about ${found.cost:,.2f}, and at most ${found.cost_at_most:,.2f} if each takes {job.attempts} attempts "
            f"of {job.max_tokens:,} tokens"
        )
    unjudged = " if all are unsafe" if job.mode == "correct" and not scored_files(job.source) else ""
    return (
        f"{found.responses:,} responses to ask {job.teacher} about{unjudged}: about {found.tokens_in:,} tokens to read "
        f"and {found.tokens_out:,} to write ({CHARACTERS} characters a token, not counted by a tokenizer){money}"
    )


def check_out(job: RewriteJob) -> None:
    """Refuse an output that is the data, is somebody else's, or cannot be written, before anything is asked.

    Raises:
        UserError: Why.
    """
    encoded([], job.out)
    if not job.out.parent.is_dir():
        raise UserError(f"cannot write {str(job.out)!r}: there is no folder {str(job.out.parent)!r}")
    if job.out.exists() and not job.log_path.exists():
        raise UserError(f"{str(job.out)!r} is there already and was not made by prefixlab rewrite; choose a new name")


def row_records(
    work: Work, asked: Mapping[str, Sequence[Target]], outcomes: Mapping[int, Outcome], log: RewriteLog
) -> list[RowRecord]:
    """A line a row of the source, in its order."""
    first = {target.row: same[0].row for same in asked.values() for target in same}
    rows = [RowRecord(row=row, id="", state="skipped", reasons=(why,)) for row, why in work.skipped]
    for target in work.targets:
        outcome, leader = outcomes[target.row], first[target.row]
        about = {"row": target.row, "id": target.id, "state": outcome.state, "reasons": outcome.reasons}
        if leader != target.row:
            rows.append(RowRecord(**about, keys=outcome.keys, final_answer=outcome.final_answer, same_as=leader))
            continue
        got = [log.got[key] for key in outcome.keys]
        read, written, costs = ([g.tokens_in for g in got], [g.tokens_out for g in got], [g.cost for g in got])
        rows.append(
            RowRecord(
                **about,
                keys=outcome.keys,
                tokens_in=_total(read),
                tokens_out=_total(written),
                cost=_total(costs),
                final_answer=outcome.final_answer,
            )
        )
    return sorted(rows, key=lambda row: row.row)


def _total(values: Sequence[Number | None]) -> Number | None:
    """The sum; None of nothing, and where one is not known."""
    known = [v for v in values if v is not None]
    return sum(known[1:], known[0]) if known and len(known) == len(values) else None


def report_of(
    job: RewriteJob, work: Work, rows: Sequence[RowRecord], log: RewriteLog, stopped: Stop, message: str
) -> RewriteReport:
    """What came of a job, in all runs so far."""
    got = log.got.values()
    answers = Counter(row.final_answer for row in rows if row.final_answer is not None)
    return RewriteReport(
        source=job.source,
        out=str(job.out),
        settings=job.settings,
        judge=job.judge.name if job.mode == "correct" else None,
        n_rows=len(rows),
        states={state: sum(row.state == state for row in rows) for state in STATES},
        final_answers=dict(answers),
        reasons=count_reasons(rows),
        replies=len(got),
        unknown=log.n_lost + len(log.open),
        tokens_in=sum(g.tokens_in or 0 for g in got),
        tokens_out=sum(g.tokens_out or 0 for g in got),
        without_usage=sum(g.tokens_in is None for g in got),
        cost=None if job.price_in is None else log.spent,
        stopped=stopped,
        message=message,
    )


def write_outputs(
    job: RewriteJob,
    work: Work,
    outcomes: Mapping[int, Outcome],
    report: RewriteReport,
    rows: Sequence[RowRecord],
) -> None:
    """The record, and the output where every row has come to its end.

    Args:
        job: Where to.
        work: The responses.
        outcomes: By row.
        report: First line of the record.
        rows: Its other lines.

    Raises:
        UserError: The rows do not fit the output's format.
    """
    with whole(job.record_path) as path:
        lines = [json.dumps(line.model_dump()) for line in (report, *rows)]  # ASCII: ids can hold half a character
        path.write_text("".join(f"{line}\n" for line in lines), encoding="ascii")
    if report.stopped or report.states["open"] or not report.states["rewritten"]:
        return
    written = []
    for target in work.targets:
        outcome = outcomes[target.row]
        if outcome.state == "rewritten" and outcome.reply is not None:
            written.append(rewritten_row(target, outcome.reply))
        elif outcome.state == "kept":
            written.append(target.value)
    content = encoded(written, job.out, parquet_schema(job.source, job.out))
    with whole(job.out) as path:
        path.write_bytes(content)


def count_reasons(rows: Iterable[RowRecord]) -> dict[str, int]:
    """Rows by reason, the text that a reason quotes left out."""
    found: Counter[str] = Counter()
    for row in rows:
        found.update(reason.split(": '")[0].split(' "')[0].split(': "')[0] for reason in row.reasons)
    return dict(found.most_common(30))
