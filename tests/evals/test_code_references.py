"""The references of HumanEval and MBPP against their own tests, in the sandbox, and mutants of them that must fail."""

import ast
import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from conftest import SHARED
from prefixlab.evals.programs import extract_code, humaneval_program, mbpp_entry_point, mbpp_program
from prefixlab.evals.sandbox import Limits, run_program

pytestmark = pytest.mark.filterwarnings("ignore:invalid escape sequence")
# One reference, MBPP 123, needs some seconds on an idle machine: the answers are tested here, not the clock.
LIMITS = Limits(seconds=60)
SIZES = {"humaneval": 164, "mbpp": 974, "sanitized": 427}
FILES = {"humaneval": "humaneval/HumanEval.jsonl", "mbpp": "mbpp/mbpp.jsonl", "sanitized": "mbpp/sanitized-mbpp.json"}


def rows(name):
    path = SHARED / FILES[name]
    if not path.is_file():
        pytest.skip("the shared data sets are not there")
    text = path.read_text(encoding="utf-8")
    return json.loads(text) if name == "sanitized" else [json.loads(line) for line in text.split("\n") if line]


def reference(name, row):
    """The whole solution, and the name that its tests call."""
    if name == "humaneval":
        return row["prompt"] + row["canonical_solution"], row["entry_point"]
    return row["code"].replace("\r\n", "\n").replace("\r", "\n"), mbpp_entry_point(row["test_list"])


def program(name, row, code):
    if name == "humaneval":
        return humaneval_program(row["prompt"], code, row["test"], row["entry_point"])
    return mbpp_program(code, row["test_list"], row.get("test_setup_code", ""), row.get("test_imports", []))


def failures(name, chosen, code_of):
    """Task ids and details of the programs that did not pass, two at a time."""
    with ThreadPoolExecutor(2) as pool:
        ran = list(pool.map(lambda row: run_program(program(name, row, code_of(row)), LIMITS), chosen))
    assert not [r for r in ran if r.status == "error"]
    return {row["task_id"]: r.detail for row, r in zip(chosen, ran, strict=True) if r.status != "passed"}


def sample(name):
    found = rows(name)
    return found[:: len(found) // 10][:10]


class Mutant(ast.NodeTransformer):
    """Replaces the body of the entry point; any correct test notices each of these."""

    def __init__(self, name, body):
        self.name, self.body = name, ast.parse(body).body

    def visit_FunctionDef(self, node):
        if node.name == self.name:
            node.body = self.body
        return node


# An object that equals nothing, not even itself, has no truth value, no length and no items.
NOTHING = (
    "class Nothing:\n    def __eq__(self, other): return False\n    def __ne__(self, other): return True\n"
    "    __hash__ = None\n    def __bool__(self): raise TypeError('no truth value')\nreturn Nothing()"
)
MUTANTS = {
    "raises": "raise ValueError('mutant')",
    "exits": "import sys\nsys.exit(0)",
    "leaves": "import os\nos._exit(0)",
    "nothing": NOTHING,
    "recurses": "return (lambda f: f(f))(lambda f: f(f))",
}


def mutant(code, name, body):
    tree = Mutant(name, body).visit(ast.parse(code))
    return ast.unparse(ast.fix_missing_locations(tree))


@pytest.mark.smoke
@pytest.mark.parametrize("name", FILES)
def test_references_pass(name):
    assert failures(name, sample(name), lambda row: reference(name, row)[0]) == {}


@pytest.mark.smoke
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", MUTANTS)
def test_mutants_fail(name, kind):
    chosen = sample(name)[:4]
    failed = failures(name, chosen, lambda row: mutant(*reference(name, row), MUTANTS[kind]))
    assert len(failed) == len(chosen)


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_every_reference_passes(name):
    found = rows(name)
    assert len(found) == SIZES[name]
    assert failures(name, found, lambda row: reference(name, row)[0]) == {}


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_every_mutant_fails(name):
    """One mutation a task, in turn."""
    found = rows(name)
    bodies = list(MUTANTS.values())
    kinds = {row["task_id"]: bodies[number % len(bodies)] for number, row in enumerate(found)}
    failed = failures(name, found, lambda row: mutant(*reference(name, row), kinds[row["task_id"]]))
    assert [row["task_id"] for row in found if row["task_id"] not in failed] == []


@pytest.mark.slow
def test_a_body_alone_passes():
    """HumanEval's reference is a body; so may a completion be."""
    assert failures("humaneval", rows("humaneval"), lambda row: row["canonical_solution"]) == {}


@pytest.mark.smoke
@pytest.mark.parametrize("name", FILES)
def test_code_is_found_in_a_chat_answer(name):
    """The reference comes out as it went in, from a fenced answer, a bare one and one with words around it."""
    for row in rows(name):
        code, entry_point = reference(name, row)
        code = code.strip("\n")
        for answer in (f"Sure, here it is:\n\n```python\n{code}\n```\nIt works.", f"```\n{code}\n```", code):
            assert extract_code(answer, entry_point) == code, row["task_id"]
