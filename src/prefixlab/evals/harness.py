"""Suites through Inspect: generate into a standard .eval log, then score logs. Scoring never samples again.

A log is self-contained: every sample carries its item, what was prefilled, and with the log's metadata all that a
scorer needs, so that a log can be judged again later, by another judge, on another machine.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
from inspect_ai import Epochs, Task, eval
from inspect_ai import score as inspect_score
from inspect_ai.dataset import MemoryDataset
from inspect_ai.dataset import Sample as InspectSample
from inspect_ai.log import EvalLog, EvalSample, read_eval_log, write_eval_log
from inspect_ai.model import (
    ChatMessage,
    ChatMessageAssistant,
    ChatMessageSystem,
    ChatMessageUser,
    ContentReasoning,
    GenerateConfig,
    Model,
    ModelAPI,
    ModelOutput,
)
from inspect_ai.scorer import Metric as InspectMetric
from inspect_ai.scorer import SampleScore as InspectScore
from inspect_ai.scorer import Score, Target, metric, scorer
from inspect_ai.scorer import Scorer as InspectScorer
from inspect_ai.solver import Generate, Solver, TaskState, solver

from prefixlab.data.parts import CLOSE, OPEN
from prefixlab.errors import StepError, UserError, innermost
from prefixlab.evals.aggregate import prompt_level
from prefixlab.evals.diagnostics import Reading, diagnose
from prefixlab.evals.nouns import Scored, Suite
from prefixlab.evals.outputs import Parsed, parse_output
from prefixlab.evals.safety import REFUSALS, SECONDARY, Judging, Turn, judge_turn
from prefixlab.records import EvalItem, Measure, Message, SampleScore

SCORED = "prefixlab"
"""Name of our scorer in logs."""
KINDS = {"system": ChatMessageSystem, "user": ChatMessageUser, "assistant": ChatMessageAssistant}


@solver
def ask() -> Solver:
    """One generate call that carries item id and epoch with the user's message."""

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        user = next(m for m in reversed(state.messages) if m.role == "user")
        user.metadata = {"prefixlab": {"item": str(state.sample_id), "epoch": state.epoch}}
        done = await generate(state)
        if done.output.metadata and "prefill" in done.output.metadata:
            done.metadata["prefill"] = done.output.metadata["prefill"]
        return done

    return solve


def chat_message(message: Message) -> ChatMessage:
    """One turn as Inspect wants it."""
    made: ChatMessage = KINDS[message.role](content=message.content)
    return made


def inspect_samples(items: Sequence[EvalItem]) -> list[InspectSample]:
    """Samples that carry their item, so that a log can be scored alone."""
    return [
        InspectSample(
            id=i.id,
            input=[chat_message(m) for m in i.messages],
            target=i.target,
            metadata={"item": i.model_dump(mode="json"), "prefill": ""},
        )
        for i in items
    ]


@dataclass(frozen=True)
class EvalJob:
    """One generation: a suite's items, and what its log says about them."""

    suite: str
    items: Sequence[EvalItem]
    epochs: int
    metadata: dict[str, Any]
    """Cell, arm, condition, protocol: stored in the log."""


def generate_log(job: EvalJob, provider: ModelAPI, folder: Path, requests: int) -> Path:
    """Run a suite's items through Inspect without scoring them.

    Args:
        job: Items and metadata.
        provider: The model as Inspect sees it.
        folder: Gets one .eval log.
        requests: How many requests may wait at once; all of them where batches are planned.

    Raises:
        StepError: Inspect did not finish.
    """
    task = Task(
        dataset=MemoryDataset(inspect_samples(job.items), name=job.suite),
        solver=ask(),
        epochs=Epochs(job.epochs, "mean"),
        name=job.suite,
    )
    return run_task(task, job.suite, provider, folder, requests, job.metadata)


def run_task(
    task: Task | str,
    name: str,
    provider: ModelAPI,
    folder: Path,
    requests: int,
    metadata: dict[str, Any],
    **more: Any,
) -> Path:
    """One Inspect eval with our model; returns its log.

    Raises:
        StepError: Inspect did not finish.
    """
    logs = eval(
        task,
        model=Model(provider, GenerateConfig()),
        log_dir=str(folder),
        log_format="eval",
        log_realtime=False,
        log_level="error",
        display="none",
        score_display=False,
        metadata=metadata,
        max_connections=requests,
        max_samples=requests,
        fail_on_error=True,
        retry_on_error=0,
        **more,
    )
    if not logs or logs[0].status == "cancelled":
        raise KeyboardInterrupt
    check_finished(logs[0], name)
    return Path(logs[0].location.removeprefix("file://"))


def check_finished(log: EvalLog, name: str) -> None:
    """Refuse a log that is not whole.

    Raises:
        StepError: Why it did not finish.
    """
    if log.status != "success":
        lines = log.error.message.splitlines() if log.error else []
        raise StepError(f"evaluation on {name!r} did not finish: {lines[0] if lines else log.status}")


@metric
def measured_mean() -> InspectMetric:
    """Mean over the samples that have a value; NaN if there is none."""

    def compute(scores: list[InspectScore]) -> float:
        values = [v for v in (s.score.as_float() for s in scores) if not math.isnan(v)]
        return sum(values) / len(values) if values else float("nan")

    return compute


@dataclass(frozen=True)
class Scoring:
    """How a suite's completions become numbers."""

    suite: Suite
    reading: Reading
    judging: Judging | None
    """None where no judge is needed."""
    tick: Callable[[float], None] = lambda share: None
    """Told the share of completions scored."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """What the scored log says beside the metadata of the one that was sampled."""


def written(output: ModelOutput, suite: str) -> str:
    """What the model wrote; reasoning that a server has parsed out is put back in front.

    Raises:
        StepError: The server keeps the reasoning for itself.
    """
    content = output.message.content if output.choices else ""
    if isinstance(content, str):
        return content
    thoughts = [c for c in content if isinstance(c, ContentReasoning)]
    if any(t.redacted for t in thoughts):
        raise StepError(f"evaluation on {suite!r}: the server withholds the reasoning, so the response is not whole")
    reasoning = "\n".join(t.reasoning for t in thoughts)
    return f"{OPEN}\n{reasoning}\n{CLOSE}\n\n{output.completion}" if thoughts else output.completion


def suite_scorer(how: Scoring, total: int = 0) -> InspectScorer:
    """The suite's scorer as Inspect wants it; graders run in threads, judges in the event loop.

    Args:
        how: Suite, reading, judge.
        total: Completions to come, for the progress.
    """
    done = [0]
    lane = anyio.CapacityLimiter(2)
    names = [m.name for m in how.suite.metrics]
    names += [*SECONDARY, *REFUSALS.values()] if how.suite.judged else []

    async def rate(item: EvalItem, turn: Turn) -> tuple[list[Scored], dict[str, float]]:
        if how.suite.score is None:
            assert how.judging is not None
            return await judge_turn(item, turn, how.judging)
        return await anyio.to_thread.run_sync(how.suite.score, item, turn.parsed, limiter=lane), {}

    async def score(state: TaskState, target: Target) -> Score:
        item = EvalItem.model_validate(state.metadata["item"])
        prefill, completion = str(state.metadata["prefill"]), written(state.output, how.suite.name)
        parsed = _parse(state, how, prefill, completion)
        turn = Turn(item.messages[-1].content, completion, prefill, parsed)
        rows, more = await rate(item, turn)
        if not how.suite.choices:
            tokens = state.output.usage.output_tokens if state.output.usage else 0
            more |= diagnose(parsed, how.reading, prompt=turn.prompt, prefill=prefill, n_tokens=tokens)
        done[0] += 1
        how.tick(done[0] / max(total, 1))
        return Score(
            # Inspect turns a missing number into 0 before it aggregates; NaN it leaves alone.
            value=dict.fromkeys(names, math.nan) | {r.metric: r.value for r in rows if r.value is not None},
            answer=rows[0].answer[:2000],
            metadata={"scored": [r.__dict__ for r in rows], "diagnostics": more},
        )

    return scorer(metrics={"*": [measured_mean()]}, name=SCORED)(lambda: score)()


def _parse(state: TaskState, how: Scoring, prefill: str, completion: str) -> Parsed:
    truncated = state.output.stop_reason in ("max_tokens", "model_length")
    if how.suite.choices:
        return Parsed(reasoning=None, answer=completion, truncated=False, state="none")
    inside = how.reading.begins_inside(completion, truncated)
    return parse_output(completion, preopened=inside, prefill=prefill, truncated=truncated)


def score_log(path: Path, how: Scoring, folder: Path) -> tuple[list[SampleScore], list[Measure]]:
    """Score a log; leaves a scored copy in `folder`.

    Returns:
        Rows of the main metric, one a completion, and all other measures (prompt-level ones have epoch 0).

    Raises:
        StepError: The log is not whole, or a scorer failed; a judge that is down says so in one line.
    """
    log = read_eval_log(str(path))
    check_finished(log, how.suite.name)
    try:
        scored = inspect_score(
            log,
            suite_scorer(how, len(log.samples or ())),
            action="overwrite",
            model="none/none",
            display="none",
            copy=False,
        )
    except* UserError as group:
        raise innermost(group) from group
    scored.eval.metadata = {**(scored.eval.metadata or {}), **how.about, "reading": how.reading.model_dump()}
    write_eval_log(scored, str(folder / path.name), format="eval")
    return rows_of_log(scored, how.suite.name)


def rows_of_log(log: EvalLog, suite: str) -> tuple[list[SampleScore], list[Measure]]:
    """Every metric of every sample of a scored log, sorted by item, epoch and metric."""
    main: list[SampleScore] = []
    more: list[Measure] = []
    epochs = 1
    for sample in log.samples or ():
        if not sample.scores or SCORED not in sample.scores:
            raise StepError(f"evaluation on {suite!r}: sample {sample.id!r} has no score")
        epochs = max(epochs, sample.epoch)
        about = sample.scores[SCORED].metadata or {}
        item = EvalItem.model_validate(sample.metadata["item"])
        for i, scored in enumerate(about["scored"]):
            row = Measure(
                item=item.id,
                epoch=sample.epoch,
                metric=scored["metric"],
                value=scored["value"],
                status=scored["status"],
                kind=item.kind,
                category=item.category,
            )
            more.append(row) if i else main.append(_with_texts(row, sample, item, scored["answer"]))
        more += [
            Measure(item=item.id, epoch=sample.epoch, metric=name, value=value, status="ok", kind=item.kind)
            for name, value in about["diagnostics"].items()
        ]
    more += prompt_level([*main, *more], epochs)
    return sorted(main, key=_order), sorted(more, key=_order)


def _order(row: Measure) -> tuple[str, int, str]:
    return row.item, row.epoch, row.metric


def _with_texts(row: Measure, sample: EvalSample, item: EvalItem, answer: str) -> SampleScore:
    usage = sample.output.usage
    return SampleScore(
        **row.model_dump(),
        prompt=item.messages[-1].content,
        completion=written(sample.output, item.id),
        prefill=str(sample.metadata["prefill"]),
        answer=answer,
        target=item.target,
        n_tokens=usage.output_tokens if usage else 0,
    )


def own_completions(path: Path) -> Mapping[tuple[str, int], str]:
    """What the model wrote for every item and epoch of a log."""
    log = read_eval_log(str(path))
    check_finished(log, path.name)
    return {(str(s.id), s.epoch): written(s.output, path.name) for s in log.samples or ()}
