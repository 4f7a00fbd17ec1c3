"""From answers to programs: near misses of extraction, and programs that the sandbox then runs."""

import pytest

from prefixlab.evals.programs import extract_code, humaneval_program, mbpp_entry_point, mbpp_program
from prefixlab.evals.sandbox import run_program

ADD = "def add(a, b):\n    return a + b"
SUB = "def sub(a, b):\n    return a - b"

ANSWERS = {
    "python": (f"```python\n{ADD}\n```", ADD),
    "py": (f"```py\n{ADD}\n```", ADD),
    "Python 3": (f"```Python3\n{ADD}\n```", ADD),
    "no language": (f"```\n{ADD}\n```", ADD),
    "tildes": (f"~~~python\n{ADD}\n~~~", ADD),
    "long fence": (f"````python\n{ADD}\n````", ADD),
    "words around": (f"Sure! Here it is:\n\n```python\n{ADD}\n```\n\nIt adds **two** numbers: `add(1, 2)`.", ADD),
    "words behind the fence": (f"```python\n{ADD}\n```This adds.", ADD),
    "words in the line of the fence": (f"```python title=add\n{ADD}\n```", ADD),
    "CRLF": (f"```python\n{ADD}\n```".replace("\n", "\r\n"), ADD),
    "tabs": ("```python\ndef add(a, b):\n\treturn a + b\n```", "def add(a, b):\n\treturn a + b"),
    "indented, as in a list": ("1. Do it:\n   ```python\n   def add(a, b):\n       return a + b\n   ```", ADD),
    "the last that defines it": (f"```python\n{SUB}\n```\nNo:\n```python\n{ADD}  # 1\n```\n```python\n{ADD}\n```", ADD),
    "example behind it": (f"```python\n{ADD}\n```\nExample:\n```python\nprint(add(1, 2))\n```", ADD),
    "example before it": (f"```python\nprint(add(1, 2))\n```\n```python\n{ADD}\n```", ADD),
    "output behind it": (f"```python\n{ADD}\n```\nOutput:\n```\n3\n```", ADD),
    "shell before it": (f"```bash\npip install numpy\n```\n```python\n{ADD}\n```", ADD),
    "another language": ("```javascript\nfunction add(a, b) { return a + b }\n```", None),
    "cut off": ("Here:\n```python\ndef add(a, b):\n    if a:", "def add(a, b):\n    if a:"),
    "cut off behind the closing fence": (f"```python\n{ADD}\n```\nNow ``", ADD),
    "opened by a prefill": (f"{ADD}\n```\nThis adds.", ADD),
    "prefill, then an example": (f"{ADD}\n```\nExample:\n```python\nprint(add(1, 2))\n```", ADD),
    "no fence": (ADD, ADD),
    "no fence, words before": (f"Here is the function:\n\n{ADD}", ADD),
    "no fence, a space first": (f" Here it is:\n{ADD}", ADD),
    "no fence, words behind": (f"{ADD}\n\nThis doesn't need (much.", ADD),
    "no fence, words between": (f"import math\nThen we define it.\n{ADD}\nDone: it adds.", ADD),
    "no fence, cut off": ("I write:\ndef add(a, b):\n    return (a +", "def add(a, b):\n    return (a +"),
    "wrong name": (f"```python\n{SUB}\n```", SUB),
    "wrong name, no fence": (f"Try this.\n{SUB}", SUB),
    "wrong name twice": (f"```python\n{SUB}\n```\n```python\nx = 1\n```", "x = 1"),
    "class": (
        "```python\nclass Solution:\n    def add(self, a, b):\n        return a + b\n```",
        "class Solution:\n    def add(self, a, b):\n        return a + b",
    ),
    "function before class": (f"```python\n{ADD}\n```\n```python\nclass Solution:\n    def add(self): pass\n```", ADD),
    "lambda": ("```python\nadd = lambda a, b: a + b\n```", "add = lambda a, b: a + b"),
    "async": ("```python\nasync def add(a, b):\n    return a\n```", "async def add(a, b):\n    return a"),
    "body": ("    total = a + b\n    return total", "    total = a + b\n    return total"),
    "body in a fence": ("```python\n    return a + b\n```", "    return a + b"),
    "body without its first indentation": (
        "for x in a:\n        b += x\n    return b",
        "for x in a:\n        b += x\n    return b",
    ),
    "nothing": ("", None),
    "blank": (" \n\n", None),
    "one word": ("Sorry", None),
    "a number": ("42", None),
    "prose": ("I cannot help with that. From what I import, class matters.", None),
    "prose with a colon": ("Answer: it adds.\nDefinition: a sum.", None),
    "empty fence": ("```python\n```", None),
    "fence of prose": ("```\nIt adds two numbers.\n```", None),
    "NUL": ("```python\ndef add(a, b):\n    return '\0'\n```", "def add(a, b):\n    return '\0'"),
}


@pytest.mark.parametrize(("answer", "code"), ANSWERS.values(), ids=ANSWERS)
def test_extract(answer, code):
    assert extract_code(answer, "add") == code


def test_extract_without_a_name():
    assert extract_code(f"```python\n{SUB}\n```\n```python\n{ADD}\n```\n```\n3\n```", None) == ADD
    assert extract_code(f"Look:\n{ADD}", None) == ADD
    assert extract_code("No code here.", None) is None


def test_hostile_answers_end_quickly():
    for answer in ("(" * 100_000, "def f():\n" * 3000, "x = [\n" * 2000, "-" * 50_000 + "1", "`" * 50_000, "a" * 10**6):
        extract_code(answer, "add")


PROMPT = (
    "import math\n\ndef double(x):\n    return 2 * x\n\n\n"
    'def area(r):\n    """ Twice the area of a circle.\n    >>> area(0)\n    0.0\n    """\n'
)
CHECK = "def check(candidate):\n    assert candidate(0) == 0\n    assert abs(candidate(1) - 6.2831853) < 1e-6\n"
WHOLE = "def area(r):\n    return double(math.pi * r * r)\n"

HUMANEVAL = {
    "whole": (WHOLE, True),
    "whole, imports of its own": ("from math import pi\n\n" + WHOLE, True),
    "body": ("    return double(math.pi * r * r)\n", True),
    "body without indentation": ("square = r * r\nreturn double(math.pi * square)", True),
    "body without its first indentation": ("if r:\n        return double(math.pi * r * r)\n    return 0", True),
    "body with a function in it": ("def square(x):\n    return x * x\nreturn double(math.pi * square(r))", True),
    "body with tabs": ("\treturn double(math.pi * r * r)", True),
    "body, one space": (" return double(math.pi * r * r)", True),
    "body, then another function": ("    return helper(r)\n\ndef helper(r):\n    return double(math.pi * r * r)", True),
    "lambda": ("area = lambda r: double(math.pi * r * r)", True),
    "CRLF": (WHOLE.replace("\n", "\r\n"), True),
    "reads input behind it": (WHOLE + "\nr = float(input())\nprint(area(r))", True),
    "reads input in main": (WHOLE + "\ndef main():\n    print(area(float(input())))\n\nmain()", True),
    "main guard": (WHOLE + "\nif __name__ == '__main__':\n    print(area(float(input())))", True),
    "wrong asserts of its own": (WHOLE + "\nassert area(1) == 3", True),
    "wrong test of its own": (WHOLE + "\ndef test_area():\n    assert area(1) == 3\ntest_area()", True),
    "setting that must stay": ("import sys\nsys.setrecursionlimit(5000)\n" + WHOLE, True),
    "table that must stay": ("T = {}\ndef fill():\n    T[1] = 2\nfill()\ndef area(r):\n    return T[1] * math.pi * r * r", True),
    "decorated": ("from functools import cache\n\n@cache\n" + WHOLE, True),
    "wrong name": (WHOLE.replace("area", "surface"), False),
    "class": ("class Solution:\n    def area(self, r):\n        return double(math.pi * r * r)", False),
    "wrong value": ("    return math.pi * r * r", False),
    "nothing": ("", False),
    "pass": ("    pass", False),
    "syntax error": ("def area(r):\n    return (", False),
    "leaves": ("import os\n" + WHOLE + "\nos._exit(0)", False),
    "exits": ("import sys\n" + WHOLE + "\nsys.exit()", False),
    "swallows the test": (WHOLE + '\n"""', False),
    "goes on in the next line": (WHOLE + "\nx = 1 + \\", False),
}  # fmt: skip


@pytest.mark.smoke
@pytest.mark.parametrize(("code", "passes"), HUMANEVAL.values(), ids=HUMANEVAL)
def test_humaneval(code, passes):
    ran = run_program(humaneval_program(PROMPT, code, CHECK, "area"))
    assert (ran.status == "passed") == passes, ran
    assert ran.status != "error"


def test_an_open_string_cannot_swallow_tests_that_would_close_it():
    program = humaneval_program(
        PROMPT, WHOLE + '\n"""', 'def check(c):\n    """Says what it does."""\n    assert c(1) == 2\n', "area"
    )
    assert "assert c(1)" not in program
    with pytest.raises(SyntaxError):
        compile(program, "program", "exec")


NODE = "class Node:\n    def __init__(self, v):\n        self.v = v\n\ndef value(node):\n    return node.v"
MBPP = {
    "plain": ((ADD, ["assert add(1, 2) == 3", "assert add(0, 0) == 0"]), True),
    "wrong": ((SUB, ["assert sub(1, 2) == 3"]), False),
    "second assert fails": ((ADD, ["assert add(1, 2) == 3", "assert add(1, 1) == 3"]), False),
    "wrong name": ((SUB, ["assert add(1, 2) == 3"]), False),
    "set-up needs the solution": ((NODE, ["assert value(root) == 4"], "root = Node(4)"), True),
    "imports of the tests": ((ADD, ["assert math.isclose(add(.1, .2), .3)"], "", ["import math"]), True),
    "CRLF": ((ADD.replace("\n", "\r\n"), ["assert add(1, 2) == 3"], "x = 1\r\n"), True),
    "demonstration that reads": ((ADD + "\nprint(add(int(input()), 2))", ["assert add(1, 2) == 3"]), True),
    "global that must stay": (("N = 5\ndef f(x):\n    return x + N", ["assert f(1) == 6"]), True),
    "two statements in a line": ((ADD + "\nx = 1; print(x)", ["assert add(1, x) == 2"]), True),
    "leaves": ((ADD + "\nraise SystemExit", ["assert add(1, 2) == 4"]), False),
}


@pytest.mark.smoke
@pytest.mark.parametrize(("arguments", "passes"), MBPP.values(), ids=MBPP)
def test_mbpp(arguments, passes):
    ran = run_program(mbpp_program(*arguments))
    assert (ran.status == "passed") == passes, ran


@pytest.mark.parametrize(
    ("tests", "name"),
    [
        (["assert add(1, 2) == 3"], "add"),
        (["assert set(common((1, 2), (2,))) == set((2,))"], "common"),
        (["assert longest([Pair(1, 2)]) == 1", "assert longest([Pair(3, 4), Pair(5, 6)]) == 2"], "longest"),
        (["assert math.isclose(area(2), 12.5, rel_tol=0.1)"], "area"),
        (["assert not is_even(3)", "assert is_even(helper(4)) == True"], "is_even"),
        (["assert sum(10, 15) == 6", "assert sum(100, 150) == 93"], "sum"),
        (["assert f(1)", "assert g(1)"], None),
        (["x = 1"], None),
        (["assert ("], None),
        ([], None),
    ],
)  # fmt: skip
def test_entry_point(tests, name):
    assert mbpp_entry_point(tests) == name
