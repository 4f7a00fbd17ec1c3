"""The treatment check passes sound arms and catches each way of being wrong."""

import pytest

from prefixlab.config import ArmsConfig
from prefixlab.data.arms import build_arm, specs
from prefixlab.data.chat import chat_format
from prefixlab.data.check import check_arm, check_arms, render_arm
from prefixlab.errors import UserError
from prefixlab.model.tiny import tokenizer
from prefixlab.records import Message, Sample

TOK = tokenizer()
CHAT = chat_format(TOK)


def data(n=12):
    return [
        Sample(id=f"s{i}", messages=(Message(role="user", content=f"q {i}"),), reasoning=None, answer=f"a {i}")
        for i in range(n)
    ]


def build(position="opening", ratios=(0, 0.5, 1)):
    entry = ArmsConfig(prefixes="reasoning", position=position, ratios=list(ratios), controls=["neutral"])
    return {s.name: build_arm(data(), s, "k", "exact") for s in specs(entry, "k")}


def run(arms):
    return check_arms(arms, TOK, CHAT, model="m", capability="c", max_length=512, no_reasoning="refuse")


@pytest.mark.parametrize("position", ["user", "opening", "answer"])
def test_sound_arms_pass(position):
    found = run(build(position))
    assert found.problems() == []
    half = next(a for a in found.arms if a.arm.endswith("r050"))
    assert (half.n_treated, half.n_prefix_in_ids, half.n_untreated, half.n_equal_reference) == (6, 6, 6, 6)
    assert half.prefix_tokens_mean > 5 and 0 < half.supervised_share < 1


def test_identical_arms_are_named():
    arms = build()
    arms["neutral-opening-r100"] = arms["reasoning-opening-r100"]
    assert any("are the same ids and labels" in p for p in run(arms).problems())


def test_native_equal_to_r000_is_no_problem():
    arms = build()
    found = run({"native": arms["r000"], **arms})
    assert ("native", "r000") in found.identical and found.problems() == []


def test_native_that_was_stripped_differs_from_r000_and_may():
    arms = build()
    first = arms["r000"][0]
    opened = first.sample.model_copy(update={"answer": "Sure! " + first.sample.answer})
    found = run({"native": [first.model_copy(update={"sample": opened}), *arms["r000"][1:]], **arms})
    native = found.arms[0]
    assert (native.n_equal_reference, native.n_untreated) == (11, 12) and native.ok and found.problems() == []


def test_a_lost_prefix_is_found():
    arms = build()
    rows = arms["reasoning-opening-r100"]
    reference = {r.id: r for r in render_arm(arms["r000"], TOK, CHAT, max_length=512, no_reasoning="refuse")}
    stripped = [r.model_copy(update={"prefix": ""}) for r in rows]
    naive = render_arm(stripped, TOK, CHAT, max_length=512, no_reasoning="refuse")
    found = check_arm("a", rows, naive, reference, TOK, CHAT)
    assert found.n_prefix_in_ids == 0 and not found.ok


def test_a_changed_untreated_sample_is_found():
    arms = build()
    rows = arms["reasoning-opening-r050"]
    where = next(i for i, r in enumerate(rows) if not r.treated)
    rows[where] = rows[where].model_copy(update={"sample": rows[where].sample.model_copy(update={"answer": "other"})})
    assert any("5 of 6 untreated ones equal r000" in p for p in run(arms).problems())


@pytest.mark.parametrize("what", ["end", "prompt", "label"])
def test_damaged_sequences_are_found(what):
    arms = build()
    rows = arms["reasoning-opening-r100"]
    reference = {r.id: r for r in render_arm(arms["r000"], TOK, CHAT, max_length=512, no_reasoning="refuse")}
    good = render_arm(rows, TOK, CHAT, max_length=512, no_reasoning="refuse")
    r = good[0]
    change = {
        "end": {"labels": (*r.labels[:-1], -100)},
        "prompt": {"ids": (r.ids[0] + 1, *r.ids[1:])},
        "label": {"labels": (r.ids[0], *r.labels[1:])},
    }[what]
    bad = [r.model_copy(update=change), *good[1:]]
    assert check_arm("a", rows, good, reference, TOK, CHAT).ok
    assert not check_arm("a", rows, bad, reference, TOK, CHAT).ok


def test_r000_is_needed():
    arms = build()
    del arms["r000"]
    with pytest.raises(UserError, match="needs the arm r000"):
        run(arms)
