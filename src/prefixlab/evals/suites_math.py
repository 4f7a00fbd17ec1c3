r"""Mathematics: chain sums, GSM8K (by answer, and by the loss of its gold answers), SVAMP, MATH-500, AIME 2024.

Numbers are compared as decimals (numeric.py), MATH answers by math-verify (symbolic.py). GSM8K and SVAMP send the
question alone; MATH-500 and AIME add one sentence that asks for \boxed{}.
"""

import re

from prefixlab.data.sources import test_sums
from prefixlab.evals.nouns import ACCURACY, Hub, Metric, Row, Suite, WrongRow, asked, column, text_column
from prefixlab.evals.numeric import final_number, number
from prefixlab.evals.scorers import score_gold, score_number, score_symbolic
from prefixlab.records import EvalItem

BOXED = "Work through the problem, and write the final answer in \\boxed{}."
GOLD = Metric(name="gold_likelihood", kind="problem", higher_is_better=True, shares=False)
_CALCULATOR = re.compile(r"<<[^<>]*>>")
"""GSM8K's calculator marks inside its solutions: no model writes them."""


def _gsm8k(row: Row) -> list[EvalItem]:
    answer = text_column(row, "answer")
    if "####" not in answer:
        raise WrongRow("the answer does not end in '#### N'")
    target = final_number(answer[answer.rindex("####") :])
    if target is None:
        raise WrongRow("no number follows '####'")
    return [asked(text_column(row, "question"), target=target)]


def _gsm8k_gold(row: Row) -> list[EvalItem]:
    found = _gsm8k(row)[0]
    gold = _CALCULATOR.sub("", text_column(row, "answer")).strip()
    return [found.model_copy(update={"target": gold, "data": {"correct": [gold], "incorrect": []}})]


def _svamp(row: Row) -> list[EvalItem]:
    body = text_column(row, "body").strip().rstrip(".,")
    target = number(str(column(row, "answer")))
    if target is None:
        raise WrongRow("the answer is no number")
    return [asked(f"{body}. {text_column(row, 'question').strip()}", target=target, id=text_column(row, "id"))]


def _math(row: Row) -> list[EvalItem]:
    prompt = f"{text_column(row, 'problem')}\n\n{BOXED}"
    return [asked(prompt, target=text_column(row, "answer"), category=str(row.get("subject", "")))]


def _aime(row: Row) -> list[EvalItem]:
    target = number(text_column(row, "answer"))
    if target is None:
        raise WrongRow("the answer is no whole number")
    return [asked(f"{text_column(row, 'problem')}\n\n{BOXED}", target=target)]


SUITES = (
    Suite(
        "chain_sum",
        about="reasoning-gym chain sums of 2 to 4 terms; the half that is never trained on",
        link="https://github.com/open-thought/reasoning-gym",
        hub=None,
        rows=test_sums,
        score=score_number,
        metrics=(ACCURACY,),
        max_tokens=128,
    ),
    Suite(
        "gsm8k",
        about="GSM8K test problems, zero-shot; final number",
        link="https://github.com/openai/grade-school-math",
        hub=Hub("openai/gsm8k", "test", "main"),
        items=_gsm8k,
        score=score_number,
        metrics=(ACCURACY,),
        sources=("gsm8k", "grade school math"),
        form="question, and answer ending in '#### N'",
    ),
    Suite(
        "gsm8k_gold",
        about="GSM8K test problems; how likely the gold solution is, byte by byte, for models too small to solve them",
        link="https://github.com/openai/grade-school-math",
        hub=Hub("openai/gsm8k", "test", "main"),
        items=_gsm8k_gold,
        score=score_gold,
        metrics=(GOLD,),
        choices=True,
        sources=("gsm8k", "grade school math"),
        form="question, and answer ending in '#### N'",
    ),
    Suite(
        "svamp",
        about="SVAMP, elementary word problems with changed wording; final number",
        link="https://github.com/arkilpatel/SVAMP",
        hub=Hub("ChilleD/SVAMP", "test"),
        items=_svamp,
        score=score_number,
        metrics=(ACCURACY,),
        sources=("svamp",),
        form="ID, Body, Question, Answer",
    ),
    Suite(
        "math500",
        about="MATH-500; symbolic equivalence",
        link="https://huggingface.co/datasets/HuggingFaceH4/MATH-500",
        hub=Hub("HuggingFaceH4/MATH-500", "test"),
        items=_math,
        score=score_symbolic,
        metrics=(ACCURACY,),
        max_tokens=4096,
        sources=("math", "math500", "hendrycks math"),
        form="problem, answer",
    ),
    Suite(
        "aime24",
        about="AIME 2024, 30 problems with whole numbers as answers",
        link="https://huggingface.co/datasets/HuggingFaceH4/aime_2024",
        hub=Hub("HuggingFaceH4/aime_2024", "train"),
        items=_aime,
        score=score_number,
        metrics=(ACCURACY,),
        max_tokens=16000,
        sources=("aime", "aime 2024"),
        form="problem, answer",
    ),
)
