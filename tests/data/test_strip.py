"""Openings: found, removed, restored; content, refusals and whole-prefix responses left alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefixlab.data.openings import find_opening
from prefixlab.data.strip import restore_sample, strip_sample
from prefixlab.records import Message, Sample


def sample(answer, reasoning=None):
    return Sample(id="x", messages=(Message(role="user", content="q"),), reasoning=reasoning, answer=answer)


@pytest.mark.parametrize(
    ("text", "rest", "family"),
    [
        ("Sure! Paris is the capital.", "Paris is the capital.", "compliance"),
        ("Certainly. Here is a list of five rivers:\n\n1. Nile", "1. Nile", "compliance"),
        ("Here's the answer: 42", "42", "framing"),
        ("Great question! Water boils at 100 degrees.", "Water boils at 100 degrees.", "praise"),
        ("Let's think step by step. 2 + 2 = 4.", "2 + 2 = 4.", "reasoning_cue"),
        ("Okay, so I need to figure out how many there are. There are 7.", "There are 7.", "reasoning_cue"),
        ("As an AI language model, I do not have feelings. Joy is an emotion.", "Joy is an emotion.", "disclaimer"),
    ],
)
def test_found_and_removed(text, rest, family):
    assert find_opening(text).family == family
    assert strip_sample(sample(text))[0].answer == rest


@pytest.mark.parametrize(
    "text",
    [
        "Paris is the capital.",
        "Sure!",
        "I'm sorry, but I can't help with that.",
        "Sure, I'm sorry, but I can't help with that.",
        "Dear Sir, thank you for your letter.",
        "12 + 7 = 19. The answer is 19.",
        "",
        "Surely this is content. Yes.",
    ],
)
def test_content_stays(text):
    found = find_opening(text)
    assert found is None or found.family == "refusal"
    assert strip_sample(sample(text))[0].answer == text


def test_refusal_is_a_family_of_its_own():
    assert find_opening("I'm sorry, but I can't help with that.").family == "refusal"
    assert find_opening("Here is how to bake bread:\n\n1. Mix.").family == "framing"


def test_both_parts():
    stripped, records = strip_sample(sample("Sure! 4.", "Let's think step by step. two and two"))
    assert (stripped.reasoning, stripped.answer) == ("Two and two", "4.")
    assert {r.part for r in records} == {"reasoning", "answer"}


pieces = st.sampled_from(
    [
        "Sure! ",
        "Certainly. ",
        "Here is the answer: ",
        "\n\n",
        "abc. ",
        "x",
        "É",
        "1. ",
        "I can't ",
        "😀",
        "‏",
        "\r\n",
        ":",
        ".",
    ]
)


@given(st.one_of(st.text(), st.lists(pieces).map("".join)), st.one_of(st.none(), st.text()))
def test_restore_and_idempotence(answer, reasoning):
    before = sample(answer, reasoning)
    after, records = strip_sample(before)
    assert restore_sample(after, records) == before
    assert strip_sample(after)[0] == after
    assert bool(after.answer.strip()) == bool(before.answer.strip())


@given(st.lists(pieces).map("".join))
def test_outside_the_prefix_only_the_first_letter_changes(answer):
    after, _ = strip_sample(sample(answer))
    assert answer.endswith(after.answer[1:])
    assert answer[len(answer) - len(after.answer) :][:1].lower() == after.answer[:1].lower()


@pytest.mark.parametrize("n", [1, 12, 13, 200])
def test_openings_in_any_number_go_at_once(n):
    """A prefix has at most 12 sentences; what is left is looked at again until no prefix is found."""
    stripped, records = strip_sample(sample("Sure! " * n + "Paris is the capital."))
    assert stripped.answer == "Paris is the capital." and strip_sample(stripped)[1] == []
    assert restore_sample(stripped, records).answer == "Sure! " * n + "Paris is the capital."
