"""Greedy completions of SmolLM2 in float32 through a real vLLM equal the local engine's, for the base and an adapter.

The served folder's generation_config.json is hostile: it samples, penalises repetition, and names a second end of
sequence that is an ordinary word. vLLM takes all of that for whatever a request does not say.
"""

import json
import shutil
from pathlib import Path

import pytest

from prefixlab.errors import StepError
from prefixlab.evals.served import Form
from prefixlab.evals.served_adapters import ensure_adapter, ensure_base, prove
from prefixlab.study.serving import adapter_hash
from real_model import answers, do, load_smol, local_answers, write_adapter
from vllm_server import vllm_python, vllm_running

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
LENGTH = 24
RANK = 16
"""The server's --max-lora-rank."""
IDS = Form(prompts="token ids", precise=True)
HOSTILE = {
    "do_sample": True,
    "temperature": 1.5,
    "top_k": 5,
    "top_p": 0.5,
    "min_p": 0.1,
    "repetition_penalty": 1.4,
    "presence_penalty": 1.5,
    "frequency_penalty": 1.5,
    "max_new_tokens": 3,
}


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """The model's folder with another generation configuration; the word that ends there is " the"."""
    vllm_python()
    smol = load_smol()
    folder = tmp_path_factory.mktemp("hostile") / "smol"
    shutil.copytree(smol.ref.path, folder)
    (folder / "prefixlab.json").unlink()
    (word,) = smol.tokenizer(" the", add_special_tokens=False)["input_ids"]
    ends = [smol.tokenizer.eos_token_id, word]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends, **HOSTILE}))
    return load_smol(str(folder))


@pytest.fixture(scope="module")
def adapter(hostile, tmp_path_factory):
    return write_adapter(hostile, tmp_path_factory.mktemp("adapter") / "a")


@pytest.fixture(scope="module")
def expected(hostile, adapter):
    """The local engine's completions, of which many hold the word at which the server's own settings would end."""
    found = local_answers(hostile, adapter, LENGTH)
    assert sum(" the" in text for _, text, _ in found["base"]) >= 2
    return found


@pytest.fixture(scope="module")
def server(hostile, tmp_path_factory):
    log = tmp_path_factory.mktemp("vllm") / "log"
    with vllm_running(hostile.ref.path, log, "--enable-lora", "--max-lora-rank", str(RANK)) as url:
        yield url


def test_token_ids_with_an_adapter_loaded_by_the_hash_of_its_content(hostile, adapter, expected, server):
    base, name = hostile.ref.path, f"prefixlab-{adapter_hash(adapter)}"
    do(server, hostile, base, lambda s: ensure_base(s, "smol"))
    form = do(server, hostile, base, lambda s: s.find_form("exact"))
    assert form == IDS
    assert do(server, hostile, name, lambda s: ensure_adapter(s, adapter, load=True))
    proof = do(server, hostile, name, lambda s: prove(s, base, form, listed=True))
    assert proof.logprob_to_base > 0.01 and proof.noise < 1e-3
    for who, model in (("base", base), ("adapter", name)):
        found = answers(server, hostile, model, form, LENGTH, at_once=len(expected[who]))
        assert [(a.ids, a.truncated) for a in found] == [(ids, cut) for ids, _, cut in expected[who]]


@pytest.mark.parametrize("prompts", ["text", "messages"])
def test_text_and_messages_are_read_as_the_same_prompt(hostile, expected, server, prompts):
    found = answers(server, hostile, hostile.ref.path, Form(prompts=prompts, precise=True), LENGTH, 4)
    assert [(a.ids, a.truncated) for a in found] == [(ids, cut) for ids, _, cut in expected["base"]]


def test_an_adapter_of_too_high_a_rank_is_one_line_and_soon(hostile, server, tmp_path):
    wide = write_adapter(hostile, tmp_path / "wide", rank=2 * RANK)
    with pytest.raises(StepError, match=r"did not load the adapter 'prefixlab-wide'.*--max-lora-rank") as error:
        do(server, hostile, "prefixlab-wide", lambda s: ensure_adapter(s, wide, load=True))
    assert "\n" not in str(error.value)


def test_a_folder_that_the_server_cannot_read_is_one_line(hostile, server):
    with pytest.raises(StepError, match=r"did not load the adapter 'prefixlab-away'.*path be readable there"):
        do(server, hostile, "prefixlab-away", lambda s: ensure_adapter(s, Path("/nowhere/adapter"), load=True))


def test_an_adapter_that_changes_nothing_is_not_believed(hostile, adapter, server, tmp_path):
    """A name that the server lists, behind which the base answers."""
    from safetensors.torch import load_file, save_file

    still = shutil.copytree(adapter, tmp_path / "still")
    weights = load_file(still / "adapter_model.safetensors")
    save_file({k: v * 0 if "lora_B" in k else v for k, v in weights.items()}, still / "adapter_model.safetensors")
    assert do(server, hostile, "prefixlab-still", lambda s: ensure_adapter(s, still, load=True))
    with pytest.raises(StepError, match="the adapter is not what answers under 'prefixlab-still'"):
        do(server, hostile, "prefixlab-still", lambda s: prove(s, hostile.ref.path, IDS, listed=True))


def test_a_server_without_loading_of_adapters_says_how_it_is_started(hostile, adapter, tmp_path):
    with vllm_running(hostile.ref.path, tmp_path / "log", "--enforce-eager", loading=False) as url:
        assert do(url, hostile, hostile.ref.path, lambda s: s.find_form("exact")) == IDS
        with pytest.raises(StepError, match="--enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"):
            do(url, hostile, "prefixlab-1", lambda s: ensure_adapter(s, adapter, load=True))
        order = r"has no adapter 'prefixlab-1'; it has: \S+smol\. Add it with curl"
        with pytest.raises(StepError, match=order):
            do(url, hostile, "prefixlab-1", lambda s: ensure_adapter(s, adapter, load=False))
