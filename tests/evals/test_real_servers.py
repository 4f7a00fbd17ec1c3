"""Greedy completions of SmolLM2 in float32 through two servers equal the local engine's, for the base and an adapter.

One server is `transformers serve`, which is somebody else's: it takes text only, and no adapters, so that the adapter is
merged into a folder whose name holds its hash. The other is our own around the local engine (model_server.py): it takes
token ids and loads adapters as vLLM does, and proves the protocol, not another engine.
"""

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from faulty_proxy import FAULTS, proxy
from model_server import running
from prefixlab.config import HardwareConfig
from prefixlab.data.chat import chat_format
from prefixlab.evals.planning import Answer
from prefixlab.evals.protocols import Decoding
from prefixlab.evals.served import Form, Served
from prefixlab.evals.served_adapters import ensure_adapter, ensure_base, prove
from prefixlab.evals.server import Client, Endpoint
from prefixlab.model.generate import Request, generate
from prefixlab.model.load import load_model, load_tokenizer, resolve_model
from prefixlab.model.machine import resolve
from prefixlab.records import Message
from prefixlab.study.loaded import Loaded
from prefixlab.study.serving import adapter_hash, rendering_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
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
HOW = Decoding(max_tokens=12, temperature=0.0, top_p=1.0, repetition_penalty=1.0, epochs=1)


@pytest.fixture(scope="module")
def smol():
    ref = resolve_model("smollm2-135m")
    tokenizer = load_tokenizer(ref)
    hardware = resolve(HardwareConfig(device="cpu", dtype="float32", threads=1))
    return Loaded(ref, load_model(ref, hardware), tokenizer, chat_format(tokenizer), True)


@pytest.fixture(scope="module")
def adapter(smol, tmp_path_factory):
    """A LoRA adapter that changes what the model says and leaves it language."""
    folder = tmp_path_factory.mktemp("adapter") / "a"
    torch.manual_seed(5)
    wrapped = get_peft_model(
        smol.model, LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    )
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.08)
    wrapped.save_pretrained(folder)
    wrapped.unload()
    return folder


@pytest.fixture(scope="module")
def expected(smol, adapter):
    """The local engine's completions: {base or adapter: answers in the order of QUESTIONS}."""
    how = rendering(smol)
    requests = [Request(how.ids(turns(q)), HOW.max_tokens, 0.0, 1.0, 0) for q in QUESTIONS]
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


def answers(url, smol, name, form: Form) -> list[Answer]:
    async def ask():
        async with Client(Endpoint(url, None, 300.0, 4, first_pause=0.05)) as client:
            served, how = Served(client, name, rendering(smol)), rendering(smol)
            return [await served.ask(form, how.ids(turns(q)), turns(q), HOW, 0) for q in QUESTIONS]

    return asyncio.run(ask())


def do(url, smol, name, work):
    async def inside():
        async with Client(Endpoint(url, None, 300.0, 2, first_pause=0.05)) as client:
            return await work(Served(client, name, rendering(smol)))

    return asyncio.run(inside())


def test_token_ids_to_our_server_with_adapters_loaded_by_name(smol, adapter, expected):
    with running("smollm2-135m", threads=1) as server:
        form = do(server.url, smol, server.base, lambda s: s.find_form("exact"))
        assert form == Form(prompts="token ids", precise=True)
        name = f"prefixlab-{adapter_hash(adapter)}"
        assert do(server.url, smol, name, lambda s: ensure_adapter(s, adapter, load=True))
        assert do(server.url, smol, name, lambda s: prove(s, server.base, form, listed=True)).logprob_to_base > 0.01
        hurt = set()

        def fault(number, body):
            key = (body["model"], tuple(body["prompt"]))
            again, kind = key in hurt, FAULTS[len(hurt) % len(FAULTS)]
            hurt.add(key)
            return None if again or kind == "stall" else kind

        with proxy(server.url, fault) as between:
            for who, model in (("base", server.base), ("adapter", name)):
                found = answers(between.url, smol, model, form)
                assert [(a.ids, a.truncated) for a in found] == [(ids, cut) for ids, _, cut in expected[who]]
        assert len(hurt) == 24
    print(json.dumps({"server": "model_server.py", "prompts": form.prompts, "equal": 24}))


@pytest.fixture(scope="module")
def transformers_serve(tmp_path_factory):
    """`transformers serve` on a free port, in float32 on the CPU."""
    folder = tmp_path_factory.mktemp("hf")
    (folder / "hub").mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = Path(sys.executable).with_name("transformers")
    command = [program, "serve", "--device", "cpu", "--dtype", "float32", "--host", "127.0.0.1", "--port", str(port)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={
                **os.environ,
                "HF_HOME": str(folder),
                "HF_HUB_CACHE": str(folder / "hub"),
                "HF_HUB_OFFLINE": "1",
                "OMP_NUM_THREADS": "1",
            },
        )
    url = f"http://127.0.0.1:{port}"
    until = time.monotonic() + 300
    while time.monotonic() < until:
        if process.poll() is not None:
            pytest.skip(f"transformers serve does not start: {(folder / 'log').read_text()[-300:]}")
        try:
            if httpx.get(f"{url}/health", timeout=2).is_success:
                break
        except httpx.HTTPError:
            time.sleep(0.5)
    yield f"{url}/v1"
    process.terminate()
    process.wait(30)


def test_text_to_transformers_serve_with_the_adapter_merged(smol, adapter, expected, transformers_serve, tmp_path):
    url, name = transformers_serve, tmp_path / f"prefixlab-{adapter_hash(adapter)}"
    wrapped = PeftModel.from_pretrained(
        load_model(smol.ref, resolve(HardwareConfig(device="cpu", dtype="float32", threads=1))), str(adapter)
    )
    wrapped.merge_and_unload().save_pretrained(name)
    smol.tokenizer.save_pretrained(name)
    do(url, smol, smol.ref.path, lambda s: ensure_base(s, smol.ref.name))
    form = do(url, smol, smol.ref.path, lambda s: s.find_form("exact"))
    assert form == Form(prompts="text", precise=False), "it refuses token ids and vLLM's parameters"
    assert do(url, smol, str(name), lambda s: ensure_adapter(s, adapter, load=False)) is False, "not listed, but there"
    proof = do(url, smol, str(name), lambda s: prove(s, smol.ref.path, form, listed=False))
    assert proof.logprob_to_base is None and proof.texts_differ is not None, "it tells no log-probabilities"
    for who, model in (("base", smol.ref.path), ("adapter", str(name))):
        found = answers(url, smol, model, form)
        assert [a.text for a in found] == [text for _, text, _ in expected[who]]
        for answer, (ids, _, cut) in zip(found, expected[who], strict=True):
            if len(ids) == HOW.max_tokens - 1 and not cut:
                continue  # its end was the last token allowed, which this server calls "length"
            assert (answer.n_tokens, answer.truncated) == (len(ids), cut)
    print(json.dumps({"server": "transformers serve", "prompts": form.prompts, "equal": 24}))
