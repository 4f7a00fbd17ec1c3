r"""Symbolic answers, as in MATH: the last \boxed{} of a completion against a target in LaTeX, by math-verify.

math-verify (github.com/huggingface/Math-Verify) can hang inside sympy and guards itself with signals, which work on the
main thread only. So it runs without its guards in a process of its own, started when first needed and killed by the
parent when an answer takes too long; that answer is not parseable, with a reason, and never wrong in silence. The
process is this module run as a program: it imports math-verify and nothing of torch.

    grade_symbolic(r"Hence $x = \boxed{\frac12}$.", "0.5")
"""

import atexit
import contextlib
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import Any

from prefixlab.errors import UserError
from prefixlab.evals.numeric import Graded, box_end, number, same_number

START_SECONDS = 120.0
"""For starting the worker, which is no part of an answer's time."""
MAX_ANSWER = 1_000
"""Characters; a longer "answer" is an argument, and takes the parser minutes."""
TAIL = 2_000
"""Characters at the end of a completion without box and marker in which math-verify looks for a formula."""
MEMORY = 4 << 30
"""Bytes of address space of the worker: a power tower ends in an error instead of in swapping."""

_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_MARKER = re.compile(r"\banswer\s*(?:\b(?:is|equals)\b|:)|####", re.IGNORECASE)
_WRAPPED = re.compile(r"\\(?:text(?:bf|it|rm)?|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")
_LAYOUT = re.compile(r"\\(?:left|right)(?![a-zA-Z])|\\[!,;: ]|[\s~$]+")
_CHOICE = re.compile(r"\(?([A-Z])\)?(?:[.:)].*)?", re.DOTALL)
_BASED = re.compile(r"([0-9A-Z]+)_\{?(\d+)\}?")
_BRACKETED = re.compile(r"(\\\{|\().*(?:\\\}|\))", re.DOTALL)


def stated_answer(text: str) -> tuple[str, str]:
    r"""The answer a completion states, in LaTeX, and a reason where there is none.

    The last \boxed{} counts, else the line behind the last "answer is", "answer:" or "####". A last box that never
    closes was cut off, and states nothing. Both texts are empty where neither a box nor a marker was found.
    """
    boxes = list(_BOX.finditer(text))
    if boxes:
        start = boxes[-1].end()
        end = box_end(text, start)
        if end is None:
            return "", "the last box is not closed"
        answer = text[start:end].strip()
        return answer, "" if answer else "the last box is empty"
    markers = list(_MARKER.finditer(text))
    if not markers:
        return "", ""
    line = text[markers[-1].end() :].lstrip(" \t:*\n").split("\n", 1)[0].replace("**", "")
    answer = re.split(r"[.;!?](?:\s|$)", line, maxsplit=1)[0].strip()
    for left, right in (("$", "$"), ("\\(", "\\)"), ("\\[", "\\]")):
        if answer.startswith(left) and right in answer[len(left) :]:
            answer = answer[len(left) :].split(right, 1)[0]
    return answer, "" if answer else "nothing stands behind the last marker"


def _bare(latex: str) -> str:
    """LaTeX without layout, so that answers that differ in nothing else are equal as texts."""
    text = latex.strip()
    while (opened := _WRAPPED.sub(r"\1", text)) != text:
        text = opened
    text = _LAYOUT.sub("", text).replace("dfrac", "frac").replace("tfrac", "frac")
    return text.removesuffix(".")


def _by_form(answer: str, target: str) -> bool | None:
    """What the form of two answers decides without algebra; None if it decides nothing.

    math-verify drops the base of 52_8, lets the point (1,2) pass for the set {1,2}, and reads "(C) 12" as a product.
    """
    mine, other = _bare(answer), _bare(target)
    if mine == other:
        return True
    if re.fullmatch(r"\(?[A-Z]\)?", other) and (choice := _CHOICE.fullmatch(mine)):
        return choice[1] == other.strip("()")
    if (a := _BASED.fullmatch(mine)) and (b := _BASED.fullmatch(other)):
        return a.groups() == b.groups()
    if (m := _BRACKETED.fullmatch(mine)) and (o := _BRACKETED.fullmatch(other)) and m[1] != o[1]:
        return False
    if number(mine) and number(other):
        return same_number(mine, other) or None
    return None


class _Late(Exception):
    """The worker did not answer in time."""


class _Gone(Exception):
    """The worker ended."""


class Worker:
    """The process that runs math-verify: one question at a time, from any thread; killed and started anew at need."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None

    @property
    def pid(self) -> int | None:
        """The worker's process, None while there is none."""
        return self._process.pid if self._process else None

    def ask(self, question: dict[str, Any], seconds: float) -> dict[str, Any]:
        """One answer of the worker: keys `correct`, `answer`, `reason`.

        A time-out and a crash are answers too: `correct` is None, and `reason` says which.

        Raises:
            UserError: The worker cannot start.
        """
        with self._lock:
            try:
                if self._process is None or self._process.poll() is not None:
                    self._start()
                return self._exchange({**question, "seconds": seconds}, seconds)
            except _Late:
                self._stop()
                return {"correct": None, "answer": "", "reason": f"no verdict within {seconds:g} s"}
            except _Gone:
                code = self._stop(patience=1.0)
                return {"correct": None, "answer": "", "reason": f"the checking process ended with {code}"}
            except BaseException:
                # An interrupted exchange leaves a reply behind that the next question would take for its own.
                self._stop()
                raise

    def close(self) -> None:
        """End the process; a later question starts another."""
        with self._lock:
            self._stop()

    def _start(self) -> None:
        self._stop()
        ours, theirs = socket.socketpair()
        self._channel = ours
        with theirs:
            self._process = subprocess.Popen(
                # -P: no module in the user's folder may take the place of one of the library's.
                [sys.executable, "-P", "-m", "prefixlab.evals.symbolic"],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                # sympy orders its symbols by hash; the same answer must get the same verdict in every run.
                env={**os.environ, "PYTHONHASHSEED": "0"},
            )
        try:
            failed = self._receive(START_SECONDS)["reason"]
        except (_Late, _Gone) as error:
            raise UserError("the process for symbolic answers does not start; is math-verify installed?") from error
        if failed:
            raise UserError(f"symbolic answers need math-verify (pip install math-verify==0.9.0): {failed}")

    def _stop(self, patience: float = 0.0) -> int | None:
        """End the process, at once or when it had some seconds to end by itself; its exit code."""
        process, channel, self._process, self._channel = self._process, self._channel, None, None
        if channel:
            channel.close()
        if process is None:
            return None
        try:
            return process.wait(patience)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()

    def _exchange(self, question: dict[str, Any], seconds: float) -> dict[str, Any]:
        assert self._channel
        self._channel.settimeout(seconds)
        try:
            self._channel.sendall(json.dumps(question).encode() + b"\n")
        except TimeoutError as error:
            raise _Late from error
        except OSError as error:
            raise _Gone from error
        return self._receive(seconds)

    def _receive(self, seconds: float) -> dict[str, Any]:
        assert self._channel
        deadline, received = time.monotonic() + seconds, b""
        while not received.endswith(b"\n"):
            self._channel.settimeout(max(deadline - time.monotonic(), 1e-3))
            try:
                piece = self._channel.recv(1 << 16)
            except TimeoutError as error:
                raise _Late from error
            except OSError as error:
                raise _Gone from error
            if not piece:
                raise _Gone
            received += piece
        return dict(json.loads(received))


WORKER = Worker()
"""The one that grade_symbolic asks."""
atexit.register(WORKER.close)


def grade_symbolic(text: str | None, target: str, seconds: float = 5.0) -> Graded:
    r"""Grade a completion by the answer it states; safe to call from any thread.

    Args:
        text: The answer part of a completion.
        target: The right answer in bare LaTeX, without $ or \boxed{}, as in the column `answer` of MATH-500.
        seconds: Wall time for one answer; beyond it the answer counts as not parseable.

    Raises:
        UserError: The target is empty, or math-verify cannot run.
    """
    if not target.strip():
        raise UserError("a target is empty; every problem of a symbolic suite needs an answer in LaTeX")
    answer, reason = stated_answer(text or "")
    if reason or not (text or "").strip():
        return Graded(None, "", reason or "the text is empty")
    if len(answer) > MAX_ANSWER:
        return Graded(None, answer[:MAX_ANSWER], f"the answer has more than {MAX_ANSWER:,} characters")
    if answer:
        decided = _by_form(answer, target)
        if decided is not None:
            return Graded(decided, answer)
        found = WORKER.ask({"target": target, "answer": answer}, seconds)
        return Graded(found["correct"], answer, found["reason"])
    found = WORKER.ask({"target": target, "text": (text or "")[-TAIL:]}, seconds)
    return Graded(found["correct"], found["answer"], found["reason"])


def _verdict(question: dict[str, Any], library: Any) -> dict[str, Any]:
    """Compare in the worker. An error of the library is a reason, not a wrong answer."""

    def read(text: str) -> list[Any]:
        return list(library.parse(text, parsing_timeout=None))

    target = read(f"\\boxed{{{question['target'].strip().strip('$')}}}")
    answer = read(f"\\boxed{{{question['answer']}}}" if "answer" in question else question["text"])
    # Each holds what was parsed, if it could be, and then the text that it was parsed from.
    shown = next((a for a in answer if isinstance(a, str)), "")
    failed = "" if answer else "no formula is stated"
    if all(isinstance(a, str) for a in answer) and not all(isinstance(t, str) for t in target):
        failed = failed or "the answer cannot be read as mathematics"
    for ours in target:
        for theirs in answer:
            try:
                if library.verify(ours, theirs, timeout_seconds=None, raise_on_error=True):
                    return {"correct": True, "answer": shown, "reason": ""}
            except Exception as error:
                failed = f"the comparison failed: {type(error).__name__}"
    return {"correct": None if failed else False, "answer": shown, "reason": failed}


def serve() -> None:
    """The worker: read questions from the socket on standard input, write verdicts to it, end when the parent does."""
    channel = socket.socket(fileno=os.dup(0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)

    def reply(verdict: dict[str, Any]) -> None:
        channel.sendall(json.dumps(verdict).encode() + b"\n")

    try:
        import logging  # noqa: PLC0415  (only the worker needs it)

        # A second of imports, of no use to the parent; it ships no types.
        import math_verify  # noqa: PLC0415
    except ImportError as error:
        reply({"reason": str(error)})
        return
    logging.disable(logging.CRITICAL)
    with contextlib.suppress(ValueError, OSError):  # where a lower limit is set, or the system knows none
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    _verdict({"target": "\\frac{1}{2}", "answer": "x = 0.5"}, math_verify)  # the first one builds tables: a second
    reply({"reason": ""})
    for line in channel.makefile("rb"):
        question = json.loads(line)
        # Should the parent be gone, nobody kills a hanging comparison but this alarm.
        signal.alarm(int(question["seconds"]) + 10)
        try:
            verdict = _verdict(question, math_verify)
        except Exception as error:
            verdict = {"correct": None, "answer": "", "reason": f"the comparison failed: {type(error).__name__}"}
        signal.alarm(0)
        reply(verdict)


if __name__ == "__main__":
    serve()
