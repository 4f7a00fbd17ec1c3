"""The model that Inspect sees: our own engine behind planned batches, or behind waves for tasks that cannot be planned.

PlannedProvider collects the requests of a suite and runs a planned batch as soon as its last member has arrived, in one
worker thread. WaveProvider serves any other task: what has arrived when nothing more comes runs as one wave.
Per-request seeds derive from (suite, item, epoch), so neither the order of arrival nor a resumed run changes a planned
completion.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessage,
    ChatMessageAssistant,
    GenerateConfig,
    ModelAPI,
    ModelOutput,
    ModelUsage,
    modelapi,
)
from inspect_ai.tool import ToolChoice, ToolInfo

from prefixlab.data.arms import keyed_hash
from prefixlab.errors import StepError
from prefixlab.evals.planning import Answer, BatchPlan, Kept, Key, PlannedRequest
from prefixlab.evals.protocols import Decoding
from prefixlab.model.generate import Completion, Request
from prefixlab.records import Message

Engine = Callable[[Sequence[Request]], list[Completion]]
"""Completes one batch; the real one is model.generate, tests script it."""
Chooser = Callable[[Sequence[PlannedRequest]], list[tuple[float, ...]]]
"""Log-likelihoods of every option of every request of a batch."""
Decode = Callable[[Sequence[int]], str]


def no_chooser(batch: Sequence[PlannedRequest]) -> list[tuple[float, ...]]:
    """For engines that cannot score given answers."""
    raise StepError("log-likelihood suites are not supported by this engine")


def output_of(name: str, sent: int, answer: Answer, decode: Decode, prefill: str = "") -> ModelOutput:
    """What Inspect gets: a completion, or the log-likelihoods as one number a line."""
    text = decode(answer.ids) if answer.text is None else answer.text
    if answer.log_likelihoods:
        text = "\n".join(map(repr, answer.log_likelihoods))
    written = len(answer.ids) if answer.n_tokens is None else answer.n_tokens
    return ModelOutput(
        model=name,
        choices=[
            ChatCompletionChoice(
                message=ChatMessageAssistant(content=text), stop_reason="max_tokens" if answer.truncated else "stop"
            )
        ],
        usage=ModelUsage(input_tokens=sent, output_tokens=written, total_tokens=sent + written),
        metadata={"prefill": prefill},
    )


@modelapi(name="prefixlab")
class PlannedProvider(ModelAPI):
    """Inspect model that answers from planned batches."""

    def __init__(
        self,
        name: str,
        plan: BatchPlan,
        engine: Engine,
        decode: Decode,
        tick: Callable[[int], None],
        kept: Kept,
        chooser: Chooser = no_chooser,
    ) -> None:
        super().__init__(model_name=name)
        self._plan, self._engine, self._chooser = plan, engine, chooser
        self._decode, self._tick, self._kept = decode, tick, kept
        self._requests = {r.key: r for batch in plan.batches for r in batch}
        self._batch_of = {r.key: b for b, batch in enumerate(plan.batches) for r in batch}
        self._waiting: dict[int, dict[Key, asyncio.Future[Answer]]] = {}
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
        answer = await waiting[key]
        request = self._requests[key]
        return output_of(self.model_name, len(request.ids), answer, self._decode, request.prefill)

    def _answers(self, number: int) -> Sequence[Answer]:
        """Run one batch, or take it from what an earlier process finished."""
        batch, plan = self._plan.batches[number], self._plan
        if number in self._kept.batches:
            return self._kept.batches[number]
        if batch[0].options:
            answers = [Answer(log_likelihoods=totals) for totals in self._chooser(batch)]
        else:
            requests = [
                Request(r.ids, plan.max_tokens, plan.temperature, plan.top_p, r.seed, plan.repetition_penalty)
                for r in batch
            ]
            answers = [Answer.of(done) for done in self._engine(requests)]
        self._kept.add(number, answers)
        return answers

    async def _run(self, number: int) -> None:
        waiting = self._waiting[number]
        try:
            answers = await asyncio.get_running_loop().run_in_executor(self._worker, self._answers, number)
        except Exception as error:
            for future in waiting.values():
                future.set_exception(error)
            return
        self._tick(len(answers))
        for planned, answer in zip(self._plan.batches[number], answers, strict=True):
            waiting[planned.key].set_result(answer)


QUIET = 0.05
"""Seconds without a new request after which a wave starts."""


@modelapi(name="prefixlab-waves")
class WaveProvider(ModelAPI):
    """Inspect model for tasks that decide while they run what they ask next: "not planned" in results."""

    def __init__(
        self,
        name: str,
        engine: Engine,
        decode: Decode,
        encode: Callable[[Sequence[Message]], Sequence[int]],
        how: Decoding,
        *,
        wave: int = 64,
    ) -> None:
        super().__init__(model_name=name)
        self._engine, self._decode, self._encode = engine, decode, encode
        self._how, self._wave = how, wave
        self._times: Counter[tuple[int, ...]] = Counter()
        """How often a prompt was asked: its samples draw from different seeds."""
        self._queue: list[tuple[Request, asyncio.Future[Completion]]] = []
        self._arrived = 0
        self._task: asyncio.Task[None] | None = None
        self._worker = ThreadPoolExecutor(max_workers=1)

    def max_connections(self) -> int:
        """As many as make one wave."""
        return self._wave

    async def generate(
        self, input: list[ChatMessage], tools: list[ToolInfo], tool_choice: ToolChoice, config: GenerateConfig
    ) -> ModelOutput:
        """Wait for the wave that the request is part of."""
        if tools or config.stop_seqs:
            what = "tools" if tools else "stop sequences"
            raise StepError(f"the task uses {what}, which this model does not support")
        turns = [Message.model_validate({"role": m.role, "content": m.text}) for m in input]
        ids = tuple(self._encode(turns))
        seed = keyed_hash("wave", config.seed, *ids, self._times[ids]) % 2**63
        self._times[ids] += 1
        request = Request(
            ids,
            config.max_tokens or self._how.max_tokens,
            config.temperature or 0.0,
            config.top_p or 1.0,
            seed,
            self._how.repetition_penalty,
        )
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Completion] = loop.create_future()
        self._queue.append((request, future))
        self._arrived += 1
        if self._task is None or self._task.done():
            self._task = loop.create_task(self._serve())
        return output_of(self.model_name, len(ids), Answer.of(await future), self._decode)

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        while self._queue:
            seen = -1
            while seen != self._arrived and len(self._queue) < self._wave:
                seen = self._arrived
                await asyncio.sleep(QUIET)
            taken = sorted(self._queue[: self._wave], key=lambda pair: -len(pair[0].ids))
            del self._queue[: self._wave]
            await self._run(taken, loop)

    async def _run(self, taken: Sequence[tuple[Request, Any]], loop: asyncio.AbstractEventLoop) -> None:
        try:
            done = await loop.run_in_executor(self._worker, self._engine, [request for request, _ in taken])
        except Exception as error:
            for _, future in taken:
                future.set_exception(error)
            return
        for (_, future), completion in zip(taken, done, strict=True):
            future.set_result(completion)
