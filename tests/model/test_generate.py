"""Batched decoding equals one-by-one decoding and transformers' own, and adapters leave no trace."""

import random

import pytest
import torch
from peft import LoraConfig, get_peft_model
from scipy import stats
from transformers import (
    MistralConfig,
    MistralForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.generation.logits_process import RepetitionPenaltyLogitsProcessor, TopPLogitsWarper

from prefixlab.model import decode, prefill
from prefixlab.model import generate as module
from prefixlab.model.decode import FusedForward, ModuleForward, fusable, open_forward
from prefixlab.model.generate import Request, complete, first_logits, generate, with_adapter
from prefixlab.model.prefill import shared_prefix
from prefixlab.model.sampling import first_largest, penalise, sample

PROMPTS = [(5, 9, 30, 31, 40), (5, 9, 30, 31, 41, 42, 43, 44), (5, 9, 7), (5, 9, 30, 31, 40, 50)]
NONE = frozenset()


def requests(prompts, n=12, temperature=0.0, seed=1, **more):
    return [Request(p, n, temperature, 0.9, seed + i, **more) for i, p in enumerate(prompts)]


def one_by_one(model, some, stops=NONE):
    return [generate(model, [r], stop_ids=stops, pad=0)[0] for r in some]


def sharp(model):
    """Random weights are nearly indifferent between tokens; a larger head makes greedy choices clear."""
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(20)
    return model


def theirs(model, prompt, n, **more):
    # The model's own implementation of attention, not ours.
    used = model.config._attn_implementation
    model.set_attn_implementation("sdpa")
    out = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=n,
        do_sample=False,
        use_cache=True,
        eos_token_id=None,
        pad_token_id=0,
        **more,
    )
    model.set_attn_implementation(used)
    return tuple(out[0, len(prompt) :].tolist())


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


def test_batch_equals_one_by_one_equals_transformers(tiny_model):
    together = generate(tiny_model, requests(PROMPTS), stop_ids=frozenset([2]), pad=0)
    assert together == one_by_one(tiny_model, requests(PROMPTS), frozenset([2]))
    assert any(len(c.ids) > 3 for c in together)
    free = generate(tiny_model, requests(PROMPTS), stop_ids=NONE, pad=0)
    assert [c.ids for c in free] == [theirs(tiny_model, p, 12) for p in PROMPTS]


SHAPE = dict(
    vocab_size=512,
    hidden_size=48,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    eos_token_id=None,
    bos_token_id=None,
    pad_token_id=0,
)
KINDS = {
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, True),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, True),
    "mistral": (MistralForCausalLM, MistralConfig, True),
    "olmo2": (Olmo2ForCausalLM, Olmo2Config, False),
}


@pytest.mark.parametrize("kind", KINDS)
def test_other_families_equal_transformers(kind):
    """Biases (Qwen2), norms of heads (Qwen3), and a model that runs through its own modules (OLMo 2)."""
    model_class, config_class, fused = KINDS[kind]
    torch.manual_seed(0)
    model = sharp(model_class(config_class(**SHAPE)).float().eval())
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("bias") or "q_norm" in name or "k_norm" in name:
                p.uniform_(0.5, 1.5)
    assert fusable(model) is fused
    done = generate(model, requests(PROMPTS), stop_ids=NONE, pad=0)
    assert [c.ids for c in done] == [theirs(model, p, 12) for p in PROMPTS]


@torch.inference_mode()
def test_fused_weights_equal_the_modules(tiny_model):
    some = requests(PROMPTS, 1)
    a, b = (module._Batch(f, some, 0, [()] * 4).logits for f in (FusedForward(tiny_model), ModuleForward(tiny_model)))
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_left_padding_and_chunks_change_nothing(tiny_model, monkeypatch):
    long = tuple(range(3, 60))
    together = first_logits(tiny_model, [*PROMPTS, long], 0)
    alone = torch.cat([first_logits(tiny_model, [p], 0) for p in [*PROMPTS, long]])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    assert torch.equal(together, first_logits(tiny_model, [*PROMPTS, long], 7))
    monkeypatch.setattr(prefill, "TOKENS", 10)  # the long one in blocks of positions, the others in two passes
    torch.testing.assert_close(first_logits(tiny_model, [*PROMPTS, long], 0), together, atol=1e-5, rtol=1e-5)


def test_shared_prefill_equals_separate(tiny_model, monkeypatch):
    long = tuple(range(3, 40))
    prompts = [long, (*long, 7), long, (*long, 7, 8, 9), long]
    passes = []
    hidden = FusedForward.hidden
    monkeypatch.setattr(
        FusedForward, "hidden", lambda self, job: (passes.append(job.ids.numel()), hidden(self, job))[1]
    )
    shared = generate(tiny_model, requests(prompts, 8, 1.0), stop_ids=NONE, pad=0)
    # 36 tokens that all share, then what is left of three distinct prompts: 1, 2 and 4 tokens, padded to 4.
    assert passes[:2] == [36, 12]
    assert shared == one_by_one(tiny_model, requests(prompts, 8, 1.0))


def test_stop_and_truncation(tiny_model):
    free = generate(tiny_model, requests(PROMPTS[:1], 6), stop_ids=NONE, pad=0)[0]
    assert free.truncated and len(free.ids) == 6
    stopped = generate(tiny_model, requests(PROMPTS[:1], 6), stop_ids=frozenset([free.ids[2]]), pad=0)[0]
    assert not stopped.truncated and stopped.ids == free.ids[: free.ids.index(free.ids[2])]


def test_a_stop_token_within_the_prompt_stops_nothing(tiny_model):
    stop = PROMPTS[0][2]
    free = generate(tiny_model, requests(PROMPTS[:1], 6), stop_ids=NONE, pad=0)[0]
    assert stop not in free.ids
    assert generate(tiny_model, requests(PROMPTS[:1], 6), stop_ids=frozenset([stop]), pad=0)[0] == free


def test_finished_rows_leave_without_a_trace(tiny_model):
    limits = [3, 14, 1, 9, 5, 14]
    prompts = [*PROMPTS, PROMPTS[0], PROMPTS[1]]
    some = [
        Request(p, n, t, 0.9, i) for i, (p, n, t) in enumerate(zip(prompts, limits, [0, 1, 1, 0, 1, 0], strict=True))
    ]
    together = generate(tiny_model, some, stop_ids=NONE, pad=0)
    assert [len(c.ids) for c in together] == limits and together == one_by_one(tiny_model, some)


def test_buffers_grow(tiny_model, monkeypatch):
    expected = generate(tiny_model, requests(PROMPTS, 40), stop_ids=NONE, pad=0)
    monkeypatch.setattr(module, "ROOM", 2)
    assert generate(tiny_model, requests(PROMPTS, 40), stop_ids=NONE, pad=0) == expected


def test_samples_follow_their_seed_alone(tiny_model):
    some = requests(PROMPTS, temperature=1.0)
    a = generate(tiny_model, some, stop_ids=NONE, pad=0)
    c = generate(tiny_model, requests(PROMPTS, temperature=1.0, seed=100), stop_ids=NONE, pad=0)
    assert a != c
    assert generate(tiny_model, some[::-1], stop_ids=NONE, pad=0) == a[::-1]
    assert one_by_one(tiny_model, some) == a
    more = generate(tiny_model, requests(PROMPTS, 20, temperature=1.0), stop_ids=NONE, pad=0)
    assert [m.ids[:12] for m in more] == [x.ids for x in a]


def chi_square(logits, expected, draws=20_000, **settings):
    """p-value of the sampler's counts; tokens without probability must not occur."""
    rng = random.Random(5)
    full = dict(temperature=1.0, top_p=1.0, top_k=0) | settings
    uniform = torch.tensor([rng.random() for _ in range(draws)], dtype=torch.float64)
    columns = [torch.full((draws,), full[k]) for k in ("temperature", "top_p", "top_k")]
    tokens = sample(logits.expand(draws, -1), *columns, uniform)
    counts = torch.bincount(tokens, minlength=logits.shape[-1]).double()
    possible = expected > 0
    assert counts[~possible].sum() == 0
    wanted = expected[possible].double()
    if len(wanted) == 1:
        return 1.0
    return stats.chisquare(counts[possible].numpy(), (wanted / wanted.sum() * draws).numpy()).pvalue


@pytest.mark.parametrize("vocabulary", [12, 200])  # all tokens are candidates; the nucleus is larger than they are
@pytest.mark.parametrize(
    "settings", [{}, {"top_p": 0.9}, {"top_p": 0.05}, {"top_k": 5}, {"top_k": 80, "top_p": 0.95}, {"temperature": 0.7}]
)
def test_the_sampler_has_the_right_distribution(vocabulary, settings):
    logits = torch.randn(1, vocabulary, generator=torch.Generator().manual_seed(1)) * 0.8
    scores = logits / settings.get("temperature", 1.0)
    if settings.get("top_k", vocabulary) < vocabulary:
        edge = scores.topk(settings["top_k"]).values[:, -1:]
        scores = scores.masked_fill(scores < edge, -torch.inf)
    if "top_p" in settings:
        scores = TopPLogitsWarper(settings["top_p"])(None, scores)
    assert chi_square(logits, torch.softmax(scores, -1)[0], **settings) > 1e-3


def test_the_chi_square_test_can_fail():
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.2]]))
    assert chi_square(logits, torch.tensor([0.5, 0.3, 0.2])) > 1e-3
    assert chi_square(logits, torch.tensor([0.48, 0.3, 0.22])) < 1e-3


def test_rows_with_different_settings_do_not_mix():
    logits = torch.randn(6, 300, generator=torch.Generator().manual_seed(2))
    settings = [(0.5, 0.9, 0), (1.0, 1.0, 0), (1.0, 0.99, 0), (2.0, 0.5, 100), (1.0, 1.0, 3), (0.1, 0.2, 1)]
    columns = [torch.tensor(c) for c in zip(*settings, strict=True)]
    uniform = torch.tensor([0.1, 0.7, 0.999999, 0.5, 0.0, 0.9], dtype=torch.float64)
    together = sample(logits, *columns, uniform)
    alone = [int(sample(logits[i : i + 1], *(c[i : i + 1] for c in columns), uniform[i : i + 1])) for i in range(6)]
    assert together.tolist() == alone and together[5] == logits[5].argmax()


def test_first_largest():
    logits = torch.randint(0, 50, (20, 512), generator=torch.Generator().manual_seed(0)).float()
    expected = [row.tolist().index(row.max()) for row in logits]
    assert first_largest(logits).tolist() == expected


def test_repetition_penalty_equals_transformers(tiny_model):
    logits = torch.randn(3, 40, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([[1, 2, 2], [3, 39, 0], [5, 6, 7]])
    seen = torch.zeros(3, 40, dtype=torch.bool).scatter_(1, ids, True)
    for penalty in (1.3, 0.8):
        expected = RepetitionPenaltyLogitsProcessor(penalty)(ids, logits.clone())
        assert torch.equal(penalise(logits, seen, torch.full((3,), penalty)), expected)
    some = requests(PROMPTS, repetition_penalty=1.3)
    done = generate(tiny_model, some, stop_ids=NONE, pad=0)
    assert [c.ids for c in done] == [theirs(tiny_model, p, 12, repetition_penalty=1.3) for p in PROMPTS]
    assert done != generate(tiny_model, requests(PROMPTS), stop_ids=NONE, pad=0)


def test_shared_prefix():
    assert shared_prefix(PROMPTS) == 2
    assert shared_prefix([(1, 2, 3), (1, 2, 3)]) == 2


def test_adapter_merged_equals_unmerged_and_leaves_the_base_alone(tiny_model, adapter):
    before = {n: p.clone() for n, p in tiny_model.state_dict().items()}
    base = first_logits(tiny_model, PROMPTS, 0)
    with with_adapter(tiny_model, adapter, merge=True) as model:
        merged = first_logits(model, PROMPTS, 0)
    with with_adapter(tiny_model, adapter, merge=False) as model:
        assert isinstance(open_forward(model), decode.FusedForward)
        beside = first_logits(model, PROMPTS, 0)
        with torch.inference_mode():
            own = module._Batch(ModuleForward(model), requests(PROMPTS, 1), 0, [()] * 4).logits
    torch.testing.assert_close(merged, beside, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(own, beside, atol=1e-4, rtol=1e-4)
    assert (merged - base).abs().max() > 0.01
    after = tiny_model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[n], after[n]) for n in before)
    assert torch.equal(first_logits(tiny_model, PROMPTS, 0), base)


@pytest.mark.slow
def test_the_real_model_equals_transformers():
    from prefixlab.config import HardwareConfig
    from prefixlab.model.load import load_model, load_tokenizer, resolve_model
    from prefixlab.model.machine import resolve

    ref = resolve_model("smollm2-135m")
    tokenizer = load_tokenizer(ref)
    model = load_model(ref, resolve(HardwareConfig(device="cpu", dtype="float32")))
    texts = ["Name three rivers.", "What is 12 times 7? Explain each step.", "Write a short note to a neighbour."]
    prompts = [
        tuple(tokenizer.apply_chat_template([{"role": "user", "content": t}], add_generation_prompt=True)["input_ids"])
        for t in texts
    ]
    some = requests(prompts, 24)
    together = generate(model, some, stop_ids=NONE, pad=0)
    assert together == one_by_one(model, some)
    assert [c.ids for c in together] == [theirs(model, p, 24) for p in prompts]
    forward = ModuleForward(model)
    assert complete(forward, some, stop_ids=NONE, pad=0, adapters=[()] * 3) == together
