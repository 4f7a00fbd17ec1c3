"""Evaluation through Inspect AI with our own engine behind it.

Batches are planned from the suite's items and epochs before Inspect starts and are stored with the step. The solver
sends item id and epoch with the message; the provider collects requests and runs a batch as soon as the last of its
members has arrived, in one worker thread. Per-request seeds derive from (study key, item, epoch), so neither the
order of arrival nor a resumed run changes a completion.
"""

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inspect_ai import Epochs, Task, eval
from inspect_ai.dataset import MemoryDataset
from inspect_ai.dataset import Sample as InspectSample
from inspect_ai.log import EvalLog, read_eval_log
from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessage,
    ChatMessageAssistant,
    ChatMessageSystem,
    ChatMessageUser,
    GenerateConfig,
    Model,
    ModelAPI,
    ModelOutput,
    ModelUsage,
    modelapi,
)
from inspect_ai.scorer import Metric, Score, Target, metric, scorer
from inspect_ai.scorer import SampleScore as InspectScore
from inspect_ai.scorer import Scorer as InspectScorer
from inspect_ai.solver import Generate, Solver, TaskState, solver
from inspect_ai.tool import ToolChoice, ToolInfo

from prefixlab.config import SuiteConfig
from prefixlab.data.arms import keyed_hash
from prefixlab.data.parts import split_response
from prefixlab.errors import StepError
from prefixlab.evals.scorers import Parsed
from prefixlab.evals.suites import Suite
from prefixlab.model.generate import Completion, Request
from prefixlab.records import EvalItem, Message, Record, SampleScore

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Key = tuple[str, int]
"""Item id and epoch (from 1)."""


class PlannedRequest(Record):
    """One completion to come: what is sent and how it is drawn."""

    item: str
    epoch: int
    ids: tuple[int, ...]
    prefill: str
    """Text of the last ids that stands for the start of the model's own turn; empty if nothing is prefilled."""
    seed: int

    @property
    def key(self) -> Key:
        """Item and epoch."""
        return self.item, self.epoch


class BatchPlan(Record):
    """Every request of an evaluation in its batch, fixed before the first one is sent."""

    max_tokens: int
    temperature: float
    top_p: float
    batches: tuple[tuple[PlannedRequest, ...], ...]


def plan_batches(prompts: Mapping[str, tuple[tuple[int, ...], str]], config: SuiteConfig, key: str) -> BatchPlan:
    """Batches of prompts of similar length, longest first.

    Args:
        prompts: Prompt ids, prefill included, and the prefill's text, by item id.
        config: Decoding, epochs and batch size.
        key: Part of every request's seed.
    """
    requests = [
        PlannedRequest(item=item, epoch=epoch, ids=ids, prefill=text, seed=keyed_hash(key, item, epoch) % 2**63)
        for item, (ids, text) in prompts.items()
        for epoch in range(1, config.epochs + 1)
    ]
    requests.sort(key=lambda r: (-len(r.ids), r.item, r.epoch))
    size = config.batch_size
    return BatchPlan(
        max_tokens=config.max_tokens,
        temperature=config.temperature,
        top_p=config.top_p,
        batches=tuple(tuple(requests[i : i + size]) for i in range(0, len(requests), size)),
    )


Engine = Callable[[Sequence[Request]], list[Completion]]
"""Completes one batch; the real one is model.generate, tests script it."""


@modelapi(name="prefixlab")
class PlannedProvider(ModelAPI):
    """Inspect model that answers from planned batches."""

    def __init__(
        self,
        name: str,
        plan: BatchPlan,
        engine: Engine,
        decode: Callable[[Sequence[int]], str],
        tick: Callable[[int], None],
    ) -> None:
        super().__init__(model_name=name)
        self._plan, self._engine, self._decode, self._tick = plan, engine, decode, tick
        self._batch_of = {r.key: b for b, batch in enumerate(plan.batches) for r in batch}
        self._waiting: dict[int, dict[Key, asyncio.Future[Completion]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._worker = ThreadPoolExecutor(max_workers=1)

    def max_connections(self) -> int:
        """All requests may wait at once: a batch starts only when it is complete."""
        return len(self._batch_of)

    async def generate(
        self, input: list[ChatMessage], tools: list[ToolInfo], tool_choice: ToolChoice, config: GenerateConfig
    ) -> ModelOutput:
        """Wait until the request's batch is complete and has been run."""
        about = next((m.metadata["prefixlab"] for m in input if m.metadata and "prefixlab" in m.metadata), None)
        if about is None:
            raise StepError("a request without item id and epoch reached the planned provider")
        key: Key = (str(about["item"]), int(about["epoch"]))
        loop = asyncio.get_running_loop()
        number = self._batch_of[key]
        waiting = self._waiting.setdefault(number, {})
        waiting[key] = loop.create_future()
        if len(waiting) == len(self._plan.batches[number]):
            self._tasks.add(loop.create_task(self._run(number)))
        done = await waiting[key]
        text = self._decode(done.ids)
        sent = next(len(r.ids) for r in self._plan.batches[number] if r.key == key)
        return ModelOutput(
            model=self.model_name,
            choices=[
                ChatCompletionChoice(
                    message=ChatMessageAssistant(content=text),
                    stop_reason="max_tokens" if done.truncated else "stop",
                )
            ],
            usage=ModelUsage(input_tokens=sent, output_tokens=len(done.ids), total_tokens=sent + len(done.ids)),
        )

    async def _run(self, number: int) -> None:
        batch = self._plan.batches[number]
        requests = [
            Request(r.ids, self._plan.max_tokens, self._plan.temperature, self._plan.top_p, r.seed) for r in batch
        ]
        waiting = self._waiting[number]
        try:
            completions = await asyncio.get_running_loop().run_in_executor(self._worker, self._engine, requests)
        except Exception as error:
            for future in waiting.values():
                future.set_exception(error)
            return
        self._tick(len(batch))
        for planned, completion in zip(batch, completions, strict=True):
            waiting[planned.key].set_result(completion)


@solver
def ask() -> Solver:
    """One generate call that carries item id and epoch with the user's message."""

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        state.messages[-1].metadata = {"prefixlab": {"item": str(state.sample_id), "epoch": state.epoch}}
        return await generate(state)

    return solve


def _chat_message(message: Message) -> ChatMessage:
    kinds = {"system": ChatMessageSystem, "user": ChatMessageUser, "assistant": ChatMessageAssistant}
    made: ChatMessage = kinds[message.role](content=message.content)
    return made


@metric
def measured_mean() -> Metric:
    """Mean over the samples that have a value; NaN if there is none."""

    def compute(scores: list[InspectScore]) -> float:
        values = [v for v in (s.score.as_float() for s in scores) if not math.isnan(v)]
        return sum(values) / len(values) if values else float("nan")

    return compute


def _scorer(
    suite: Suite, items: Mapping[str, EvalItem], prefills: Mapping[Key, str], judge: str, preopened: bool
) -> InspectScorer:
    @scorer(metrics={m.name: [measured_mean()] for m in suite.metrics}, name=suite.name)
    def build() -> InspectScorer:
        async def score(state: TaskState, target: Target) -> Score:
            item = items[str(state.sample_id)]
            truncated = state.output.stop_reason == "max_tokens"
            whole = prefills[item.id, state.epoch] + state.output.completion
            reasoning, answer = split_response(whole, preopened=preopened)
            scored = suite.score(item, Parsed(reasoning, answer, truncated), judge)
            return Score(
                # Inspect turns a missing number into 0 before it aggregates; NaN it leaves alone.
                value={m.name: math.nan for m in suite.metrics}
                | {s.metric: s.value for s in scored if s.value is not None},
                answer=scored[0].answer,
                metadata={
                    "scored": [s.__dict__ for s in scored],
                    "prefill": prefills[item.id, state.epoch],
                    "kind": item.kind,
                    "category": item.category,
                },
            )

        return score

    return build()


@dataclass(frozen=True)
class EvalJob:
    """Everything one evaluation needs beside its engine."""

    name: str
    suite: Suite
    items: Sequence[EvalItem]
    plan: BatchPlan
    epochs: int
    judge: str
    preopened: bool
    metadata: dict[str, Any]
    """Cell, arm, condition, protocol: stored in the log."""


def evaluate(
    job: EvalJob,
    engine: Engine,
    tokenizer: "PreTrainedTokenizerBase",
    folder: Path,
    tick: Callable[[int], None] = lambda n: None,
) -> list[SampleScore]:
    """Run one suite through Inspect; leaves a standard .eval log in `folder`.

    Raises:
        StepError: Inspect did not finish, or a sample has no score.
    """

    def decode(ids: Sequence[int]) -> str:
        text = tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text

    items = {i.id: i for i in job.items}
    prefills = {r.key: r.prefill for batch in job.plan.batches for r in batch}
    samples = [
        InspectSample(id=i.id, input=[_chat_message(m) for m in i.messages], target=i.target, metadata={"kind": i.kind})
        for i in job.items
    ]
    task = Task(
        dataset=MemoryDataset(samples, name=job.suite.name),
        solver=ask(),
        scorer=_scorer(job.suite, items, prefills, job.judge, job.preopened),
        epochs=Epochs(job.epochs, "mean"),
        name=job.suite.name,
    )
    provider = PlannedProvider(job.name, job.plan, engine, decode, tick)
    total = len(prefills)
    logs = eval(
        task,
        model=Model(provider, GenerateConfig()),
        log_dir=str(folder),
        log_format="eval",
        log_realtime=False,
        log_level="error",
        display="none",
        score_display=False,
        metadata=job.metadata,
        max_connections=total,
        max_samples=total,
        fail_on_error=True,
        retry_on_error=0,
    )
    return scores_of_log(logs[0], job.suite.name)


def scores_of_log(log: EvalLog, suite: str) -> list[SampleScore]:
    """Every metric of every sample of a finished log, sorted by item, epoch and metric."""
    if log.status != "success" or log.samples is None:
        reason = log.error.message.splitlines()[0] if log.error else log.status
        raise StepError(f"evaluation on {suite!r} did not finish: {reason}")
    rows = []
    for sample in log.samples:
        if not sample.scores:
            raise StepError(f"evaluation on {suite!r}: sample {sample.id!r} has no score")
        (score,) = sample.scores.values()
        about = score.metadata or {}
        for scored in about["scored"]:
            rows.append(
                SampleScore(
                    item=str(sample.id),
                    epoch=sample.epoch,
                    metric=scored["metric"],
                    value=scored["value"],
                    status=scored["status"],
                    kind=about["kind"],
                    category=about["category"],
                    prompt=sample.messages[-2].text if len(sample.messages) > 1 else sample.messages[0].text,
                    completion=sample.output.completion,
                    prefill=about["prefill"],
                    answer=scored["answer"],
                    target=sample.target if isinstance(sample.target, str) else " ".join(sample.target),
                    n_tokens=sample.output.usage.output_tokens if sample.output.usage else 0,
                )
            )
    return sorted(rows, key=lambda r: (r.item, r.epoch, r.metric))


def rescore_log(path: Path, suite: str) -> list[SampleScore]:
    """Scores stored in a log on disk; nothing is generated again."""
    return scores_of_log(read_eval_log(str(path)), suite)
