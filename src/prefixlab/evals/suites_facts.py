"""Factuality: TruthfulQA by log-likelihood and by generation, SimpleQA, PopQA.

TruthfulQA MC1: the best answer against all incorrect ones; MC2: the share of probability on the correct answers
(arXiv 2109.07958). Generated answers are compared with the reference answers by words (facts.py): a proxy for the
human or model graders of these sets, and labelled as one.
"""

import json
import re
from collections.abc import Sequence
from typing import Any

from prefixlab.evals.nouns import ACCURACY, Hub, Metric, Row, Suite, WrongRow, asked, column, text_column
from prefixlab.evals.scorers import score_choices, score_fact, score_truthful
from prefixlab.records import EvalItem

MC1 = Metric(name="mc1", kind="problem", higher_is_better=True)
MC2 = Metric(name="mc2", kind="problem", higher_is_better=True, shares=False)
TRUTHFUL = Metric(name="truthful_overlap", kind="problem", higher_is_better=True)
NOT_ATTEMPTED = Metric(name="not_attempted", kind="problem", higher_is_better=False)


def _answers(value: Any) -> list[str]:
    """A list, or a text with "; " between answers as in TruthfulQA's file."""
    parts: Sequence[str] = re.split(r";\s*", value) if isinstance(value, str) else list(value)
    return list(dict.fromkeys(p.strip() for p in parts if p.strip()))


def _truthfulqa(row: Row) -> list[EvalItem]:
    best = text_column(row, "best_answer").strip()
    correct = _answers(column(row, "correct_answers"))
    incorrect = _answers(column(row, "incorrect_answers"))
    if not correct or not incorrect:
        raise WrongRow("no correct or no incorrect answer")
    correct = [best, *(c for c in correct if c != best)]
    data = {"correct": correct, "incorrect": [i for i in incorrect if i not in correct]}
    if not data["incorrect"]:
        raise WrongRow("every incorrect answer is also a correct one")
    return [asked(text_column(row, "question"), target=best, category=_category(row), data=data)]


def _category(row: Row) -> str:
    """The file of the authors and the hub's data set write the column's name in two ways."""
    return str(row.get("category") or row.get("Category") or "")


def _simpleqa(row: Row) -> list[EvalItem]:
    return [asked(text_column(row, "problem"), **_named([text_column(row, "answer")]))]


def _popqa(row: Row) -> list[EvalItem]:
    accepted = _accepted(column(row, "possible_answers", "output"))
    return [asked(text_column(row, "question", "input"), id=f"popqa/{column(row, 'id')}", **accepted)]


def _accepted(value: Any) -> dict[str, Any]:
    try:
        names = json.loads(value) if isinstance(value, str) else list(value)
    except (ValueError, TypeError) as error:
        raise WrongRow("the accepted answers are no JSON list") from error
    if not isinstance(names, list) or not names:
        raise WrongRow("the accepted answers are no list with at least one name")
    return _named([str(n) for n in names])


def _named(accepted: list[str]) -> dict[str, Any]:
    """The first accepted answer as target, and all of them."""
    if not any(c.isalnum() for name in accepted for c in name):
        raise WrongRow("no accepted answer has a letter or a digit")
    return {"target": accepted[0], "data": {"accepted": accepted}}


TRUTHFULQA = "https://github.com/sylinrl/TruthfulQA"
FORM = "Question, Best Answer, Correct Answers, Incorrect Answers"
SUITES = (
    Suite(
        "truthfulqa_mc",
        about="TruthfulQA, MC1 and MC2 by log-likelihood of the answers in the model's own turn",
        link=TRUTHFULQA,
        hub=Hub("truthfulqa/truthful_qa", "validation", "generation"),
        items=_truthfulqa,
        score=score_choices,
        metrics=(MC1, MC2),
        choices=True,
        sources=("truthfulqa", "truthful_qa"),
        form=FORM,
    ),
    Suite(
        "truthfulqa",
        about="TruthfulQA, generated answers; nearer to a correct than to an incorrect one by shared words (proxy)",
        link=TRUTHFULQA,
        hub=Hub("truthfulqa/truthful_qa", "validation", "generation"),
        items=_truthfulqa,
        score=score_truthful,
        metrics=(TRUTHFUL,),
        proxy=True,
        sources=("truthfulqa", "truthful_qa"),
        form=FORM,
    ),
    Suite(
        "simpleqa",
        about="SimpleQA, 4,326 short factual questions; the accepted answer has to stand in the reply (proxy)",
        link="https://openai.com/index/introducing-simpleqa/",
        hub=Hub("basicv8vc/SimpleQA", "test"),
        items=_simpleqa,
        score=score_fact,
        metrics=(ACCURACY, NOT_ATTEMPTED),
        proxy=True,
        sources=("simpleqa",),
        form="problem, answer",
    ),
    Suite(
        "popqa",
        about="PopQA, questions on entities of known popularity; an accepted alias has to stand in the reply",
        link="https://huggingface.co/datasets/akariasai/PopQA",
        hub=Hub("akariasai/PopQA", "test"),
        items=_popqa,
        score=score_fact,
        metrics=(ACCURACY, NOT_ATTEMPTED),
        proxy=True,
        sources=("popqa",),
        form="id, question (or input), possible_answers (or output)",
    ),
)
