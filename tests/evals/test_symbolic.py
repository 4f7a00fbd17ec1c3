"""Near misses of the symbolic grader, and the worker that it asks."""

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from prefixlab.errors import UserError
from prefixlab.evals.symbolic import MAX_ANSWER, WORKER, Worker, grade_symbolic, stated_answer

HANGS = "\\sum_{n=1}^{100000000} \\sin(n)"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("so \\boxed{5}.", "5"),
        ("\\boxed{3}, or rather \\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("\\boxed{\\boxed{7}}", "7"),
        ("\\boxed{\\left\\{ 1, 2 \\right.}", "\\left\\{ 1, 2 \\right."),
        ("\\fbox{5} in 3 steps", "5"),
        ("The answer is $x+1$.", "x+1"),
        ("**Answer:** \\(\\frac{1}{2}\\) of it", "\\frac{1}{2}"),
        ("Answer: Ann. She is 5.", "Ann"),
        ("#### 18", "18"),
    ],
)
def test_stated_answer(text, answer):
    assert stated_answer(text) == (answer, "")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "empty"),
        ("", "empty"),
        ("\\boxed{}", "box is empty"),
        ("\\boxed{5} and then \\boxed{7", "not closed"),
        ("The final answer is", "behind the last marker"),
        ("\\boxed{" + "x+" * MAX_ANSWER + "1}", "more than 1,000 characters"),
    ],
)
def test_nothing_to_judge(text, reason):
    graded = grade_symbolic(text, "5")
    assert graded.correct is None and reason in graded.reason


@pytest.mark.parametrize(
    ("answer", "target", "correct"),
    [
        ("C", "\\text{(C)}", True),
        ("\\textbf{(C) } 12", "C", True),
        ("C. 12", "\\text{(C)}", True),
        ("D", "\\text{(C)}", False),
        ("12", "\\text{(C)}", False),
        ("\\text{Ann}", "Ann", True),
        ("\\text{Ann}", "\\text{Annika}", False),
        ("2516_{8}", "2516_8", True),
        ("2516_9", "2516_8", False),
        ("\\{1, 2\\}", "(1, 2)", False),
        ("\\dfrac{1}{2}", "\\frac{1}{2}", True),
        ("1,000", "1000", True),
        ("10{,}000", "10,\\!000", True),
        ("\\$18.90", "18.9", True),
        ("5", "25", False),
        ("-5", "5", False),
        ("60\\%", "60", True),
        ("90^\\circ", "90", True),
        ("90", "90^{\\circ}", True),
        ("5\\text{ cm}", "5", True),
        ("5", "5\\mbox{ cm}^2", True),
        ("x = 5", "5", True),
        ("0.5", "\\frac12", True),
        ("0.333", "\\frac{1}{3}", False),
        ("\\frac{5}{4}", "1\\frac{1}{4}", True),
        ("(x+1)^2", "x^2+2x+1", True),
        ("(x-1)^2", "x^2+2x+1", False),
        ("2\\sqrt{3}", "\\sqrt{12}", True),
        ("[0,1]", "(0,1)", False),
        ("(0,1]", "(0,1)", False),
        ("(1,2]\\cup[0,1)", "[0,1)\\cup(1,2]", True),
        ("(2,1)", "(1,2)", False),
        ("2, 1", "1,2", True),
        ("1, 3", "1,2", False),
        ("-3, 3", "\\pm 3", True),
        ("\\begin{bmatrix}1\\\\2\\end{bmatrix}", "\\begin{pmatrix}1\\\\2\\end{pmatrix}", True),
        ("\\begin{pmatrix}1\\\\3\\end{pmatrix}", "\\begin{pmatrix}1\\\\2\\end{pmatrix}", False),
        ("3+2x=y", "y=2x+3", True),
        ("y=3x", "y=2x", False),
        ("1+", "3", None),
        ("\\frac{}{}", "7", None),
    ],
)
@pytest.mark.smoke
def test_near_misses(answer, target, correct):
    graded = grade_symbolic(f"1 + 1 = 2, hence $\\boxed{{{answer}}}$ as 4 < 7.", target, seconds=60)
    assert (graded.correct, bool(graded.reason)) == (correct, correct is None), graded
    assert graded.answer == answer


@pytest.mark.smoke
def test_without_box_and_marker():
    assert grade_symbolic("We get $x^2+1$", "1+x^2", seconds=60).correct is True
    assert grade_symbolic("We get $x^2-1$", "1+x^2", seconds=60).correct is False
    nothing = grade_symbolic("I give up", "5", seconds=60)
    assert nothing.correct is None and nothing.reason == "no formula is stated"


def test_an_empty_target_is_a_mistake():
    with pytest.raises(UserError, match="a target is empty"):
        grade_symbolic("\\boxed{5}", " ")


@pytest.mark.smoke
def test_a_hanging_answer_is_given_up():
    """The limit holds, the process is another one afterwards, and the next answer is graded."""
    assert grade_symbolic("\\boxed{x+1}", "1+x", seconds=60).correct is True
    before, began = WORKER.pid, time.monotonic()
    graded = grade_symbolic(f"\\boxed{{{HANGS}}}", "3", seconds=1)
    assert time.monotonic() - began < 10
    assert graded.correct is None and graded.reason == "no verdict within 1 s" and graded.answer == HANGS
    assert not alive(before)
    assert grade_symbolic("\\boxed{x+2}", "2+x", seconds=60).correct is True
    assert WORKER.pid != before


@pytest.mark.smoke
def test_a_crash_is_no_verdict():
    worker = Worker()
    question = {"target": "2+x", "answer": "x+2"}
    assert worker.ask(question, 60)["correct"] is True
    first = worker.pid
    os.kill(first, 9)
    while alive(first):
        time.sleep(0.01)
    assert worker.ask(question, 60)["correct"] is True, "started anew"
    killer = threading.Timer(0.5, lambda: os.kill(worker.pid, 9))
    killer.start()
    verdict = worker.ask({"target": "3", "answer": HANGS}, 60)
    assert verdict["correct"] is None and verdict["reason"] == "the checking process ended with -9"
    assert worker.ask(question, 60)["correct"] is True
    last = worker.pid
    worker.close()
    worker.close()
    assert worker.pid is None and not alive(last)


@pytest.mark.smoke
def test_threads_get_their_own_verdicts():
    """Off the main thread, where the library's own limits fail; a hanging answer among them costs nobody a verdict."""
    jobs = [(f"\\boxed{{x+{i}}}", f"{i + i % 2}+x", i % 2 == 0) for i in range(1, 25)]
    with ThreadPoolExecutor(8) as pool:
        slow = pool.submit(grade_symbolic, f"\\boxed{{{HANGS}}}", "3", 1)
        found = list(pool.map(lambda j: grade_symbolic(j[0], j[1], seconds=60).correct, jobs))
    assert slow.result().correct is None
    assert found == [right for _, _, right in jobs]


@pytest.mark.smoke
def test_the_worker_is_light_and_ends_with_its_parent():
    """No torch in the parent or the worker; a parent that is killed leaves no process behind."""
    code = (
        "import sys, time; from prefixlab.evals.symbolic import WORKER, grade_symbolic\n"
        "assert grade_symbolic(r'\\boxed{x+1}', '1+x', 60).correct\n"
        "assert not {'torch', 'sympy', 'math_verify', 'inspect_ai'} & set(sys.modules)\n"
        "print(WORKER.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    worker = int(parent.stdout.readline())
    maps = f"/proc/{worker}/maps"
    if os.path.exists(maps):
        with open(maps) as file:
            assert "torch" not in file.read()
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 20
    while alive(worker) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(worker)


def alive(pid):
    """Whether a process runs; one that ended and waits for its parent does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
