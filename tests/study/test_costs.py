"""Formulas of the plan against independent counts: what PEFT makes, what autograd keeps, buffers, and sums by hand."""

import numpy as np
import pytest
import torch
from peft import get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from prefixlab.errors import UserError
from prefixlab.model import attention
from prefixlab.model.architectures import architecture, known_config
from prefixlab.model.flops import train_flops
from prefixlab.model.kv import KV
from prefixlab.model.lora import fused_lora
from prefixlab.model.recipes import MODERN, PAPER, lora_config
from prefixlab.records import Resolved
from prefixlab.study import costs, devices
from prefixlab.study.devices import CPU_BF16, CPU_TRAIN, GPUS, TRAIN_LAUNCHES, Device, find_device, this_device

CPU = Resolved(
    device="cpu", dtype="float32", attention="prefixlab", threads=2, merge_adapters=True, processes=1, why="test"
)
LLAMA = "deepseek-ai/DeepSeek-R1-Distill-Llama-8B"


def arch_of(name):
    return architecture(known_config(name), name)


def small(kind, implementation, dtype, layers=3):
    fields = {"hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": layers, "num_attention_heads": 8}
    config = AutoConfig.for_model(
        kind, vocab_size=256, num_key_value_heads=2, head_dim=16, tie_word_embeddings=False, **fields
    )
    attention.register()
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, attn_implementation=implementation).to(dtype)


def kept_bytes(model, plan, rows, length):
    """Bytes that autograd keeps of a forward pass through the layers, the model's own weights left out."""
    wrapped = get_peft_model(model, lora_config(plan, model)).train()
    own = {t.untyped_storage().data_ptr() for t in (*wrapped.parameters(), *wrapped.buffers())}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = tensor
        return tensor

    ids = torch.randint(0, 256, (rows, length))
    with fused_lora(wrapped), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        hidden = wrapped.get_base_model().model(ids, use_cache=False).last_hidden_state
    assert hidden.requires_grad
    return sum(t.untyped_storage().nbytes() for t in kept.values())


@pytest.mark.parametrize(
    ("kind", "plan", "dtype", "implementation"),
    [
        ("llama", PAPER, torch.bfloat16, "sdpa"),
        ("qwen2", PAPER.model_copy(update={"dropout": 0.0}), torch.bfloat16, "sdpa"),
        ("llama", MODERN, torch.bfloat16, "sdpa"),
        ("llama", MODERN.model_copy(update={"target_modules": ("q_proj", "o_proj")}), torch.bfloat16, "sdpa"),
        ("llama", MODERN, torch.float32, "prefixlab"),
    ],
)
def test_activations_are_what_autograd_keeps(kind, plan, dtype, implementation):
    rows, length, layers = 2, 96, 4
    model = small(kind, implementation, dtype, layers)
    arch, width = architecture(model.config, kind), torch.finfo(dtype).bits // 8
    one = costs.layer_bytes(arch, plan, width, length, explicit=implementation == "prefixlab")
    real = kept_bytes(model, plan, rows, length)
    # The low-precision copies of adapter weights, and the first layer's missing gradient, are no part of the formula.
    assert real == pytest.approx(one * layers * rows * length, rel=0.12)


@pytest.mark.parametrize("plan", [PAPER, MODERN, MODERN.model_copy(update={"r": 5})])
def test_adapters_have_as_many_weights_as_peft_makes(plan):
    model = small("llama", "sdpa", torch.float32)
    arch = architecture(model.config, "x")
    wrapped = get_peft_model(model, lora_config(plan, model))
    assert costs.adapter_parameters(arch, plan) == sum(p.numel() for p in wrapped.parameters() if p.requires_grad)
    assert costs.adapter_file(arch, plan) == 4 * costs.adapter_parameters(arch, plan)


def test_keys_and_values_by_hand_and_by_buffer(tiny_model):
    # 32 layers, 8 heads of 128, keys and values, two bytes each: 128 KiB a token.
    assert costs.kv_bytes(arch_of(LLAMA), 2) == 32 * 8 * 128 * 2 * 2 == 131_072
    arch = architecture(tiny_model.config, "tiny")
    cache = KV(tiny_model, rows=3, slots=7)
    real = sum(t.numel() * t.element_size() for t in (*cache.keys, *cache.values))
    assert real == 3 * 7 * costs.kv_bytes(arch, 4)


def test_rows_that_fit_do_fit_and_one_more_does_not():
    arch, memory = arch_of(LLAMA), 80e9
    rows = costs.rows_that_fit(arch, 2, 16_000, memory, 1_000)
    assert costs.fits(costs.evaluation_memory(arch, 2, rows, 16_000), memory)
    assert not costs.fits(costs.evaluation_memory(arch, 2, rows + 1, 16_000), memory)
    assert costs.rows_that_fit(arch, 2, 16_000, memory, 4) == 4
    assert costs.rows_that_fit(arch, 2, 16_000, 12e9, 64) == 0
    assert costs.rows_that_fit(arch, 2, 16_000, None, 64) is None


def test_settings_keep_the_optimiser_step():
    plan = PAPER.model_copy(update={"batch_size": 6, "accumulation": 2})
    found = list(costs.settings(plan))
    assert found[0] == costs.Setting(6, 2, checkpointing=False)
    assert {s.micro_batch * s.accumulation for s in found} == {12}
    assert [s.micro_batch for s in found if not s.checkpointing] == [6, 4, 3, 2, 1]
    assert [s.micro_batch for s in found if s.checkpointing] == [6, 4, 3, 2, 1]
    asked = plan.model_copy(update={"trainer_options": {"activation_checkpointing": True}})
    assert all(s.checkpointing for s in costs.settings(asked))
    assert found[-1].words() == (
        "training: {batch_size: 1, accumulation: 12, trainer: {activation_checkpointing: true}}"
    )


def test_checkpointing_and_smaller_batches_need_less():
    arch, plan = arch_of(LLAMA), MODERN

    def total(setting):
        return costs.training_memory(arch, plan, 2, 2_048, setting).total

    large, small_, checkpointed = (
        total(costs.Setting(8, 1, False)),
        total(costs.Setting(1, 8, False)),
        total(costs.Setting(8, 1, True)),
    )
    assert large > checkpointed > 2 * arch.parameters and large > small_ > 2 * arch.parameters
    parts = costs.training_memory(arch, plan, 2, 2_048, costs.Setting(8, 1, False))
    assert parts.weights == 2 * 8_030_261_248
    assert parts.adapter == 16 * costs.adapter_parameters(arch, plan)


def decoding(rows, completions, mean, limit=10**9, prompt=100, served=False):
    return costs.Decoding(rows, prompt, completions, mean, limit, served)


def test_decoding_by_hand():
    arch = arch_of(LLAMA)
    gpu = Device("g", 80e9, 1e14, 2e14, 1e12, 1e-3, 2, "")
    # One row: reading 16 GB of weights takes 16 ms, the layers' launches 32 ms.
    step = (2 * arch.parameters + (100 + 50) * 131_072) / 1e12 + 32e-3
    assert costs.decode_seconds(arch, gpu, decoding(1, 10, 100)) == pytest.approx(1_000 * step)
    # Many rows on a device that only counts operations: 2 operations a weight, head included, embedding not. There a
    # finished row saves its share, so that it does not matter how long the others go on.
    cpu = Device("c", None, 1e11, 1e11, None, 0.0, 4, "")
    weights = arch.shape.weights + arch.vocabulary * arch.hidden
    for served in (False, True):
        found = costs.decode_seconds(arch, cpu, decoding(16, 160, 100, served=served))
        assert found == pytest.approx(160 * 100 * 2 * weights / 1e11)
    assert costs.decode_seconds(arch, gpu, decoding(0, 10, 100)) is None
    assert costs.prefill_seconds(arch, Device("u", None, None, None, None, 0, 2, ""), 10, 0) is None


@pytest.mark.parametrize(("rows", "mean", "limit"), [(1, 1_500, 16_000), (26, 1_500, 16_000), (64, 900, 2_000)])
def test_a_batch_ends_with_its_longest_completion(rows, mean, limit):
    """Against drawn lengths; and the time of whole batches against steps that are counted one by one."""
    draws = np.random.default_rng(0).exponential(mean, (4_000, rows))
    lengths = np.minimum(draws, limit)
    assert costs.longest_of(rows, mean, limit) == pytest.approx(lengths.max(1).mean(), rel=0.1)
    arch, gpu = arch_of(LLAMA), find_device("h100", CPU)
    seconds = 0.0
    for batch in lengths[:3].astype(int) + 1:
        for at in range(1, batch.max() + 1):
            active = (batch >= at).sum()
            read = (2 * arch.parameters + active * (100 + at) * 131_072) / gpu.bandwidth
            compute = active * 2 * (arch.shape.weights + arch.vocabulary * arch.hidden) / gpu.forward
            seconds += max(read, compute) + 32 * gpu.launch
    total, most = lengths[:3].sum() / (3 * rows), lengths[:3].max(1).mean()
    found = costs.decode_seconds(arch, gpu, decoding(rows, 3 * rows, total, limit))
    assert found == pytest.approx(seconds * costs.longest_of(rows, total, limit) / most, rel=0.05)
    there = costs.decode_seconds(arch, gpu, decoding(rows, 3 * rows, total, limit, served=True))
    assert there < found and (rows == 1 or there < found / 1.5)


def test_small_batches_of_training_take_the_time_to_launch_them():
    """A sample of 200 tokens is two milliseconds of work for an H100, and 28 layers are not launched in that."""
    arch, gpu = arch_of("deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B"), find_device("h100", CPU)
    width = arch.shape.adapter_width(PAPER.target_modules)
    one = train_flops(arch.shape, [200], 150, PAPER.r, width)
    assert one / gpu.train < 0.005
    assert costs.train_seconds(arch, gpu, 100 * one, 100) == pytest.approx(100 * 28 * gpu.launch * TRAIN_LAUNCHES)
    assert costs.train_seconds(arch, gpu, 100 * one, 1) == pytest.approx(100 * one / gpu.train)
    assert costs.train_seconds(arch, this_device(CPU), one, 100) == pytest.approx(one / (2 * CPU_TRAIN))
    assert costs.train_seconds(arch, Device("u", None, None, None, None, 0, 2, ""), one, 1) is None


def test_devices():
    assert this_device(CPU).train == 2 * CPU_TRAIN and this_device(CPU).memory > 1e9
    for name in GPUS:
        found = find_device(name, CPU)
        assert found.train < found.forward < 1e15 and 2e10 < found.memory < 2e11
    assert find_device("", CPU) == this_device(CPU)
    # Weights of twice the bytes, and no rate: the table knows bfloat16 only.
    wide = find_device("h100", CPU, "float32")
    assert (wide.dtype_bytes, wide.train, wide.forward) == (4, None, None) and "bfloat16" in wide.about
    assert find_device("h100", CPU, "bfloat16") == find_device("h100", CPU)
    with pytest.raises(UserError, match=r"--device: unknown device 'h10'; allowed: .*Did you mean 'h100'"):
        find_device("h10", CPU)


@pytest.mark.parametrize("instructions", [True, False])
def test_bfloat16_is_slow_without_its_instructions(monkeypatch, instructions):
    monkeypatch.setattr(devices, "bf16_is_fast", lambda: instructions)
    found = this_device(CPU.model_copy(update={"dtype": "bfloat16"}))
    assert found.train == pytest.approx(2 * (CPU_BF16 if instructions else CPU_TRAIN / 16))
    assert ("no instructions" in found.about) == (not instructions)


def test_a_gpu_has_the_bandwidth_of_its_own_kind():
    """H100 and H200 have the same peak, A100s of two sizes the same name."""
    for name, memory, entry in [
        ("NVIDIA H100 80GB HBM3", 85e9, "h100"),
        ("NVIDIA H200", 150e9, "h200"),
        ("NVIDIA A100-SXM4-40GB", 42e9, "a100-40"),
        ("NVIDIA A100-SXM4-80GB", 85e9, "a100-80"),
    ]:
        assert devices._listed(name, memory) == GPUS[entry]
    assert devices._listed("NVIDIA H100 PCIe", 85e9) is None and devices._listed("NVIDIA T4", 16e9) is None
