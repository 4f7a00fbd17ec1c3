r"""Numeric answers: the final number of a worked solution, read and compared exactly.

For GSM8K, SVAMP and AIME, whose targets are plain numbers. A solution states its answer behind a marker ("The answer
is", "Answer:", "A:", "####" as in openai/grade-school-math, \boxed{} as in hendrycks/math); where it has no marker, the
last number counts. Numbers are fractions of integers, so 0.75 is 3/4 and 0.333 is not 1/3.

    grade_number("3 + 4 = 7. The answer is **7**.", "7")
"""

import re
from dataclasses import dataclass
from fractions import Fraction

from prefixlab.errors import UserError


@dataclass(frozen=True)
class Graded:
    """What a grader found in a completion."""

    correct: bool | None
    """None: there was no answer to judge. It is never the same as a wrong one, and is counted."""
    answer: str
    """The answer as it was read; empty where there is none."""
    reason: str = ""
    """Why `correct` is None, or what decided it where that is not plain."""


MAX_DIGITS = 60
"""Longer runs of digits, and powers of ten beyond it, are the noise of a broken completion and no answers."""
_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?![\d,]*\d)|\d+)"
_UNSIGNED = rf"(?:{_DIGITS}(?:\.\d+)?|(?<!\d)\.\d+)"
_NUMBER = re.compile(
    r"(?P<sign>(?<![\w)\]}%])[-+])?[$£€]?(?P<minus>(?<=[$£€])-)?"
    rf"(?:(?P<whole>\d+)\s+(?=\d+/\d))?(?P<top>{_UNSIGNED})"
    rf"(?:[eE](?P<exponent>[-+]?\d+)(?!\w)|\s*(?:\\times|\\cdot|×|\*)\s*10\^\{{?(?P<power>[-+]?\d+)\}}?)?"
    rf"(?:/(?P<bottom>{_UNSIGNED})(?!/))?"
)
_FRACTION = re.compile(r"\\[dt]?frac\s*(?:\{\s*([\d.,]+)\s*\}\s*\{\s*([\d.,]+)\s*\}|(\d)(\d))")
_SIGN = re.compile(r"(?<!\w)(?<!\^)(?<!\^\{)[-+]\Z")
"""A sign of its own at the end: no minus between numbers, none of an exponent."""
_MARKER = re.compile(
    r"\banswer(?: (?:to|for|of) [^.:=\n]{0,60}?)?\s*(?:\b(?:is|equals|(?:would|should|must|will) be)\b|:|=)"
    r"|^#+ *(?:the )?(?:final )?answer *$"
    r"|^[ \t]*(?-i:A):"
    r"|####(?=\W*\d)(?!\s*\d+[.):]\s+[^\W\d])"
    r"|(?P<box>\\(?:boxed|fbox)\s*\{)",
    re.IGNORECASE | re.MULTILINE,
)
_SENTENCE_END = re.compile(r"\n|[.!?;](?=\s|$)")


def box_end(text: str, start: int) -> int | None:
    r"""Where the brace group that began before `start` closes; None if it never does. \{ and \} are no braces."""
    depth, at = 1, start
    while at < len(text):
        if text[at] == "\\":
            at += 1
        elif text[at] in "{}":
            depth += 1 if text[at] == "{" else -1
            if not depth:
                return at
        at += 1
    return None


def _plain(text: str) -> str:
    """The text without bold marks and typesetting inside numbers; LaTeX fractions as 3/4."""
    for old, new in (("**", ""), ("−", "-"), ("{,}", ","), ("\\!", ""), ("\\$", "$"), ("\\%", "%")):
        text = text.replace(old, new)
    text = re.sub(r"(?<=\d)(?:\\,|[\u00a0\u2009\u202f])(?=\d{3}(?!\d))", "", text).replace("\u00a0", " ")
    return _FRACTION.sub(lambda m: f"{_gap(text, m.start())}{m[1] or m[3]}/{m[2] or m[4]}", text)


def _gap(text: str, at: int) -> str:
    """What stands between a LaTeX fraction and the character before it: a sign stays with its number."""
    return "" if _SIGN.search(text, max(0, at - 1), at) else " "


def _value(found: re.Match[str]) -> Fraction | None:
    """The value of a match of _NUMBER, None if it is no finite number of sensible size."""
    power = int((found["exponent"] or found["power"] or "0")[: MAX_DIGITS + 1])
    if len(found.group()) > MAX_DIGITS or abs(power) > MAX_DIGITS:
        return None
    size = Fraction(found["top"].replace(",", "")) * Fraction(10) ** power
    if found["bottom"]:
        bottom = Fraction(found["bottom"].replace(",", ""))
        if not bottom:
            return None
        size /= bottom
    size += int(found["whole"] or 0)
    return -size if "-" in (found["sign"], found["minus"]) else size


def _canonical(value: Fraction) -> str:
    """Digits and a point where the decimal ends, else p/q in lowest terms: one text for one number."""
    rest, places = value.denominator, 0
    for prime in (2, 5):
        count = 0
        while rest % prime == 0:
            rest, count = rest // prime, count + 1
        places = max(places, count)
    if rest != 1:
        return f"{value.numerator}/{value.denominator}"
    scaled = abs(value.numerator) * 10**places // value.denominator
    digits = str(scaled).rjust(places + 1, "0")
    text = f"{digits[:-places]}.{digits[-places:]}" if places else digits
    return f"-{text}" if value < 0 else text


def number(text: str | None) -> str | None:
    """A text that is one number, in canonical form; None if it is anything else.

    Currency and percent signs, a plus, thousands separators, trailing zeros and a full stop are no part of it.
    """
    found = _NUMBER.fullmatch(_plain(text or "").strip().rstrip(".").removesuffix("%").strip("$ "))
    value = _value(found) if found else None
    return None if value is None else _canonical(value)


def same_number(a: str, b: str) -> bool:
    """Whether two texts are the same number, exactly. Texts that are no numbers are not."""
    first = number(a)
    return first is not None and first == number(b)


def _read(found: re.Match[str] | None) -> str | None:
    value = _value(found) if found else None
    return None if value is None else _canonical(value)


def _stated(sentence: str) -> str | None:
    """The number a statement gives: the first one behind its last "=", else its first."""
    return _read(_NUMBER.search(sentence.rsplit("=", 1)[-1]) or _NUMBER.search(sentence))


def final_number(text: str | None) -> str | None:
    r"""The final number of a worked solution in canonical form, None if it states none.

    The last marker with a number in its sentence decides; \boxed{} is read to its closing brace. Where no marker has
    one, the last number behind the last marker counts, and without any marker the last number of all. So "Answer:"
    with nothing behind it is no answer, whatever stands before, nor is a last box that never closes: it was cut off.
    A percent sign does not change the number: 60% is 60, as in the labels of GSM8K.
    """
    plain = _plain(text or "")
    markers = list(_MARKER.finditer(plain))
    for marker in reversed(markers):
        if marker["box"]:
            end = box_end(plain, marker.end())
            if end is None:
                return None
            sentence = plain[marker.end() : end]
        else:
            behind = plain[marker.end() :].lstrip(" \t:*\n")
            sentence = behind[: stop.start()] if (stop := _SENTENCE_END.search(behind)) else behind
        stated = _stated(sentence)
        if stated is not None:
            return stated
    numbers = list(_NUMBER.finditer(plain, markers[-1].end() if markers else 0))
    return _read(numbers[-1]) if numbers else None


def grade_number(text: str | None, target: str) -> Graded:
    """Grade a completion by its final number.

    Args:
        text: The answer part of a completion.
        target: The number that is right, as number() reads it.

    Raises:
        UserError: The target is no number.
    """
    expected = number(target)
    if expected is None:
        raise UserError(f"target {target!r} is no number; a numeric suite needs targets such as '18' or '3/4'")
    answer = final_number(text)
    if answer is None:
        return Graded(None, "", "no number is stated")
    return Graded(answer == expected, answer)
