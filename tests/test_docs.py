"""What README and docs tell people to type works, and what they name exists."""

import re
import subprocess

import pytest

from conftest import ROOT

TEXTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def commands(text):
    for block in re.findall(r"```(?:bash|sh|console)\n(.*?)```", text, re.DOTALL):
        yield from (line.strip().removeprefix("$ ") for line in block.splitlines() if line.strip() and line[0] != "#")


def test_readme_shows_the_two_commands():
    found = list(commands((ROOT / "README.md").read_text()))
    assert any(c.startswith("make quickstart") for c in found) and any(c.startswith("make test") for c in found)


@pytest.mark.parametrize("path", TEXTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_commands_are_known(call, path):
    """Every prefixlab command parses (asked for its help); every make target exists."""
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for command in commands(path.read_text()):
        words = command.split()
        if words[0] == "make":
            assert words[1] in targets, command
        if words[0] == "prefixlab":
            flags = {w.split("=")[0] for w in words if w.startswith("--")}
            text = call(words[1], "--help").stdout
            assert text and all(f in text for f in flags), command


@pytest.mark.parametrize("path", TEXTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text()):
        if not target.startswith("http"):
            assert (path.parent / target).exists(), target


def test_studies_are_valid():
    from prefixlab.study_file import load_study

    for path in (ROOT / "studies").glob("*.yaml"):
        assert load_study(path).name == path.stem


def test_version_is_in_the_changelog(call):
    from prefixlab import __version__

    assert f"[{__version__}]" in (ROOT / "CHANGELOG.md").read_text()
    assert call("version").stdout.strip() == f"prefixlab {__version__}"


def test_nothing_tracked_is_large_or_tied_to_one_machine():
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    for name in filter(None, files):
        path = ROOT / name
        assert path.stat().st_size < 1_000_000, name
