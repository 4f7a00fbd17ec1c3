"""Planned requests through a server of the OpenAI protocol: what it is sent, what it has, and that an adapter answers.

A server is believed only where it proves something. Token ids go where it counts, or repeats, exactly those ids; text
goes where its own count of the prompt is ours. Sampling parameters beyond the protocol's go where the server shows that
it knows them by telling the ids it wrote; without them only what it does by itself can be had, and the rest is refused.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import httpx

from prefixlab.data.chat import ChatFormat, prompt_ids
from prefixlab.data.parts import CLOSE, OPEN
from prefixlab.errors import StepError, UserError, innermost
from prefixlab.evals.planning import Answer, PlannedRequest
from prefixlab.evals.protocols import Decoding
from prefixlab.evals.server import Client, Refused, Unanswered, one_line
from prefixlab.records import Message, Record

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROBES = ("What is the capital of France, and what is 12 + 7?", "Hello.")
LOOK = 16
"""Tokens of a probe whose log-probabilities, or text, show which model answers."""


class OtherPrompt(Exception):
    """The server read other tokens than it was meant to."""


class NoText(OtherPrompt):
    """Nothing was sent, since no text has exactly the prompt's tokens."""


class NotAsAsked(Exception):
    """The server does not tell the ids it wrote, or did not end where it was asked to."""


class Form(Record):
    """How a server is asked."""

    prompts: Literal["token ids", "text", "messages"]
    precise: bool
    """Whether it takes vLLM's sampling parameters and tells the ids it wrote."""


@dataclass(frozen=True)
class Rendering:
    """What turns ids into text and back, as the local engine does."""

    tokenizer: "PreTrainedTokenizerBase"
    chat: ChatFormat
    ends: frozenset[int]
    """Ids that the model's own generation configuration ends at: what a server does unless it is told."""
    penalty: float = 1.0
    """Repetition penalty of that configuration: likewise."""

    @property
    def stops(self) -> frozenset[int]:
        """Ids that end a completion."""
        return frozenset({self.chat.end_id, int(self.tokenizer.eos_token_id)})

    def ids(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """What the local engine would read."""
        return tuple(prompt_ids(self.tokenizer, messages))

    def text(self, ids: Sequence[int]) -> str | None:
        """The text that a server's tokenizer makes exactly these ids of; None where there is none."""
        bos = self.tokenizer.bos_token_id
        for cut in (0, 1) if ids and ids[0] == bos else (0,):
            text = self.tokenizer.decode(list(ids[cut:]), skip_special_tokens=False, clean_up_tokenization_spaces=False)
            assert isinstance(text, str)
            if list(self.tokenizer(text)["input_ids"]) == list(ids):
                return text
        return None


def body_of(
    model: str,
    form: Form,
    prompt: Any,
    how: Decoding,
    seed: int,
    rendering: Rendering,
    max_tokens: int | None = None,
) -> dict[str, Any]:
    """A request as JSON.

    Every parameter is said, since vLLM takes those left out from the model's generation_config.json. That file's ends
    of sequence come on top of `stop_token_ids`; where they are more than the local engine's, they are switched off.
    """
    body: dict[str, Any] = {
        "model": model,
        "messages" if form.prompts == "messages" else "prompt": prompt,
        "max_tokens": max_tokens or how.max_tokens,
        "temperature": how.temperature,
        "top_p": how.top_p if how.temperature > 0 else 1.0,
        "seed": seed,
    }
    if form.precise:
        body |= {
            "top_k": -1,
            "min_p": 0.0,
            "repetition_penalty": how.repetition_penalty,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "stop_token_ids": sorted(rendering.stops),
            "ignore_eos": not rendering.ends <= rendering.stops,
            "skip_special_tokens": True,
            "return_token_ids": True,
        }
    return body


def answer_of(told: Any, form: Form, sent: Sequence[int], rendering: Rendering) -> Answer:
    """A server's JSON as an answer.

    Raises:
        OtherPrompt: It counted, or repeats, another prompt.
        NotAsAsked: A precise form, and no ids, or ids after an end.
        KeyError, IndexError, TypeError, ValueError: This is no answer.
    """
    choice, usage = told["choices"][0], told["usage"]
    finish = choice["finish_reason"]
    if finish not in ("stop", "length"):
        raise ValueError(f"finish_reason {finish!r}")
    if form.prompts != "messages":
        echoed = choice.get("prompt_token_ids") or told.get("prompt_token_ids")
        if usage["prompt_tokens"] != len(sent) or (echoed and list(echoed) != list(sent)):
            raise OtherPrompt(f"it read {usage['prompt_tokens']} tokens where {len(sent)} were meant, or other ones")
    if form.precise:
        if choice.get("token_ids") is None:
            raise NotAsAsked("it does not tell the ids it wrote")
        ids = [int(i) for i in choice["token_ids"]]
        if rendering.stops.intersection(ids[:-1]):
            raise NotAsAsked("it writes on after an id that it was told to stop at")
        ended = bool(ids) and ids[-1] in rendering.stops
        return Answer(ids=tuple(ids[:-1] if ended else ids), truncated=finish == "length" and not ended)
    text = choice["text"] if form.prompts != "messages" else _said(choice["message"], rendering.chat)
    if not isinstance(text, str):
        raise TypeError("no text")
    n = int(usage["completion_tokens"]) - (finish == "stop")
    return Answer(text=text, n_tokens=max(n, 0), truncated=finish == "length")


def _said(message: Mapping[str, Any], chat: ChatFormat) -> Any:
    """A message's text; reasoning that the server has taken out is put back in front."""
    text = message["content"] or ""
    thought = message.get("reasoning_content") or message.get("reasoning")
    if not thought:
        return text
    opened = "" if chat.preopened else f"{OPEN}\n"
    return f"{opened}{thought}\n{CLOSE}\n\n{text}"


PATHS = {"token ids": "/completions", "text": "/completions", "messages": "/chat/completions"}


class Served:
    """One model name on one server."""

    def __init__(self, client: Client, name: str, rendering: Rendering) -> None:
        self.client, self.name, self.rendering = client, name, rendering

    def prompt(self, form: Form, ids: Sequence[int], messages: Sequence[Message]) -> Any:
        """What goes into the request.

        Raises:
            NoText: No text has exactly these ids.
        """
        if form.prompts == "token ids":
            return list(ids)
        if form.prompts == "messages":
            return [m.model_dump() for m in messages]
        text = self.rendering.text(ids)
        if text is None:
            raise NoText("no text has exactly the prompt's tokens, and the server takes no token ids")
        return text

    async def ask(
        self,
        form: Form,
        ids: Sequence[int],
        messages: Sequence[Message],
        how: Decoding,
        seed: int,
        *,
        max_tokens: int | None = None,
        name: str | None = None,
        retries: int | None = None,
    ) -> Answer:
        """One completion.

        Raises:
            Refused, Unanswered: No answer.
            OtherPrompt: An answer to another prompt.
            NotAsAsked: As `answer_of`, or fewer tokens than asked for and no end.
        """
        prompt = self.prompt(form, ids, messages)
        body = body_of(name or self.name, form, prompt, how, seed, self.rendering, max_tokens)

        def read(response: httpx.Response) -> Answer:
            answer = answer_of(response.json(), form, ids, self.rendering)
            wrote = len(answer.ids or ())
            if form.precise and answer.truncated and wrote < body["max_tokens"]:
                raise NotAsAsked(
                    f"it stopped after {wrote} of {body['max_tokens']} tokens, as a server does whose context ends "
                    f"there: the prompt has {len(ids)} tokens; give it a longer one (--max-model-len)"
                )
            return answer

        return await self.client.post(PATHS[form.prompts], body, read, retries)

    async def find_form(self, prompts: str) -> Form:
        """How the server takes a prompt, by trying.

        Args:
            prompts: `exact` or `chat`, as in a study.

        Raises:
            StepError: It takes the prompt in none of the ways that would do.
        """
        wanted: tuple[Literal["token ids", "text", "messages"], ...]
        wanted = ("messages",) if prompts == "chat" else ("token ids", "text")
        said = ""
        for kind in wanted:
            for precise in (True, False):
                form = Form(prompts=kind, precise=precise)
                try:
                    for probe in PROBES:
                        turns = (Message(role="user", content=probe),)
                        await self.ask(form, self.rendering.ids(turns), turns, GREEDY, 0, max_tokens=1)
                except (Refused, Unanswered, OtherPrompt, NotAsAsked) as error:
                    said = str(error)
                    continue
                return form
        where = f"model {self.name!r} on server {self.client.endpoint.url}"
        if prompts == "chat":
            raise StepError(f"{where} does not answer a chat request ({said})")
        raise StepError(
            f"{where} takes neither token ids nor text with exactly these ids at /completions ({said}); with "
            "serving.prompts: chat its own template is used, and only bare and user_prefix can be run"
        )


GREEDY = Decoding(max_tokens=LOOK, temperature=0.0, top_p=1.0, repetition_penalty=1.0, epochs=1)


def check_form(form: Form, how: Decoding, rendering: Rendering, url: str) -> None:
    """Refuse decoding that a server cannot be asked for.

    Raises:
        StepError: What it lacks.
    """
    if form.precise:
        return
    lacks = ""
    if how.repetition_penalty != rendering.penalty:
        lacks = f"a repetition penalty of {how.repetition_penalty:g} (the model's own is {rendering.penalty:g})"
    elif how.temperature > 0:
        lacks = "sampling without its own defaults (top-k and the like)"
    elif form.prompts != "messages" and not rendering.stops <= rendering.ends:
        missing = rendering.tokenizer.convert_ids_to_tokens(min(rendering.stops - rendering.ends))
        lacks = f"an end at {missing!r}, which the model's generation_config.json does not name"
    if lacks:
        raise StepError(
            f"server {url} cannot be asked for {lacks}: it does not show that it knows vLLM's sampling parameters by "
            "returning token ids; use a vLLM that does (return_token_ids), or leave serving out"
        )


GONE = 3
"""Failures in a row that one bad prompt, or two, cannot make up."""


@dataclass(frozen=True)
class Job:
    """One completion to come from a server."""

    number: int
    request: PlannedRequest
    messages: tuple[Message, ...]


async def ask_all(
    served: Served,
    form: Form,
    how: Decoding,
    jobs: Sequence[Job],
    keep: Callable[[int, Answer], None],
    connections: int,
) -> tuple[dict[int, str], str]:
    """Ask for completions, many at once; each is kept as soon as it is there.

    As many failures in a row as there are requests at once, and `GONE` at least, without one answer between them, mean
    that the server is gone: the rest is not asked for.

    Args:
        served: Server and model name.
        form: How the server takes prompts.
        how: Decoding.
        jobs: What is asked for.
        keep: Called with a job's number and its answer.
        connections: Requests at once.

    Returns:
        Why the others are missing, by number; and what the server did last, where it is gone.
    """
    missing: dict[int, str] = {}
    waiting = iter(jobs)
    in_a_row, gone, writing = 0, "", asyncio.Lock()

    async def work() -> None:
        nonlocal in_a_row, gone
        for job in waiting:
            if gone:
                missing[job.number] = gone
                continue
            try:
                answer = await served.ask(form, job.request.ids, job.messages, how, job.request.seed)
            except Unanswered as error:
                missing[job.number] = one_line(error)
                in_a_row += 1
                gone = gone or (one_line(error) if in_a_row >= max(GONE, min(connections, len(jobs))) else "")
            except (Refused, OtherPrompt, NotAsAsked) as error:
                missing[job.number] = one_line(error)
            else:
                in_a_row = 0
                async with writing:  # a slow disk must not hold up the other requests
                    await asyncio.to_thread(keep, job.number, answer)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(connections, len(jobs))):
                group.create_task(work())
    except* (OSError, UserError) as raised:  # a full disk, say, is told by its own words
        raise innermost(raised) from raised
    return missing, gone
