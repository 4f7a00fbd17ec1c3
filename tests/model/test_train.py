"""Training: planned order, exact accumulation, no trace on the base, the same bits again."""

import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from prefixlab.config import ArmsConfig, LoraOptions, TrainingConfig
from prefixlab.data.arms import build_arm, specs
from prefixlab.data.chat import chat_format
from prefixlab.data.check import render_arm
from prefixlab.data.sources import BUILTIN_DATA
from prefixlab.errors import StepError, UserError
from prefixlab.model.batches import batches_of, plan_batches
from prefixlab.model.recipes import MODERN, PAPER, Recipe, recipe
from prefixlab.model.train import train_adapter

SMALL = MODERN.model_copy(update={"epochs": 2, "batch_size": 4, "learning_rate": 1e-2})


@pytest.fixture
def arms(tiny_tokenizer):
    data = BUILTIN_DATA["chain_sum"]()[:10]
    entry = ArmsConfig(prefixes="reasoning", ratios=[1.0], controls=[])
    chat = chat_format(tiny_tokenizer)
    return [
        render_arm(build_arm(data, s, "k", "exact"), tiny_tokenizer, chat, max_length=512, no_reasoning="refuse")
        for s in specs(entry, "k")
    ]


def weights(folder):
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def train(model, samples, folder, plan=SMALL, seed=0):
    folder.mkdir()
    totals = train_adapter(model, samples, plan, key="k", seed=seed, pad=0, folder=folder)
    return totals, weights(folder)


def test_every_arm_sees_the_same_order(arms):
    plain, treated = (plan_batches(a, SMALL, "k", 0) for a in arms)
    assert plain == treated
    assert plan_batches(arms[0], SMALL, "k", 1) != plain
    seen = [i for step in plain for micro in step for i in micro]
    assert sorted(seen) == sorted([*range(10), *range(10)])


@pytest.mark.parametrize(("n", "accumulation"), [(10, 3), (9, 4), (5, 4), (10, 8)])
def test_a_short_last_step_joins_the_one_before_and_no_sample_is_lost(arms, n, accumulation):
    plan = SMALL.model_copy(update={"batch_size": 1, "accumulation": accumulation})
    steps = plan_batches(arms[0][:n], plan, "k", 0)
    assert sorted(i for step in steps for micro in step for i in micro) == sorted([*range(n), *range(n)])
    assert all(len(step) == accumulation for step in steps)


def test_micro_batches_do_not_change_the_step(arms, tiny_model, tmp_path):
    one = SMALL.model_copy(update={"batch_size": 4, "accumulation": 1})
    four = SMALL.model_copy(update={"batch_size": 1, "accumulation": 4})
    (_, a), (_, b) = (
        train(tiny_model, arms[0][:8], tmp_path / "a", one),
        train(tiny_model, arms[0][:8], tmp_path / "b", four),
    )
    first, second = ((json.loads(x) for x in (tmp_path / n / "metrics.jsonl").read_text().splitlines()) for n in "ab")
    for x, y in zip(first, second, strict=True):
        assert x["loss"] == pytest.approx(y["loss"], rel=2e-4) and x["grad_norm"] == pytest.approx(
            y["grad_norm"], rel=2e-3
        )
    assert a.keys() == b.keys()


@pytest.mark.smoke
def test_same_seed_same_bits_whatever_ran_before(arms, tiny_model, tmp_path):
    dropout = SMALL.model_copy(update={"dropout": 0.1})
    before = {n: p.clone() for n, p in tiny_model.state_dict().items()}
    totals, a = train(tiny_model, arms[0], tmp_path / "a", dropout)
    train(tiny_model, arms[1], tmp_path / "other", dropout, seed=5)
    _, b = train(tiny_model, arms[0], tmp_path / "b", dropout)
    _, c = train(tiny_model, arms[0], tmp_path / "c", dropout, seed=1)
    assert all(torch.equal(a[n], b[n]) for n in a) and not all(torch.equal(a[n], c[n]) for n in a)
    after = tiny_model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[n], after[n]) for n in before)
    assert totals["last_loss"] < totals["first_loss"] and totals["steps"] == 6


def test_loss_is_that_of_the_stock_model(arms, tiny_model, tmp_path):
    totals, _ = train(tiny_model, arms[0][:4], tmp_path / "a", SMALL.model_copy(update={"epochs": 1}))
    summed = count = 0
    tiny_model.set_attn_implementation("eager")
    for s in arms[0][:4]:
        out = tiny_model(input_ids=torch.tensor([s.ids]), labels=torch.tensor([s.labels]))
        summed, count = summed + out.loss.item() * s.n_supervised, count + s.n_supervised
    assert totals["first_loss"] == pytest.approx(summed / count, rel=1e-4)


def test_adapter_loads_in_plain_peft(arms, tiny_model, tmp_path):
    train(tiny_model, arms[0], tmp_path / "a")
    loaded = PeftModel.from_pretrained(tiny_model, tmp_path / "a" / "adapter")
    assert any("lora_B" in n and p.abs().max() > 0 for n, p in loaded.named_parameters())


def test_span_losses_are_in_the_metrics(arms, tiny_model, tmp_path):
    train(tiny_model, arms[1], tmp_path / "a")
    rows = [json.loads(x) for x in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()]
    assert {"loss_prefix", "loss_answer", "loss_end", "grad_norm", "tokens", "supervised_tokens"} <= set(rows[0])
    assert [r["step"] for r in rows] == [1, 2, 3, 4, 5, 6]


@pytest.mark.smoke
def test_zero_update_and_infinite_loss_stop(arms, tiny_model, tmp_path):
    with pytest.raises(StepError, match=r"did not change"):
        train(tiny_model, arms[0], tmp_path / "a", SMALL.model_copy(update={"learning_rate": 0.0}))
    with torch.no_grad():
        tiny_model.get_input_embeddings().weight[5:] = float("nan")
    with pytest.raises(StepError, match=r"loss became nan at step 1"):
        train(tiny_model, arms[0], tmp_path / "b")


def test_unknown_target_module(arms, tiny_model, tmp_path):
    with pytest.raises(UserError, match=r"linear layers are down_proj, gate_proj"):
        train(tiny_model, arms[0], tmp_path / "a", SMALL.model_copy(update={"target_modules": ("query",)}))


def test_too_few_samples_for_accumulation(arms, tiny_model, tmp_path):
    plan = SMALL.model_copy(update={"batch_size": 1, "accumulation": 16})
    with pytest.raises(UserError, match=r"fewer than training.accumulation 16"):
        train(tiny_model, arms[0], tmp_path / "a", plan)


def test_presets_and_every_override():
    assert recipe(TrainingConfig(preset="paper")) == PAPER
    assert (PAPER.r, PAPER.alpha, PAPER.dropout, PAPER.learning_rate, PAPER.epochs, PAPER.accumulation) == (
        16,
        32,
        0.05,
        1e-5,
        2,
        8,
    )
    lora = {"r": 2, "alpha": 3, "dropout": 0.3, "target_modules": ["q_proj"]}
    own = {
        "learning_rate": 0.1,
        "epochs": 7,
        "batch_size": 3,
        "accumulation": 5,
        "scheduler": "constant",
        "warmup_ratio": 0.2,
        "weight_decay": 0.3,
        "max_grad_norm": 0.4,
        "max_length": 77,
        "over_long": "cut",
        "snapshots": 3,
    }
    made = recipe(TrainingConfig(lora=LoraOptions(**lora), **own))
    assert made == Recipe(**{**lora, "target_modules": ("q_proj",)}, **own)
    assert set(Recipe.model_fields) == set(lora) | set(own) | {"lora_options", "trainer_options"}


def test_batches_of_covers_everything_longest_first(arms):
    found = [i for b in batches_of(arms[0], 3) for i in b]
    assert sorted(found) == list(range(10))
    lengths = [len(arms[0][i].ids) for i in found]
    assert lengths == sorted(lengths, reverse=True)
