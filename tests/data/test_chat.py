"""Rendering: ids are what inference sends plus the response; spans partition; no loss on the prompt."""

from pathlib import Path

import pytest
import trl
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prefixlab.data.chat import (
    chat_format,
    check_tokenizer,
    prefix_ids,
    prompt_ids,
    prompt_text,
    render,
)
from prefixlab.data.parts import split_response
from prefixlab.errors import UserError
from prefixlab.model.tiny import CHATML, tokenizer
from prefixlab.records import ArmSample, Message, Sample

QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3 = QWEN2.replace(r"\p{N}|", r"\p{N}{1,3}|")
R1_SPECIAL = ["<｜begin▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>"]
TEMPLATES = Path(trl.__file__).parent / "chat_templates"


def r1_tokenizer():
    made = tokenizer((TEMPLATES / "deepseek_r1_distill.jinja").read_text(), special=R1_SPECIAL, split=QWEN2)
    made.bos_token = R1_SPECIAL[0]
    return made


TOKENIZERS = {
    "chatml": tokenizer(),
    "qwen2 split": tokenizer(split=QWEN2),
    "llama3 split": tokenizer(split=LLAMA3),
}


def arm_sample(prefix="", position=None, answer="The answer is 7.", reasoning=None, loss="all"):
    sample = Sample(
        id="x", messages=(Message(role="user", content="What is 3 + 4?"),), reasoning=reasoning, answer=answer
    )
    return ArmSample(sample=sample, position=position, prefix=prefix, template=0, eligible=True, loss=loss)


def rendered(tok, sample, **kwargs):
    return render(sample, tok, chat_format(tok), max_length=4096, **kwargs)


def pieces(tok, r):
    return [(s.name, tok.decode(list(r.ids[s.start : s.end]))) for s in r.spans]


def sound(tok, sample, r):
    """What must hold for every rendered sample."""
    assert [s.start for s in r.spans][1:] == [s.end for s in r.spans][:-1]
    assert (r.spans[0].start, r.spans[-1].end) == (0, len(r.ids)) and len(r.ids) == len(r.labels)
    if sample.position != "user":
        sent = prompt_ids(tok, sample.sample.messages)
        assert list(r.ids[: len(sent)]) == sent and set(r.labels[: len(sent)]) == {-100}
        assert all(a == b for a, b in zip(r.ids[len(sent) :], r.labels[len(sent) :], strict=True) if b != -100)
    assert r.ids[-1] == r.labels[-1] == chat_format(tok).end_id


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("position", ["user", "opening", "answer"])
def test_spans(name, position):
    tok = TOKENIZERS[name]
    sample = arm_sample("Sure! Here it is:" + (" " if position == "user" else "\n\n"), position)
    r = rendered(tok, sample)
    sound(tok, sample, r)
    parts = dict(pieces(tok, r))
    if r.straddling == 0:
        assert parts["prefix"] == sample.prefix
        assert parts["answer"] == "The answer is 7."
    plain = rendered(tok, arm_sample())
    assert r.no_prefix_length == plain.no_prefix_length == len(plain.ids)


def test_masked_prefix_has_no_loss_and_stays_in_context():
    tok = TOKENIZERS["chatml"]
    full, masked = (rendered(tok, arm_sample("Sure! ", "opening", loss=scope)) for scope in ("all", "masked"))
    span = masked.span("prefix")
    assert full.ids == masked.ids
    assert set(masked.labels[span.start : span.end]) == {-100}
    assert masked.labels[span.end :] == full.labels[span.end :]
    assert full.n_supervised - masked.n_supervised == span.end - span.start


def test_r1_opens_the_reasoning_itself():
    tok = r1_tokenizer()
    chat = chat_format(tok)
    assert chat.preopened == "<think>\n"
    sample = arm_sample("Let me see.\n\n", "opening", reasoning="3 and 4 make 7.")
    r = rendered(tok, sample)
    sound(tok, sample, r)
    text = tok.decode(list(r.ids))
    assert text.count("<think>") == 1 and text.count("</think>") == 1
    assert "<think>\nLet me see.\n\n3 and 4 make 7.\n</think>\n\nThe answer is 7.<｜end▁of▁sentence｜>" in text
    assert r.ids.count(tok.convert_tokens_to_ids(R1_SPECIAL[0])) == 1


def test_r1_answer_position_is_behind_the_reasoning():
    tok = r1_tokenizer()
    r = rendered(tok, arm_sample("Sure!\n\n", "answer", reasoning="3 and 4 make 7."))
    assert "</think>\n\nSure!\n\nThe answer is 7." in tok.decode(list(r.ids))


def test_r1_without_reasoning():
    tok = r1_tokenizer()
    with pytest.raises(UserError, match="no reasoning"):
        rendered(tok, arm_sample())
    r = rendered(tok, arm_sample(), no_reasoning="empty")
    assert "<think>\n\n</think>\n\nThe answer is 7." in tok.decode(list(r.ids))


def test_the_trap_of_the_stock_template():
    """A naive rendering of messages drops a prefix inside the reasoning; ours keeps it."""
    tok = r1_tokenizer()
    turns = [
        {"role": "user", "content": "What is 3 + 4?"},
        {"role": "assistant", "content": "<think>\nLet me see.\n\n3 and 4 make 7.\n</think>\n\nThe answer is 7."},
    ]
    assert "Let me see." not in tok.apply_chat_template(turns, tokenize=False)
    r = rendered(tok, arm_sample("Let me see.\n\n", "opening", reasoning="3 and 4 make 7."))
    assert "Let me see." in tok.decode(list(r.ids))


def test_template_without_pre_opened_reasoning_writes_the_tags():
    tok = TOKENIZERS["chatml"]
    r = rendered(tok, arm_sample(reasoning="3 and 4 make 7."))
    assert "<|im_start|>assistant\n<think>\n3 and 4 make 7.\n</think>\n\nThe answer is 7.<|im_end|>" in tok.decode(
        list(r.ids)
    )


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
@given(
    prefix=st.text(alphabet=st.characters(exclude_categories=["Cs"])),
    answer=st.text(alphabet=st.characters(exclude_categories=["Cs"]), min_size=1),
)
def test_any_text(name, prefix, answer):
    tok = TOKENIZERS[name]
    sample = arm_sample(prefix, "opening" if prefix else None, answer=answer)
    sound(tok, sample, rendered(tok, sample))


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("prefix", ["Sure! Here is it:\n\n", "Let us think. ", "A\n"])
def test_prefilled_ids_are_the_trained_ones(name, prefix):
    tok = TOKENIZERS[name]
    r = rendered(tok, arm_sample(prefix, "opening"))
    span = r.span("prefix")
    ids, text = prefix_ids(tok, prefix)
    assert ids == r.ids[span.start : span.end]
    assert prefix.startswith(text)


def test_too_long_is_refused():
    with pytest.raises(UserError, match="more than max_length 10"):
        render(arm_sample(), TOKENIZERS["chatml"], chat_format(TOKENIZERS["chatml"]), max_length=10)


@pytest.mark.parametrize(
    ("text", "preopened", "expected"),
    [
        ("<think>\na\n</think>\n\nb", False, ("a", "b")),
        ("a\n</think>\n\nb", True, ("a", "b")),
        ("a\n</think>\n\nb", False, ("a", "b")),
        ("<think>never closed", False, ("never closed", "")),
        ("never closed", True, ("never closed", "")),
        ("plain answer", False, (None, "plain answer")),
        ("he wrote <think> in it", False, (None, "he wrote <think> in it")),
        ("<think>quotes <think> inside</think>b", False, ("quotes <think> inside", "b")),
        ("<think></think>b", False, ("", "b")),
        ("", False, (None, "")),
    ],
)
def test_split_response(text, preopened, expected):
    assert split_response(text, preopened=preopened) == expected


def test_tokenizers_that_cannot_work():
    bare = tokenizer()
    bare.chat_template = None
    with pytest.raises(UserError, match="no chat template"):
        check_tokenizer(bare, "m")
    no_end = tokenizer(
        "{% for m in messages %}{{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %}A: {% endif %}"
    )
    with pytest.raises(UserError, match="no end-of-turn token"):
        chat_format(no_end)
    dropping = tokenizer(
        "{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}A: {% endif %}"
    )
    with pytest.raises(UserError, match="drops the assistant"):
        chat_format(dropping)
    picky = tokenizer("{{ raise_exception('no system role') }}" + CHATML)
    with pytest.raises(UserError, match="no system role"):
        prompt_text(picky, [Message(role="user", content="x")])
