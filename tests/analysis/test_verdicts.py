"""Verdicts on planted outcomes, and what they say where the data are bad."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import N, analyse, cell, score, seeded, study

from prefixlab.analysis.verdicts import CLAIMS, WORDS, in_words

BIG = 600


@pytest.mark.parametrize(
    ("numbers", "kind"),
    [
        ((400, 200, 210), "helps_words"),
        ((400, 395, 398), "helps_opening"),
        ((400, 398, None), "helps_opening"),
        ((400, 200, None), "helps"),
        ((400, 200, 398), "helps"),
        ((400, 360, 395), "helps"),
        ((100, 200, 200), "hurts"),
        ((205, 200, 200), "equivalent"),
    ],
)
def test_rules(numbers, kind):
    (verdict,) = study(*numbers, r000=200, base=100, n=BIG).verdicts
    assert verdict.kind == kind and verdict.verdict.startswith(WORDS[kind]) and verdict.verdict in verdict.sentence
    assert verdict.verdict.endswith("(for this training seed)") and not verdict.verdict.count("yet equivalent")


def test_undecided_says_what_would_decide():
    (verdict,) = study(46, 40, 40).verdicts
    assert verdict.kind == "undecided" and verdict.verdict == "undecided"
    assert f"With {N} prompts and 1 seed, 80% power sees" in verdict.sentence
    assert f"5 points would take about {verdict.prompts_needed} prompts with this seed" in verdict.sentence
    assert "one seed cannot say: train three or more" in verdict.sentence and verdict.seeds_needed is None


def test_undecided_with_seeds_says_how_many_seeds():
    pairs = [(range(0, 60), range(s, 60 + 7 * s)) for s in range(3)]
    (verdict,) = analyse(*seeded(pairs)).verdicts
    assert verdict.kind == "undecided" and verdict.n_seeds == 3
    assert f"about {verdict.seeds_needed} seeds with these prompts" in verdict.sentence and verdict.seeds_needed > 3
    assert "cannot say" not in verdict.sentence and not verdict.limits


def test_several_seeds_carry_no_warning():
    (verdict,) = analyse(*seeded([(40 + s, 80 + s) for s in range(3)])).verdicts
    assert verdict.verdict == "helps; whether because of its words is undecided"
    assert not any("seed" in limit for limit in verdict.limits)


def test_clear_but_inside_the_margin_is_said_as_both():
    (up,), (down,) = (study(top, 200, 200, r000=200, base=100, n=BIG).verdicts for top in (215, 185))
    assert up.verdict == f"{WORDS['helps_words']} (yet equivalent within the margin; for this training seed)"
    assert down.verdict == "hurts (yet equivalent within the margin; for this training seed)"
    assert up.equivalent and down.equivalent and "smaller than the margin of 5 points" in down.sentence


def test_words_of_a_verdict():
    assert in_words("hurts", equivalent=True, n_seeds=3) == "hurts (yet equivalent within the margin)"
    assert in_words("equivalent", equivalent=True, n_seeds=1) == "equivalent within the margin (for this training seed)"
    assert in_words("undecided", equivalent=False, n_seeds=1) == "undecided"


def test_not_worse_is_said_of_what_is_undecided():
    """Better by chance or not, but surely no more than the margin worse."""
    (verdict,) = analyse(
        cell("r000", range(100, 200), n=400), cell("set-opening-r100", range(125, 240), n=400)
    ).verdicts
    assert verdict.kind == "undecided" and "shown not to be worse by the margin of 5 points" in verdict.sentence
    (verdict,) = study(36, 40, 40).verdicts
    assert verdict.kind == "undecided" and "not to be worse" not in verdict.sentence
    reference = cell("r000", [*range(100, 200), *range(360, 400)], n=400)
    (verdict,) = analyse(reference, cell("set-opening-r100", range(125, 240), n=400, invalid=40)).verdicts
    assert verdict.p_noninferior_holm < 0.05 and "not to be worse" not in verdict.sentence


@pytest.mark.parametrize(("base", "r000", "top"), [(0, 1, 3), (N, N - 1, N - 3)])
def test_floor_and_ceiling(base, r000, top):
    (verdict,) = analyse(cell("base", base), cell("r000", r000), cell("set-opening-r100", top)).verdicts
    assert verdict.verdict == "no verdict (floor or ceiling)" and verdict.effect is not None
    assert f"{'below 5%' if top < 9 else 'above 95%'}: this suite cannot tell them apart" in verdict.sentence


def test_one_arm_off_the_floor_is_a_verdict():
    (verdict,) = analyse(cell("base", 0), cell("r000", 1), cell("set-opening-r100", 40)).verdicts
    assert verdict.kind == "helps"


def test_lower_is_better():
    better, worse = (
        analyse(cell("r000", a, higher=False), cell("set-opening-r100", b, higher=False)).verdicts[0]
        for a, b in ((80, 40), (40, 80))
    )
    assert (better.kind, worse.kind) == ("helps", "hurts") and better.effect == pytest.approx(-40 / N)


def test_native_has_a_verdict_of_its_own():
    made = analyse(cell("r000", 40), cell("native", 80), cell("set-opening-r100", 41))
    native = next(v for v in made.verdicts if v.arm == "native")
    assert native.kind == "helps" and (native.prefix_set, native.position) == (None, None)
    assert "against the stripped data" in native.sentence and "control" not in native.sentence


def test_every_set_and_position_has_its_verdict():
    arms = ("a-opening-r100", "a-user-r100", "b-opening-r050", "b-opening-r100")
    made = analyse(cell("r000", 40), *(cell(arm, 80) for arm in arms))
    assert [(v.prefix_set, v.position, v.arm) for v in made.verdicts] == [
        ("a", "opening", "a-opening-r100"),
        ("a", "user", "a-user-r100"),
        ("b", "opening", "b-opening-r100"),
    ]


def test_numbers_for_machines():
    made = study(80, 40, 42)
    (verdict,), row = made.verdicts, made.contrasts[1]
    assert (row.arm, row.reference) == ("set-opening-r100", "r000")
    assert (verdict.effect, verdict.ci_low, verdict.ci_high) == (row.diff, row.ci_low, row.ci_high)
    assert (verdict.p_holm, verdict.mde, verdict.prompts_needed) == (row.p_holm, row.detectable, row.prompts_needed)
    assert json.loads(verdict.model_dump_json())["limits"] == list(verdict.limits)


# Bad input: each in words, and no number where there is none.


def test_missing_cell():
    (verdict,) = analyse(cell("r000", 40), cell("set-opening-r100", 0, missing=True)).verdicts
    assert verdict.kind == "not_measured" and "there is no value of set-opening-r100 (missing)" in verdict.sentence
    assert (verdict.effect, verdict.p_holm, verdict.mde) == (None, None, None)


def test_missing_reference():
    (verdict,) = analyse(cell("r000", 0, missing=True), cell("set-opening-r100", 40)).verdicts
    assert verdict.kind == "not_measured" and "no value of r000 (missing)" in verdict.sentence


def test_missing_control_is_not_one_that_was_not_run():
    cells = [cell("r000", 40), cell("set-opening-r100", 80)]
    cells.append(cell("neutral-opening-r100", 0, control="neutral", missing=True))
    (verdict,) = analyse(*cells).verdicts
    assert verdict.kind == "helps" and "The neutral control has not been measured." in verdict.sentence
    assert "No shuffled control was run." in verdict.sentence


def test_no_common_seed():
    (verdict,) = analyse(cell("r000", 40, seed=0), cell("set-opening-r100", 80, seed=1)).verdicts
    assert verdict.kind == "not_measured" and "share no seed and prompt" in verdict.sentence


def test_seeds_missing_in_one_arm():
    cells = [*seeded([(40, 80), (41, 79)]), cell("r000", 40, seed=2), cell("set-opening-r100", 0, seed=2, missing=True)]
    (verdict,) = analyse(*cells).verdicts
    assert verdict.n_seeds == 2 and "set-opening-r100 has no value for 1 of 3 seeds (2)." in verdict.limits


def test_unequal_prompts_are_counted():
    (verdict,) = analyse(cell("r000", 40, n=100), cell("set-opening-r100", 80)).verdicts
    assert verdict.n_prompts == 100 and any(limit.startswith("20 prompts left out") for limit in verdict.limits)


def test_one_seed_is_a_limit():
    (verdict,) = study(80, 40).verdicts
    assert verdict.limits[0].startswith("One training seed") and "(for this training seed)" in verdict.sentence


def test_zero_discordant_pairs():
    (verdict,) = analyse(cell("r000", 40), cell("set-opening-r100", 40)).verdicts
    assert verdict.effect == 0 and "Not one prompt differs between the two arms." in verdict.limits
    assert verdict.kind == "equivalent"


def test_few_prompts_and_proxies_are_limits():
    cells = [cell(arm, 10, n=40, proxies=("accuracy",)) for arm in ("r000", "set-opening-r100")]
    (verdict,) = analyse(*cells).verdicts
    assert {"Fewer than 60 prompts.", "accuracy is a proxy, decided by word rules."} <= set(verdict.limits)


def test_truncation_is_a_limit():
    (verdict,) = analyse(cell("r000", 40), cell("set-opening-r100", 80, truncated=12)).verdicts
    assert "Truncated: 10% of set-opening-r100, 0% of r000." in verdict.limits


def test_invalid_in_one_arm_only():
    """A clear difference among the judged prompts is undecided when the unjudged ones could undo it."""
    (verdict,) = analyse(cell("r000", 20, n=60), cell("set-opening-r100", 36, n=60, invalid=20)).verdicts
    assert verdict.kind == "helps" and "INVALID: 33% of set-opening-r100, 0% of r000." in verdict.limits
    more = [cell("r000", 25, n=60, invalid=20), cell("set-opening-r100", 38, n=60, invalid=20)]
    made = analyse(*more)
    assert made.contrasts[0].p_holm < 0.05 and made.verdicts[0].kind == "undecided"
    assert (
        "would be clear but for the INVALID verdicts: with all of them at worst and at best it is"
        in made.verdicts[0].sentence
    )
    assert "A judge that decides these would settle it." in made.verdicts[0].sentence
    assert "80% power" not in made.verdicts[0].sentence, "more prompts would not help"
    assert "a judge that decides its INVALID verdicts" in " ".join(made.advice[0].sentences)


def test_invalid_verdicts_forbid_equivalence():
    reference, treated = cell("r000", 200, n=BIG), cell("set-opening-r100", 201, n=BIG)
    assert analyse(reference, treated).verdicts[0].kind == "equivalent"
    (open_,) = analyse(reference, cell("set-opening-r100", 201, n=BIG, invalid=60)).verdicts
    assert open_.kind == "undecided" and open_.held_by_invalid and "would settle it" in open_.sentence


def test_a_seed_without_any_verdict_is_named():
    """Pairing needs every seed, so one that collapsed leaves no value, and the reader must learn which."""
    seeds = [(range(40), range(50 + s)) for s in range(2)]
    made = analyse(*seeded(seeds), cell("r000", 40, seed=2), cell("set-opening-r100", 0, seed=2, invalid=N))
    (verdict,) = made.verdicts
    assert verdict.kind == "not_measured" and "set-opening-r100 (seed 2: invalid)" in verdict.sentence


def test_grades_that_are_no_shares_have_no_floor_and_no_bounds():
    made = analyse(*(_graded(cell(arm, 60, invalid=5)) for arm in ("base", "r000", "set-opening-r100")))
    assert made.verdicts[0].kind != "floor_or_ceiling"
    assert {(c.bound_low, c.bound_high) for c in made.contrasts} == {(None, None)}


def _graded(given):
    """The same on a scale from 6 to 9."""
    for i, row in enumerate(given.rows):
        given.rows[i] = row.model_copy(update={"value": None if row.value is None else 6 + 3 * row.value})
    return given


def test_difference_without_spread():
    """Every prompt goes from one right sample of two to two: no 0/1 outcomes, and nothing that varies."""
    cells = seeded([(N, N)])
    for c in cells:
        again = {"epoch": 2, "value": float(c.info.arm != "r000")}
        c.rows.extend([r.model_copy(update=again) for r in c.rows])
    (verdict,) = analyse(cell("base", 20), *cells).verdicts
    assert verdict.kind == "undecided" and any(limit.startswith("No test exists") for limit in verdict.limits)
    assert verdict.effect == 0.5 and "no interval" in verdict.sentence and verdict.p_holm is None
    assert all(math.isfinite(v) for v in verdict.model_dump().values() if isinstance(v, float))
    assert "nan" not in verdict.sentence.lower()


@st.composite
def spoilt(draw):
    """Two arms and perhaps a control, with seeds, prompts and verdicts missing as it comes."""
    cells = []
    for arm, control in (("r000", None), ("set-opening-r100", None), ("neutral-opening-r100", "neutral")):
        for seed in draw(st.sets(st.integers(0, 2), max_size=3)):
            made = cell(arm, 0, control=control, seed=seed, n=draw(st.integers(1, 7)), missing=draw(st.booleans()))
            outcomes = st.sampled_from([0.0, 1.0, 0.5, None])
            for i in range(len(made.rows or ())):
                value = draw(outcomes)
                made.rows[i] = score(i, value, "invalid" if value is None else "ok")
            cells.append(made)
    return cells


@settings(max_examples=25, deadline=None)
@given(spoilt())
def test_whatever_is_missing_there_is_no_number_that_is_none(cells):
    made = analyse(*cells)
    for record in (*made.contrasts, *made.results, *made.verdicts):
        assert all(math.isfinite(v) for v in record.model_dump().values() if isinstance(v, float)), record
    for verdict in made.verdicts:
        assert (verdict.kind == "not_measured") == (verdict.effect is None)
        assert verdict.kind not in CLAIMS or min(verdict.n_prompts, verdict.n_seeds) > 0
    for text in [v.sentence for v in made.verdicts] + [s for a in made.advice for s in a.sentences]:
        assert "nan" not in text.lower().split() and "None" not in text and text.endswith(".")
