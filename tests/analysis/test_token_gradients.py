"""Gradients of single token losses against one backward pass a token, and where they are position contributions."""

import pytest
import torch
from small_models import (
    CASES,
    LAYERS,
    MODULES,
    SAMPLES,
    TOLERANCE,
    adapted,
    close,
    position_gradients,
    same_state,
    state,
    token_gradients,
    whole,
)

from prefixlab.analysis.contributions import contributions, lora_targets, weight_targets
from prefixlab.analysis.token_gradients import token_gradient_norms, token_influence
from prefixlab.model.batches import Microbatch, collate

WEIGHTS = ("layers.0.self_attn.q_proj", "layers.1.mlp.gate_proj", "layers.2.self_attn.v_proj")
ONE_POSITION = {f"layers.{LAYERS - 1}.{part}" for part in (
    "self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")}  # fmt: skip


def padded(one, extra):
    batch = collate([one], 0)
    wide = [torch.nn.functional.pad(t, (0, extra), value=v) for t, v in (
        (batch.ids, 7), (batch.labels, -100), (batch.valid, False), (batch.spans, -1))]  # fmt: skip
    return Microbatch(*wide)


@pytest.mark.parametrize("targets", ["lora", "weight"])
@pytest.mark.parametrize(("kind", "attention"), CASES)
def test_norms_and_inner_products_equal_one_backward_a_token(kind, attention, targets):
    model, rtol = adapted(kind, attention), TOLERANCE[attention]
    wanted = lora_targets(model) if targets == "lora" else weight_targets(model, WEIGHTS)
    before = state(model)
    for one in SAMPLES[:2]:
        g_J_P = whole(token_gradients(model, one, wanted))
        total = g_J_P.sum(0)
        for extra in (0, 3):
            batch = padded(one, extra)
            for chunk in (1, 4, 100):
                close(token_gradient_norms(model, batch, wanted, chunk=chunk), g_J_P.norm(dim=1), rtol)
            inner_J = token_influence(model, batch, wanted)
            close(inner_J, g_J_P @ total, rtol)
            close(inner_J.sum(), total.square().sum(), rtol)
        close(inner_J.sum(), contributions(model, collate([one], 0), wanted).gram_B_S_S.sum(), rtol)
    assert same_state(before, state(model))


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_only_in_the_last_layer_is_it_the_contribution_of_one_position(kind):
    model, one = adapted(kind), SAMPLES[0]
    batch, at = collate([one], 0), [t - 1 for t, label in enumerate(one.labels) if label != -100]
    tokens = token_gradients(model, one, lora_targets(model))
    positions = position_gradients(model, one, lora_targets(model))
    assert len(tokens) == LAYERS * len(MODULES)
    for name, g_J_P in tokens.items():
        gap = (positions[name][at] - g_J_P).norm(dim=1) / g_J_P.norm(dim=1)
        if name in ONE_POSITION:
            assert gap.max() < 1e-10, name
        else:
            # The last token's loss has no position of its own behind it: there, and only there, the two may agree.
            assert gap[:-1].min() > 1e-3, name
    for name in (*ONE_POSITION, f"layers.{LAYERS - 1}.self_attn.v_proj", "layers.0.mlp.down_proj"):
        wanted = weight_targets(model, [name])
        found = contributions(model, batch, wanted)
        norms, inner = token_gradient_norms(model, batch, wanted, chunk=8), token_influence(model, batch, wanted)
        equal = torch.allclose(found.contribution_B_T[0, at], norms, rtol=1e-10)
        assert equal == (name in ONE_POSITION), name
        shares = torch.allclose(found.influence_B_T[0, at], inner / inner.sum(), rtol=1e-9, atol=1e-12)
        assert shares == (name in ONE_POSITION), name


def test_state_is_restored_after_an_error():
    model = adapted("llama", "sdpa")
    wanted, batch = lora_targets(model), collate(SAMPLES[:1], 0)
    before = state(model)
    broken = Microbatch(batch.ids + 1000, batch.labels, batch.valid, batch.spans)
    with pytest.raises(IndexError):
        token_gradient_norms(model, broken, wanted, chunk=2)
    with pytest.raises(IndexError):
        token_influence(model, broken, wanted)
    assert same_state(before, state(model))


def test_frozen_parameters_can_be_targets():
    model = adapted("llama").requires_grad_(False)
    norms = token_gradient_norms(model, collate(SAMPLES[:1], 0), lora_targets(model), chunk=3)
    assert len(norms) == SAMPLES[0].n_supervised and (norms > 0).all()
    assert not any(p.requires_grad for p in model.parameters())


def test_a_sample_without_loss_has_no_tokens():
    model, batch = adapted("llama"), collate(SAMPLES[:1], 0)
    silent = Microbatch(batch.ids, torch.full_like(batch.labels, -100), batch.valid, batch.spans)
    assert token_gradient_norms(model, silent, lora_targets(model), chunk=3).shape == (0,)
    assert token_influence(model, silent, lora_targets(model)).shape == (0,)


def test_one_sample_in_evaluation_mode():
    model = adapted("llama")
    with pytest.raises(ValueError, match="one sample"):
        token_influence(model, collate(SAMPLES, 0), lora_targets(model))
    with pytest.raises(ValueError, match="evaluation mode"):
        token_gradient_norms(model.train(), collate(SAMPLES[:1], 0), lora_targets(model), chunk=2)


def test_float32_is_close(tiny_model):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model = get_peft_model(tiny_model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")).eval()
    batch = collate(SAMPLES[:1], 0)
    norms = token_gradient_norms(model, batch, lora_targets(model), chunk=4)
    inner = token_influence(model, batch, lora_targets(model))
    model.double()
    close_enough = {"rtol": 1e-3, "atol": 1e-6}
    torch.testing.assert_close(
        norms.double(), token_gradient_norms(model, batch, lora_targets(model), chunk=4), **close_enough
    )
    torch.testing.assert_close(inner.double(), token_influence(model, batch, lora_targets(model)), **close_enough)
