"""Suggest against a forward pass for each text, scipy and Holm by hand; the same tokens behind every prefix."""

import numpy as np
import pytest
import torch
from scipy import stats as scipy_stats

from prefixlab.analysis.suggest import NONE, Candidate, shared_rests, suggest_rows
from prefixlab.data.chat import chat_format, render
from prefixlab.data.sources import BUILTIN_DATA
from prefixlab.errors import UserError
from prefixlab.model.tiny import tokenizer
from prefixlab.records import ArmSample, Rendered, Span

TOK = tokenizer()
CHAT = chat_format(TOK)
TEXTS = ("Sure! Here is the answer, step by step.\n\n", "Let us think with care.\n\n", "I am sorry.\n\n")
NEUTRALS = ("The text follows below this line, as you see.\n\n", "The text follows.\n\n")
CANDIDATES = [
    Candidate("mine", 0, TEXTS[0], NEUTRALS[0]),
    Candidate("mine", 1, TEXTS[1], NEUTRALS[1]),
    Candidate("mine", 2, TEXTS[2], NEUTRALS[1]),
]


def rendered(position="opening", texts=(NONE, *TEXTS, *NEUTRALS), n=7, **changes):
    data = [s.model_copy(update=changes) for s in BUILTIN_DATA["chain_sum"]()[:n]]

    def made(sample, text):
        row = ArmSample(sample=sample, position=position if text else None, prefix=text, template=None, eligible=True)
        return render(row, TOK, CHAT, max_length=512)

    return {text: [made(s, text) for s in data] for text in texts}


def ids_and_borders(text, *borders):
    """Ids of a text, and how many of them end at or before each border."""
    made = TOK(text, add_special_tokens=False, return_offsets_mapping=True)
    return made["input_ids"], [sum(end <= border for _, end in made["offset_mapping"]) for border in borders]


def by_hand(model, text, position="opening", n=7):
    """Summed loss of each answer's tokens, their number, and the prefix's tokens: one text at a time, and
    transformers' own attention and loss."""
    sums, counts, tokens = [], [], 0
    for sample in BUILTIN_DATA["chain_sum"]()[:n]:
        turns = [{"role": "user", "content": sample.prompt if position != "user" else text + sample.prompt}]
        prompt = TOK.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        said = sample.answer if position == "user" else text + sample.answer
        response, (before,) = ids_and_borders(said, len(said) - len(sample.answer))
        head, (start, end) = ids_and_borders(prompt, *(prompt.index(t) for t in (turns[0]["content"], sample.prompt)))
        tokens = end - start if position == "user" else before
        labels = torch.tensor([[-100] * (len(head) + before) + response[before:]])
        model.set_attn_implementation("eager")
        with torch.inference_mode():
            loss = model(input_ids=torch.tensor([head + response]), labels=labels).loss
        model.set_attn_implementation("prefixlab")
        counts.append(len(response) - before)
        sums.append(float(loss) * counts[-1])
    return np.array(sums), np.array(counts, dtype=float), tokens


@pytest.fixture
def keen_model(tiny_model):
    """The random model with ten times its weights, so that what stands before a token matters to it."""
    with torch.no_grad():
        for layer in tiny_model.get_decoder().layers:
            for weight in layer.parameters():
                if weight.ndim == 2:
                    weight.mul_(10)
    return tiny_model


@pytest.mark.parametrize("position", ["opening", "user"])
def test_against_a_forward_pass_for_each_text(keen_model, position):
    rests = shared_rests(rendered(position), position)
    assert (rests.n_without, rests.n_border) == (0, 0)
    seen = []
    rows = suggest_rows(
        keen_model, CANDIDATES, rests.samples, pad=TOK.pad_token_id, tick=lambda *done: seen.append(done)
    )
    assert seen[-1] == (42, 42) and [r.rank for r in rows] == [1, 2, 3]
    losses = {text: by_hand(keen_model, text, position) for text in rests.samples}
    counts = losses[NONE][1]
    oracle = {}
    for row in rows:
        candidate = CANDIDATES[row.template]
        mine, neutral, bare = (losses[t][0] for t in (candidate.text, candidate.neutral, NONE))
        assert row.loss == pytest.approx((mine / counts).mean(), rel=1e-5)
        test = scipy_stats.ttest_rel(neutral / counts, mine / counts)
        assert row.gain == pytest.approx(((neutral - mine) / counts).mean(), abs=1e-5)
        assert row.gain_total == pytest.approx((neutral - mine).mean(), abs=1e-4)
        assert (row.ci_low, row.ci_high) == pytest.approx(tuple(test.confidence_interval()), abs=1e-5)
        assert row.p == pytest.approx(test.pvalue, rel=0.02, abs=1e-6)
        assert row.gain_none == pytest.approx(((bare - mine) / counts).mean(), abs=1e-5)
        assert row.none_low < row.gain_none < row.none_high and row.n == 7
        assert (row.tokens, row.neutral_tokens) == (losses[candidate.text][2], losses[candidate.neutral][2])
        oracle[row.rank] = row.p
    assert [r.gain for r in rows] == sorted((r.gain for r in rows), reverse=True)
    ranked, largest = sorted(oracle, key=oracle.get), 0.0
    for i, rank in enumerate(ranked):
        largest = max(largest, min(1.0, (3 - i) * oracle[rank]))
        assert rows[rank - 1].p_holm == pytest.approx(largest)


def test_the_same_bits_again_whatever_else_is_ranked(tiny_model):
    rests = shared_rests(rendered(), "opening").samples
    rows = suggest_rows(tiny_model, CANDIDATES, rests, pad=TOK.pad_token_id)
    assert rows == suggest_rows(tiny_model, CANDIDATES, rests, pad=TOK.pad_token_id)
    few = {t: rests[t] for t in (NONE, TEXTS[1], NEUTRALS[1])}
    (alone,) = suggest_rows(tiny_model, CANDIDATES[1:2], few, pad=TOK.pad_token_id)
    same = next(r for r in rows if r.template == 1)
    assert (alone.loss, alone.gain, alone.p) == (same.loss, same.gain, same.p) and alone.p_holm == alone.p


def test_a_candidate_that_is_its_own_neutral_gains_nothing(tiny_model):
    rests = shared_rests(rendered(texts=(NONE, NEUTRALS[0])), "opening").samples
    (row,) = suggest_rows(tiny_model, [Candidate("mine", 0, NEUTRALS[0], NEUTRALS[0])], rests, pad=TOK.pad_token_id)
    assert (row.gain, row.p, row.ci_low) == (0.0, 1.0, None) and row.gain_none != 0


def test_one_sample_has_no_interval(tiny_model):
    rests = shared_rests(rendered(n=1), "opening").samples
    rows = suggest_rows(tiny_model, CANDIDATES, rests, pad=TOK.pad_token_id)
    assert all(r.p is r.p_holm is r.ci_low is None and r.gain is not None for r in rows)


def test_a_model_that_is_broken_is_told(tiny_model):
    rests = shared_rests(rendered(n=2), "opening").samples
    with torch.no_grad():
        tiny_model.get_decoder().norm.weight.fill_(float("nan"))
    with pytest.raises(UserError, match="is not finite behind the prefix ''"):
        suggest_rows(tiny_model, CANDIDATES, rests, pad=TOK.pad_token_id)


@pytest.mark.parametrize(
    ("position", "spans"), [("opening", "reasoning answer"), ("answer", "answer"), ("user", "reasoning answer")]
)
def test_the_rest_is_what_follows_the_prefix(position, spans):
    rests = shared_rests(rendered(position, reasoning="One and one.", n=2), position).samples
    for samples in rests.values():
        for r in samples:
            on = [i for i, label in enumerate(r.labels) if label != -100]
            meant = [i for s in r.spans if s.name in spans.split() for i in range(s.start, s.end)]
            assert on == meant and [r.labels[i] for i in on] == [r.ids[i] for i in on]


def test_tokens_that_merge_with_a_prefix_are_left_out_everywhere():
    """Behind a space "The" becomes another token: then no rendering counts it."""
    texts = (NONE, "Sure! ", "Sure!\n\n")
    spaced = {t: [toy(i, [9, 4, 5] if t == "Sure! " else [3, 4, 5]) for i in range(3)] for t in texts}
    rests = shared_rests(spaced, "opening")
    assert rests.n_border == 3 and rests.n_without == 0
    assert all([x for x in r.labels if x != -100] == [4, 5] for group in rests.samples.values() for r in group)
    nothing = shared_rests({NONE: [toy(0, [3]), toy(1, [3])], "p": [toy(0, [7]), toy(1, [3])]}, "opening")
    assert nothing.n_without == 1 and [r.id for r in nothing.samples["p"]] == ["1"]
    real = shared_rests(rendered(texts=texts, n=3, answer="The answer is 7."), "opening")
    assert real.n_border == 3 * len(TOK("The")["input_ids"])
    for group in real.samples.values():
        assert {TOK.decode([x for x in r.labels if x != -100]) for r in group} == {" answer is 7."}


def toy(ident, rest):
    ids = (1, 2, *rest, 8)
    spans = (
        Span(name="prompt", start=0, end=2),
        Span(name="answer", start=2, end=2 + len(rest)),
        Span(name="end", start=2 + len(rest), end=3 + len(rest)),
    )
    labels = (-100, -100, *ids[2:])
    return Rendered(id=str(ident), ids=ids, labels=labels, spans=spans, straddling=0, no_prefix_length=len(ids))
