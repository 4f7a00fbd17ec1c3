"""The same suites on any Inspect provider: vLLM, another OpenAI-compatible server (adapters by name), a hosted API.

A server applies its own chat template. Conditions that put words into the model's mouth run only where a probe proves
that the server continues the exact text; log-likelihoods and conditions that need the reasoning's tags do not run at
all. What cannot run is "not supported" and never run as bare.
"""

import asyncio
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inspect_ai import Epochs, Task
from inspect_ai.dataset import MemoryDataset
from inspect_ai.model import (
    ChatMessage,
    ChatMessageAssistant,
    ChatMessageUser,
    GenerateConfig,
    Model,
    ModelAPI,
    ModelOutput,
    get_model,
    modelapi,
)
from inspect_ai.solver import Generate, Solver, TaskState, solver
from inspect_ai.tool import ToolChoice, ToolInfo
from tenacity import RetryError

from prefixlab.data.chat import ChatFormat
from prefixlab.errors import StepError, UserError, innermost
from prefixlab.evals.conditions import Prompting, attack_ids, template_text, tokens_of
from prefixlab.evals.harness import EvalJob, inspect_samples, run_task
from prefixlab.evals.nouns import Suite
from prefixlab.evals.planning import Key
from prefixlab.evals.protocols import Decoding
from prefixlab.evals.server import one_line
from prefixlab.records import EvalItem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LINE = "vremo talist quondar bips olentra karsh minofel adru stavix lorpen ghemit wunda"
"""Words nobody expects, so that a right continuation is no accident."""
CUT = LINE.index("minofel") + 4
"""In the middle of a word: a server that starts a new turn, or closes this one, cannot finish it."""
HOW: Mapping[str, dict[str, Any] | None] = {
    "a trailing assistant message": None,
    "continue_final_message": {"continue_final_message": True, "add_generation_prompt": False},
}
"""Ways in which servers are asked to go on with a turn; the second is vLLM's."""
ATTEMPT = 600
"""Seconds one attempt at one completion may take."""
NONSENSE = 3
"""Attempts at an answer that is none."""


@dataclass(frozen=True)
class Continues:
    """Whether and how a server continues the exact text of an assistant turn."""

    how: str
    extra_body: dict[str, Any] | None


def supported(condition: str, suite: Suite, position: str, chat: ChatFormat | None) -> str:
    """Why a condition cannot run on a server; empty where it may (a prefill then needs the probe).

    Args:
        condition: How the model is to be prompted.
        suite: What it is asked.
        position: Where the prefix was trained.
        chat: Of the server's model, where its tokenizer is named; only then it is known what the template opens.
    """
    if suite.choices:
        return "log-likelihoods of given answers need the model itself"
    if condition in ("bare", "user_prefix"):
        return ""
    if condition == "prefill" and position == "answer":
        return "a prefix at the answer stands behind the model's own reasoning"
    if condition == "prefill" or condition.startswith("attack_opening"):
        if chat is None:
            return "name the server's --tokenizer, to know what its template opens and how long a token is"
        return "the template opens the reasoning, and a server puts the text elsewhere" if chat.preopened else ""
    return "it needs the reasoning's own tags, which a server's template may drop"


async def _probe(model: Model) -> Continues | None:
    question = ChatMessageUser(content=f"Repeat this line, and nothing else:\n{LINE}")
    try:
        await model.generate([question], config=GenerateConfig(temperature=0.0, max_tokens=1, max_retries=2))
    except Exception as error:
        raise UserError(f"{str(model)!r} does not answer: {str(error).strip().splitlines()[0]}") from error
    turns: list[ChatMessage] = [question, ChatMessageAssistant(content=LINE[:CUT])]
    for how, extra in HOW.items():
        config = GenerateConfig(temperature=0.0, max_tokens=24, extra_body=extra, max_retries=2)
        try:
            said = (await model.generate(list(turns), config=config)).completion
        except Exception:
            continue
        if said.startswith(LINE[CUT : CUT + 9]):
            return Continues(how, extra)
    return None


def probe(name: str) -> Continues | None:
    """Whether a provider goes on exactly where a prefilled turn ends.

    Raises:
        UserError: The provider cannot be made, or does not answer at all.
    """
    return asyncio.run(_probe(remote_model(name)))


def remote_model(name: str) -> Model:
    """An Inspect model by name.

    Raises:
        UserError: Unknown provider, or its package or key is missing.
    """
    try:
        return get_model(name, memoize=False)
    except Exception as error:
        raise UserError(f"provider {name!r} cannot be used: {str(error).strip().splitlines()[0]}") from error


@dataclass(frozen=True)
class Placed:
    """What a condition adds to one prompt."""

    before: str = ""
    """In front of the user's turn."""
    forced: str = ""
    """The beginning of the model's own turn."""


def place(
    item: EvalItem, condition: str, prompting: Prompting | None, tokenizer: "PreTrainedTokenizerBase | None"
) -> Placed:
    """The words of a condition that is `supported`, for one prompt."""
    prompt = item.messages[-1].content
    if condition == "bare":
        return Placed()
    if condition == "user_prefix":
        assert prompting is not None
        return Placed(before=template_text(prompting, prompt, "user"))
    if condition == "prefill":
        assert prompting is not None
        return Placed(forced=template_text(prompting, prompt, "opening"))
    assert tokenizer is not None
    return Placed(forced=attack_ids(tokenizer, item.opening, tokens_of(condition))[1])


@solver
def ask_server(placed: dict[str, dict[str, str]]) -> Solver:
    """One request with the condition's words in the user's or the assistant's turn."""

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        words = Placed(**placed[str(state.sample_id)])
        state.messages = _with_words(state.messages, words)
        state.metadata["prefill"] = words.forced
        user = next(m for m in reversed(state.messages) if m.role == "user")
        user.metadata = {"prefixlab": {"item": str(state.sample_id), "epoch": state.epoch}}
        return await generate(state)

    return solve


def _with_words(messages: Sequence[ChatMessage], words: Placed) -> list[ChatMessage]:
    """A conversation with the condition's words."""
    found: list[ChatMessage] = [m.model_copy() for m in messages]
    if words.before:
        user = next(m for m in reversed(found) if m.role == "user")
        user.content = words.before + user.text
    if words.forced:
        found.append(ChatMessageAssistant(content=words.forced))
    return found


class KeptOutputs:
    """Finished completions of a provider on disk, one line each, so that a rerun asks for the others only.

    Args:
        path: The file.
        identity: What they answer: those of other questions are not used.
    """

    def __init__(self, path: Path, identity: str) -> None:
        self._path = path
        self.outputs: dict[Key, ModelOutput] = {}
        head, *lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else [""]
        if head != identity:
            path.write_text(identity + "\n", encoding="utf-8")
            return
        for line in lines:
            try:
                item, epoch, output = json.loads(line)
            except ValueError:  # the last line of a killed process
                continue
            self.outputs[item, epoch] = ModelOutput.model_validate(output)

    def add(self, key: Key, output: ModelOutput) -> None:
        """Write a completion down for good."""
        self.outputs[key] = output
        with self._path.open("a", encoding="utf-8") as file:
            # A line may follow one that a kill left open.
            file.write("\n" + json.dumps([*key, output.model_dump(mode="json", exclude_none=True)]) + "\n")
            file.flush()
            os.fsync(file.fileno())


@modelapi(name="prefixlab-kept")
class KeptProvider(ModelAPI):
    """Inspect model that says what a provider has said before."""

    def __init__(self, name: str, kept: KeptOutputs) -> None:
        super().__init__(model_name=name)
        self._kept = kept

    async def generate(
        self, input: list[ChatMessage], tools: list[ToolInfo], tool_choice: ToolChoice, config: GenerateConfig
    ) -> ModelOutput:
        """The kept completion of the request's item and epoch."""
        about = next(m.metadata["prefixlab"] for m in input if m.metadata and "prefixlab" in m.metadata)
        return self._kept.outputs[str(about["item"]), int(about["epoch"])]


async def _one(model: Model, messages: list[ChatMessage], config: GenerateConfig) -> ModelOutput:
    """One completion; what is no answer is asked for again, as the provider's own retries do not."""
    for left in reversed(range(NONSENSE)):
        try:
            output = await model.generate(list(messages), config=config)
            if not output.choices or output.error:
                raise ValueError(output.error or "an answer without a choice")
            return output
        except Exception as error:
            # Refused, or asked for in vain many times already.
            if not left or isinstance(error, RetryError) or getattr(error, "status_code", None) is not None:
                raise
            await asyncio.sleep(1.0)
    raise AssertionError


async def _ask_all(
    provider: str,
    questions: Mapping[Key, list[ChatMessage]],
    config: GenerateConfig,
    kept: KeptOutputs,
    connections: int,
    tick: Callable[[float], None],
) -> str:
    """Ask for what is not kept yet; why something is missing, empty where nothing is.

    A whole round of failures without one answer means that the server is gone: the rest is not asked for.
    """
    waiting = iter([key for key in questions if key not in kept.outputs])
    todo = len(questions) - len(kept.outputs)
    model, in_a_row, why = remote_model(provider), 0, ""

    async def work() -> None:
        nonlocal in_a_row, why
        for key in waiting:
            if in_a_row >= min(connections, todo):
                return
            try:
                output = await _one(model, questions[key], config)
            except Exception as error:
                cause = (error.__cause__ or error) if isinstance(error, RetryError) else error
                why = why or f"{type(cause).__name__}: {one_line(cause)}"
                in_a_row += 1
                continue
            in_a_row = 0
            kept.add(key, output)
            tick(len(kept.outputs) / len(questions))

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(connections, todo)):
                group.create_task(work())
    except* (OSError, UserError) as raised:
        raise innermost(raised) from raised
    return why


def generate_remote(
    job: EvalJob,
    provider: str,
    how: Decoding,
    placed: Mapping[str, Placed],
    folder: Path,
    *,
    connections: int,
    keep: Path,
    retries: int = 6,
    tick: Callable[[float], None] = lambda share: None,
) -> Path:
    """A suite on a server, unscored.

    Args:
        job: Items and metadata.
        provider: Inspect's name of the model.
        how: Decoding; the repetition penalty goes along where it is not 1.
        placed: The condition's words, by item id.
        folder: Gets one .eval log.
        connections: Requests at once.
        keep: File for finished completions, read again by a rerun; removed when the log is whole.
        retries: Further attempts after rate limits, server errors and time-outs.
        tick: Finished share.

    Raises:
        UserError: The server does not continue text as the condition needs it, or cannot be used.
        StepError: Completions are missing, the others are kept; or Inspect did not finish.
    """
    body = _extra_body(job, provider, how, placed)
    config = GenerateConfig(
        temperature=how.temperature,
        top_p=how.top_p if how.temperature > 0 else None,
        max_tokens=how.max_tokens,
        extra_body=body or None,
    )
    samples = inspect_samples(job.items)
    epochs = range(1, how.epochs + 1)
    questions = {(str(s.id), e): _with_words(s.input, placed[str(s.id)]) for s in samples for e in epochs}  # type: ignore[arg-type]  # ours are messages
    asked = [provider, config.model_dump(mode="json"), [(k, m.role, m.text) for k, ms in questions.items() for m in ms]]
    kept = KeptOutputs(keep, hashlib.sha256(json.dumps(asked).encode("utf-8", "surrogatepass")).hexdigest())
    patient = config.model_copy(
        update={"max_retries": retries, "attempt_timeout": ATTEMPT, "max_connections": connections}
    )
    why = asyncio.run(_ask_all(provider, questions, patient, kept, connections, tick))
    if missing := len(questions) - len(kept.outputs):
        raise StepError(
            f"evaluation on {job.suite!r} did not finish: {missing} of {len(questions)} completions are missing "
            f"({why}); the others are kept, and the same command asks for the missing ones only"
        )
    task = Task(
        dataset=MemoryDataset(samples, name=job.suite),
        solver=ask_server({k: p.__dict__ for k, p in placed.items()}),
        epochs=Epochs(how.epochs, "mean"),
        name=job.suite,
        config=config,
    )
    log = run_task(task, job.suite, KeptProvider(provider, kept), folder, len(questions), job.metadata)
    keep.unlink()
    return log


def _extra_body(job: EvalJob, provider: str, how: Decoding, placed: Mapping[str, Placed]) -> dict[str, Any]:
    """What of a request is beyond the protocol.

    Raises:
        UserError: A condition needs text to be continued, and a probe shows that it is not.
    """
    body: dict[str, Any] = {}
    if any(p.forced for p in placed.values()):
        found = probe(provider)
        if found is None:
            raise UserError(
                f"condition {job.metadata['condition']!r} is not supported by {provider!r}: a probe showed that it "
                "does not continue the exact text of a prefilled turn"
            )
        body |= found.extra_body or {}
        job.metadata["continues"] = found.how
    if how.repetition_penalty != 1.0:
        body["repetition_penalty"] = how.repetition_penalty
    return body
