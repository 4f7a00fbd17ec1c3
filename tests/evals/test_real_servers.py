"""Greedy completions of SmolLM2 in float32 through two servers equal the local engine's, for the base and an adapter.

One server is `transformers serve`, which is somebody else's: it takes text only, and no adapters, so that the adapter is
merged into a folder whose name holds its hash. The other is our own around the local engine (model_server.py): it takes
token ids and loads adapters as vLLM does, and proves the protocol, not another engine.
"""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from peft import PeftModel

from fault_proxy import FAULTS, proxied
from model_server import running
from prefixlab.config import HardwareConfig
from prefixlab.evals.served import Form
from prefixlab.evals.served_adapters import ensure_adapter, ensure_base, prove
from prefixlab.model.load import load_model
from prefixlab.model.machine import resolve
from prefixlab.study.serving import adapter_hash
from real_model import answers, do, load_smol, local_answers, write_adapter

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
LENGTH = 12


@pytest.fixture(scope="module")
def smol():
    return load_smol()


@pytest.fixture(scope="module")
def adapter(smol, tmp_path_factory):
    return write_adapter(smol, tmp_path_factory.mktemp("adapter") / "a")


@pytest.fixture(scope="module")
def expected(smol, adapter):
    return local_answers(smol, adapter, LENGTH)


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
            return "" if again or kind == "stall" else kind

        with proxied(server.url, fault) as between:
            for who, model in (("base", server.base), ("adapter", name)):
                found = answers(between.url, smol, model, form, LENGTH)
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
        found = answers(url, smol, model, form, LENGTH)
        assert [a.text for a in found] == [text for _, text, _ in expected[who]]
        for answer, (ids, _, cut) in zip(found, expected[who], strict=True):
            if len(ids) == LENGTH - 1 and not cut:
                continue  # its end was the last token allowed, which this server calls "length"
            assert (answer.n_tokens, answer.truncated) == (len(ids), cut)
    print(json.dumps({"server": "transformers serve", "prompts": form.prompts, "equal": 24}))
