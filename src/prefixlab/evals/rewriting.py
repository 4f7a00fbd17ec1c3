r"""Whether a teacher's text may become a target: the checks that need graders, word rules or a judge.

A rewritten response must keep the final answer. What counts as one: the last \boxed{}, or what stands behind the last
final-answer mark ("####", "Answer:", "The answer is") where it ends the response. Numbers are compared as numbers,
formulas by math-verify, everything else as text. A response without such a mark is "not checkable": it passes, and is
counted.

    checked = check_rewrite(target, reply)      # Checked(reason="", final_answer="same")
"""

import re
from dataclasses import dataclass
from typing import Literal

from prefixlab.data.rewrite import Reply, Target, left_opening, target_text
from prefixlab.data.sources import with_rationale
from prefixlab.evals.judging import Judge
from prefixlab.evals.numeric import final_number, number
from prefixlab.evals.refusals import compliance, degenerate
from prefixlab.evals.symbolic import grade_symbolic, stated_answer
from prefixlab.records import Sample

FinalAnswer = Literal["same", "not checkable"]
ENDS = 240
"""Characters behind a final-answer mark up to which it is one: behind a heading "Answer:" stands the whole response."""
TRUNCATED = ("max_tokens", "model_length")
_RANK = {"full_compliance": 0, "partial_refusal": 1, "full_refusal": 2}
_COMMAND = re.compile(r"\\[a-zA-Z]+")
_WORDS = re.compile(r"[A-Za-z]{2,}|^\(?[A-Z][).:]")
"""What makes an answer a text, not a formula: words, and the letter of a choice."""
_RUN = re.compile(r"\d[\d.,]*")


@dataclass(frozen=True, slots=True)
class Checked:
    """What became of a reply."""

    reason: str
    """Why it cannot be used; empty where it can."""
    final_answer: FinalAnswer | None = None
    """None where there was nothing to compare: the reply is not used, or nothing has to be kept."""


def final_answer(text: str) -> str:
    """The answer that a response marks as final, as text; empty where it marks none."""
    text = text.replace("**", "")
    if "\\boxed" in text or "\\fbox" in text:
        return stated_answer(text)[0]
    # The dash stands for the solution that `with_rationale` wants to see in front of the mark.
    found = with_rationale(Sample(id="", messages=(), reasoning=None, answer=f"-\n{text}"))
    if found.reasoning is None or len(found.answer) > ENDS:
        return ""
    return stated_answer(found.answer)[0]


def _as_number(stated: str) -> str | None:
    """The number of an answer that is one, a unit allowed behind it."""
    own = number(stated)
    if own is None and len(_RUN.findall(stated)) == 1 and re.match(r"[-+$£€~]*\d", stated):
        return final_number(stated)
    return own


def _plain(stated: str) -> str:
    return re.sub(r"[\s$*]+", " ", stated).strip(" ().").casefold()


def keeps_answer(original: str, new: str) -> tuple[FinalAnswer | None, str]:
    """Whether a new response ends in the original's final answer; else (None, why not)."""
    stated = final_answer(original)
    if not stated:
        return "not checkable", ""
    found = final_answer(new)
    if not found:
        return None, f"the final answer {stated[:60]!r} is not stated behind a mark, as in the response"
    changed = f"the final answer is {found[:60]!r} instead of {stated[:60]!r}"
    if _plain(found) == _plain(stated):
        return "same", ""
    value = _as_number(stated)
    if value is not None:
        return ("same", "") if _as_number(found) == value else (None, changed)
    text = _WORDS.search(_COMMAND.sub("", stated))
    if not text and grade_symbolic(f"\\boxed{{{found}}}", stated).correct:
        return "same", ""
    return None, changed


def check_form(stop: str, reply: Reply | str, prompt: str) -> str:
    """What is wrong with a reply whatever it was asked for; empty if nothing is.

    Args:
        stop: Inspect's stop reason.
        reply: Its parts, or why it has none.
        prompt: The user's turn.
    """
    if stop in TRUNCATED:
        return "the reply was cut off at the token limit"
    if stop == "content_filter":
        return "the teacher's provider blocked the reply"
    if isinstance(reply, str):
        return reply
    for name, text in (("reasoning", reply.reasoning), ("answer", reply.answer)):
        if text and any(c.isalpha() for c in text) and degenerate(text):
            return f"the {name} says the same words over and over"
    return left_opening(reply, prompt)


def check_rewrite(target: Target, stop: str, reply: Reply | str) -> Checked:
    """Form, refusal and final answer of a rewritten response."""
    reason = check_form(stop, reply, target.prompt)
    if reason or isinstance(reply, str):
        return Checked(reason or str(reply))
    before, after = (compliance(target.prompt, text) for text in (target.answer or target.text, reply.answer))
    if _RANK[after] > _RANK[before]:
        return Checked(f"it refuses ({after.replace('_', ' ')}) where the response does not")
    kept, why = keeps_answer(target.answer, reply.answer)
    return Checked(why, kept)


async def check_correction(target: Target, stop: str, reply: Reply | str, judge: Judge) -> Checked:
    """Form of a correction, and a judge's verdict on it.

    Raises:
        JudgeDown: The judge gave none.
    """
    reason = check_form(stop, reply, target.prompt)
    if reason or isinstance(reply, str):
        return Checked(reason or str(reply))
    # Word rules read an answer only; the others what a user of the model would see.
    text = reply.answer if judge.name == "rules" else target_text(reply.reasoning, reply.answer)
    said = await judge.judge(target.prompt, text)
    if said.verdict == "safe":
        return Checked("")
    return Checked(f"judged {said.verdict}" + (f" ({said.reason})" if said.reason else "") + f" by {judge.name}")
