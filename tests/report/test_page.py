"""The page says what is true of the run, and hostile text stays text."""

import json
import re
from dataclasses import replace
from importlib.metadata import version

import polars
import pytest

from conftest import tiny_study
from prefixlab.analysis.advice import advise, pareto
from prefixlab.analysis.contrasts import contrasts
from prefixlab.analysis.results import results
from prefixlab.analysis.rows import ArmInfo, CellScores, Rules
from prefixlab.analysis.verdicts import verdicts
from prefixlab.records import SampleScore
from prefixlab.report import tables
from prefixlab.report.page import build_report
from prefixlab.report.parts import embed
from prefixlab.report.sections import banners
from prefixlab.report.tables import RunData
from prefixlab.study_file import parse_study

HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">‮\x00\ud800"


def data(root, text="I can't help with that.", done=True, spoil=lambda cells: None):
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
    spoil(cells)
    rules = Rules({"math": ("chain_sum", "prefixlab", "accuracy", "bare")}, alpha=0.05, margin=0.05)
    declared = contrasts(cells, rules)
    rows = results(cells, declared, 0.05)
    found = verdicts(rows, declared, rules)
    advice = advise(found, pareto(cells, rows, rules))
    hardware = {
        "dtype": "float32",
        "device": "cpu",
        "why": "a test",
        "threads": 1,
        "attention": "prefixlab",
        "merge_adapters": True,
    }
    plan = {
        "steps": [] if done else [{"slug": "eval-x", "kind": "eval", "id": "0" * 64}],
        "summary": {},
        "hardware": hardware,
        "models": [{"name": "tiny-random", "note": "random", "fingerprint": "0" * 64}],
    }
    return RunData(root, study, plan, cells, rows, declared, found, advice, {}, {})


@pytest.mark.smoke
def test_page_is_written_with_figures(tmp_path):
    build_report(data(tmp_path), tmp_path / "report")
    text = (tmp_path / "report" / "index.html").read_text()
    assert "math: undecided" in text and "+40.0" in text
    svg = next((tmp_path / "report" / "figures").glob("curve-*.svg"))
    assert svg.read_text().startswith("<svg")


@pytest.mark.smoke
def test_nothing_is_loaded_from_anywhere(tmp_path):
    build_report(data(tmp_path), tmp_path / "report")
    text = (tmp_path / "report" / "index.html").read_text()
    assert re.findall(r"<(?:script|link|img|iframe)[^>]*\b(?:src|href)=\"([^\"]*)", text) == [
        f"assets/{name}.js" for name in (f"vega-{version('vl-convert-python')}", "report", "tokens", "completions")
    ]
    assert not re.findall(r"url\((?!data:)|\bon[a-z]+=|<script>", text)
    assert "default-src 'none'; script-src 'self'" in text
    assert all(
        (tmp_path / "report" / place).exists() for place in re.findall(r'(?:src|href)="([a-z]+/[^"#]+[a-z])"', text)
    )


def test_hostile_text_stays_text(tmp_path):
    build_report(data(tmp_path, HOSTILE), tmp_path / "report")
    text = (tmp_path / "report" / "index.html").read_text()
    assert "<script>document.title" not in text and "<img src=x" not in text


def test_embed_escapes_what_ends_a_script():
    assert "<" not in embed({"a": "</script>&<!--"}) and json.loads(embed({"a": "</script>"})) == {"a": "</script>"}


def test_banners(tmp_path):
    found = " ".join(banners(data(tmp_path)))
    assert "says nothing about R1 models" in found and "One training seed" in found
    assert "More than 2% of the completions are truncated" in found and "10%" in found


def test_a_sample_that_could_not_be_scored_is_counted_once(tmp_path):
    made = data(tmp_path)
    rows = made.cells[0].rows
    failed = {"value": None, "status": "error"}
    rows[0] = rows[0].model_copy(update=failed)
    rows += [rows[0].model_copy(update={"metric": f"pass@{k}", "epoch": 0}) for k in (2, 5)]  # of the same prompt
    assert "1 completions could not be scored" in " ".join(banners(made))


def test_unfinished_run_says_so(tmp_path):
    made = data(tmp_path, done=False)
    build_report(made, tmp_path / "report")
    text = (tmp_path / "report" / "index.html").read_text()
    assert "Not complete: 1 of 1 steps are missing" in text and "not measured" in text
    assert "NaN" not in text.split('id="d-charts"')[0] and "None" not in text.split('id="d-charts"')[0]


def all_right(cells):
    for cell in cells:
        cell.rows[:] = [r.model_copy(update={"value": 1.0}) for r in cell.rows]


def invalid_in_one_arm(cells):
    invalid = {"value": None, "status": "invalid"}
    cells[2].rows[4:] = [r.model_copy(update=invalid) for r in cells[2].rows[4:]]


def no_value_in_one_arm(cells):
    invalid = {"value": None, "status": "invalid"}
    cells[2].rows[:] = [r.model_copy(update=invalid) for r in cells[2].rows]


def one_arm_missing(cells):
    cells[2] = replace(cells[2], rows=None, status="missing")


def fewer_prompts_in_one_arm(cells):
    del cells[1].rows[6:]


def no_discordant_pair(cells):
    cells[2].rows[:] = cells[1].rows


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (all_right, "no verdict (floor or ceiling)"),
        (invalid_in_one_arm, "60% of reasoning-opening-r100, 0% of r000"),
        (no_value_in_one_arm, "there is no value of reasoning-opening-r100 (invalid)"),
        (one_arm_missing, "there is no value of reasoning-opening-r100 (missing)"),
        (fewer_prompts_in_one_arm, "4 prompts left out"),
        (no_discordant_pair, "Not one prompt differs between the two arms."),
        (lambda cells: None, "One training seed: how far another seed would move the effect is unknown."),
    ],
)
def test_bad_input_is_said_in_words_and_never_as_a_number(tmp_path, spoil, words):
    build_report(data(tmp_path, spoil=spoil), tmp_path / "report")
    text = (tmp_path / "report" / "index.html").read_text().split('id="d-charts"')[0]
    assert words in text and not re.search(r"\b(NaN|nan|inf|None)\b", text.partition("</style>")[2])


def test_advice_and_front_stand_under_the_verdict(tmp_path):
    made = data(tmp_path)
    front = made.advice[0].front
    arm = front.arms[0].model_copy(update={"values": {"safety": 0.25, "accuracy": None}, "on_front": None})
    front = front.model_copy(update={"objectives": ("safety", "accuracy"), "arms": (arm,)})
    advice = made.advice[0].model_copy(update={"front": front})
    build_report(replace(made, advice=[advice]), tmp_path / "report")
    text = (tmp_path / "report" / "index.html").read_text()
    assert text.index("math: undecided") < text.index("Advice for math") < text.index("nothing is decided")
    assert '<td>r000</td><td class="num">25.0</td><td class="num">–</td><td>not compared</td>' in text


def test_empty_run_still_gives_a_page(tmp_path):
    made = data(tmp_path)
    empty = RunData(made.root, made.study, made.plan, [], [], [], [], [], {}, {})
    build_report(empty, tmp_path / "report")
    assert "No verdict yet" in (tmp_path / "report" / "index.html").read_text()


def test_tables(tmp_path):

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


def test_report_command_needs_a_run(call, tmp_path):
    assert call("report", tmp_path).returncode == 2
