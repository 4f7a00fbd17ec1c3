"""Batched decoding equals one-by-one decoding and transformers' own, and adapters leave no trace."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

from prefixlab.model.generate import Request, first_logits, generate, pick, shared_prefix, with_adapter

PROMPTS = [(5, 9, 30, 31, 40), (5, 9, 30, 31, 41, 42, 43, 44), (5, 9, 7), (5, 9, 30, 31, 40, 50)]


def requests(prompts, n=12, temperature=0.0, seed=1):
    return [Request(p, n, temperature, 0.9, seed + i) for i, p in enumerate(prompts)]


@pytest.fixture
def adapter(tiny_model, tmp_path):
    torch.manual_seed(3)
    wrapped = get_peft_model(
        tiny_model, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    with torch.no_grad():
        for name, p in wrapped.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.5)
    wrapped.save_pretrained(tmp_path / "adapter")
    wrapped.unload()
    return tmp_path / "adapter"


def test_batch_equals_one_by_one(tiny_model):
    together = generate(tiny_model, requests(PROMPTS), stop_ids=frozenset([2]), pad=0)
    alone = [generate(tiny_model, [r], stop_ids=frozenset([2]), pad=0)[0] for r in requests(PROMPTS)]
    assert together == alone
    assert any(len(c.ids) > 3 for c in together)


def test_equals_transformers_generate(tiny_model):
    mine = generate(tiny_model, requests(PROMPTS[:1]), stop_ids=frozenset([2]), pad=0)[0]
    theirs = tiny_model.generate(
        torch.tensor([PROMPTS[0]]), attention_mask=torch.ones(1, 5), max_new_tokens=12, do_sample=False, use_cache=True
    )
    assert list(mine.ids) == [t for t in theirs[0, 5:].tolist() if t != 2]


def test_stop_and_truncation(tiny_model):
    free = generate(tiny_model, requests(PROMPTS[:1], 6), stop_ids=frozenset(), pad=0)[0]
    assert free.truncated and len(free.ids) == 6
    stopped = generate(tiny_model, requests(PROMPTS[:1], 6), stop_ids=frozenset([free.ids[2]]), pad=0)[0]
    assert not stopped.truncated and stopped.ids == free.ids[: free.ids.index(free.ids[2])]


def test_samples_follow_their_seed(tiny_model):
    a = generate(tiny_model, requests(PROMPTS, temperature=1.0), stop_ids=frozenset(), pad=0)
    b = generate(tiny_model, requests(PROMPTS, temperature=1.0), stop_ids=frozenset(), pad=0)
    c = generate(tiny_model, requests(PROMPTS, temperature=1.0, seed=100), stop_ids=frozenset(), pad=0)
    alone = generate(tiny_model, requests(PROMPTS, temperature=1.0)[2:3], stop_ids=frozenset(), pad=0)[0]
    assert a == b != c and a[2] == alone


def test_nucleus_sampling_has_the_right_distribution():
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]]))
    counts = torch.zeros(4)
    generator = torch.Generator().manual_seed(0)
    request = Request((1,), 1, 1.0, 0.9, 0)
    for _ in range(3000):
        counts[pick(logits, [request], [generator])] += 1
    share = counts / 3000
    expected = torch.tensor([0.5, 0.3, 0.15, 0.0]) / 0.95
    assert share[3] == 0 and (share - expected).abs().max() < 0.03


def test_shared_prefix():
    assert shared_prefix(PROMPTS) == 2
    assert shared_prefix([(1, 2, 3), (1, 2, 3)]) == 2


def test_adapter_merged_equals_unmerged_and_leaves_the_base_alone(tiny_model, adapter):
    before = {n: p.clone() for n, p in tiny_model.state_dict().items()}
    base = first_logits(tiny_model, PROMPTS, 0)
    with with_adapter(tiny_model, adapter, merge=True) as model:
        merged = first_logits(model, PROMPTS, 0)
    with with_adapter(tiny_model, adapter, merge=False) as model:
        beside = first_logits(model, PROMPTS, 0)
    torch.testing.assert_close(merged, beside, atol=1e-4, rtol=1e-4)
    assert (merged - base).abs().max() > 0.01
    after = tiny_model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[n], after[n]) for n in before)
    assert torch.equal(first_logits(tiny_model, PROMPTS, 0), base)
