"""The token table against stock logits, and which word a token of the prefix belongs to."""

import polars
import pytest
import torch
from small_models import SAMPLES, adapted

from prefixlab.analysis.contributions import causal_lm, contributions, lora_targets
from prefixlab.analysis.token_columns import MODULES, SPANS, TOKENS
from prefixlab.analysis.tokens import Reader, Rendering, prefix_words, read_tokens
from prefixlab.data.chat import chat_format, padding_id, render
from prefixlab.model.batches import collate
from prefixlab.model.load import load_tokenizer, resolve_model
from prefixlab.records import ArmSample, Message, Sample


class Letters:
    """Ids as letters."""

    def decode(self, ids):
        return "".join(chr(97 + i % 26) for i in ids)


def reading(model, renderings, **more):
    return read_tokens(Reader(model=causal_lm(model), tokenizer=Letters(), pad=0, batch_size=2, **more), renderings)


def stock(model, sample):
    """Log-probabilities (T - 1, V) by transformers' own forward pass."""
    with torch.no_grad():
        return torch.log_softmax(model(input_ids=torch.tensor([sample.ids]), use_cache=False).logits[0, :-1], dim=-1)


def test_every_quantity_of_the_head_is_that_of_stock_logits():
    model, rows = adapted("llama"), SAMPLES
    renderings = [Rendering("safety", None, rows, {r.id: 3 for r in rows})]
    tables = reading(model, renderings, base=model.disable_adapter)
    assert list(tables.tokens.schema.items()) == list(polars.DataFrame(schema=TOKENS).schema.items())
    assert len(tables.spans) == len(tables.modules) == 0
    for sample in rows:
        mine = tables.tokens.filter(sample=sample.id)
        at = torch.tensor([i for i, label in enumerate(sample.labels) if label != -100])
        log_p = stock(model, sample)[at - 1]
        with model.disable_adapter():
            log_q = stock(model, sample)[at - 1]
        y = torch.tensor(sample.ids)[at][:, None]
        one_hot = torch.zeros_like(log_p).scatter_(1, y, 1.0)
        expected = {
            "loss": -log_p.gather(1, y)[:, 0],
            "entropy": -(log_p.exp() * log_p).sum(1),
            "kl": (log_p.exp() * (log_p - log_q)).sum(1),
            "logit_gradient": (log_p.exp() - one_hot).norm(dim=1),
        }
        for name, values in expected.items():
            assert mine[name].to_list() == pytest.approx(values.tolist(), rel=1e-4, abs=1e-6), name
        order = log_p.argsort(dim=1, descending=True)
        assert mine["rank"].to_list() == ((order == y).nonzero()[:, 1] + 1).tolist()
        assert mine["token_id"].to_list() == y[:, 0].tolist()
        assert set(mine["template"]) == {3}
        assert mine["input_gradient"].null_count() == len(mine)


def test_the_base_has_no_kl_and_gradients_come_with_their_tables():
    model, rows = adapted("qwen2"), SAMPLES
    renderings = [Rendering("r000", None, rows, {}), Rendering("neutral", "neutral", rows, {})]
    tables = reading(model, renderings, targets=lora_targets(model), token_losses=True, modules=True, step=7)
    tokens = tables.tokens
    assert tokens["kl"].null_count() == len(tokens)
    assert set(tokens["step"]) == {7}
    for name in ("input_gradient", "contribution", "influence", "token_gradient", "token_influence"):
        assert tokens[name].null_count() == 0
        assert tokens[name].is_finite().all()
    assert tokens["token_gradient"].min() > 0
    assert list(tables.spans.columns) == list(SPANS)
    assert list(tables.modules.columns) == list(MODULES)
    assert len(tables.modules.unique("module")) == len(lora_targets(model).layers)
    for (sample, rendering), spans in tables.spans.group_by("sample", "rendering"):
        assert spans["influence"].sum() == pytest.approx(1.0)
        mine = tokens.filter(sample=sample, rendering=rendering)
        one = next(r for r in rows if r.id == sample)
        alone = contributions(causal_lm(model), collate([one], 0), lora_targets(model))
        at = [i for i, label in enumerate(one.labels) if label != -100]
        for name, values in (
            ("contribution", alone.contribution_B_T),
            ("influence", alone.influence_B_T),
            ("input_gradient", alone.input_gradient_B_T),
        ):
            assert mine[name].to_list() == pytest.approx(values[0, at].tolist(), rel=1e-4, abs=1e-7), name
        # <grad l_j, G> sums to ||G||^2; the token losses are of the response alone, the spans of all positions.
        total = sum(
            float(g.square().sum()) for g in _gradients(model, next(r for r in rows if r.id == sample)) if g is not None
        )
        assert mine["token_influence"].sum() == pytest.approx(total, rel=1e-5)


def _gradients(model, sample):
    labels, ids = torch.tensor(sample.labels), torch.tensor([sample.ids])
    logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
    loss = torch.nn.functional.cross_entropy(logits, labels[1:], ignore_index=-100, reduction="sum")
    return torch.autograd.grad(loss, [p for n, p in model.named_parameters() if "lora_" in n])


def test_tokens_of_the_prefix_know_their_word():
    tokenizer = load_tokenizer(resolve_model("tiny-random"))
    chat = chat_format(tokenizer)
    prefix = "Sure! Here is a revised, careful answer.\n\n"
    sample = Sample(id="a", messages=(Message(role="user", content="Why?"),), reasoning=None, answer="Because it is.")
    arm = ArmSample(sample=sample, position="opening", prefix=prefix, template=0, eligible=True)
    rendered = render(arm, tokenizer, chat, max_length=200)
    span, found = rendered.span("prefix"), prefix_words(rendered, tokenizer)
    assert span is not None and padding_id(tokenizer, chat) is not None
    assert [word for _, word in sorted(set(found.values()))] == prefix.split()
    for i, (index, word) in found.items():
        assert span.start <= i < span.end
        assert tokenizer.decode([rendered.ids[i]]).strip() in word
        assert prefix.split()[index] == word
    separator = [i for i in range(span.start, span.end) if not tokenizer.decode([rendered.ids[i]]).strip()]
    assert separator and not set(separator) & set(found)
