"""Graders of mathematics against correctness labels that others published with model solutions."""

import json

import pytest

from prefixlab.evals.numeric import final_number, grade_number
from prefixlab.evals.symbolic import grade_symbolic


@pytest.mark.smoke
def test_numeric_against_gsm8k_labels(shared):
    """Every label of 4 models on 1,319 problems (github.com/openai/grade-school-math)."""
    wrong, checked = [], 0
    for line in (shared / "gsm8k" / "example_model_solutions.jsonl").read_text().splitlines():
        row = json.loads(line)
        target = final_number(row["ground_truth"])
        for model, solution in row.items():
            if isinstance(solution, dict):
                checked += 1
                if (grade_number(solution["solution"], target).correct is True) != solution["is_correct"]:
                    wrong.append((model, row["question"]))
    assert checked == 5276
    assert not wrong


@pytest.mark.smoke
def test_symbolic_against_qwen_labels(shared):
    """100 problems of MATH with 8 solutions each (github.com/QwenLM/Qwen2.5-Math).

    One label is wrong: it calls 10000 unequal to 10{,}000.
    """
    wrong, checked = [], 0
    for line in (shared / "qwen_math_cot" / "math_cot_100.jsonl").read_text().splitlines():
        row = json.loads(line)
        for response, label in zip(row["response"], row["score"], strict=True):
            checked += 1
            graded = grade_symbolic(response, row["gt"], seconds=60)
            if (graded.correct is True) != label:
                wrong.append((row["gt"], graded.answer))
    assert checked == 800
    assert len(wrong) <= 8, wrong
    assert wrong == [("10{,}000", "10000")]


@pytest.mark.slow
def test_reference_solutions_of_math500(shared):
    """The solution of every problem is graded as right, and none is right for the next problem."""
    rows = [json.loads(line) for line in (shared / "math500" / "math500.jsonl").read_text().splitlines()]
    assert len(rows) == 500
    assert all(grade_symbolic(r["solution"], r["answer"], seconds=60).correct for r in rows)
    others = zip(rows, [*rows[1:], rows[0]], strict=True)
    right = [(a["answer"], b["answer"]) for a, b in others if grade_symbolic(a["solution"], b["answer"], 60).correct]
    assert len(right) <= 5, right
