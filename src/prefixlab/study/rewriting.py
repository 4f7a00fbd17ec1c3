"""`prefixlab rewrite`: what it works on, what it says beforehand, and what it writes.

Beside the output F stand F.answers.jsonl (every request and reply, rewrite_log.py) and F.record.jsonl (a report, then
one line a row). Both are there from the first run on; F itself appears only when every row has come to its end, since
half a training file looks like a whole one. What a row comes to is worked out anew from its replies each time.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

from prefixlab.data.layouts import Turn
from prefixlab.data.parts import split_response
from prefixlab.data.rewrite import AGAIN, Target, fill, read_targets, rewritten_row
from prefixlab.data.sources import chosen
from prefixlab.data.strip_files import parquet_schema
from prefixlab.data.writing import encoded, whole
from prefixlab.errors import UserError
from prefixlab.evals.scores import read_scores
from prefixlab.study.rewrite_job import STATES, Estimate, Outcome, RewriteJob, RewriteReport, RowRecord, Stop, Work
from prefixlab.study.rewrite_log import RewriteLog, content_key

REASON = 200
"""Bytes of the reason that a further attempt is told."""
CHARACTERS = 4
"""Characters a token, for estimates; a tokenizer of the teacher's is not at hand."""
_QUOTED = re.compile(r"""(?<!\w)(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")""", re.DOTALL)
"""What repr() has made of a text."""
Number = TypeVar("Number", int, float)


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
            reasoning, answer = split_response(text)
            turns = [{"role": "user", "content": score.prompt}, {"role": "assistant", "content": text}]
            found[score.prompt] = Target(
                row=len(found),
                id=score.item,
                prompt=score.prompt,
                shown=score.prompt,
                reasoning=reasoning,
                answer=answer,
                value={"id": score.item, "messages": turns, "source": path.parent.name},
                turn=Turn("assistant", text, ("messages", 1, "content")),
            )
    return list(found.values()), more


RULED = "judge rules: every answer that is no refusal counts as unsafe, and only refusals are taken as corrections"


def read_work(job: RewriteJob) -> Work:
    """The responses of a job.

    Raises:
        UserError: Nothing there, nothing that can be used, or rows that the output's format cannot hold.
    """
    scored = scored_files(job.source) if job.mode == "correct" else []
    ruled = [RULED] if job.mode == "correct" and job.judge.name == "rules" else []
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
        found, skipped = read_targets(
            job.source, job.columns, split=job.split, revision=job.revision, config=job.config
        )
        work = Work(found, skipped, False)
    # By content as well: in some files every row has the same id, or counts from 0 anew.
    targets = chosen(work.targets, lambda t: f"{t.id}\x1f{t.shown}\x1f{t.text}", "rewrite", job.limit)
    _encoded(job, [t.value for t in targets])
    return Work(targets, work.skipped, work.judged, (*ruled, *work.notes))


def _encoded(job: RewriteJob, rows: list[dict[str, Any]]) -> bytes:
    return encoded(rows, job.out, parquet_schema(job.source, job.out))


def grouped(job: RewriteJob, targets: Sequence[Target]) -> list[list[Target]]:
    """Targets about which the teacher is asked the same: one set of replies serves them all."""
    found: dict[bytes, list[Target]] = {}
    for target in targets:
        text = fill(job.instructions, target, job.form)
        found.setdefault(sha256(text.encode("utf-8", "surrogatepass")).digest(), []).append(target)
    return list(found.values())


def estimate(job: RewriteJob, groups: Sequence[Sequence[Target]]) -> Estimate:
    """What a job will take."""
    read = written = 0
    at_most = 0.0
    for same in groups:
        text = fill(job.instructions, same[0], job.form)
        read += len(text)
        written += len(same[0].text)
        again = text + AGAIN.format(reason=REASON * "x")
        at_most += job.cost(*job.most(text)) or 0.0
        at_most += (job.attempts - 1) * (job.cost(*job.most(again)) or 0.0)
    read, written = read // CHARACTERS, written // CHARACTERS
    return Estimate(
        responses=len(groups),
        tokens_in=read,
        tokens_out=written,
        cost=job.cost(read, written),
        cost_at_most=None if job.price_in is None else at_most,
    )


def unasked(job: RewriteJob, groups: Sequence[Sequence[Target]], log: RewriteLog) -> list[Sequence[Target]]:
    """The responses about which no reply is kept.

    Raises:
        UserError: The output is there, and was made from other data.
    """

    def key(target: Target) -> str:
        return content_key(job.settings, fill(job.instructions, target, job.form), 1)

    left = [same for same in groups if key(same[0]) not in log.got]
    if log.got and len(left) == len(groups) and job.out.exists():
        raise UserError(
            f"{str(job.out)!r} was made from other data: no response of {job.source!r} was asked about for it; choose "
            "another --out"
        )
    return left


def dollars(value: float) -> str:
    """An amount, in cents from a dollar on."""
    return f"${value:,.2f}" if value >= 1 else f"${value:.4f}"


def estimate_text(found: Estimate, job: RewriteJob) -> str:
    """An estimate as a line."""
    money = ""
    if found.cost is not None and found.cost_at_most is not None:
        money = (
            f"; about {dollars(found.cost)}, and at most {dollars(found.cost_at_most)} if each takes {job.attempts} "
            f"attempts of {job.max_tokens:,} tokens"
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
    work: Work, groups: Iterable[Sequence[Target]], outcomes: Mapping[int, Outcome], log: RewriteLog
) -> list[RowRecord]:
    """A line a row of the source, in its order."""
    first = {target.row: same[0].row for same in groups for target in same}
    rows = [RowRecord(row=row, id="", state="skipped", reasons=(why,)) for row, why in work.skipped]
    for target in work.targets:
        outcome, leader = outcomes[target.row], first[target.row]
        about = {"row": target.row, "id": target.id, "state": outcome.state, "reasons": outcome.reasons}
        if leader != target.row:
            rows.append(RowRecord(**about, keys=outcome.keys, final_answer=outcome.final_answer, same_as=leader))
            continue
        got = [log.got[key] for key in outcome.keys]
        read, written, costs = ([g.tokens_in for g in got], [g.tokens_out for g in got], [log.cost_of(g) for g in got])
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
    content = _encoded(job, written)
    with whole(job.out) as path:
        path.write_bytes(content)


def count_reasons(rows: Iterable[RowRecord]) -> dict[str, int]:
    """Rows by reason, the text that a reason quotes left out: each row has its own."""
    found: Counter[str] = Counter()
    for row in rows:
        found.update(_QUOTED.sub("...", reason).removesuffix(": ...") for reason in row.reasons)
    return dict(found.most_common(30))
