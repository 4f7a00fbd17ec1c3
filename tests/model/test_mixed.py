"""A batch with several adapters gives what each adapter gives alone."""

import pytest
import torch

from prefixlab.model import mixed
from prefixlab.model.generate import Request, generate, with_adapter
from prefixlab.model.mixed import generate_mixed, read_updates
from random_lora import save_adapter

PROMPTS = [(5, 9, 30, 31, 40), (5, 9, 30, 31, 41, 42, 43, 44), (5, 9, 7), (5, 9, 30, 31, 40, 50), (8, 8, 3)]
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CONFIGS = [dict(r=4, target_modules=ALL), dict(r=2, target_modules=["q_proj", "v_proj"], use_rslora=True)]


@pytest.fixture
def folders(tiny_model, tmp_path):
    return [
        save_adapter(tiny_model, tmp_path / f"a{i}", i, 0.5, lora_alpha=8, **c)
        for i, c in enumerate([*CONFIGS, CONFIGS[0]])
    ]


def alone(model, requests, adapters, stops):
    done = []
    for request, folder in zip(requests, adapters, strict=True):
        with with_adapter(model, folder, merge=False) as one:
            done += generate(one, [request], stop_ids=stops, pad=0)
    return done


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_mixed_equals_each_adapter_alone(tiny_model, folders, temperature):
    limits = [12, 3, 9, 12, 1, 7, 12, 5, 12, 2]  # rows of every adapter leave at different times
    requests = [Request(PROMPTS[i % 5], n, temperature, 0.95, i) for i, n in enumerate(limits)]
    adapters = [
        folders[0],
        None,
        folders[1],
        folders[2],
        folders[0],
        None,
        folders[2],
        folders[1],
        folders[0],
        folders[1],
    ]
    before = {n: p.clone() for n, p in tiny_model.state_dict().items()}
    together = generate_mixed(tiny_model, requests, adapters, stop_ids=frozenset(), pad=0)
    after = tiny_model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[n], after[n]) for n in before)
    assert together == alone(tiny_model, requests, adapters, frozenset())
    base = generate(tiny_model, requests, stop_ids=frozenset(), pad=0)
    assert together[1] == base[1] and together != base


def test_without_adapters_it_is_the_base(tiny_model):
    requests = [Request(p, 5, 0.0, 1.0, 0) for p in PROMPTS]
    expected = generate(tiny_model, requests, stop_ids=frozenset(), pad=0)
    assert generate_mixed(tiny_model, requests, [None] * 5, stop_ids=frozenset(), pad=0) == expected


def test_what_cannot_be_mixed_runs_one_after_another(tiny_model, folders, tmp_path, monkeypatch):
    dora = save_adapter(tiny_model, tmp_path / "dora", 7, 0.5, lora_alpha=8, r=4, target_modules=ALL, use_dora=True)
    requests = [Request(p, 6, 0.0, 1.0, 0) for p in PROMPTS]
    adapters = [folders[0], dora, None, dora, folders[1]]
    assert read_updates(tiny_model, dora) is None and read_updates(tiny_model, folders[1]) is not None
    monkeypatch.setattr(mixed, "FusedForward", None)  # calling it would be an error
    together = generate_mixed(tiny_model, requests, adapters, stop_ids=frozenset(), pad=0)
    assert together == alone(tiny_model, requests, adapters, frozenset())


@pytest.mark.parametrize(
    "odd",
    [
        {"rank_pattern": {"q_proj": 2}},
        {"alpha_pattern": {"v_proj": 1}},
        {"bias": "all"},
        {"modules_to_save": ["norm"]},
        {"target_modules": [*ALL, "embed_tokens"]},
        {"init_lora_weights": "pissa"},
    ],
)
def test_other_kinds_of_update_are_not_read(tiny_model, tmp_path, odd):
    config = dict(r=4, target_modules=ALL) | odd
    copy = type(tiny_model)(tiny_model.config)
    copy.load_state_dict(tiny_model.state_dict())
    assert read_updates(tiny_model, save_adapter(copy, tmp_path / "odd", 0, 0.5, lora_alpha=8, **config)) is None


def test_one_adapter_a_request(tiny_model, folders):
    with pytest.raises(ValueError, match="1 adapters for 2 requests"):
        generate_mixed(tiny_model, [Request((1, 2), 1, 0, 1, 0)] * 2, folders[:1], stop_ids=frozenset(), pad=0)
