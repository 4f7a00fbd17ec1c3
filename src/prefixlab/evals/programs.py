"""From an answer in a chat to a program that tests itself, for HumanEval and MBPP.

HumanEval (Chen et al., arXiv 2107.03374) gives a signature with a docstring, and a test that defines `check`; MBPP
(Austin et al., arXiv 2108.07732) gives a task in words, and asserts. A chat model answers either with prose around
fenced blocks. `extract_code` finds the code, the two builders join it with the tests, and sandbox.py runs the result.

A demonstration behind the solution (`print(f(input()))`, the model's own asserts) is left out, because what is measured
is the function. Nothing but the indentation of a bare body is repaired: code that does not parse, or has another name,
fails.
"""

import ast
import builtins
import re
import textwrap
import warnings
from collections.abc import Iterator, Sequence

_NAME = "<solution>"
# What the parser thinks of a model's escape sequences is no concern of the user's.
warnings.filterwarnings("ignore", module=_NAME)
_TRIES = 30
"""Places where unfenced code may begin, and ends that are tried for each; more are needed by nonsense alone."""
_FENCE = re.compile(r"(?P<indent>[ \t]*)(?P<mark>`{3,}|~{3,})[ \t]*(?P<language>[\w+#.-]*)")
_PYTHON = {"", "python", "python3", "py", "py3"}
_CODE_LINE = re.compile(
    r"def\s+\w+\s*\(|async\s+def\s|class\s+\w+\s*[:(]|import\s+\w|from\s+[\w.]+\s+import\b|@\w|[A-Za-z_]\w*\s*=[^=]"
)
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
_BINDINGS = (*_DEFINITIONS, ast.Import, ast.ImportFrom)


def extract_code(answer: str, entry_point: str | None) -> str | None:
    """The code of an answer, its lines ended by line feeds; None where there is none.

    Of several fenced blocks it is the last one that defines the entry point, else the last one that is code. A block
    that was cut off runs to the end. Without a fence it is what parses from the first line that looks like code. A bare
    function body keeps its indentation.

    Args:
        answer: What the model said, without its reasoning.
        entry_point: The name that the tests call; None where it is not known.
    """
    text = answer.replace("\r\n", "\n").replace("\r", "\n")
    blocks, before = _blocks(text)
    if entry_point:
        # The opening fence may have been prefilled: then the code stands before the first fence of the answer.
        opened = _unfenced(before, entry_point) if blocks else None
        named = [block for block in (opened, *blocks) if block and _defines(block, entry_point)]
        if named:
            return named[-1]
    code = [block for block in blocks if _runs(block) or any(map(_CODE_LINE.match, block.split("\n")))]
    return code[-1] if code else _unfenced(before, entry_point)


def humaneval_program(prompt: str, code: str, test: str, entry_point: str) -> str:
    """The program that runs HumanEval's check on a solution.

    Args:
        prompt: Imports, helper functions, the signature and the docstring; all but the last two are kept.
        code: A whole function, or a body that continues the prompt.
        test: Defines `check(candidate)`.
        entry_point: The function's name.
    """
    prompt, code = (text.replace("\r\n", "\n") for text in (prompt, code))
    if _defines(code, entry_point):
        head = re.search(rf"^(?:async[ \t]+)?def[ \t]+{re.escape(entry_point)}\b", prompt, re.MULTILINE)
        solution = f"{prompt[: head.start()] if head else ''}{_without_demo(code, entry_point)}"
    else:
        solution = _without_demo(_continued(prompt, code, entry_point), entry_point)
    return _tested(solution, [test, f"check({entry_point})"])


def mbpp_program(code: str, tests: Sequence[str], setup: str = "", imports: Sequence[str] = ()) -> str:
    """The program that runs MBPP's asserts on a solution.

    Args:
        code: The solution.
        tests: One assert each.
        setup: Code that the asserts need; it may use the solution's classes.
        imports: Import statements that the asserts need (the sanitized set's `test_imports`).
    """
    solution = _without_demo(code.replace("\r\n", "\n"), mbpp_entry_point(tests))
    return _tested(solution, [*imports, setup.replace("\r\n", "\n"), *tests])


def mbpp_entry_point(tests: Sequence[str]) -> str | None:
    """The outermost function that every assert calls, a builtin only where there is no other; None if there is none."""
    common: list[str] | None = None
    for test in tests:
        calls = [node.func for node in ast.walk(_parse(test) or ast.Module([], [])) if isinstance(node, ast.Call)]
        names = [func for func in calls if isinstance(func, ast.Name)]
        called = [func.id for func in sorted(names, key=lambda func: (func.lineno, func.col_offset))]
        common = called if common is None else [name for name in common if name in called]
    # One task asks for a function called like a builtin, and many asserts wrap the call in one.
    return min(common, key=lambda name: hasattr(builtins, name)) if common else None


def _tested(solution: str, tests: Sequence[str]) -> str:
    """A solution that does not parse stands alone, so that no open string in it can swallow the tests."""
    if _parse(solution) is None:
        return solution
    return "\n".join([solution, *tests]) + "\n"


def _parse(code: str) -> ast.Module | None:
    try:
        return ast.parse(code, _NAME)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _blocks(text: str) -> tuple[list[str], str]:
    """Fenced blocks in Python or in no language, without the fence's indentation; and the text before the first."""
    lines = text.split("\n")
    blocks: list[str] = []
    first: int | None = None
    block: list[str] | None = None
    indent = mark = ""
    python = False
    for number, line in enumerate(lines):
        fence = _FENCE.match(line)
        if block is None:
            if fence:
                first = number if first is None else first
                block, indent, mark = [], fence["indent"], fence["mark"]
                python = fence["language"].lower() in _PYTHON
        elif fence and fence["mark"].startswith(mark):
            # Text may follow a closing fence in its line; the name of a language opens the next block.
            blocks += ["\n".join(block)] if python else []
            python = bool(fence["language"]) and fence["language"].lower() in _PYTHON
            block = [] if python else None
        else:
            block.append(line.removeprefix(indent))
    if block is not None and python:
        blocks.append("\n".join(block))
    return blocks, "\n".join(lines[:first])


def _defines(code: str, name: str) -> bool:
    """Whether a module binds the name at its top level; by the look of its lines where it does not parse."""
    tree = _parse(code)
    if tree is None:
        return bool(re.search(rf"^(?:async[ \t]+)?def[ \t]+{re.escape(name)}\b", code, re.MULTILINE))
    for node in tree.body:
        if isinstance(node, _DEFINITIONS) and node.name == name:
            return True
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
            return True
    return False


def _runs(text: str) -> bool:
    """Whether it parses as a module or as a function's body, and does something: a word or a number alone does not."""
    body = textwrap.indent(textwrap.dedent(text), "    ")
    for head, code in (("", text), ("def _():\n", body), ("def _():\n    ", text.lstrip())):
        tree = _parse(head + code)
        if tree:
            nodes = tree.body[0].body if head and isinstance(tree.body[0], ast.FunctionDef) else tree.body
            return any(not isinstance(node, ast.Expr) or isinstance(node.value, ast.Call) for node in nodes)
    return False


def _unfenced(text: str, entry_point: str | None) -> str | None:
    """Code without a fence: all of it, or the part that parses from a line that looks like code."""
    whole = text.strip("\n")
    if _runs(whole):
        return whole
    lines = whole.split("\n")
    starts = [number for number, line in enumerate(lines) if _CODE_LINE.match(line)]
    if not starts:
        return None
    parts = [_longest(lines[start:]) for start in starts[:_TRIES]]
    rest = "\n".join(lines[starts[0] :])
    if entry_point:
        for code in (*parts, rest):
            if _defines(code, entry_point):
                return code
    # The text was cut off, or the name is another one.
    return next(filter(_runs, parts), rest)


def _longest(lines: list[str]) -> str:
    """The longest beginning that parses, found by cutting where the parser stops."""
    end = len(lines)
    for _ in range(_TRIES):
        try:
            ast.parse("\n".join(lines[:end]), _NAME)
        except SyntaxError as error:
            end = min(end - 1, max(0, (error.lineno or 1) - 1))
        except (ValueError, RecursionError, MemoryError):
            return ""
        else:
            return "\n".join(lines[:end]).rstrip()
    return ""


def _continued(prompt: str, code: str, entry_point: str) -> str:
    """The prompt with its function's body; whichever indentation makes the code part of the function."""
    prompt = prompt if prompt.endswith("\n") else prompt + "\n"
    given = _statements(prompt, entry_point)
    for body in (code, textwrap.indent(textwrap.dedent(code), "    "), "    " + code):
        if _statements(prompt + body, entry_point) > given:
            return prompt + body
    return prompt + code


def _statements(code: str, name: str) -> int:
    """How many statements the function has; 0 where the code does not parse or has a return outside a function."""
    tree = _parse(code)
    if tree is None or any(isinstance(node, ast.Return) for node in _outside_functions(tree)):
        return 0
    return max((len(n.body) for n in tree.body if isinstance(n, _DEFINITIONS) and n.name == name), default=0)


def _outside_functions(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            yield child
            yield from _outside_functions(child)


def _without_demo(code: str, entry_point: str | None) -> str:
    """The code without the top-level statements that only show or test the solution.

    These are asserts, and statements other than definitions and imports that print, read input, ask for `__name__`, or
    call the entry point or a function that does one of these. Their lines become empty, so that line numbers stay.
    """
    tree = _parse(code)
    if tree is None:
        return code
    shows = {"print", "input", "__name__"} | ({entry_point} if entry_point else set())
    functions = {n.name: _names(n) for n in tree.body if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))}
    # What the entry point itself calls is no demonstration, even where it prints.
    needed = {entry_point} if entry_point else set()
    while more := {name for caller in needed if caller in functions for name in functions[caller]} - needed:
        needed |= more
    while more := {name for name, used in functions.items() if used & shows} - shows - needed:
        shows |= more
    lines = code.split("\n")
    for node in tree.body:
        if isinstance(node, ast.Assert) or (not isinstance(node, _BINDINGS) and _shows(node, shows)):
            first, last = node.lineno - 1, node.end_lineno or node.lineno
            alone = all(
                other is node or (other.end_lineno or other.lineno) <= first or other.lineno > last
                for other in tree.body
            )
            if alone:
                lines[first:last] = [""] * (last - first)
    return "\n".join(lines)


def _names(node: ast.AST) -> set[str]:
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}


def _shows(node: ast.AST, shows: set[str]) -> bool:
    called = {n.func.id for n in ast.walk(node) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
    return bool(called & shows) or "__name__" in _names(node)
