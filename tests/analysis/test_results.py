"""Rows of results and contrasts on planted outcomes."""

import math
from dataclasses import replace

import numpy as np
import pytest
from planted import RULES, N, analyse, cell, score, seeded, study

from prefixlab.analysis import stats
from prefixlab.analysis.contrasts import contrasts, match
from prefixlab.analysis.results import results
from prefixlab.analysis.rows import Rules


def test_numbers_of_a_row():
    rows = study(80, 40).results
    row = next(r for r in rows if r.arm == "set-opening-r100" and r.seed is None)
    assert (row.value, row.n, row.n_prompts, row.k, row.n_seeds) == (pytest.approx(80 / N), N, N, 1, 1)
    assert row.diff == pytest.approx(40 / N) and row.diff_ci_low < row.diff < row.diff_ci_high
    assert row.p < 0.001 and row.p <= row.p_holm
    base = next(r for r in rows if r.arm == "base")
    assert (base.seed, base.ratio, base.position, base.control, base.diff) == (None,) * 5
    assert [r.arm for r in rows if r.seed is None][:2] == ["base", "r000"]


def test_treatment_minus_control_is_declared():
    declared = study(80, 50).contrasts
    row = next(c for c in declared if c.comparison == "vs_control")
    assert (row.arm, row.reference) == ("set-opening-r100", "neutral-opening-r100")
    assert row.diff == pytest.approx(30 / N) and row.primary and row.p_holm is not None
    trend = next(c for c in declared if c.comparison == "trend")
    assert trend.diff == pytest.approx(40 / N, rel=0.1) and trend.p_holm is None


def test_family_is_the_primary_contrasts_only():
    declared = study(80, 40, 42).contrasts
    family = [c for c in declared if c.p_holm is not None]
    assert {c.comparison for c in family} == {"vs_r000", "vs_control"} and len(family) == 6
    for name in ("p", "p_equivalent", "p_noninferior"):
        raw = {str(i): getattr(c, name) for i, c in enumerate(family)}
        assert [getattr(c, f"{name}_holm") for c in family] == [stats.holm(raw)[str(i)] for i in range(6)]


def test_what_is_not_measured_yet_stays_in_the_family():
    arms = [cell("r000", 40), cell("set-opening-r100", 52)]
    alone = analyse(*arms).contrasts
    half = analyse(*arms, *(cell(f"set-opening-r0{r}", 0, missing=True) for r in (25, 50, 75))).contrasts
    (measured,) = [c for c in half if c.p is not None]
    assert measured.p == alone[0].p and measured.p_holm == pytest.approx(min(1.0, 4 * measured.p))
    assert alone[0].p_holm == alone[0].p < 0.5 and [c.p_holm for c in half if c.p is None and c.primary] == [None] * 3


def test_missing_is_not_zero():
    made = analyse(cell("r000", 40), cell("set-opening-r100", 0, missing=True))
    row = next(r for r in made.results if r.arm == "set-opening-r100")
    assert (row.value, row.status, row.n, row.diff) == (None, "missing", 0, None)
    (contrast,) = made.contrasts
    numbers = (contrast.diff, contrast.p, contrast.p_equivalent, contrast.detectable, contrast.prompts_needed)
    assert numbers == (None,) * 5 and contrast.n_seeds == 0


def test_all_invalid_is_not_zero():
    made = analyse(cell("r000", 40), cell("set-opening-r100", 0, invalid=N))
    row = next(r for r in made.results if r.arm == "set-opening-r100")
    assert (row.value, row.status, row.n_invalid) == (None, "invalid", N)


@pytest.mark.parametrize("longer", ["r000", "set-opening-r100"])
def test_unequal_prompts_are_paired_on_the_common_ones(longer):
    sizes = {"r000": 100, "set-opening-r100": 100, longer: 120}
    (row,) = analyse(*(cell(arm, 40, n=n) for arm, n in sizes.items())).contrasts
    assert (row.n_prompts, row.n_left_out) == (100, 20)


def test_bounds_put_every_invalid_verdict_at_worst_and_at_best():
    (row,) = analyse(cell("r000", 20, n=60), cell("set-opening-r100", 36, n=60, invalid=20)).contrasts
    assert (row.n_prompts, row.n_left_out) == (40, 20) and row.p_holm < 0.05
    assert row.bound_low == pytest.approx((36 - 20) / 60) and row.bound_high == pytest.approx((36 + 20 - 20) / 60)


def test_seeds_are_pooled_with_their_own_variance():
    made = analyse(*seeded([(40 + s, 70 - s) for s in range(3)]))
    pooled = next(r for r in made.results if r.arm == "set-opening-r100" and r.seed is None)
    (row,) = made.contrasts
    assert pooled.n_seeds == 3 and row.n_seeds == 3 and "seeds and prompts crossed" in row.test and row.se > 0
    assert pooled.value == pytest.approx(69 / N) and pooled.n == 3 * N and pooled.n_prompts == N
    assert sum(r.arm == "set-opening-r100" for r in made.results) == 4
    assert all(r.p_holm is None for r in made.results if r.seed is not None)


def test_a_seed_that_one_arm_lacks_is_in_no_pair():
    cells = [*seeded([(40, 70), (41, 69), (42, 68)]), cell("r000", 0, seed=3)]
    cells.append(cell("set-opening-r100", 0, seed=3, missing=True))
    (row,) = analyse(*cells).contrasts
    assert row.n_seeds == 3 and row.diff == pytest.approx(np.mean([30, 28, 26]) / N)


def test_a_trend_uses_the_seeds_that_every_ratio_has():
    arms = {"r000": 40, "set-opening-r050": 50, "set-opening-r100": 60}
    cells = [cell(arm, right + s, seed=s) for arm, right in arms.items() for s in range(3)]
    cells.append(cell("r000", 0, seed=3))
    row = next(c for c in contrasts(cells, RULES) if c.comparison == "trend")
    assert row.n_seeds == 3 and row.diff == pytest.approx(20 / N) and row.n_prompts == N
    few = [c for c in cells if c.seed == 3 or c.info.arm != "r000"]
    row = next(c for c in contrasts(few, RULES) if c.comparison == "trend")
    assert (row.n_seeds, row.diff, row.ci_low, row.p) == (0, None, None, None)


def test_a_trend_needs_three_finished_ratios():
    cells = [cell("r000", 40), cell("set-opening-r050", 50), cell("set-opening-r100", 60, missing=True)]
    assert not [c for c in contrasts(cells, RULES) if c.comparison == "trend"]


def test_equivalence_is_two_one_sided_tests():
    """Three seeds: the level at which the interval of the same table ends at the margin."""
    rng = np.random.default_rng(0)
    hits = [[np.flatnonzero(rng.random(N) < 0.5) for _ in range(2)] for _ in range(3)]
    cells = seeded(hits)
    (row,) = contrasts(cells, RULES)
    arms = [{s: c for c in cells if c.info.arm == a for s in [c.seed]} for a in ("set-opening-r100", "r000")]
    pair = match(*arms, "accuracy")
    assert pair.contrast(2 * row.p_noninferior).low == pytest.approx(-0.05, rel=1e-6)
    higher = pair.contrast(2 * row.p_equivalent)
    assert min(abs(higher.low + 0.05), abs(higher.high - 0.05)) < 1e-6 and row.p_equivalent >= row.p_noninferior


def test_lower_is_better_turns_the_sign():
    better, worse = (
        contrasts([cell("r000", a, higher=h), cell("set-opening-r100", b, higher=h)], RULES)[0]
        for h, a, b in ((True, 40, 44), (False, 44, 40))
    )
    assert better.diff == -worse.diff and better.p_noninferior == pytest.approx(worse.p_noninferior)
    assert better.p_noninferior < 0.01 < better.p_equivalent


def test_a_capability_can_have_a_margin_of_its_own():
    cells = [cell("r000", 40), cell("set-opening-r100", 44), cell("r000", 40, suite="other")]
    cells.append(cell("set-opening-r100", 44, suite="other"))
    rows = contrasts(cells, Rules(RULES.primary, 0.05, 0.05, {"math": 0.2}))
    assert {c.suite: c.margin for c in rows} == {"suite": 0.2, "other": 0.05}
    own, other = sorted(rows, key=lambda c: -c.margin)
    assert own.p_equivalent < other.p_equivalent


def test_what_would_decide_is_asked_of_the_margin_at_the_level_of_the_family():
    """Oracles: the power of the design itself, just at the numbers given and not below them."""
    made = study(46, 40, 40)
    row = made.contrasts[1]
    assert (row.arm, row.reference, row.up, row.down) == ("set-opening-r100", "r000", 6, 0)
    level = 0.05 / sum(c.p_holm is not None for c in made.contrasts)
    assert level == 0.05 / 6
    needed, share = row.prompts_needed, 0.05
    assert stats.mcnemar_power(needed, share, 0.0, level) >= 0.8 > stats.mcnemar_power(needed // 2, share, 0.0, level)
    # Six pairs of 120 cannot be enough whatever their direction, so that more of them are assumed.
    assert row.detectable > 0.05 and stats.mcnemar_power(N, row.detectable, 0.0, level) == pytest.approx(0.8, abs=0.05)
    assert all(c.prompts_needed is None for c in made.contrasts if c.p_holm is None)


def parts_of(cells):
    arms = [{c.seed: c for c in cells if c.info.arm == a} for a in ("set-opening-r100", "r000")]
    matched = match(*arms, "accuracy")
    return stats.components(matched.first_S_N - matched.second_S_N)


def test_with_seeds_prompts_and_seeds_are_told():
    rng = np.random.default_rng(2)
    right = rng.random((3, N)) < 0.4
    moved = right ^ (rng.random((3, N)) < 0.25)
    cells = seeded([(np.flatnonzero(a), np.flatnonzero(b)) for a, b in zip(right, moved, strict=True)])
    (row,), parts = contrasts(cells, RULES), parts_of(cells)
    assert row.detectable < parts.discordant
    assert stats.crossed_power(row.detectable, parts, N, 3, 0.05) == pytest.approx(0.8, abs=1e-3)
    powers = [stats.crossed_power(0.05, parts, N, row.seeds_needed - d, 0.05) for d in (0, 1)]
    assert row.seeds_needed >= 2 and powers[0] >= 0.8 > (powers[1] if row.seeds_needed > 2 else 0)
    powers = [stats.crossed_power(0.05, parts, row.prompts_needed - d, 3, 0.05) for d in (0, 1)]
    assert powers[0] >= 0.8 > powers[1]


def test_an_effect_larger_than_what_differs_needs_more_to_differ():
    """Seeds that hardly move: what would be seen is more than the share of cells that differ."""
    cells = seeded([(range(60), range(s, 60 + 7 * s)) for s in range(3)])
    (row,), parts = contrasts(cells, RULES), parts_of(cells)
    assert stats.mde(parts, N, 3) is None and parts.discordant < row.detectable < 0.3


def test_samples_of_a_prompt_have_no_share_of_discordant_pairs():
    """Two samples a prompt: the t test's power, from the spread of the prompts' means."""
    rng = np.random.default_rng(3)
    cells = seeded([(np.flatnonzero(rng.random(N) < 0.5), np.flatnonzero(rng.random(N) < 0.5))])
    for c in cells:
        c.rows.extend([r.model_copy(update={"epoch": 2, "value": float(rng.random() < 0.5)}) for r in c.rows])
    (row,) = contrasts(cells, RULES)
    assert "paired t" in row.test
    needed = 7.849 * row.se**2 * N / 0.05**2  # (z_0.975 + z_0.8)^2 variances over the effect squared
    assert row.prompts_needed == pytest.approx(needed, rel=0.02) and row.seeds_needed is None


def test_all_right_and_all_wrong_have_no_nan():
    """Whole suites without spread: every number is finite or null."""
    for reference in (0, N):
        for treated in (0, N):
            one = [cell("r000", reference), cell("set-opening-r050", treated), cell("set-opening-r100", treated)]
            for cells in (one, seeded([(reference, treated)] * 3)):
                made = analyse(*cells)
                for record in (*made.contrasts, *made.results, *made.verdicts):
                    values = [v for v in record.model_dump().values() if isinstance(v, float)]
                    assert all(math.isfinite(v) for v in values), record


def test_scores_of_several_samples_are_one_prompt():
    cells = seeded([(40, 60)], n=60)
    for c in cells:
        c.rows.extend([r.model_copy(update={"epoch": 2}) for r in c.rows])
    (row,) = contrasts(cells, RULES)
    assert row.n_prompts == 60 and row.diff == pytest.approx(20 / 60)


def test_a_prompt_without_any_value_is_left_out_once():
    cells = seeded([(40, 60)], n=60)
    cells[0].rows[3] = score(3, None, "error")
    (row,) = contrasts(cells, RULES)
    assert (row.n_prompts, row.n_left_out) == (59, 1)


def test_prompts_with_a_truncated_sample_are_counted_where_a_metric_is_of_prompts():
    (made,) = [c for c in seeded([(40, 60)], n=60) if c.info.arm == "r000"]
    cut = [score(0, 1.0, metric="truncated"), score(0, 1.0, metric="truncated").model_copy(update={"epoch": 2})]
    made.rows.extend([*cut, *(score(i, 1.0, metric="pass@2").model_copy(update={"epoch": 0}) for i in range(60))])
    made = replace(made, metrics={**made.metrics, "pass@2": True})
    rows = {r.metric: r for r in results([made], [], 0.05)}
    assert (rows["pass@2"].n_truncated, rows["accuracy"].n_truncated) == (1, 1)
