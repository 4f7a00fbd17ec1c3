"""The page in a real browser: no error, no request, charts drawn, controls at work, hostile text inert."""

import re
import shutil
import subprocess

import pytest
from test_page import HOSTILE, data

from prefixlab.report.page import build_report

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
    "--virtual-time-budget=10000",
]

pytestmark = [pytest.mark.slow, pytest.mark.skipif(BROWSER is None, reason="no Chromium: install Debian's chromium")]


def dump(page, tmp_path):
    """The document after its scripts have run, and what the console said."""
    command = [BROWSER, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=120)
    return done.stdout, [x for x in done.stderr.splitlines() if "CONSOLE" in x]


@pytest.mark.parametrize("text", ["I can't help with that.", HOSTILE])
def test_page_runs_in_a_browser(tmp_path, text):
    build_report(data(tmp_path, text), tmp_path / "report")
    dom, console = dump(tmp_path / "report" / "index.html", tmp_path)
    assert console == []
    assert "<title>prefixlab: tiny</title>" in dom
    assert len(re.findall(r'<div id="curve-[^>]*>\s*<svg', dom)) == 1 or dom.count('class="marks"') == 1
    assert dom.count('class="pair"') == 10 and "10 of 10 prompts" in dom
    assert "owned" not in re.search(r"<title>(.*?)</title>", dom)[1]
