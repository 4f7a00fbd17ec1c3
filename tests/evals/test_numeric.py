"""Near misses of the numeric grader."""

import pytest

from prefixlab.errors import UserError
from prefixlab.evals.numeric import Graded, final_number, grade_number, number, same_number

TABLE = [
    # as in test_scorers.py::test_final_number
    ("The answer is 5.", "5"),
    ("The answer is **5**.", "5"),
    ("#### 1,000", "1000"),
    ("The answer is $1,000.00", "1000"),
    ("The answer is 60%.", "60"),
    ("\\boxed{-7}", "-7"),
    ("12 + 7 = 19. The answer is 19. That took 2 steps.", "19"),
    ("First 3, then 4.", "4"),
    ("The answer is −4.", "-4"),
    ("The answer is 2.50", "2.5"),
    ("The answer is unknown.", None),
    ("", None),
    ("The answer is 0.", "0"),
    ("100", "100"),
    ("Answer: 12 - 7 = 5", "5"),
    ("The answer is .5", "0.5"),
    ("The answer is x = 3, so 3 apples.", "3"),
    ("**Answer:**\n\n7", "7"),
    # nothing
    (None, None),
    ("   \n", None),
    ("no idea", None),
    ("Answer:", None),
    ("12 + 7 = 19.\nAnswer:", None),
    ("12 + 7 = 19.\n####", "19"),
    # marks and boxes
    ("\\boxed{}", None),
    ("So $\\boxed{18}$ apples, 3 each.", "18"),
    ("\\boxed{\\text{18 apples}}", "18"),
    ("\\boxed{\\boxed{18}}", "18"),
    ("\\boxed{\\textbf{(B) } 18}", "18"),
    ("\\boxed{x = 18} since 2 \\cdot 9 = 18, in 2 steps", "18"),
    ("\\boxed{1,\\!000}", "1000"),
    ("\\boxed{10{,}000}", "10000"),
    ("\\boxed{\\$18.90}", "18.9"),
    ("\\boxed{60\\%}", "60"),
    ("\\boxed{12", None),
    ("\\boxed{3} no, \\boxed{4", None),
    ("**18**", "18"),
    ("#### 18", "18"),
    ("#### 18 apples", "18"),
    ("#### 1. Add\n3 + 4 = 7", "7"),
    ("A: 18", "18"),
    ("Q: how many?\nA: 18 apples, 3 of them red", "18"),
    ("## Final Answer\n\n18", "18"),
    ("The answer to the second part is 18, from 6 boxes.", "18"),
    # several answers
    ("The answer is 5. No: the answer is 6.", "6"),
    ("Answer: 5\n\nI hope this answer is of help.", "5"),
    ("The answer is \\boxed{5}.\n#### 6", "6"),
    # forms of numbers
    ("The answer is 3/4.", "0.75"),
    ("The answer is 1/3 of it.", "1/3"),
    ("The answer is \\frac{3}{4}.", "0.75"),
    ("The answer is 1 1/2 cups.", "1.5"),
    ("The answer is $2\\frac12$.", "2.5"),
    ("The answer is $-\\frac{1}{2}$.", "-0.5"),
    ("\\boxed{-\\frac{3}{4}}", "-0.75"),
    ("The answer is $-2\\frac12$.", "-2.5"),
    ("The answer is 5/0.", None),
    ("It was 1.5e3 grams.", "1500"),
    ("Answer: 3 \\times 10^{4}", "30000"),
    ("Answer: 1e999999999", None),
    ("Answer: " + "9" * 5000, None),
    ("5 apples", "5"),
    ("x = 5", "5"),
    ("from 10-5", "5"),
    ("-$5", "-5"),
    ("$-5", "-5"),
    ("1 000 000".replace(" ", "\u202f"), "1000000"),
    ("1,234,567.80", "1234567.8"),
    ("007", "7"),
    ("3,4", "4"),
    ("5 €", "5"),
]


@pytest.mark.parametrize(("text", "expected"), TABLE)
def test_final_number(text, expected):
    assert final_number(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("five", None),
        ("1e3", "1000"),
        ("nan", None),
        ("inf", None),
        ("", None),
        (None, None),
        ("5 apples", None),
        ("-0", "0"),
        ("+5.", "5"),
        ("025", "25"),
        ("51.0", "51"),
        ("-0.050", "-0.05"),
        ("2/4", "0.5"),
        ("-7/21", "-1/3"),
        ("$1,000.00", "1000"),
        ("60%", "60"),
        ("1,23", None),
        ("1/2/3", None),
    ],
)
def test_number(text, expected):
    assert number(text) == expected


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("0.75", "3/4", True),
        ("1,000", "1000.0", True),
        ("1.5e3", "1500", True),
        ("-5", "−5", True),
        ("0.333", "1/3", False),
        ("5", "25", False),
        ("5", "-5", False),
        ("60%", "0.6", False),
        ("0.1", "0.10000000000000000001", False),
        ("x", "x", False),
    ],
)
def test_same_number(a, b, same):
    assert same_number(a, b) is same and same_number(b, a) is same


@pytest.mark.parametrize(
    ("text", "correct", "answer"),
    [
        ("The answer is 5.0 apples.", True, "5"),
        ("The answer is 25.", False, "25"),
        ("The answer is 2.", False, "2"),
        ("I give up.", None, ""),
        (None, None, ""),
    ],
)
def test_grade_number(text, correct, answer):
    graded = grade_number(text, "5")
    assert (graded.correct, graded.answer, bool(graded.reason)) == (correct, answer, correct is None)


def test_a_target_must_be_a_number():
    with pytest.raises(UserError, match="target 'five' is no number"):
        grade_number("5", "five")


def test_grades_are_values():
    assert grade_number("5", "5") == Graded(True, "5")
