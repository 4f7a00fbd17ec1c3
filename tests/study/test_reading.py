"""Under which texts held-out samples are read: every one once, and only samples that can carry it."""

import pytest

from prefixlab.config import ArmsConfig, TokensConfig
from prefixlab.data.arms import arm_specs
from prefixlab.data.chat import chat_format
from prefixlab.model.load import load_tokenizer, resolve_model
from prefixlab.records import Message, Sample, StripRecord
from prefixlab.study.reading import Reading, reading_specs, render_all


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(resolve_model("tiny-random"))


def asked(tokenizer, *entries):
    def count_tokens(text):
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    return arm_specs([ArmsConfig(**entry) for entry in entries], "key", native=True, count_tokens=count_tokens)


def test_every_text_is_read_once_and_at_all_samples(tokenizer):
    one = {"prefixes": "reasoning", "ratios": [0.5], "controls": ["neutral", "shuffled", "masked"]}
    found = reading_specs(asked(tokenizer, one), controls=True)
    assert [s.name for s in found] == ["r000", "reasoning", "neutral", "shuffled"]  # masked has the treatment's text
    assert [(s.ratio, s.loss) for s in found] == [(0.0, "all")] + [(1.0, "all")] * 3
    assert [s.name for s in reading_specs(asked(tokenizer, one), controls=False)] == ["r000", "reasoning"]


@pytest.mark.parametrize(
    "second",
    [
        {"prefixes": "reasoning", "position": "user", "controls": ["revised"]},  # another place
        {"prefixes": "safety", "ratios": [1], "controls": ["random"]},  # another treatment
        {"prefixes": "reasoning", "loss": "first_tokens", "ratios": [0.5], "controls": ["neutral"]},  # neutral again
    ],
)
def test_a_second_entry_adds_no_text_twice(tokenizer, second):
    one = {"prefixes": "reasoning", "ratios": [0.5], "controls": ["neutral", "shuffled"]}
    names = [s.name for s in reading_specs(asked(tokenizer, one, second), controls=True)]
    assert names == ["r000", "reasoning", "neutral", "shuffled"]


def test_a_set_of_own_openings_is_read_where_there_is_one(tokenizer):
    asks = (Message(role="user", content="What is 1 + 1?"),)
    samples = [Sample(id=f"s{i}", messages=asks, reasoning=None, answer="It is 2.") for i in range(3)]
    removed = [StripRecord(id="s1", part="answer", removed="Sure! ", lowered="", family="greeting")]
    own = asked(tokenizer, {"prefixes": "original", "controls": ["shuffled"]})
    reading = Reading(
        capability="math",
        renderings=tuple(reading_specs(own, controls=True)),
        tokens=TokensConfig(),
        max_length=128,
        no_reasoning="rationale",
        over_long="refuse",
        recipe=None,
        seed=0,
    )
    read = render_all(reading, samples, removed, tokenizer, chat_format(tokenizer))
    assert {r.name: [s.id for s in r.samples] for r in read} == {
        "r000": ["s0", "s1", "s2"],
        "original": ["s1"],
        "shuffled": ["s1"],
    }
