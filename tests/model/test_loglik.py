"""Log-likelihoods equal those of a plain forward pass, and on real rows those of lm-eval."""

import pytest
import torch

from prefixlab.model import loglik
from prefixlab.model.loglik import encode_pair, log_likelihoods

CONTEXTS = [(5, 9, 30, 31, 40), (5, 9, 30, 31, 41, 42, 43), (5,), (5, 9, 30, 31, 44), (60, 61)]
OPTIONS = [(7,), (8, 9, 10), (11, 12), (13, 14, 15, 16, 17)]
PAIRS = [(c, o) for c in CONTEXTS for o in OPTIONS]


def plain(model, context, continuation):
    """One forward pass a pair, without cache or batch."""
    with torch.inference_mode():
        logits = model(torch.tensor([context + continuation])).logits[0].double()
    logp = torch.log_softmax(logits, -1)[len(context) - 1 : -1]
    target = torch.tensor(continuation)
    return float(logp.gather(1, target[:, None]).sum()), bool((logp.argmax(-1) == target).all())


@pytest.mark.parametrize("batch_tokens", [1, 8, 1024])
def test_equals_a_plain_forward_pass(tiny_model, batch_tokens):
    found = log_likelihoods(tiny_model, PAIRS, pad=0, batch_tokens=batch_tokens)
    for pair, value in zip(PAIRS, found, strict=True):
        total, greedy = plain(tiny_model, *pair)
        assert value.total == pytest.approx(total, abs=1e-4)
        assert value.greedy is greedy and value.n == len(pair[1])


def test_greedy_is_seen(tiny_model):
    context, written = CONTEXTS[1], []
    for _ in range(3):
        with torch.inference_mode():
            written.append(int(tiny_model(torch.tensor([context + tuple(written)])).logits[0, -1].argmax()))
    wrong = (*written[:2], (written[2] + 1) % 300)
    right, other = log_likelihoods(tiny_model, [(context, tuple(written)), (context, wrong)], pad=0)
    assert right.greedy and not other.greedy and right.total > other.total


def test_order_padding_and_repeats(tiny_model):
    found = log_likelihoods(tiny_model, PAIRS, pad=0)
    turned = log_likelihoods(tiny_model, [*PAIRS[::-1], PAIRS[3]], pad=9)
    assert [x.total for x in turned[-2::-1]] == pytest.approx([x.total for x in found], abs=1e-5)
    assert turned[-1] == turned[len(PAIRS) - 4]


def test_a_context_is_run_once(tiny_model, monkeypatch):
    widths = []
    run = loglik.open_forward(tiny_model).__class__.hidden
    monkeypatch.setattr(
        loglik.open_forward(tiny_model).__class__,
        "hidden",
        lambda self, job: (widths.append(tuple(job.ids.shape)), run(self, job))[1],
    )
    context = tuple(range(3, 60))
    log_likelihoods(tiny_model, [(context, o) for o in OPTIONS], pad=0)
    assert widths == [(1, 56), (4, 5)]


@pytest.mark.parametrize("pair", [((), (1,)), ((1,), ())])
def test_empty_sides_are_refused(tiny_model, pair):
    with pytest.raises(ValueError, match=r"pair 0 has an empty (context|continuation)"):
        log_likelihoods(tiny_model, [pair], pad=0)


def test_encode_pair(tiny_tokenizer):
    context, continuation = encode_pair(tiny_tokenizer, "The answer is  ", "12")
    assert tiny_tokenizer.decode(context) == "The answer is"
    assert tiny_tokenizer.decode(continuation) == "  12"
    assert encode_pair(tiny_tokenizer, "The answer is", " 12")[0] == context
    with pytest.raises(ValueError, match="context is empty"):
        encode_pair(tiny_tokenizer, "", "x")


@pytest.mark.slow
def test_equals_lm_eval_on_truthfulqa(shared):
    """Every (question, choice) pair of some rows, by HFLM and by us, in float32."""
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM

    from generation import truthfulqa_texts
    from prefixlab.config import HardwareConfig
    from prefixlab.model.load import load_model, load_tokenizer, resolve_model
    from prefixlab.model.machine import resolve

    texts = truthfulqa_texts(shared, 12)
    texts += [(c + " ", o) for c, o in texts[:3]]  # white space at the end of a context
    ref = resolve_model("smollm2-135m")
    tokenizer = load_tokenizer(ref)
    stock = AutoModelForCausalLM.from_pretrained(ref.path, dtype=torch.float32)
    theirs = HFLM(pretrained=stock, tokenizer=tokenizer, batch_size=16, device="cpu")
    asked = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(texts)]
    expected = theirs.loglikelihood(asked, disable_tqdm=True)
    model = load_model(ref, resolve(HardwareConfig(device="cpu", dtype="float32")))
    pairs = [encode_pair(tokenizer, *pair) for pair in texts]
    assert pairs == [theirs._encode_pair(*pair) for pair in texts]
    found = log_likelihoods(model, [(tuple(c), tuple(o)) for c, o in pairs], pad=0)
    assert len(found) > 60
    assert [x.total for x in found] == pytest.approx([x for x, _ in expected], abs=1e-3)
    assert [x.greedy for x in found] == [bool(g) for _, g in expected]
