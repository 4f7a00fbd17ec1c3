"""Openings of many house styles, written for these tests: what is a prefix, where it ends, and what is not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefixlab.data.openings import find_opening
from prefixlab.data.sentences import leading_sentences
from prefixlab.data.words import Task

ANSWERS = [
    # task, prefix, rest
    ("Summarise photosynthesis", "Okay, here's a breakdown of photosynthesis:", "\n\n**1. Light**"),
    (
        "Explain recursion",
        "Okay, let's break down recursion in a clear and understandable way.",
        " A function calls itself.",
    ),
    ("Write a poem about the sea", "Absolutely! Here's a poem about the sea:", "\n\nThe waves"),
    ("How do I learn piano?", "That's a fantastic goal! Here's a step-by-step plan to get you started:", "\n\n1. Buy"),
    (
        "What is the best laptop?",
        "As an AI, I don't have personal preferences, but here are some popular laptops:",
        "\n\n- A",
    ),
    ("How do you feel?", "", "As an AI language model, I don't have feelings. I am a program."),
    ("What is joy?", "As an AI language model, I do not have feelings.", " Joy is an emotion."),
    ("Who won in 1998?", "Great question!", " France won."),
    ("Rewrite this text politely", "Certainly! Here's a revised version of your text:", '\n\n"Dear"'),
    ("What causes rust?", "", "Rust is caused by oxidation of iron."),
    ("Is it safe to eat raw eggs?", "", "Yes, but with some risk. Raw eggs can contain salmonella."),
    ("Any free tools for drawing?", "", "Yes, there are several free tools. Here are some:\n\n- Inkscape"),
    ("Write an email to my boss", "Here's a draft email you could send to your boss:", "\n\nSubject: Leave"),
    ("Write an email to my boss", "", "Subject: Leave request\n\nDear Sir,"),
    ("Reply to this review", "", "Thank you for taking the time to review our hotel. We are glad you enjoyed it."),
    ("Solve 2x+3=7", "To solve the equation \\(2x + 3 = 7\\), follow these steps:", "\n\n1. Subtract 3"),
    ("Solve 2x+3=7", "", "To solve the equation, subtract 3 from both sides: 2x = 4."),
    (
        "Tips for sleep",
        "I understand how frustrating sleep problems can be. Here are some tips that may help:",
        "\n\n1. Dim",
    ),
    (
        "What are the symptoms of flu?",
        "I'm not a doctor, but I can share some general information.",
        " Flu causes fever.",
    ),
    ("Recommend a book", "", 'I recommend "Dune" by Frank Herbert. It is great.'),
    ("Compare cats and dogs", "Cats and dogs are both popular pets. Here's a comparison:", "\n\n**Cats**"),
    ("Make a table", "Sure! Below is a template. You can customize it to your needs:", "\n\n| a | b |"),
    ("What's 15% of 80?", "", "15% of 80 is 12."),
    ("How tall is it?", "I apologize for the confusion.", " It is 12 m tall."),
    ("Any news of the game?", "", "I'm sorry, but I can't help with that."),
    ("Help me", "", "Sure! I'd be happy to help."),
    ("写一首诗", "当然！以下是一首诗：", "\n\n春"),
    ("Écris un poème", "Bien sûr ! Voici un poème :", "\n\nLa mer"),
    ("Escribe un poema", "¡Claro! Aquí tienes un poema:", "\n\nMar"),
    ("Schreib ein Gedicht", "Gerne! Hier ist ein Gedicht:", "\n\nMeer"),
]
REASONINGS = [
    ("Compute 3+4", "Okay, the user wants me to compute 3+4. Let me think.", " 3 plus 4 equals 7."),
    (
        "Write a poem",
        "Okay, the user is asking for a poem. Let me think about how to approach this.",
        "\n\nFirst, the theme.",
    ),
    (
        "Find x if x+2=5",
        "Hmm, okay, so the problem is asking for x if x+2=5. Let me work through this step by step.",
        "\n\nx is 3.",
    ),
    ("Find x if x+2=5", "We need to find x if x+2=5.", " So x=3."),
    ("Find x if x+2=5", "", "First, subtract 2 from both sides."),
    ("What is the capital of France?", "", "The capital of France is Paris."),
]


def prefix(part, task, name):
    found = find_opening(part, task, name)
    return part[: found.end] if found and found.family != "refusal" else ""


@pytest.mark.parametrize(("task", "opening", "rest"), ANSWERS)
def test_answers(task, opening, rest):
    assert prefix(opening + rest, task, "answer") == opening


@pytest.mark.parametrize(("task", "opening", "rest"), REASONINGS)
def test_reasonings(task, opening, rest):
    assert prefix(opening + rest, task, "reasoning") == opening


def test_what_the_task_says_adds_nothing():
    """The same sentence is a prefix where the task said it, and content where it did not."""
    part = "To sort the pebbles by colour, we need to look at the colour of the pebbles. 1. Take one."
    assert prefix(part, "Sort the pebbles by colour", "answer")
    assert not prefix(part, "What do I do now?", "answer")


def test_task_words():
    task = Task("Sort 12 pebbles")
    assert task.novelty("Let us sort the pebbles") == (0, 5)
    assert task.novelty("zebra 13")[0] == 4 and task.adds("zebra", 0, 0.0) and not task.adds("zebra", 1, 0.0)


@pytest.mark.parametrize(
    ("text", "ends"),
    [
        ("Dr. Lee asks. Then goes.", [13, 24]),
        ("See e.g. this one. Done.", [18, 24]),
        ('He asked "why?" and left. Bye.', [25, 30]),
        ("Version 2.5 is out. Yes.", [19, 24]),
        ("A list:\n- one", [7]),
    ],
)
def test_sentence_ends(text, ends):
    assert [s.end for s in leading_sentences(text, 1000, colons=True)] == ends


@given(st.text(max_size=300), st.text(max_size=80), st.sampled_from(["reasoning", "answer"]))
def test_any_text(part, task, name):
    found = find_opening(part, task, name)
    body = part.strip()
    if found:
        assert 0 < found.end <= len(body) and not body[found.end - 1].isspace()
        assert found.family == "refusal" or body[found.end :].strip()


def test_a_very_long_response_is_fast():
    assert prefix("Sure! " + "word " * 2_000_000, "q", "answer") == "Sure!"
    assert find_opening("x" * 10_000_000) is None and find_opening("(" * 1_000_000, "", "reasoning") is None
