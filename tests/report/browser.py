"""Pages in a real browser: Debian's Chromium, driven by Playwright."""

import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
needs_browser = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: install it (Debian: apt-get install chromium)"),
]


def serious(page):
    """What axe-core calls serious or critical on a page."""
    found = Axe().run(page).response["violations"]
    return [(v["id"], v["nodes"][0]["html"][:200]) for v in found if v["impact"] in ("serious", "critical")]


@contextmanager
def chromium():
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Opened:
    """A page with what its console said and what it asked for."""

    def __init__(self, browser, file: Path, *, scheme="light", width=1440, height=900):
        self.page = browser.new_page(color_scheme=scheme, viewport={"width": width, "height": height})
        self.said, self.asked = [], []
        self.page.on("console", lambda m: self.said.append(f"{m.type}: {m.text}"))
        self.page.on("pageerror", lambda e: self.said.append(f"error: {e}"))
        self.page.on("request", lambda r: self.asked.append(r.url))
        self.page.set_default_timeout(20_000)
        self.page.goto(file.as_uri())
        self.folder = file.parent

    def scroll(self):
        """From top to bottom with all folded figures open, so that everything that waits to be seen is drawn."""
        self.page.evaluate("document.querySelectorAll('details:has(figure)').forEach(d => { d.open = true; })")
        y = 0
        while y < self.page.evaluate("document.documentElement.scrollHeight"):  # which grows as charts are drawn
            self.page.evaluate(f"window.scrollTo(0, {y})")
            self.page.wait_for_timeout(60)
            y += 600
        self.page.wait_for_function(
            "[...document.querySelectorAll('[data-chart]')].every(c => c.dataset.drawn === 'yes')"
        )

    def leaves(self):
        """Addresses outside the report's folder."""
        return [a for a in self.asked if not a.startswith((self.folder.as_uri(), "data:", "blob:"))]

    def text(self, selector):
        return self.page.locator(selector).inner_text()

    def choose(self, selector, label):
        self.page.locator(selector).select_option(label=label)
        self.page.wait_for_timeout(150)

    def wide(self):
        """How far the page is wider than its window, in pixels."""
        return self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
