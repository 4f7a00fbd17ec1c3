"""Which models a server has: the base, adapters by content-hashed names, and the proof that an adapter answers."""

import json
from collections.abc import Sequence
from pathlib import Path

import httpx

from prefixlab.errors import StepError
from prefixlab.evals.served import GREEDY, PATHS, PROBES, Form, NoText, OtherPrompt, Served, body_of
from prefixlab.evals.server import Refused, Unanswered
from prefixlab.records import Message, Record

NOBODY = "prefixlab-a-model-that-is-nowhere"
"""A server that answers under this name does not look at names."""
TRIES = 2
"""Attempts at a name that is not listed, after the first: a server that loads what it is asked for fails with 500."""


async def ensure_base(served: Served, model: str) -> None:
    """See that the server has a study's model.

    Args:
        served: Under the name that the server should know.
        model: The study's name of it.

    Raises:
        StepError: It has not, and what it has.
    """
    listed = await served.client.models()
    if served.name in listed or await _answers(served, served.name):
        return
    raise StepError(
        f"server {served.client.endpoint.url} has no model {served.name!r}; it has: {', '.join(listed) or 'none'}. "
        f"Say what it calls {model!r} in serving.names"
    )


async def _answers(served: Served, name: str) -> bool:
    """Whether a name that the server does not list is one it answers to: some load what a request names."""
    turns = (Message(role="user", content=PROBES[1]),)
    for form in (Form(prompts="text", precise=False), Form(prompts="messages", precise=False)):
        try:
            await served.ask(
                form, served.rendering.ids(turns), turns, GREEDY, 0, max_tokens=1, name=name, retries=TRIES
            )
        except (Refused, Unanswered, NoText):
            continue
        except OtherPrompt:
            pass
        return True
    return False


async def ensure_adapter(served: Served, adapter: Path, *, load: bool) -> bool:
    """See that the server has an adapter, and load it where that is allowed.

    Args:
        served: Under the adapter's name.
        adapter: Its folder, under a path that the server can read.
        load: Whether to load it.

    Returns:
        Whether the server lists it; it may also answer to a name that it does not list.

    Raises:
        StepError: It is not there, and what to do.
    """
    client, name = served.client, served.name
    listed = await client.models()
    if name in listed:
        return True
    if load:
        await _load(served, adapter)
        if name in (listed := await client.models()):
            return True
        raise StepError(f"server {client.endpoint.url} took the adapter {name!r} and does not list it; see its log")
    if await _answers(served, name):
        if await _answers(served, NOBODY):
            raise StepError(
                f"server {client.endpoint.url} answers under any name, so that nothing says which adapter answers; "
                "use one that refuses names it does not have"
            )
        return False
    order = json.dumps({"lora_name": name, "lora_path": str(adapter)})
    raise StepError(
        f"server {client.endpoint.url} has no adapter {name!r}; it has: {', '.join(listed) or 'none'}. Add it with "
        f"curl -H 'Content-Type: application/json' -d '{order}' {client.endpoint.url}/load_lora_adapter or, at its "
        f"start, --lora-modules {name}={adapter}; or set serving.adapters: load"
    )


async def _load(served: Served, adapter: Path) -> None:
    client, name = served.client, served.name
    order = {"lora_name": name, "lora_path": str(adapter)}
    hint = (
        "see its log; it must run with --enable-lora, its --max-lora-rank be at least the adapter's, and the path be "
        "readable there"
    )
    try:
        await client.post("/load_lora_adapter", order, lambda told: None, TRIES)
        return
    except Refused as error:
        why = str(error)
        if "already" in why:
            return
        if error.status in (404, 405) and "adapter" not in why:  # the address is unknown, not the adapter's folder
            hint = (
                "start it with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, or set serving.adapters: "
                "preloaded"
            )
    except Unanswered as error:  # vLLM answers 500 to an adapter that does not fit
        why = str(error)
    raise StepError(f"server {client.endpoint.url} did not load the adapter {name!r} from {adapter} ({why}); {hint}")


class ServedProof(Record):
    """Evidence that an adapter answers under its name."""

    name: str
    listed: bool
    logprob_to_base: float | None
    """Largest difference of the log-probabilities of a greedy probe's tokens, adapter to base, as far as both go; None
    where the server tells none."""
    noise: float | None
    """The same of the base asked twice."""
    texts_differ: bool | None
    """Whether the probe's text is another one than the base's, where there are no log-probabilities."""


async def prove(served: Served, base: str, form: Form, *, listed: bool) -> ServedProof:
    """Compare what answers under an adapter's name with what answers under the base's.

    Raises:
        StepError: It is the base, or the server does not answer.
    """
    turns = (Message(role="user", content=PROBES[0]),)
    ids = served.rendering.ids(turns)
    body = body_of(served.name, form, served.prompt(form, ids, turns), GREEDY, 0, served.rendering)
    if form.precise:
        body |= {"logprobs": True} if form.prompts == "messages" else {"logprobs": 1}

    def read(response: httpx.Response) -> tuple[str, list[float] | None]:
        choice = response.json()["choices"][0]
        text = choice["text"] if form.prompts != "messages" else choice["message"]["content"]
        told = choice.get("logprobs") or {}
        if form.prompts == "messages":
            found = [float(t["logprob"]) for t in told.get("content") or ()]
        else:
            found = [float(p) for p in told.get("token_logprobs") or ()]
        return str(text), found or None

    seen = []
    try:
        for name in (base, base, served.name):
            seen.append(await served.client.post(PATHS[form.prompts], {**body, "model": name}, read))
    except (Refused, Unanswered) as error:
        raise StepError(
            f"server {served.client.endpoint.url}: model {served.name!r} fails a probe ({error})"
        ) from error
    (text, first), (_, again), (other, mine) = seen
    if first is None or again is None or mine is None:
        return ServedProof(
            name=served.name, listed=listed, logprob_to_base=None, noise=None, texts_differ=text != other
        )
    noise, far = _apart(first, again), _apart(first, mine)
    if far <= 3 * noise and text == other:
        raise StepError(
            f"the adapter is not what answers under {served.name!r} on server {served.client.endpoint.url}: "
            f"log-probabilities differ from the base's by {far:.3g}, and the base's from themselves by {noise:.3g}"
        )
    return ServedProof(name=served.name, listed=listed, logprob_to_base=far, noise=noise, texts_differ=None)


def _apart(a: Sequence[float], b: Sequence[float]) -> float:
    """Largest difference of two lists of log-probabilities, as far as both go: JSON has no infinity."""
    return max((abs(x - y) for x, y in zip(a, b, strict=False)), default=0.0)
