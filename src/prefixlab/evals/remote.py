"""The same suites on any Inspect provider: vLLM, another OpenAI-compatible server (adapters by name), a hosted API.

A server applies its own chat template. Conditions that put words into the model's mouth run only where a probe proves
that the server continues the exact text; log-likelihoods and conditions that need the reasoning's tags do not run at
all. What cannot run is "not supported" and never run as bare.
"""

import asyncio
from collections.abc import Mapping
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
    get_model,
)
from inspect_ai.solver import Generate, Solver, TaskState, solver

from prefixlab.data.chat import ChatFormat
from prefixlab.errors import UserError
from prefixlab.evals.conditions import Prompting, attack_ids, template_text, tokens_of
from prefixlab.evals.harness import EvalJob, inspect_samples, run_task
from prefixlab.evals.nouns import Suite
from prefixlab.evals.protocols import Decoding
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
def ask_server(placed: dict[str, dict[str, str]], extra_body: dict[str, Any] | None) -> Solver:
    """One request with the condition's words in the user's or the assistant's turn."""

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        words = Placed(**placed[str(state.sample_id)])
        if words.before:
            user = next(m for m in reversed(state.messages) if m.role == "user")
            user.content = words.before + user.text
        if words.forced:
            state.messages.append(ChatMessageAssistant(content=words.forced))
            state.metadata["prefill"] = words.forced
        return await generate(state, extra_body=extra_body) if extra_body else await generate(state)

    return solve


def generate_remote(
    job: EvalJob, provider: str, how: Decoding, placed: Mapping[str, Placed], folder: Path, connections: int
) -> Path:
    """A suite on a server, unscored.

    Args:
        job: Items and metadata.
        provider: Inspect's name of the model.
        how: Decoding; the repetition penalty goes along where it is not 1.
        placed: The condition's words, by item id.
        folder: Gets one .eval log.
        connections: Requests at once.

    Raises:
        UserError: The server does not continue text as the condition needs it, or cannot be used.
        StepError: Inspect did not finish.
    """
    model = remote_model(provider)
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
    task = Task(
        dataset=MemoryDataset(inspect_samples(job.items), name=job.suite),
        solver=ask_server({k: p.__dict__ for k, p in placed.items()}, body or None),
        epochs=Epochs(how.epochs, "mean"),
        name=job.suite,
        config=GenerateConfig(
            temperature=how.temperature,
            top_p=how.top_p if how.temperature > 0 else None,
            max_tokens=how.max_tokens,
        ),
    )
    return run_task(task, job.suite, model.api, folder, connections, job.metadata)
