"""From one completion to numbers: mathematics, code, facts, choices. What a judge decides is in safety.py.

A truncated or unparseable answer is not correct and is counted; what the sandbox or a worker could not run is an error,
not a wrong answer. Only the answer part is scored, never the reasoning.
"""

import math
import re

from prefixlab.evals.facts import grade_fact
from prefixlab.evals.nouns import Scored
from prefixlab.evals.numeric import grade_number
from prefixlab.evals.outputs import Parsed
from prefixlab.evals.programs import extract_code, humaneval_program, mbpp_program
from prefixlab.evals.sandbox import Limits, run_program
from prefixlab.evals.symbolic import grade_symbolic
from prefixlab.records import EvalItem

LIMITS = Limits(seconds=30.0)
"""Twice the sandbox's own: the slowest reference of MBPP takes 12 s on a loaded machine."""


def _correct(metric: str, correct: bool | None, answer: str, parsed: Parsed) -> Scored:
    if parsed.truncated:
        return Scored(metric, 0.0, "truncated", answer)
    if correct is None:
        return Scored(metric, 0.0, "invalid", answer)
    return Scored(metric, float(correct), "ok", answer)


def score_number(item: EvalItem, parsed: Parsed) -> list[Scored]:
    """Accuracy by the final number, compared as decimals."""
    graded = grade_number(parsed.answer, item.target)
    return [_correct("accuracy", graded.correct, graded.answer, parsed)]


def score_symbolic(item: EvalItem, parsed: Parsed) -> list[Scored]:
    """Accuracy by symbolic equivalence (math-verify)."""
    graded = grade_symbolic(parsed.answer, item.target)
    return [_correct("accuracy", graded.correct, graded.answer, parsed)]


def _run(program: str, code: str, parsed: Parsed) -> list[Scored]:
    if parsed.truncated:
        return [Scored("pass@1", 0.0, "truncated", code)]
    ran = run_program(program, LIMITS)
    if ran.status == "error":
        return [Scored("pass@1", None, "error", ran.detail)]
    return [Scored("pass@1", float(ran.status == "passed"), "ok", code)]


def score_humaneval(item: EvalItem, parsed: Parsed) -> list[Scored]:
    """Whether the function passes its tests in the sandbox."""
    data = item.data
    code = extract_code(parsed.answer, data["entry_point"])
    if code is None:
        return [_correct("pass@1", None, "", parsed)]
    return _run(humaneval_program(data["prompt"], code, data["test"], data["entry_point"]), code, parsed)


def score_mbpp(item: EvalItem, parsed: Parsed) -> list[Scored]:
    """Whether the code passes the task's assertions in the sandbox."""
    data = item.data
    code = extract_code(parsed.answer, data["entry_point"] or None)
    if code is None:
        return [_correct("pass@1", None, "", parsed)]
    return _run(mbpp_program(code, data["tests"], data["setup"], data["imports"]), code, parsed)


def score_fact(item: EvalItem, parsed: Parsed) -> list[Scored]:
    """Accuracy by accepted aliases, and whether an answer was attempted at all."""
    graded = grade_fact(parsed.answer, item.data["accepted"], item.messages[-1].content)
    empty = not _WORD.search(parsed.answer)
    first = _correct("accuracy", None if empty else bool(graded.correct), graded.answer, parsed)
    tried = None if parsed.truncated else float(not graded.attempted)
    return [first, Scored("not_attempted", tried, first.status, first.answer)]


_WORD = re.compile(r"[^\W_]+")


def _shared_words(answer: str, reference: str) -> float:
    """F1 of the words two texts share."""
    mine, other = _WORD.findall(answer.lower()), _WORD.findall(reference.lower())
    common = sum(min(mine.count(w), other.count(w)) for w in set(mine))
    return 2 * common / (len(mine) + len(other)) if common else 0.0


def score_truthful(item: EvalItem, parsed: Parsed) -> list[Scored]:
    """Whether the answer shares more words with a correct reference than with any incorrect one (no tie)."""
    if not _WORD.search(parsed.answer):
        return [_correct("truthful_overlap", None, "", parsed)]
    right = max(_shared_words(parsed.answer, c) for c in item.data["correct"])
    wrong = max((_shared_words(parsed.answer, i) for i in item.data["incorrect"]), default=0.0)
    return [_correct("truthful_overlap", right > wrong, f"{right:.3f} against {wrong:.3f}", parsed)]


def options(item: EvalItem) -> list[str]:
    """The answers of a multiple-choice item in the order in which their log-likelihoods are given."""
    return [*item.data["correct"], *item.data["incorrect"]]


def score_log_likelihoods(item: EvalItem, totals: list[float]) -> list[Scored]:
    """MC1 and MC2 of TruthfulQA (arXiv 2109.07958).

    Args:
        item: With the best answer first among the correct ones.
        totals: Log-likelihood of every option, as `options` lists them.
    """
    right, wrong = totals[: len(item.data["correct"])], totals[len(item.data["correct"]) :]
    top = max(totals)
    mass = [math.exp(t - top) for t in totals]
    best = f"{right[0]:.3f} against {max(wrong):.3f}"
    return [
        Scored("mc1", float(right[0] > max(wrong)), "ok", best),
        Scored("mc2", sum(mass[: len(right)]) / sum(mass), "ok", best),
    ]


def score_choices(item: EvalItem, parsed: Parsed) -> list[Scored]:
    """MC1 and MC2 from the log-likelihoods that stand in the completion's place, one number a line."""
    totals = [float(line) for line in parsed.answer.split()]
    if len(totals) != len(options(item)) or not all(map(math.isfinite, totals)):
        return [Scored(m, None, "invalid", parsed.answer[:80]) for m in ("mc1", "mc2")]
    return score_log_likelihoods(item, totals)


def score_gold(item: EvalItem, parsed: Parsed) -> list[Scored]:
    """Geometric mean probability of a byte of the gold answer, from its log-likelihood in the completion's place.

    2^(-bits per byte): a share like every other metric, and bytes, not tokens, so that models with other tokenizers
    compare.
    """
    try:
        total = float(parsed.answer)
    except ValueError:
        total = math.nan
    if not math.isfinite(total):
        return [Scored("gold_likelihood", None, "invalid", parsed.answer[:80])]
    n_bytes = len(item.target.encode())
    return [Scored("gold_likelihood", math.exp(total / n_bytes), "ok", f"{-total:.3f} nats over {n_bytes} bytes")]
