"""The parts of the training engine: the fused LoRA layer, counted operations, stops, invariants, loss scopes."""

import json
import math
import shutil

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from prefixlab.config import ArmsConfig, HardwareConfig, TrainingConfig
from prefixlab.data.arms import build_arm, specs
from prefixlab.data.chat import IGNORE, chat_format, in_scope, render
from prefixlab.data.check import check_arms, render_arm
from prefixlab.data.sources import BUILTIN_DATA
from prefixlab.errors import StepError, UserError
from prefixlab.model import trainer as trainer_module
from prefixlab.model.batches import collate, count_steps, plan_batches
from prefixlab.model.flops import model_shape, train_flops
from prefixlab.model.load import load_model
from prefixlab.model.lora import fused_lora
from prefixlab.model.machine import resolve
from prefixlab.model.recipes import MODERN, PAPER, check_adapter, recipe, training_arguments
from prefixlab.model.train import Conduct, train_adapter
from prefixlab.model.trainer import hidden_states
from prefixlab.records import Span


def arms_of(tokenizer, n=10, **entry):
    data = BUILTIN_DATA["chain_sum"]()[:n]
    wanted = ArmsConfig(**{"prefixes": "reasoning", "ratios": [1.0], "controls": [], **entry})
    return {s.name: build_arm(data, s, "k", "exact") for s in specs(wanted, "k")}


@pytest.fixture
def rendered(tiny_tokenizer):
    rows = arms_of(tiny_tokenizer)["reasoning-opening-r100"]
    return render_arm(rows, tiny_tokenizer, chat_format(tiny_tokenizer), max_length=512, no_reasoning="refuse")


def grads(model, wrapped, batch, fused, seed=3):
    wrapped.zero_grad()
    torch.manual_seed(seed)
    with fused_lora(wrapped) if fused else torch.enable_grad():
        hidden = hidden_states(model, batch)
    hidden.float().square().mean().backward()
    return hidden.detach(), {n: p.grad.clone() for n, p in wrapped.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("modules", ["all-linear", ["q_proj", "v_proj"]])
def test_fused_lora_is_pefts_forward_and_backward(tiny_model, rendered, dropout, modules):
    wrapped = get_peft_model(
        tiny_model, LoraConfig(r=4, lora_alpha=12, lora_dropout=dropout, target_modules=modules, task_type="CAUSAL_LM")
    ).train()
    with torch.no_grad():
        for name, p in wrapped.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.3)
    batch = collate(rendered[:3], 0)
    with fused_lora(wrapped) as count:
        assert count == 2 * (7 if modules == "all-linear" else 2)
    plain, a = grads(tiny_model, wrapped, batch, fused=False)
    fast, b = grads(tiny_model, wrapped, batch, fused=True)
    assert (plain - fast).abs().max() < 5e-5 * plain.abs().max()
    for name in a:
        assert a[name].norm() > 0
        assert torch.allclose(a[name], b[name], rtol=1e-4, atol=1e-6), name
    again, _ = grads(tiny_model, wrapped, batch, fused=False)
    assert torch.equal(plain, again)  # PEFT's own forward is back


def test_fused_lora_leaves_variants_to_peft(tiny_model):
    wrapped = get_peft_model(
        tiny_model, LoraConfig(r=2, use_dora=True, target_modules=["q_proj"], task_type="CAUSAL_LM")
    )
    with fused_lora(wrapped) as count:
        assert count == 0


def test_bf16_base_keeps_float32_masters(tiny_model, rendered):
    wrapped = get_peft_model(
        tiny_model.to(torch.bfloat16), LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    ).train()
    hidden, found = grads(tiny_model, wrapped, collate(rendered[:2], 0), fused=True)
    assert hidden.dtype == torch.bfloat16
    assert all(p.dtype == torch.float32 for n, p in wrapped.named_parameters() if "lora" in n)
    assert all(g.dtype == torch.float32 for g in found.values())


def test_padding_and_company_do_not_change_a_samples_losses(tiny_model, rendered):
    from prefixlab.model.loss import token_loss

    head = tiny_model.get_output_embeddings().weight
    batch = collate(rendered[:4], 0)
    together, _ = token_loss(hidden_states(tiny_model, batch), head, batch.labels)
    alone = []
    for sample in rendered[:4]:
        one = collate([sample], 0)
        alone.append(token_loss(hidden_states(tiny_model, one), head, one.labels)[0])
    assert len({len(s.ids) for s in rendered[:4]}) > 1
    assert torch.allclose(together, torch.cat(alone), atol=2e-5)


def test_operations_are_those_of_the_models_own_matrices(tiny_model, rendered):
    shape = model_shape(tiny_model.config, "tiny")
    linear = [m for n, m in tiny_model.named_modules() if isinstance(m, torch.nn.Linear) and "layers" in n]
    assert shape.weights == sum(m.weight.numel() for m in linear)
    wrapped = get_peft_model(tiny_model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    trained = sum(p.numel() for p in wrapped.parameters() if p.requires_grad)
    assert 4 * shape.adapter_width("all-linear") == trained
    assert shape.adapter_width(["q_proj"]) == 2 * (48 + 48)
    # 4N + 6 L d S + 6 r (in + out) a token, 4 V d a supervised one, written out for two samples
    by_hand = (
        30 * (4 * shape.weights + 24 * shape.adapter_width("all-linear")) + 6 * 2 * 48 * (100 + 400) + 4 * 7 * 365 * 48
    )
    assert train_flops(shape, [10, 20], 7, 4, shape.adapter_width("all-linear")) == by_hand


def test_a_model_of_another_kind_is_refused():
    from transformers import GPT2Config

    with pytest.raises(UserError, match=r"gpt2.*its config lacks intermediate_size"):
        model_shape(GPT2Config(), "gpt2")


def train(model, samples, folder, plan=MODERN, **options):
    folder.mkdir(exist_ok=True)
    return train_adapter(model, samples, plan, key="k", seed=0, pad=0, folder=folder, **options)


def test_an_exploding_norm_stops_and_says_where(tiny_model, rendered, tmp_path, monkeypatch):
    plan = MODERN.model_copy(update={"batch_size": 1, "epochs": 1})
    real = trainer_module.token_loss
    calls = iter(range(100))

    def scaled(*args):
        losses, norms = real(*args)
        return losses * (1e5 if next(calls) == 7 else 1.0), norms

    monkeypatch.setattr(trainer_module, "token_loss", scaled)
    with pytest.raises(
        StepError, match=r"gradient norm exploded at step 8: .* after a median of .*; lower training.learning_rate"
    ):
        train(tiny_model, rendered, tmp_path / "a", plan)


@pytest.mark.parametrize(
    ("factor", "words"),
    [(math.inf, "training loss became inf at step 3"), (1e37, "gradient norm became inf at step 3")],
)
def test_an_infinite_loss_or_norm_stops_and_says_where(tiny_model, rendered, tmp_path, monkeypatch, factor, words):
    real = trainer_module.token_loss
    calls = iter(range(100))

    def scaled(*args):
        losses, norms = real(*args)
        return losses * (factor if next(calls) == 2 else 1.0), norms

    monkeypatch.setattr(trainer_module, "token_loss", scaled)
    with pytest.raises(StepError, match=words):
        train(tiny_model, rendered, tmp_path / "a", MODERN.model_copy(update={"batch_size": 2, "epochs": 1}))
    assert not (tmp_path / "a" / "adapter").exists()


def test_memory_that_runs_out_is_one_line_and_leaves_the_base_as_it_was(
    tiny_model, tiny_ref, rendered, tmp_path, monkeypatch
):
    real = trainer_module.token_loss
    calls = iter(range(100))

    def greedy(*args):
        if next(calls) == 2:
            torch.empty(2**60, dtype=torch.uint8)
        return real(*args)

    monkeypatch.setattr(trainer_module, "token_loss", greedy)
    plan = MODERN.model_copy(update={"batch_size": 2})
    with pytest.raises(
        StepError, match=r"out of memory at step 3; lower training.batch_size .*activation_checkpointing"
    ):
        train(tiny_model, rendered, tmp_path / "a", plan)
    assert "forward" not in tiny_model.__dict__
    assert not any("lora" in name for name, _ in tiny_model.named_modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._compiled_call_impl for m in tiny_model.modules())
    monkeypatch.setattr(trainer_module, "token_loss", real)
    train(tiny_model, rendered, tmp_path / "b", plan)
    fresh = load_model(tiny_ref, resolve(HardwareConfig(device="cpu", dtype="float32", threads=1)))
    train(fresh, rendered, tmp_path / "c", plan)
    files = [tmp_path / name / "adapter" / "adapter_model.safetensors" for name in "bc"]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_other_runtime_errors_keep_their_traceback(tiny_model, rendered, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer_module, "token_loss", lambda *a: torch.zeros(2) @ torch.zeros(3))
    with pytest.raises(RuntimeError, match=r"size mismatch|inconsistent"):
        train(tiny_model, rendered, tmp_path / "a")


def test_activation_checkpointing_gives_the_same_losses(tiny_model, rendered, tmp_path, monkeypatch):
    plain = train(tiny_model, rendered, tmp_path / "a")
    seen = []
    real = trainer_module.hidden_states

    def looking(model, batch):
        seen.append(model.model.layers[0].gradient_checkpointing)
        return real(model, batch)

    monkeypatch.setattr(trainer_module, "hidden_states", looking)
    plan = recipe(TrainingConfig(trainer={"activation_checkpointing": True}))
    saved = train(tiny_model, rendered, tmp_path / "b", plan)
    assert seen and all(seen)
    assert saved["last_loss"] == pytest.approx(plain["last_loss"], rel=1e-5)
    assert not any(getattr(m, "gradient_checkpointing", False) for m in tiny_model.modules())


def test_fields_of_peft_and_the_trainer_reach_them(tiny_model, rendered, tmp_path):
    made = recipe(
        TrainingConfig(
            trainer={"adam_beta2": 0.5, "optim": "sgd"}, lora={"use_rslora": True, "rank_pattern": {"q_proj": 2}}
        )
    )
    assert made.trainer_options == {"adam_beta2": 0.5, "optim": "sgd"}
    arguments = training_arguments(made, 3, 0, tmp_path, "cpu", 1)
    assert (arguments.adam_beta2, arguments.optim) == (0.5, "sgd")
    train(tiny_model, rendered, tmp_path / "a", made)
    saved = json.loads((tmp_path / "a" / "adapter" / "adapter_config.json").read_text())
    assert saved["use_rslora"] is True and saved["rank_pattern"] == {"q_proj": 2}


def test_trackers_get_every_row(tiny_model, rendered, tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "tb"))
    train(tiny_model, rendered, tmp_path / "a", conduct=Conduct(report_to=("tensorboard",)))
    found = EventAccumulator(str(tmp_path / "tb"))
    found.Reload()
    rows = [json.loads(line) for line in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()]
    logged = [e.value for e in found.Scalars("train/loss_prefix")]
    assert logged == pytest.approx([r["loss_prefix"] for r in rows])


@pytest.mark.parametrize("n", [8, 9, 10])
def test_splitting_a_step_over_processes_keeps_its_samples(rendered, n):
    """Also of a short step, where a process may have no share."""
    one = plan_batches(rendered[:n], MODERN, "k", 0)
    for processes in (2, 3):
        many = plan_batches(rendered[:n], MODERN, "k", 0, processes)
        assert all(len(step) == processes for step in many)
        assert [sorted(i for m in s for i in m) for s in many] == [sorted(i for m in s for i in m) for s in one]


@pytest.mark.parametrize("n", [8, 9, 12, 16, 17, 20])
def test_steps_are_counted_as_they_are_planned(rendered, n):
    samples = [rendered[0].model_copy(update={"id": str(i)}) for i in range(n)]
    for plan in (MODERN, PAPER, PAPER.model_copy(update={"accumulation": 3, "batch_size": 2})):
        assert len(plan_batches(samples, plan, "k", 0)) == count_steps(n, plan)


def test_a_harmless_spike_does_not_stop(tiny_model, rendered, tmp_path, monkeypatch):
    """A norm a thousand times a tiny median, but below the clipping bound."""
    real = trainer_module.token_loss
    calls = iter(range(100))

    def scaled(*args):
        losses, norms = real(*args)
        return losses * (1e-1 if next(calls) == 7 else 1e-6), norms

    monkeypatch.setattr(trainer_module, "token_loss", scaled)
    train(tiny_model, rendered, tmp_path / "a", MODERN.model_copy(update={"batch_size": 1, "epochs": 1}))


def test_a_merged_adapter_answers_as_the_loaded_one(tiny_model, tiny_ref, rendered, tmp_path):
    from transformers import AutoModelForCausalLM

    train(tiny_model, rendered, tmp_path / "a")
    stock = AutoModelForCausalLM.from_pretrained(tiny_ref.path, dtype=torch.float32).eval()
    ids = torch.tensor([rendered[0].ids])
    with torch.inference_mode():
        base = stock(ids).logits
        loaded = PeftModel.from_pretrained(stock, tmp_path / "a" / "adapter").eval()
        beside = loaded(ids).logits
        merged = loaded.merge_and_unload()(ids).logits
    assert torch.allclose(beside, merged, atol=1e-4) and (base - merged).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("training", "words"),
    [
        ({"trainer": {"adam_beta2": 1.5}}, "transformers refuses it: Invalid beta"),
        ({"trainer": {"optim": "adamw_bnb_8bit"}}, "transformers refuses it"),
        ({"scheduler": "cosine_with_min_lr"}, "transformers refuses it"),
        ({"scheduler": "cosin"}, "transformers refuses it"),
        ({"trainer": {"neftune_noise_alpha": 5}}, "cells share one base model"),
        ({"lora": {"init_lora_weights": "orthogonal", "r": 3}}, "PEFT refuses it"),
        ({"lora": {"layers_to_transform": [99]}}, "PEFT refuses it"),
        ({"lora": {"rank_pattern": {"q_proj": 0}}}, "PEFT refuses it"),
        ({"lora": {"target_modules": ["qkv_proj"]}}, "linear layers are down_proj"),
    ],
)
def test_mistakes_show_before_any_training(tiny_model, training, words):
    with pytest.raises(UserError, match=words) as error:
        check_adapter(recipe(TrainingConfig(**training)), tiny_model.config)
    assert "\n" not in str(error.value)


def test_a_model_with_a_sliding_window_is_refused(tiny_ref, tmp_path):
    shutil.copytree(tiny_ref.path, tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    config |= {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "use_sliding_window": True}
    config |= {"sliding_window": 64, "layer_types": ["full_attention", "sliding_attention"]}
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    ref, hardware = tiny_ref.model_copy(update={"path": str(tmp_path / "m")}), resolve(HardwareConfig(threads=1))
    with pytest.raises(UserError, match="layers of sliding_attention"):
        load_model(ref, hardware)
    config |= {"model_type": "mistral", "architectures": ["MistralForCausalLM"]}
    del config["layer_types"]  # Mistral's configuration has none
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="sliding window of 64 tokens"):
        load_model(ref, hardware)


def test_an_architecture_that_transformers_does_not_have(tiny_ref, tmp_path):
    shutil.copytree(tiny_ref.path, tmp_path / "m")
    (tmp_path / "m" / "config.json").write_text(json.dumps({"model_type": "of_tomorrow"}))
    with pytest.raises(UserError, match="could not be loaded") as error:
        load_model(tiny_ref.model_copy(update={"path": str(tmp_path / "m")}), resolve(HardwareConfig(threads=1)))
    assert "of_tomorrow" in str(error.value) and "\n" not in str(error.value)


SPANS = [Span(name="prompt", start=0, end=3), Span(name="prefix", start=3, end=5), Span(name="answer", start=5, end=8)]


@pytest.mark.parametrize(
    ("scope", "kept"),
    [("all", [3, 4, 5, 6, 7]), ("masked", [5, 6, 7]), ("prefix", [3, 4]), ("first_tokens", [3, 4, 5])],
)
def test_loss_scopes(scope, kept):
    labels = [IGNORE] * 3 + [13, 14, 15, 16, 17]
    found = in_scope(labels, SPANS, scope, 3)
    assert [i for i, label in enumerate(found) if label != IGNORE] == kept
    assert labels[3:] == [13, 14, 15, 16, 17]


@pytest.mark.parametrize(
    ("entry", "name"),
    [
        ({"loss": "prefix"}, "reasoning_prefixloss-opening-r100"),
        ({"loss": "first_tokens", "loss_tokens": 4}, "reasoning_first4-opening-r100"),
        ({"lookahead": True}, "reasoning_lookahead-opening-r100"),
        ({"lookahead": True, "controls": ["neutral"]}, "neutral_lookahead-opening-r100"),
    ],
)
def test_scopes_and_lookahead_pass_the_treatment_check(tiny_tokenizer, entry, name):
    arms = arms_of(tiny_tokenizer, **entry)
    assert name in arms and "r000" in arms
    chat = chat_format(tiny_tokenizer)
    found = check_arms(arms, tiny_tokenizer, chat, model="m", capability="c", max_length=512, no_reasoning="refuse")
    assert found.problems() == []
    row, plain = arms[name][0], arms["r000"][0]
    made = render(row, tiny_tokenizer, chat, max_length=512)
    prefix = made.span("prefix")
    if entry.get("loss") == "prefix":
        assert made.n_supervised == prefix.end - prefix.start
    if entry.get("loss") == "first_tokens":
        assert made.n_supervised == 4 and made.labels[prefix.start] != IGNORE
    if entry.get("lookahead"):
        sent = tiny_tokenizer.decode(made.ids[: prefix.start])
        assert row.prefix.strip() in sent and row.sample.messages[-1].content in sent
        assert made.n_supervised == len(made.ids) - prefix.start
        assert made.no_prefix_length == render(plain, tiny_tokenizer, chat, max_length=512).no_prefix_length


def test_half_of_a_first_tokens_arm_equals_r000_in_scope(tiny_tokenizer):
    arms = arms_of(tiny_tokenizer, loss="first_tokens", loss_tokens=4, ratios=[0.5])
    chat = chat_format(tiny_tokenizer)
    found = check_arms(arms, tiny_tokenizer, chat, model="m", capability="c", max_length=512, no_reasoning="refuse")
    about = next(a for a in found.arms if a.arm == "reasoning_first4-opening-r050")
    assert about.ok and (about.n_equal_reference, about.n_untreated) == (5, 5)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"loss": "prefix", "ratios": [0, 0.5]}, "no ratio but 0 and 1"),
        ({"loss": "prefix", "position": "user"}, "needs position"),
        ({"loss": "first_tokens", "controls": ["masked"]}, "contradict"),
        ({"lookahead": True, "position": "user"}, "in the prompt already"),
    ],
)
def test_scopes_that_make_no_sense(entry, words):
    with pytest.raises(ValueError, match=words):
        ArmsConfig(**{"prefixes": "reasoning", "ratios": [0, 1], "controls": [], **entry})


def test_an_arm_without_any_loss_is_refused(tiny_tokenizer):
    arms = arms_of(tiny_tokenizer)
    chat = chat_format(tiny_tokenizer)
    name = "reasoning-opening-r100"
    arms[name] = [r.model_copy(update={"loss": "first_tokens", "loss_tokens": 0}) for r in arms[name]]
    found = check_arms(arms, tiny_tokenizer, chat, model="m", capability="c", max_length=512, no_reasoning="refuse")
    assert f"arm '{name}': no token of it carries loss" in found.problems()
