"""Compiled layers: the same training within rounding, compiled once for all cells of a process."""

import pytest
import torch
from safetensors.torch import load_file

from prefixlab.config import ArmsConfig
from prefixlab.data.arms import build_arm, specs
from prefixlab.data.chat import chat_format
from prefixlab.data.check import render_arm
from prefixlab.data.sources import BUILTIN_DATA
from prefixlab.model.recipes import MODERN
from prefixlab.model.train import train_adapter

pytestmark = pytest.mark.slow
PLAN = MODERN.model_copy(update={"epochs": 1, "batch_size": 3})


@pytest.fixture
def arms(tiny_tokenizer):
    data = BUILTIN_DATA["chain_sum"]()[:12]
    return [
        render_arm(
            build_arm(data, s, "k", "exact"),
            tiny_tokenizer,
            chat_format(tiny_tokenizer),
            max_length=512,
            no_reasoning="refuse",
        )
        for s in specs(ArmsConfig(prefixes="reasoning", ratios=[1.0], controls=[]), "k")
    ]


def train(model, samples, folder, compiled, seed=0):
    folder.mkdir()
    totals = train_adapter(model, samples, PLAN, key="k", seed=seed, pad=0, folder=folder, compiled=compiled)
    return totals, load_file(folder / "adapter" / "adapter_model.safetensors")


def graphs():
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def test_compiled_cells_are_right_share_their_graphs_and_do_not_depend_on_company(arms, tiny_model, tmp_path):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    plain, weights = train(tiny_model, arms[0], tmp_path / "plain", compiled=False)
    assert graphs() == 0
    compiled, same = train(tiny_model, arms[0], tmp_path / "compiled", compiled=True)
    once = graphs()
    assert once > 0
    assert compiled["last_loss"] == pytest.approx(plain["last_loss"], rel=1e-4)
    assert all(torch.allclose(weights[k], same[k], atol=1e-3) for k in weights)
    _, second = train(tiny_model, arms[1], tmp_path / "second", compiled=True, seed=1)
    assert graphs() == once
    torch._dynamo.reset()
    _, alone = train(tiny_model, arms[1], tmp_path / "alone", compiled=True, seed=1)
    assert all(torch.equal(second[k], alone[k]) for k in second)
    assert not any(layer._compiled_call_impl for layer in tiny_model.model.layers)
