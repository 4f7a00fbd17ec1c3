"""Our training against stock TRL on the same ids, labels, order and seed, on the tiny model in float32.

benchmarks/training.py does the same with SmolLM2 and real rows.
"""

import json

import pytest
import torch
from safetensors.torch import load_file

from prefixlab.config import ArmsConfig
from prefixlab.data.arms import build_arm, specs
from prefixlab.data.chat import chat_format
from prefixlab.data.check import render_arm
from prefixlab.data.sources import BUILTIN_DATA
from prefixlab.model.batches import plan_batches
from prefixlab.model.recipes import MODERN, PAPER
from prefixlab.model.train import train_adapter

pytestmark = pytest.mark.smoke


@pytest.fixture
def both(tiny_ref, tiny_model, tiny_tokenizer, tmp_path):
    from transformers import AutoModelForCausalLM

    from trl_reference import TUNED, run

    data = BUILTIN_DATA["chain_sum"]()[:64]
    arm = specs(ArmsConfig(prefixes="reasoning", ratios=[0.5], controls=[]), "k")[1]
    samples = render_arm(
        build_arm(data, arm, "k", "exact"),
        tiny_tokenizer,
        chat_format(tiny_tokenizer),
        max_length=512,
        no_reasoning="refuse",
    )

    def train(plan, seed=3):
        steps = plan_batches(samples, plan, "k", 3)
        stock = AutoModelForCausalLM.from_pretrained(tiny_ref.path, dtype=torch.float32)
        theirs = run(stock, tiny_tokenizer, samples, steps, plan, seed, tmp_path / "trl", **TUNED)
        (tmp_path / "ours").mkdir()
        train_adapter(
            tiny_model, samples, plan, key="k", seed=3, pad=tiny_tokenizer.pad_token_id, folder=tmp_path / "ours"
        )
        rows = [json.loads(line) for line in (tmp_path / "ours" / "metrics.jsonl").read_text().splitlines()]
        return rows, load_file(tmp_path / "ours" / "adapter" / "adapter_model.safetensors"), theirs

    return train


def close(rows, theirs, tolerance):
    ours = [(r["loss"], r["grad_norm"]) for r in rows]
    stock = list(zip(theirs.losses, theirs.grad_norms, strict=True))
    assert len(ours) == len(stock)
    for step, (a, b) in enumerate(zip(ours, stock, strict=True)):
        assert a == pytest.approx(b, rel=tolerance), f"step {step + 1}"


def test_paper_preset_step_by_step_dropout_included(both):
    from trl_reference import update_cosine

    rows, ours, theirs = both(PAPER)
    assert len(rows) == 16 and PAPER.dropout > 0
    close(rows, theirs, 2e-5)
    assert update_cosine(theirs.initial, ours, theirs.final) > 0.999


def test_modern_preset_and_the_tests_own_teeth(both):
    from trl_reference import update_cosine

    rows, ours, theirs = both(MODERN)
    close(rows, theirs, 1e-3)
    assert update_cosine(theirs.initial, ours, theirs.final) > 0.999
    # An adapter that never trained agrees with its initial value perfectly, and must fail here.
    assert update_cosine(theirs.initial, theirs.initial, theirs.final) == 0.0
    other = {k: v.flip(0) for k, v in ours.items()}
    assert update_cosine(theirs.initial, other, theirs.final) < 0.999


def test_another_seed_is_not_equal(both):
    rows, _, theirs = both(PAPER, seed=4)
    with pytest.raises(AssertionError):
        close(rows, theirs, 2e-5)
