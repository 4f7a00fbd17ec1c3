"""The page says what is true of the run, and hostile text stays text."""

import json
import re

import pytest

from conftest import tiny_study
from prefixlab.analysis.results import contrasts, results
from prefixlab.analysis.rows import ArmInfo, CellScores
from prefixlab.analysis.verdicts import verdicts
from prefixlab.records import SampleScore
from prefixlab.report import figures, page, tables
from prefixlab.report.page import banners, build_report, embed
from prefixlab.report.tables import RunData
from prefixlab.study_file import parse_study

HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">‮\x00\ud800"


def data(root, text="I can't help with that.", seeds=1, done=True):
    study = parse_study(tiny_study(), "t")
    (root / "study.yaml").write_text("name: tiny\n")
    cells = []
    for arm, ratio, right in (("base", None, 2), ("r000", 0.0, 3), ("reasoning-opening-r100", 1.0, 7)):
        info = ArmInfo(
            arm=arm,
            ratio=ratio,
            position=None,
            prefix_set="reasoning" if ratio else None,
            control=None,
            loss_scope="all",
        )
        rows = [
            SampleScore(
                item=f"p{i}",
                epoch=1,
                metric="accuracy",
                value=float(i < right),
                status="truncated" if i == 9 else "ok",
                kind="problem",
                category="",
                prompt=text,
                completion=text,
                prefill="",
                answer="1",
                target="1",
                n_tokens=3,
            )
            for i in range(10)
        ]
        cells.append(
            CellScores(
                "tiny-random",
                "math",
                info,
                None if arm == "base" else 0,
                "chain_sum",
                "prefixlab",
                "bare",
                {"accuracy": True},
                1,
                rows if done else None,
                "measured" if done else "missing",
            )
        )
    primary = {"math": ("chain_sum", "prefixlab", "accuracy", "bare")}
    declared = contrasts(cells, primary, 0.05)
    rows = results(cells, declared, 0.05)
    hardware = {
        "dtype": "float32",
        "device": "cpu",
        "why": "a test",
        "threads": 1,
        "attention": "prefixlab",
        "merge_adapters": True,
    }
    plan = {
        "steps": [] if done else [{"slug": "eval-x", "kind": "eval"}],
        "summary": {},
        "hardware": hardware,
        "models": [{"name": "tiny-random", "note": "random", "fingerprint": "0" * 64}],
    }
    return RunData(root, study, plan, cells, rows, declared, verdicts(rows, declared, primary, 0.05), {}, {})


@pytest.mark.smoke
def test_page_is_written_with_figures(tmp_path):
    build_report(data(tmp_path), tmp_path / "report")
    text = (tmp_path / "report" / "index.html").read_text()
    assert "math: undecided" in text and "+40.0" in text
    (svg,) = (tmp_path / "report" / "figures").glob("*.svg")
    assert svg.read_text().startswith("<svg")


@pytest.mark.smoke
def test_nothing_is_loaded_from_anywhere(tmp_path):
    build_report(data(tmp_path), tmp_path / "report")
    text = (tmp_path / "report" / "index.html").read_text()
    page = re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL)
    assert not re.findall(r"<(?:script|link|img|iframe)[^>]*\b(?:src|href)=", page)
    assert not re.findall(r"url\((?!data:)", page)
    assert "default-src 'none'" in text


def test_hostile_text_stays_text(tmp_path):
    build_report(data(tmp_path, HOSTILE), tmp_path / "report")
    text = (tmp_path / "report" / "index.html").read_text()
    assert "<script>document.title" not in text and "<img src=x" not in text
    embedded = re.search(r'id="d-completions">(.*?)</script>', text, re.DOTALL)[1]
    assert json.loads(embedded)[0]["prompts"][0]["prompt"] == HOSTILE.replace("\ud800", "\ufffd")


def test_embed_escapes_what_ends_a_script():
    assert "<" not in embed({"a": "</script>&<!--"}) and json.loads(embed({"a": "</script>"})) == {"a": "</script>"}


def test_banners(tmp_path):
    found = " ".join(banners(data(tmp_path)))
    assert "says nothing about R1 models" in found and "One training seed" in found
    assert "More than 2% of the completions are truncated" in found and "10%" in found


def test_unfinished_run_says_so(tmp_path):
    made = data(tmp_path, done=False)
    build_report(made, tmp_path / "report")
    text = (tmp_path / "report" / "index.html").read_text()
    assert "Not complete: 1 of 1 steps are missing" in text and "not measured" in text
    assert "NaN" not in text.split('id="d-charts"')[0] and "None" not in text.split('id="d-charts"')[0]


def test_empty_run_still_gives_a_page(tmp_path):
    made = data(tmp_path)
    empty = RunData(made.root, made.study, made.plan, [], [], [], [], {}, {})
    build_report(empty, tmp_path / "report")
    assert "No verdict yet" in (tmp_path / "report" / "index.html").read_text()


def test_curve_needs_two_arms(tmp_path):
    rows = tables.pooled(data(tmp_path).results)
    assert figures.curve(rows[:2], "x") is None and figures.curve(rows, "x") is not None


def test_tables(tmp_path):
    import polars

    made = data(tmp_path)
    tables.write_table(tmp_path / "t", made.results, type(made.results[0]))
    table = polars.read_parquet(tmp_path / "t.parquet")
    assert table.height == len(made.results) and table.schema["p_holm"] == polars.Float64
    assert polars.read_csv(tmp_path / "t.csv").height == table.height
    empty = tables.frame([], type(made.results[0]))
    assert empty.schema == table.schema


@pytest.mark.parametrize(("value", "text"), [(None, "–"), (0.123, "12.3"), (1.0, "100.0")])
def test_percent(value, text):
    assert tables.percent(value) == text and tables.percent(0.05, sign=True) == "+5.0"


def test_p_values():
    assert [tables.p_text(p) for p in (None, 0.0004, 0.0421, 1.0)] == ["–", "< 0.001", "0.042", "1.000"]


def test_completions_group_by_set(tmp_path):
    (group,) = page.completions(data(tmp_path).cells)
    assert group["arms"] == ["base", "r000", "reasoning-opening-r100"] and len(group["prompts"]) == 10


def test_report_command_needs_a_run(call, tmp_path):
    assert call("report", tmp_path).returncode == 2
