"""SmolLM2 in float32, an adapter, and what the local engine answers: what a real server is held against."""

import asyncio

from prefixlab.config import HardwareConfig
from prefixlab.data.chat import chat_format
from prefixlab.evals.planning import Answer
from prefixlab.evals.protocols import Decoding
from prefixlab.evals.served import Form, Served
from prefixlab.evals.server import Client, Endpoint
from prefixlab.model.generate import Request, generate
from prefixlab.model.load import load_model, load_tokenizer, resolve_model
from prefixlab.model.machine import resolve
from prefixlab.records import Message
from prefixlab.study.loaded import Loaded
from prefixlab.study.serving import rendering_of
from random_lora import save_adapter

QUESTIONS = (
    "What is the capital of France?",
    "Write a haiku about rain.",
    "What is 17 + 25?",
    "Name three primary colours.",
    "Explain gravity to a child in one sentence.",
    "Translate 'good morning' into Spanish.",
    "Who wrote Hamlet?",
    "List two uses of salt.",
    "Is the number 91 prime? Answer and say why.",
    "Give me a title for a story about a lost dog.",
    "How do I boil an egg?",
    "Write a Python function that doubles a number.",
)


def greedy(max_tokens):
    return Decoding(max_tokens=max_tokens, temperature=0.0, top_p=1.0, repetition_penalty=1.0, epochs=1)


def load_smol(name="smollm2-135m"):
    """The model, in float32 on one thread; by another name, a folder with the same weights."""
    ref = resolve_model(name)
    tokenizer = load_tokenizer(ref)
    hardware = resolve(HardwareConfig(device="cpu", dtype="float32", threads=1))
    return Loaded(ref, load_model(ref, hardware), tokenizer, chat_format(tokenizer), True)


def write_adapter(smol, folder, rank=8, targets=("q_proj", "v_proj")):
    """A LoRA adapter that changes what the model says and leaves it language."""
    return save_adapter(smol.model, folder, 5, 0.08, r=rank, lora_alpha=16, target_modules=list(targets))


def local_answers(smol, adapter, max_tokens):
    """The local engine's completions: {base or adapter: answers in the order of QUESTIONS}."""
    how = rendering(smol)
    requests = [Request(how.ids(turns(q)), max_tokens, 0.0, 1.0, 0) for q in QUESTIONS]
    found = {}
    for name, folder in (("base", None), ("adapter", adapter)):
        done = [generate(smol.use(folder), [r], stop_ids=how.stops, pad=smol.pad)[0] for r in requests]
        found[name] = [(c.ids, how.tokenizer.decode(list(c.ids), skip_special_tokens=True), c.truncated) for c in done]
    smol.use(None)
    different = sum(a != b for a, b in zip(found["base"], found["adapter"], strict=True))
    assert different >= 8, "the adapter must change most answers, or the test says nothing"
    return found


def rendering(smol):
    return rendering_of(smol.ref, smol.tokenizer, smol.chat)


def turns(question):
    return (Message(role="user", content=question),)


def answers(url, smol, name, form: Form, max_tokens, at_once=1) -> list[Answer]:
    """A server's completions of QUESTIONS, some of them asked at once."""

    async def ask():
        places = asyncio.Semaphore(at_once)
        async with Client(Endpoint(url, None, 300.0, 4, first_pause=0.05)) as client:
            served, how = Served(client, name, rendering(smol)), rendering(smol)

            async def one(question):
                async with places:
                    return await served.ask(form, how.ids(turns(question)), turns(question), greedy(max_tokens), 0)

            return await asyncio.gather(*[one(q) for q in QUESTIONS])

    return asyncio.run(ask())


def do(url, smol, name, work):
    """Run `work(served)` against a server."""

    async def inside():
        async with Client(Endpoint(url, None, 300.0, 2, first_pause=0.05)) as client:
            return await work(Served(client, name, rendering(smol)))

    return asyncio.run(inside())
