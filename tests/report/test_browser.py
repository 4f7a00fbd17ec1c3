"""The page in a real browser: opens from disk, asks for nothing else, every control works, hostile text is inert."""

import json
from functools import partial

import pytest
from browser import Opened, chromium, needs_browser, serious
from test_page import data
from test_token_view import tokens_step

from prefixlab.records import SampleScore
from prefixlab.report.page import build_report

pytestmark = needs_browser
HOSTILE = (
    "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
    "<a href=\"javascript:document.title='owned'\">x</a>{{ 7 * 7 }}\u202etxt.exe\u2066\x00\x1b[31m\ud800"
)
LONG = "x" * 1_000_000


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


def words(i, arm):
    if i == 0:
        return HOSTILE
    if i == 1:
        return LONG
    if i == 2:
        return f"<think>\nIt may be {arm}.\n</think>\n\nThe answer is {i}."
    return f"I think so: the answer is {i}."


def spoil(cells):
    """Ten prompts in two samples; a hostile text, a line of 1 MB, a reasoning block, an invalid verdict."""
    for cell in cells:
        rows = [
            r.model_copy(
                update={"completion": words(i, cell.info.arm), "prompt": f"Prompt {i}? {HOSTILE}"[: 60 + 200 * (not i)]}
            )
            for i, r in enumerate(cell.rows)
        ]
        rows[8] = rows[8].model_copy(update={"value": None, "status": "invalid", "kind": "harmful"})
        more = [r.model_copy(update={"epoch": 2, "completion": f"Second sample, {r.item}."}) for r in rows]
        cell.rows[:] = [*rows, *more]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    root = tmp_path_factory.mktemp("run")
    run = data(root, spoil=spoil)
    for seed, loss in ((0, 1.0), (1, 2.0)):
        step, folder = tokens_step(root, seed, loss)
        run.plan["steps"].append(step)
        run.folders[step["slug"]] = folder
    assert isinstance(run.cells[0].rows[0], SampleScore)
    build_report(run, root / "report")
    return root / "report" / "index.html"


@pytest.fixture
def opened(browser, report):
    return partial(Opened, browser, report)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 390])
def test_opens_without_an_error_or_a_request_and_fits(opened, scheme, width):
    shown = opened(scheme=scheme, width=width)
    shown.scroll()
    assert shown.said == [] and shown.leaves() == []
    assert shown.wide() <= 0
    assert shown.page.title() == "prefixlab: tiny"
    paper = shown.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert paper == {"light": "rgb(255, 255, 255)", "dark": "rgb(17, 22, 28)"}[scheme]
    assert shown.page.locator("[data-chart] svg").count() == shown.page.locator("[data-chart]").count() > 0


def test_charts_follow_light_and_dark(opened):
    shown = opened()
    shown.scroll()
    ink = "document.querySelector('[data-chart] svg .role-axis-label text').getAttribute('fill')"
    light = shown.page.evaluate(ink)
    shown.page.emulate_media(color_scheme="dark")
    shown.page.wait_for_function(f"{ink} !== {json.dumps(light)}")
    assert (light, shown.page.evaluate(ink)) == ("#17202b", "#e7ecf2")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_fault(opened, scheme):
    shown = opened(scheme=scheme)
    shown.scroll()
    shown.page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    assert serious(shown.page) == []
    shown.page.evaluate("document.documentElement.removeAttribute('lang')")
    assert "html-has-lang" in dict(serious(shown.page))  # it does find a fault where there is one


def test_hostile_text_is_inert_and_named(opened):
    shown = opened()
    shown.scroll()
    page = shown.page
    assert page.title() == "prefixlab: tiny" and page.locator("main img").count() == 0
    first = page.locator("#c-view article").first.locator(".arm").first.locator(".text")
    text = first.inner_text()
    assert (
        "<img src=x" in text
        and "{{ 7 * 7 }}" in text
        and "U+202E" in text
        and "U+0000" in text
        and "\u202e" not in text
    )
    assert page.evaluate("document.querySelector('#c-view').innerHTML.includes('\\u202e')") is False
    assert "</script>" in page.locator("#t-view").inner_text()


def test_a_line_of_a_megabyte_is_shown_by_a_click(opened):
    shown = opened()
    shown.scroll()
    text = shown.page.locator("#c-view article").nth(1).locator(".text").first
    assert len(text.inner_text()) < 5000 and shown.wide() <= 0
    text.get_by_role("button", name="show all 1,000,000 characters").click()
    assert len(text.inner_text()) == pytest.approx(1_000_000, abs=5) and shown.wide() <= 0


def test_completions_are_filtered_searched_and_chosen(opened):
    shown = opened()
    page = shown.page
    page.locator("#completions").scroll_into_view_if_needed()
    page.wait_for_selector("#c-view article")
    count = partial(shown.text, "#c-count")
    assert count() == "10 of 10 prompts" and page.locator("#c-view article").count() == 10
    assert page.locator("#c-view article").nth(2).locator("details summary").first.inner_text().startswith("reasoning")
    shown.choose("#c-from", "reasoning-opening-r100 · seed 0")
    shown.choose("#c-to", "r000 · seed 0")
    shown.choose("#c-filter", "right or safe in A, not in B")
    assert count() == "4 of 10 prompts"  # right at 7 prompts against 3
    shown.choose("#c-filter", "not in A, right or safe in B")
    assert count() == "0 of 10 prompts"
    shown.choose("#c-filter", "with an invalid verdict in a shown arm")
    assert count() == "1 of 10 prompts"
    folded = page.locator("#c-view article .arm details").first
    assert folded.get_attribute("open") is None  # of a harmful prompt, not judged safe
    page.locator("#c-harm").check()
    page.wait_for_function("document.querySelectorAll('#c-view article .arm details').length === 0")
    shown.choose("#c-filter", "truncated in a shown arm")
    assert count() == "1 of 10 prompts"
    shown.choose("#c-filter", "prompts on which the shown arms differ")
    assert count() == "5 of 10 prompts"
    shown.choose("#c-filter", "all prompts")
    page.locator("#c-text").fill("ANSWER IS 5")
    page.wait_for_function("document.querySelector('#c-count').textContent === '1 of 10 prompts'")
    page.locator("#c-text").fill("")
    shown.choose("#c-sample", "2 of 2")
    page.wait_for_function("document.querySelector('#c-view').textContent.includes('Second sample, p3.')")
    page.locator("#c-arms-note").click()
    page.locator("#c-arms input").first.uncheck()
    page.wait_for_function("document.querySelectorAll('#c-view article:first-child .arm').length === 2")
    assert shown.text("#c-arms-note") == "Arms shown: 2 of 3"


def test_tokens_are_shaded_compared_and_reached_by_keys(opened):
    shown = opened()
    page = shown.page
    page.locator("#t-view").scroll_into_view_if_needed()
    page.wait_for_selector("#t-view .tok")
    assert page.locator("#t-view .tok").count() == 2
    shown.choose("#t-text", "prefix: reasoning")
    shown.choose("#t-arm", "r000 · seed 1")
    page.locator("#t-view").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    said = shown.text("#t-at")
    assert "Token 2 of 2" in said and "loss 3" in said and "rank of the token 12345" in said
    shown.choose("#t-minus", "r000 · seed 0")
    page.keyboard.press("Tab")
    assert "mean 1.000" in shown.text("#t-note") and "-4.00 to 4.00" in shown.text("#t-note")
    shown.choose("#t-what", "logit gradient ‖p − y‖")
    assert "mean 0.000" in shown.text("#t-note")
    page.locator("#t-view .tok").first.hover()
    assert "Token 1 of 2" in shown.text("#t-at") and "Difference shown: 0." in shown.text("#t-at")


def test_a_part_that_is_gone_is_said(opened, report, tmp_path):
    import shutil

    copy = shutil.copytree(report.parent, tmp_path / "report")
    shutil.rmtree(copy / "data")
    shown = Opened(opened.args[0], copy / "index.html")
    shown.page.locator("#completions").scroll_into_view_if_needed()
    shown.page.wait_for_selector("#c-view .bad")
    assert "cannot be read. Is the report's folder complete?" in shown.text("#c-view")


def test_charts_are_as_wide_as_a_phone(opened):
    shown = opened(width=390)
    shown.scroll()
    wide = "[...document.querySelectorAll('[data-chart]')].map(c => [c.dataset.chart, c.scrollWidth - c.clientWidth])"
    assert [
        name for name, over in shown.page.evaluate(wide) if over > 2 and name.startswith(("curve", "tradeoff"))
    ] == []
    widths = "[...document.querySelectorAll('[data-chart] svg')].map(s => s.getBoundingClientRect().width)"
    assert max(shown.page.evaluate(widths)) < 400


def test_it_prints(opened):
    shown = opened()
    shown.page.wait_for_function(  # without scrolling, for print waits for nothing
        "[...document.querySelectorAll('[data-chart]')].every(c => c.dataset.drawn === 'yes' || !c.checkVisibility())"
    )
    shown.page.emulate_media(media="print")
    assert not shown.page.locator("nav").is_visible() and shown.page.locator("#answer").is_visible()
    assert shown.page.pdf().startswith(b"%PDF")
