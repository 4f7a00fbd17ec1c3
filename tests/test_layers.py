"""Imports point down only, and torch stays where it belongs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SRC = Path(__file__).parent.parent / "src" / "prefixlab"
LAYERS = ["nouns", "data", "model", "evals", "analysis", "report", "study", "cli"]
NOUNS = {"errors", "records", "config", "config_serving", "study_file", "__init__"}


def layer(module: str) -> str:
    head = module.split(".")[1] if "." in module else "__init__"
    if head in NOUNS:
        return "nouns"
    return "cli" if head == "__main__" or head.startswith("cli") else head


def imports(path: Path):
    """Modules of ours that a file imports at run time (not under TYPE_CHECKING)."""
    tree = ast.parse(path.read_text())
    hidden = {
        id(n)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.dump(block.test)
        for n in ast.walk(block)
    }
    for node in ast.walk(tree):
        if id(node) in hidden:
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (a.name for a in node.names)


def files():
    return sorted(SRC.rglob("*.py"))


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(SRC)))
def test_imports_point_down(path):
    name = "prefixlab." + ".".join(path.relative_to(SRC).with_suffix("").parts)
    mine = LAYERS.index(layer(name))
    above = [m for m in imports(path) if m.startswith("prefixlab") and LAYERS.index(layer(m)) > mine]
    assert not above


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(SRC)))
def test_only_the_study_layer_knows_run_folders(path):
    if layer("prefixlab." + ".".join(path.relative_to(SRC).with_suffix("").parts)) in ("study", "cli"):
        return
    assert "prefixlab.study" not in set(imports(path))


LIGHT = [
    "prefixlab.report.page",
    "prefixlab.analysis.results",
    "prefixlab.study.run",
    "prefixlab.study.rewrite_launch",
    "prefixlab.cli",
    "prefixlab.data.audit",
    "prefixlab.data.check",
    "prefixlab.data.sources",
]


@pytest.mark.smoke
def test_torch_is_not_loaded():
    """Data, statistics, report and the rerun of a finished study work without the heavy libraries."""
    heavy = ("torch", "transformers", "inspect_ai")
    code = f"import sys, {', '.join(LIGHT)}; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_rule_can_fail():
    assert LAYERS.index(layer("prefixlab.study.run")) > LAYERS.index(layer("prefixlab.data.arms"))
    assert layer("prefixlab.records") == "nouns"
