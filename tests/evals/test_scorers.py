"""Near misses of every scorer: what is right, wrong, truncated, unparseable, or not measured."""

import math

import pytest

from prefixlab.evals.nouns import asked
from prefixlab.evals.outputs import Parsed, parse_output
from prefixlab.evals.scorers import (
    score_choices,
    score_fact,
    score_gold,
    score_humaneval,
    score_log_likelihoods,
    score_mbpp,
    score_number,
    score_symbolic,
    score_truthful,
)


def parsed(text, truncated=False):
    return Parsed(reasoning=None, answer=text, truncated=truncated, state="none")


@pytest.mark.parametrize(
    ("text", "truncated", "value", "status"),
    [
        ("The answer is 5.", False, 1.0, "ok"),
        ("The answer is 5.0", False, 1.0, "ok"),
        ("The answer is 25.", False, 0.0, "ok"),
        ("The answer is -5.", False, 0.0, "ok"),
        ("The answer is 5.", True, 0.0, "truncated"),
        ("no idea", False, 0.0, "invalid"),
        ("", False, 0.0, "invalid"),
    ],
)
def test_accuracy(text, truncated, value, status):
    (scored,) = score_number(asked("How many?", target="5"), parsed(text, truncated))
    assert (scored.value, scored.status) == (value, status)


def test_thinking_is_never_scored_as_the_answer():
    """lm-evaluation-harness#3382."""
    cut = parse_output("So 2 + 3 = 5. The answer is 5.", preopened=True, truncated=True)
    (scored,) = score_number(asked("How many?", target="5"), cut)
    assert (scored.value, scored.status) == (0.0, "truncated")
    unclosed = parse_output("So 2 + 3 = 5. The answer is 5.", preopened=True)
    (scored,) = score_number(asked("How many?", target="5"), unclosed)
    assert (scored.value, scored.status) == (0.0, "invalid")


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("text", "truncated", "value", "status"),
    [
        (r"So \boxed{\frac{1}{2}}.", False, 1.0, "ok"),
        (r"So \boxed{0.5}.", False, 1.0, "ok"),
        (r"So \boxed{\frac{1}{3}}.", False, 0.0, "ok"),
        (r"So \boxed{\frac{1}{2}}.", True, 0.0, "truncated"),
        ("I do not know.", False, 0.0, "invalid"),
    ],
)
def test_symbolic(text, truncated, value, status):
    (scored,) = score_symbolic(asked("What?", target=r"\frac{1}{2}"), parsed(text, truncated))
    assert (scored.value, scored.status) == (value, status)


HUMANEVAL = asked(
    "Complete",
    data={
        "prompt": 'def double(x):\n    """Twice x."""\n',
        "test": "def check(candidate):\n    assert candidate(2) == 4\n",
        "entry_point": "double",
    },
)
MBPP = asked(
    "Write double.", data={"tests": ["assert double(2) == 4"], "setup": "", "imports": [], "entry_point": "double"}
)
RIGHT = "Here it is:\n```python\ndef double(x):\n    return 2 * x\n```\nIt doubles x."


@pytest.mark.smoke
@pytest.mark.parametrize(("score", "item"), [(score_humaneval, HUMANEVAL), (score_mbpp, MBPP)])
@pytest.mark.parametrize(
    ("text", "truncated", "value", "status"),
    [
        (RIGHT, False, 1.0, "ok"),
        (RIGHT.replace("2 * x", "3 * x"), False, 0.0, "ok"),
        (RIGHT.replace("return", "import sys; sys.exit(0)  #"), False, 0.0, "ok"),
        (RIGHT, True, 0.0, "truncated"),
        ("", False, 0.0, "invalid"),
    ],
)
def test_code(score, item, text, truncated, value, status):
    (scored,) = score(item, parsed(text, truncated))
    assert (scored.value, scored.status) == (value, status)


def test_facts():
    item = asked("What is the capital of France?", data={"accepted": ["Paris"]})

    def scored(text):
        rows = {s.metric: s.value for s in score_fact(item, parsed(text))}
        return rows["accuracy"], rows["not_attempted"]

    assert scored("It is Paris.") == (1.0, 0.0)
    assert scored("It is Lyon.") == (0.0, 0.0)
    assert scored("I don't know.") == (0.0, 1.0)
    assert scored("") == (0.0, 1.0)
    cut = score_fact(item, parsed("", True))
    assert [(s.value, s.status) for s in cut] == [(0.0, "truncated"), (None, "truncated")]
    assert score_fact(item, parsed(""))[0].status == "invalid"


TRUTH = asked("Is it?", target="No", data={"correct": ["No, it is rock", "Rock"], "incorrect": ["Yes, cheese"]})


def test_generated_truth_is_nearer_to_a_correct_answer():
    assert score_truthful(TRUTH, parsed("No, the moon is rock."))[0].value == 1.0
    assert score_truthful(TRUTH, parsed("Yes, it is all cheese."))[0].value == 0.0
    assert score_truthful(TRUTH, parsed("Maybe."))[0].value == 0.0  # a tie at nothing is not truthful
    assert score_truthful(TRUTH, parsed("..."))[0].status == "invalid"


def test_choices():
    """MC1: the best answer above all incorrect ones; MC2: the share of probability on the correct ones."""
    rows = {s.metric: s.value for s in score_log_likelihoods(TRUTH, [math.log(0.2), math.log(0.5), math.log(0.3)])}
    assert rows["mc1"] == 0.0 and rows["mc2"] == pytest.approx(0.7)
    rows = {s.metric: s.value for s in score_log_likelihoods(TRUTH, [-1000.0, -1001.0, -1002.0])}
    assert rows["mc1"] == 1.0 and 0.5 < rows["mc2"] < 1.0
    assert [s.value for s in score_choices(TRUTH, parsed("-1.0\n-2.0\n-3.0"))] == [
        1.0,
        pytest.approx(1 - 1 / (1 + math.e + math.e**2), rel=1e-6),
    ]
    assert [s.status for s in score_choices(TRUTH, parsed("-1.0\n-2.0"))] == ["invalid", "invalid"]
    assert [s.status for s in score_choices(TRUTH, parsed("-1.0\nnan\n-3.0"))] == ["invalid", "invalid"]


def test_gold_answers_are_the_mean_probability_of_a_byte():
    item = asked("Why?", target="four")
    (found,) = score_gold(item, parsed(str(-8 * math.log(2))))
    assert found.value == pytest.approx(0.25)
    assert [s.value for s in score_gold(item, parsed("nan")) + score_gold(item, parsed("so be it"))] == [None, None]
