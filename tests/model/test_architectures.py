"""Parameter counts of the table against models that transformers builds, and against the totals the hub shows."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from prefixlab.model.architectures import KNOWN, architecture, known_config, offline_config

HUB = {
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": 1_777_088_000,
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B": 7_615_616_512,
    "deepseek-ai/DeepSeek-R1-Distill-Llama-8B": 8_030_261_248,
    "Qwen/Qwen2.5-0.5B-Instruct": 494_032_768,
    "meta-llama/Llama-3.2-1B-Instruct": 1_235_814_400,
    "HuggingFaceTB/SmolLM2-135M-Instruct": 134_515_008,
}
"""Totals of the safetensors files, as each model's page shows them."""


def built(config):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return model, sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", HUB)
def test_totals_are_those_of_the_hub(name):
    assert architecture(known_config(name), name).parameters == HUB[name]


@pytest.mark.parametrize("name", KNOWN)
def test_every_known_model_counts_as_built(name):
    config = known_config(name)
    assert architecture(config, name).parameters == built(config)[1]


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("llama", {}),
        ("llama", {"tie_word_embeddings": True}),
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("qwen2", {}),
        ("qwen3", {"head_dim": 32}),
        ("mistral", {"head_dim": 8}),
    ],
)
def test_small_models_of_every_kind(kind, more):
    fields = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = AutoConfig.for_model(kind, vocab_size=131, num_key_value_heads=2, **{**fields, **more})
    model, total = built(config)
    arch = architecture(config, kind)
    assert arch.parameters == total
    assert arch.kv == model.model.layers[0].self_attn.k_proj.out_features
    linear = [m for m in model.model.modules() if isinstance(m, torch.nn.Linear)]
    assert arch.shape.weights == sum(m.weight.numel() for m in linear)


def test_a_model_that_is_nowhere_is_unknown():
    assert offline_config("nobody/nothing-7b") == (None, "unknown")


def test_base_models_have_the_numbers_of_their_instruct_versions():
    config, source = offline_config("Qwen/Qwen2.5-1.5B")
    assert architecture(config, "q").parameters == 1_543_714_304
    assert source == "the table of known models"
