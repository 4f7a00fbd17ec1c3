"""Position contributions against a copy of the parameters for every position, and what must not change them."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from small_models import (
    CASES,
    LAYERS,
    MODULES,
    SAMPLES,
    TOLERANCE,
    adapted,
    base_model,
    close,
    plain_losses,
    position_gradients,
    same_state,
    sample,
    state,
    whole,
)

from prefixlab.analysis.contributions import (
    REST,
    Targets,
    contributions,
    lora_targets,
    span_cosine,
    span_norm,
    weight_targets,
)
from prefixlab.errors import UserError
from prefixlab.model.batches import SPAN_ORDER, Microbatch, collate
from prefixlab.model.lora import fused_lora
from prefixlab.model.trainer import hidden_states

SOME = ("layers.0.self_attn.k_proj", "layers.1.mlp.up_proj", "layers.2.self_attn.q_proj", "layers.2.mlp.down_proj")


def targets_of(model, kind):
    return lora_targets(model) if kind == "lora" else weight_targets(model, SOME)


def span_rows(one):
    """(S, T) membership."""
    rows = torch.zeros(len(SPAN_ORDER), len(one.ids), dtype=torch.float64)
    for span in one.spans:
        rows[SPAN_ORDER.index(span.name), span.start : span.end] = 1
    return rows


@pytest.mark.parametrize("targets", ["lora", "weight"])
@pytest.mark.parametrize(("kind", "attention"), CASES)
def test_equals_a_copy_of_the_parameters_for_every_position(kind, attention, targets):
    model, rtol = adapted(kind, attention), TOLERANCE[attention]
    wanted = targets_of(model, targets)
    found = contributions(model, collate(SAMPLES, 0), wanted, by_module=True)
    assert found.contribution_B_T.dtype == torch.float64 and found.defined_B.all()
    close(found.losses, torch.cat([plain_losses(model, one) for one in SAMPLES]).detach(), rtol)
    for row, one in enumerate(SAMPLES):
        by_layer = position_gradients(model, one, wanted)
        c_T_P, n = whole(by_layer), len(one.ids)
        total = c_T_P.sum(0)
        assert total.norm() > 1e-3
        close(found.contribution_B_T[row, :n], c_T_P.norm(dim=1), rtol)
        close(found.influence_B_T[row, :n], c_T_P @ total / total.square().sum(), rtol)
        close(found.influence_B_T[row].sum(), 1.0, rtol)
        spans_S_P = span_rows(one) @ c_T_P
        close(found.gram_B_S_S[row], spans_S_P @ spans_S_P.T, rtol)
        for name, part in by_layer.items():
            close(found.modules[name].contribution_B_T[row, :n], part.norm(dim=1), rtol)
            close(found.modules[name].influence_B_T[row, :n], part @ part.sum(0) / total.square().sum(), rtol)
        for tensor in (found.contribution_B_T, found.influence_B_T, found.input_gradient_B_T):
            assert not tensor[row, n:].any()


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_the_sum_is_the_gradient_that_autograd_gives(kind):
    model = adapted(kind)
    wanted = lora_targets(model)
    found = contributions(model, collate(SAMPLES, 0), wanted)
    for row, one in enumerate(SAMPLES):
        total = torch.cat([g.flatten() for g in torch.autograd.grad(plain_losses(model, one).sum(), wanted.parameters)])
        close(found.gram_B_S_S[row].sum(), total.square().sum())
        by_layer = position_gradients(model, one, wanted)
        close(torch.cat([part.sum(0) for part in by_layer.values()]), total)


def test_prompt_positions_contribute_and_the_last_position_does_not():
    model = adapted("llama")
    found = contributions(model, collate(SAMPLES[:1], 0), lora_targets(model))
    assert (found.contribution_B_T[0, :4] > 1e-3).all() and found.contribution_B_T[0, -1] == 0


def test_input_gradient_is_that_of_the_embeddings():
    model = adapted("llama", "eager")
    found = contributions(model, collate(SAMPLES, 0), lora_targets(model))
    causal = model.get_base_model()
    for row, one in enumerate(SAMPLES):
        ids, labels = torch.tensor([one.ids]), torch.tensor([one.labels])
        embedded = causal.get_input_embeddings()(ids).detach().requires_grad_()
        loss = causal(inputs_embeds=embedded, labels=labels).loss * one.n_supervised
        (gradient,) = torch.autograd.grad(loss, embedded)
        # transformers takes its loss in fp32
        expected = gradient[0].norm(dim=1)
        torch.testing.assert_close(found.input_gradient_B_T[row, : len(one.ids)], expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("targets", ["lora", "weight"])
def test_padding_and_company_change_nothing(targets):
    model = adapted("llama")
    wanted = targets_of(model, targets)
    together = contributions(model, collate(SAMPLES, 0), wanted)
    other_way = contributions(
        model, collate([*SAMPLES[::-1], sample("long", ("prompt", 9), ("answer", 14))], 5), wanted
    )
    for row, one in enumerate(SAMPLES):
        alone, n = contributions(model, collate([one], 0), wanted), len(one.ids)
        for found, at in ((together, row), (other_way, len(SAMPLES) - 1 - row)):
            for name in ("contribution_B_T", "influence_B_T", "input_gradient_B_T"):
                close(getattr(found, name)[at, :n], getattr(alone, name)[0])
            close(found.gram_B_S_S[at], alone.gram_B_S_S[0])


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("targets", ["lora", "weight"])
def test_gradient_checkpointing_counts_nothing_twice(targets, reentrant):
    model = adapted("llama").train()
    wanted = targets_of(model, targets)
    batch = collate(SAMPLES, 0)
    plain = contributions(model, batch, wanted)
    model.get_base_model().activation_checkpointing_enable({"use_reentrant": reentrant})
    repeated = []
    layer = model.get_base_model().get_decoder().layers[0]
    handle = layer.self_attn.register_forward_hook(lambda *_: repeated.append(1))
    again = contributions(model, batch, wanted)
    handle.remove()
    assert len(repeated) == 2
    for name in ("contribution_B_T", "influence_B_T", "input_gradient_B_T", "gram_B_S_S"):
        close(getattr(again, name), getattr(plain, name))


def test_with_dropout_the_input_is_the_one_behind_it():
    model = adapted("llama", dropout=0.4).train()
    batch = collate(SAMPLES[:1], 0)
    torch.manual_seed(5)
    found = contributions(model, batch, lora_targets(model), by_module=True)
    torch.manual_seed(5)
    with fused_lora(model):
        hidden = hidden_states(model.get_base_model(), batch)
    keep = batch.labels[0, 1:] != -100
    logits = hidden[0, :-1][keep] @ model.get_base_model().get_output_embeddings().weight.T
    loss = torch.nn.functional.cross_entropy(logits, batch.labels[0, 1:][keep], reduction="sum")
    names = [n for n in found.modules for _ in range(2)]
    squares = dict.fromkeys(names, 0.0)
    for name, g in zip(names, torch.autograd.grad(loss, lora_targets(model).parameters), strict=True):
        squares[name] += g.square().sum()
    total = found.gram_B_S_S.sum()
    close(total, sum(squares.values()))
    for name, part in found.modules.items():
        close(part.influence_B_T.sum() * total, squares[name])
    calm = contributions(model.eval(), batch, lora_targets(model))
    assert (calm.gram_B_S_S.sum() / total - 1).abs() > 0.01


def test_modules_add_up():
    model = adapted("qwen2")
    found = contributions(model, collate(SAMPLES, 0), lora_targets(model), by_module=True)
    assert list(found.modules) == list(lora_targets(model).layers) and len(found.modules) == LAYERS * len(MODULES)
    close(sum(m.contribution_B_T.square() for m in found.modules.values()), found.contribution_B_T.square())
    close(sum(m.influence_B_T for m in found.modules.values()), found.influence_B_T)
    assert not contributions(model, collate(SAMPLES, 0), lora_targets(model)).modules


def test_spans_are_masked_sums():
    model = adapted("llama")
    found = contributions(model, collate(SAMPLES, 0), lora_targets(model))
    for row, one in enumerate(SAMPLES):
        c_T_P, gram = whole(position_gradients(model, one, lora_targets(model))), found.gram_B_S_S[row]
        total = {name: rows @ c_T_P for name, rows in zip(SPAN_ORDER, span_rows(one), strict=True)}
        rest = sum(total[name] for name in REST)
        for name in SPAN_ORDER:
            assert span_norm(gram, [name]) == pytest.approx(float(total[name].norm()), rel=1e-10, abs=1e-13)
        assert span_norm(gram, SPAN_ORDER) == pytest.approx(float(c_T_P.sum(0).norm()), rel=1e-10)
        if row < 2:
            cosine = torch.cosine_similarity(total["prefix"], rest, dim=0)
            assert span_cosine(gram, ["prefix"]) == pytest.approx(float(cosine), rel=1e-9)
            assert span_cosine(gram, ["answer"], ["answer"]) == pytest.approx(1)
        else:
            assert span_cosine(gram, ["prefix"]) is None and span_norm(gram, ["prefix"]) == 0


def test_a_sample_without_a_gradient_has_no_shares():
    model = adapted("llama")
    batch = collate(SAMPLES, 0)
    labels = batch.labels.clone()
    labels[1] = -100
    found = contributions(model, Microbatch(batch.ids, labels, batch.valid, batch.spans), lora_targets(model))
    alone = contributions(model, collate(SAMPLES[:1], 0), lora_targets(model))
    assert found.defined_B.tolist() == [True, False, True]
    assert not found.influence_B_T[1].any() and not found.contribution_B_T[1].any() and not found.gram_B_S_S[1].any()
    close(found.influence_B_T[0, : len(SAMPLES[0].ids)], alone.influence_B_T[0])
    nothing = contributions(
        model, Microbatch(batch.ids, torch.full_like(labels, -100), batch.valid, batch.spans), lora_targets(model)
    )
    assert not nothing.defined_B.any() and len(nothing.losses) == 0
    assert all(torch.isfinite(getattr(nothing, n)).all() for n in ("influence_B_T", "contribution_B_T", "gram_B_S_S"))


def test_a_fresh_adapter_has_contributions_of_b_alone():
    model = adapted("llama", b_std=0.0)
    wanted = lora_targets(model)
    found = contributions(model, collate(SAMPLES[:1], 0), wanted)
    total = torch.autograd.grad(plain_losses(model, SAMPLES[0]).sum(), wanted.parameters)
    assert not any(g.any() for g in total[::2]) and all(g.any() for g in total[1::2])
    close(found.gram_B_S_S.sum(), sum(g.square().sum() for g in total))
    # B = 0: x W^T alone, so the base model's losses
    close(found.losses, plain_losses(base_model("llama"), SAMPLES[0]).detach())


@pytest.mark.parametrize("targets", ["lora", "weight"])
def test_nothing_is_left_on_the_model(targets):
    model = adapted("llama")
    wanted, batch = targets_of(model, targets), collate(SAMPLES, 0)
    next(iter(wanted.layers["layers.2.mlp.down_proj"].parameters())).requires_grad_(True)
    before = state(model)
    contributions(model, batch, wanted, by_module=True)
    assert same_state(before, state(model))
    broken = Microbatch(batch.ids + 1000, batch.labels, batch.valid, batch.spans)
    with pytest.raises(IndexError):
        contributions(model, broken, wanted)
    assert same_state(before, state(model))
    last = model.get_base_model().get_decoder().layers[-1]
    shared, last.self_attn.v_proj = last.self_attn.v_proj, last.self_attn.k_proj
    model_wide = lora_targets(model) if targets == "lora" else weight_targets(model, ["layers.2.self_attn.k_proj"])
    with pytest.raises(UserError, match=r"layers.2.self_attn.k_proj does not see each of the 3 x 16 positions exactly"):
        contributions(model, batch, model_wide)  # found out in the backward pass
    last.self_attn.v_proj = shared
    assert same_state(before, state(model))


def test_a_layer_that_does_not_run_is_named():
    with pytest.raises(UserError, match=r"layers.0.self_attn.q_proj did not take part"):
        contributions(adapted("llama"), collate(SAMPLES, 0), lora_targets(adapted("llama")))


def test_some_of_the_lora_layers():
    model = adapted("llama")
    every, batch = lora_targets(model), collate(SAMPLES, 0)
    names = ["layers.0.mlp.up_proj", "layers.2.self_attn.v_proj"]
    found = contributions(model, batch, Targets("lora", {n: every.layers[n] for n in names}))
    modules = contributions(model, batch, every, by_module=True).modules
    close(found.contribution_B_T.square(), sum(modules[n].contribution_B_T.square() for n in names))


def test_targets_are_refused_in_words():
    base = base_model("llama")
    with pytest.raises(UserError, match=r"no adapter"):
        lora_targets(base)
    with pytest.raises(UserError, match=r"'layers.1.self_attn.qproj'.* Did you mean 'layers.1.self_attn.q_proj'\?"):
        weight_targets(base, ["layers.1.self_attn.qproj"])
    with pytest.raises(UserError, match=r"allowed: layers.N.mlp.down_proj, .*layers.N.self_attn.v_proj\."):
        weight_targets(base, ["layers.7.self_attn.q_proj"])
    assert list(weight_targets(base, ["model.layers.0.mlp.down_proj"]).layers) == ["layers.0.mlp.down_proj"]
    with pytest.raises(UserError, match=r"one or more, each once"):
        weight_targets(base, ["layers.1.self_attn.q_proj"] * 2)
    with pytest.raises(UserError, match=r"one or more"):
        weight_targets(base, [])
    merged = adapted("llama")
    merged.merge_adapter()
    with pytest.raises(UserError, match=r"q_proj is not plain LoRA"):
        lora_targets(merged)
    model = adapted("llama")
    with model.disable_adapter(), pytest.raises(UserError, match=r"switched off at"):
        lora_targets(model)
    assert lora_targets(model).layers.keys() == weight_targets(model, list(lora_targets(model).layers)).layers.keys()
    dora = get_peft_model(base, LoraConfig(r=2, use_dora=True, target_modules=["v_proj"], task_type="CAUSAL_LM"))
    with pytest.raises(UserError, match=r"v_proj is not plain LoRA"):
        lora_targets(dora)


@pytest.mark.parametrize(("dtype", "tolerance", "total"), [(torch.float32, 1e-4, 1e-5), (torch.bfloat16, 0.15, 5e-3)])
def test_lower_precision_is_close(tiny_model, dtype, tolerance, total):
    lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    torch.manual_seed(0)
    model = get_peft_model(tiny_model, lora).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.1)
    batch = collate(SAMPLES, 0)
    exact = contributions(model.double(), batch, lora_targets(model))
    model.to(dtype)
    for name, p in model.named_parameters():
        if "lora" in name:
            p.data = p.data.float()
    found = contributions(model, batch, lora_targets(model))
    assert found.contribution_B_T.dtype == torch.float32
    valid = batch.valid & (exact.contribution_B_T > 0)
    apart = (found.contribution_B_T.double() / exact.contribution_B_T)[valid] - 1
    assert apart.abs().max() < tolerance
    torch.testing.assert_close(found.influence_B_T.sum(1), torch.ones(3), rtol=total, atol=total)
