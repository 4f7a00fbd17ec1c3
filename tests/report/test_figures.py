"""Figures show the numbers they were given, say n, seeds and interval, and claim nothing that was not claimed there."""

import csv
import xml.etree.ElementTree as ElementTree

import polars
import pytest
import vl_convert

from analysis.planted import analyse, cell
from prefixlab.analysis.rows import ArmInfo, Rules
from prefixlab.data.check import ArmCheck, TreatmentCheck
from prefixlab.report import figures
from prefixlab.report.charts.base import MOST, domain, readable, spread, stem
from prefixlab.report.charts.claims import CLAIMS, claimed
from prefixlab.report.charts.curves import curve_figures
from prefixlab.report.charts.data import Stripped, stripped_figure, treatment_figures
from prefixlab.report.charts.effects import effect_figures
from prefixlab.report.charts.grid import grid_figures
from prefixlab.report.charts.tokens import TokenPart, token_figures
from prefixlab.report.charts.tradeoffs import attack_figures, front_figures

HOSTILE = "<script>x</script>&\"'"


def info(arm, ratio=None, of=None, control=None):
    position = "opening" if of else None
    return ArmInfo(arm=arm, ratio=ratio, position=position, prefix_set=of, control=control, loss_scope="all")


def planted(suite="suite", metric="accuracy", seeds=(0,), conditions=("bare",), n=60, **kwargs):
    """Base, r000, two ratios and a control, planted with different outcomes."""
    rules = Rules({"math": (suite, "proto", metric, "bare")}, alpha=0.05, margin=0.05)
    cells = []
    for c, condition in enumerate(conditions):
        same = {"suite": suite, "metric": metric, "condition": condition, "n": n, **kwargs}
        for seed in seeds:
            cells += [cell("base", 10 - c, **same)] if seed == seeds[0] else []
            cells.append(cell("r000", 20 - c, seed=seed, **same))
            cells.append(cell("set-opening-r050", 25 + seed - c, seed=seed, **same))
            cells.append(cell("set-opening-r100", 40 + seed - c, seed=seed, **same))
            cells.append(cell("neutral-opening-r100", 22 - c, control="neutral", seed=seed, **same))
    return analyse(*cells, rules=rules)


def drawn(spec):
    """All inline rows of a specification."""
    if isinstance(spec, dict):
        found = list(spec["values"]) if isinstance(spec.get("values"), list | tuple) and "domain" not in spec else []
        return [r for r in found if isinstance(r, dict)] + [r for v in spec.values() for r in drawn(v)]
    return [r for v in spec for r in drawn(v)] if isinstance(spec, list) else []


def check_drawable(figure, tmp_path):
    figures.write([figure], tmp_path)
    assert (tmp_path / f"{figure.name}.pdf").read_bytes().startswith(b"%PDF-")
    assert ElementTree.parse(tmp_path / f"{figure.name}.svg").getroot().tag.endswith("svg")
    with (tmp_path / f"{figure.name}.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert tuple(rows[0]) == figure.table.columns and len(rows) == len(figure.table.rows) + 1
    assert {len(r) for r in rows} == {len(figure.table.columns)}


def test_curve_draws_the_rows_and_says_how(tmp_path):
    made = planted()
    (figure,) = curve_figures(made.results, 0.05)
    rows = {r.arm: r for r in made.results if r.seed is None}
    marks = {m["arm"]: m for m in drawn(figure.spec) if m.get("mark") == "arm"}
    assert set(marks) == set(rows) - {"base"}
    for arm, mark in marks.items():
        got = (mark["value"], mark["low"], mark["high"])
        assert got == pytest.approx([100 * v for v in (rows[arm].value, rows[arm].ci_low, rows[arm].ci_high)], rel=1e-4)
    assert any(m.get("label") == "base, untuned" and m["value"] == pytest.approx(1000 / 60, rel=1e-3)
               for m in drawn(figure.spec))  # fmt: skip
    assert "n = 60 prompts, 1 training seed; 95% intervals: Wilson over prompts" in figure.caption
    assert "variance of training is not in them" in figure.caption
    check_drawable(figure, tmp_path)


def test_curve_with_seeds_shows_each_and_names_the_interval():
    (figure,) = curve_figures(planted(seeds=(0, 1, 2)).results, 0.05)
    assert sum(m.get("mark") == "seed" and m["arm"] == "set-opening-r100" for m in drawn(figure.spec)) == 3
    assert "3 training seeds; 95% intervals: seed-by-prompt and Wilson over prompts (base)" in figure.caption


def test_axis_holds_every_interval():
    for figure in curve_figures(planted(n=41).results, 0.05):
        low, high = next(
            layer["encoding"]["y"]["scale"]["domain"]
            for layer in figure.spec["layer"]
            if "scale" in layer["encoding"]["y"]
        )
        ends = [m[k] for m in drawn(figure.spec) for k in ("low", "high", "value") if m.get(k) is not None]
        assert low <= min(ends) and max(ends) <= high and high - low >= 20


@pytest.mark.parametrize("suite,metric", sorted(CLAIMS))
def test_claims_stand_where_they_belong(suite, metric):
    made = planted(suite, metric, n=120)
    (curve,) = curve_figures(made.results, 0.05)
    (effects,) = effect_figures(made.contrasts, 0.05)
    for figure in (curve, effects):
        assert "claimed in arXiv 2601.01624" in figure.caption and "no result of this run" in figure.caption
        assert "claimed in arXiv 2601.01624" in str(figure.spec)
    at = next(m for m in drawn(curve.spec) if m.get("label") == "claimed in arXiv 2601.01624" and "x" in m)
    assert at["value"] == pytest.approx(100 * 20 / 120 + CLAIMS[suite, metric], rel=1e-4)
    claims = {r[4]: r[-1] for r in effects.table.rows if r[-1] is not None}
    assert claims == {"set-opening-r100": CLAIMS[suite, metric]}


@pytest.mark.parametrize(
    ("suite", "metric", "condition"),
    [
        ("chain_sum", "accuracy", "bare"),
        ("gsm8k", "safe@1", "bare"),
        ("gsm8k_gold", "gold_likelihood", "bare"),
        ("wildjailbreak", "over_refusal", "bare"),
        ("wildjailbreak", "safe@1", "attack_opening@5"),
        ("xstest", "safe@1", "bare"),
    ],
)
def test_no_claim_elsewhere(suite, metric, condition):
    assert claimed(suite, metric, condition) is None
    made = planted(suite, metric)
    for figure in (*curve_figures(made.results, 0.05), *effect_figures(made.contrasts, 0.05)):
        assert "2601.01624" not in str(figure.spec) + figure.caption or (suite, metric) in CLAIMS


def test_effects_draw_the_declared_contrasts(tmp_path):
    made = planted(seeds=(0, 1))
    (figure,) = effect_figures(made.contrasts, 0.05)
    rows = {f"{c.arm} − {c.reference}": c for c in made.contrasts if c.primary and c.comparison != "trend"}
    marks = {m["row"]: m for m in drawn(figure.spec) if "row" in m}
    assert set(marks) == set(rows) and len(rows) == 4
    for name, mark in marks.items():
        assert mark["diff"] == pytest.approx(100 * rows[name].diff, rel=1e-4)
        assert mark["low"] == pytest.approx(100 * rows[name].ci_low, rel=1e-4)
    assert marks["set-opening-r100 − neutral-opening-r100"]["series"] == "treatment − control"
    assert marks["neutral-opening-r100 − r000"]["series"] == "control − r000"
    assert "n = 60 prompts, 2 training seeds" in figure.caption and "±5 points" in figure.caption
    check_drawable(figure, tmp_path)


def test_what_is_not_measured_is_said_and_not_drawn_as_zero():
    made = planted()
    gone = [c.model_copy(update={"diff": None, "ci_low": None, "ci_high": None, "test": ""}) if "050" in c.arm else c
            for c in made.contrasts]  # fmt: skip
    (figure,) = effect_figures(gone, 0.05)
    mark = next(m for m in drawn(figure.spec) if m.get("row") == "set-opening-r050 − r000")
    assert mark["diff"] is None and mark["none"] == "not measured"
    assert effect_figures([c.model_copy(update={"diff": None}) for c in gone], 0.05) == []
    assert effect_figures([], 0.05) == curve_figures([], 0.05) == attack_figures([], 0.05) == []
    assert grid_figures([], 0.05) == token_figures([], 0.05) == front_figures([], []) == treatment_figures([]) == []
    assert stripped_figure([Stripped("math", 5, {})]) is None


def test_attack_success_is_one_minus_safe(tmp_path):
    made = planted("jbb", "safe@1", conditions=("bare", "attack_opening@5", "attack_opening@20"))
    (figure,) = attack_figures(made.results, 0.05)
    row = next(r for r in made.results if r.arm == "r000" and r.condition == "attack_opening@20" and r.seed is None)
    mark = next(m for m in drawn(figure.spec) if m.get("series") == "r000" and m["depth"] == 20)
    assert mark["value"] == pytest.approx(100 - 100 * row.value, rel=1e-4)
    assert mark["low"] == pytest.approx(100 - 100 * row.ci_high, rel=1e-4)
    assert {m["depth"] for m in drawn(figure.spec)} == {0, 5, 20} and "(0: no attack)" in figure.caption
    check_drawable(figure, tmp_path)
    (grid,) = grid_figures(made.results, 0.05)
    assert len([m for m in drawn(grid.spec) if "condition" in m]) % 15 == 0
    check_drawable(grid, tmp_path)


def test_front_of_two_objectives(tmp_path):
    made = planted()
    front = made.fronts[0]
    numbers = {"r000": (0.4, 0.5), "set-opening-r050": (0.5, 0.6), "set-opening-r100": (0.6, 0.4)}
    arms = tuple(
        a.model_copy(update={"values": dict(zip(("accuracy", "safety"), numbers[a.arm], strict=True))})
        for a in front.arms
        if a.arm in numbers
    )
    (figure,) = front_figures([front.model_copy(update={"arms": arms})], made.results)
    assert {m["arm"] for m in drawn(figure.spec) if m.get("best")} == {"set-opening-r050", "set-opening-r100"}
    assert {m["arm"]: m["series"] for m in drawn(figure.spec) if "series" in m} == {
        "r000": "r000",
        "set-opening-r050": "treatment",
        "set-opening-r100": "treatment",
    }
    assert "point estimates without intervals" in figure.caption and "n = 60 prompts" in figure.caption
    check_drawable(figure, tmp_path)


def token_table(path, means, samples=4, length=6):
    """Tokens whose loss is `means[rendering]` plus the sample's number, behind a prefix of two tokens where read."""
    rows = []
    for rendering, control in (("r000", None), ("set", None), ("neutral", "neutral")):
        for s in range(samples):
            ahead = 0 if rendering == "r000" else 2
            for p in range(length + ahead):
                loss = 99.0 if p < ahead else means.get(rendering, 0) + s
                about = {"sample": f"s{s}", "rendering": rendering, "control": control, "position": p, "loss": loss}
                rows.append(
                    about | {"span": "prefix" if p < ahead else "answer", "entropy": 1.0, "kl": None, "step": None}
                )
    rows += [{**r, "step": 3, "loss": 1000.0} for r in rows]
    schema = {"kl": polars.Float64, "step": polars.Int64, "control": polars.String}
    polars.DataFrame(rows, schema_overrides=schema, infer_schema_length=None).write_parquet(path)


def test_positions_start_behind_the_prefix_without_snapshots_seeds_averaged_first(tmp_path):
    parts = []
    for seed, mean in ((0, 1.0), (1, 3.0)):
        token_table(tmp_path / f"{seed}.parquet", {"r000": mean, "set": mean + 1})
        parts.append(TokenPart("m", "math", info("set-opening-r100", 1.0, "set"), seed, tmp_path / f"{seed}.parquet"))
    made = {f.name: f for f in token_figures(parts, 0.05)}
    assert sorted(made) == [f"positions-m-math-{q}-{r}" for q in ("entropy", "loss") for r in ("r000", "set")]
    loss = made["positions-m-math-loss-set"]
    # over samples 3, 4, 5, 6 + 1.5: mean 4.5, sd of 0..3, t of 3 degrees of freedom
    for arm, _, mean, low, high, n in loss.table.rows:
        assert (arm, n, mean) == ("set-opening-r100", 4, 4.5)
        assert high - mean == pytest.approx(3.18245 * 1.290994 / 2, rel=1e-4) and low == pytest.approx(
            2 * mean - high, 1e-4
        )
    assert [r[1] for r in loss.table.rows] == list(range(6))
    assert "n = 4 at the first position" in loss.caption and "2 training seeds, averaged first" in loss.caption
    check_drawable(loss, tmp_path)


def test_a_long_name_of_a_model_cuts_the_files_name_and_nothing_else(tmp_path):
    token_table(tmp_path / "t.parquet", {"r000": 1.0, "set": 2.0})
    model = "/home/user/.cache/huggingface/hub/models--org--a-model-of-some-size/snapshots/" + 8 * "0123456789"
    part = TokenPart(model, "math", info("set-opening-r100", 1.0, "set"), 0, tmp_path / "t.parquet")
    made = token_figures([part], 0.05)
    assert [f.title.split()[0] for f in made] == ["Token", "Token", "Entropy", "Entropy"]
    assert all(len(f.name) == 150 for f in made)


def test_hostile_names_stay_text(tmp_path):
    made = planted()
    rows = [r.model_copy(update={"arm": HOSTILE, "prefix_set": HOSTILE, "suite": HOSTILE}) if r.ratio == 1.0
            else r.model_copy(update={"suite": HOSTILE}) for r in made.results]  # fmt: skip
    (figure,) = curve_figures(rows, 0.05)
    assert stem(figure.name) == figure.name
    check_drawable(figure, tmp_path)
    assert "<script>" not in (tmp_path / f"{figure.name}.svg").read_text()


def test_many_arms_are_split_or_named():
    arms = [info(f"s{i}-opening-r{r:03}", r / 100, f"s{i}") for i in range(4) for r in (25, 50, 100)]
    kept, left = readable([info("base"), info("r000", 0.0), *arms])
    assert [a.arm for a in kept] == ["base", "r000", *(f"s{i}-opening-r100" for i in range(4))]
    assert "s0-opening-r025" in left
    assert len(readable([info(f"c{i}", 1.0, "s", f"c{i}") for i in range(20)])[0]) == MOST
    made = planted()
    more = [r.model_copy(update={"arm": f"x{i}", "prefix_set": f"x{i}"}) for i in range(9) for r in made.results
            if r.arm == "set-opening-r100"]  # fmt: skip
    (figure,) = curve_figures([*made.results, *more], 0.05)
    assert len(figure.spec["concat"]) == 10


def test_data_figures(tmp_path):
    zero = dict.fromkeys(ArmCheck.model_fields, 0)
    arms = (ArmCheck(**zero | {"arm": "r000", "n": 8}),
            ArmCheck(**zero | {"arm": "x", "n": 8, "n_treated": 4, "prefix_tokens_mean": 9.5}))  # fmt: skip
    (figure,) = treatment_figures([TreatmentCheck(model="m", capability="math", arms=arms, identical=())])
    assert [r[:4] for r in figure.table.rows] == [("r000", 8, 0, None), ("x", 8, 4, 9.5)]
    assert "8 training samples" in figure.caption
    check_drawable(figure, tmp_path)
    stripped = stripped_figure([Stripped("math", 10, {"answer": {"praise": 3, "framing": 2}})])
    assert sorted((r[2], r[3]) for r in stripped.table.rows) == [("framing", 2), ("praise", 3)]
    assert next(m for m in drawn(stripped.spec) if m["family"] == "none")["n"] == 5
    check_drawable(stripped, tmp_path)


def test_curve_needs_two_arms_with_a_ratio():
    rows = planted().results
    assert curve_figures([r for r in rows if r.arm in ("base", "r000")], 0.05) == []
    assert len(curve_figures([r for r in rows if r.arm in ("r000", "set-opening-r100")], 0.05)) == 1


def test_domain_and_labels():
    assert domain([50.0, 51.0], least=20) == [40.5, 60.5]
    low, high = domain([0.0, 3.0], least=20, within=(0, 100))
    assert low < 0 < 3 < high <= 20
    assert domain([-5.0, 140.0], least=20, within=(0, 100))[1] > 140
    assert spread([5.0, 1.0, 1.2], 1.0) == [5.0, 1.0, 2.0]


def test_page_colours_are_left_to_the_page():
    (figure,) = curve_figures(planted().results, 0.05)
    assert figure.spec["config"]["background"] == "transparent" and "#000000" not in str(figure.spec)
    assert 'fill="#ffffff"' in figures.svg(figure.spec)
    assert vl_convert.vegalite_to_svg(figure.spec).count("#ffffff") == 0
