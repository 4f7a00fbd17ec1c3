"""Results, contrasts and verdicts on planted outcomes."""

import pytest

from prefixlab.analysis.results import contrasts, results
from prefixlab.analysis.rows import ArmInfo, CellScores
from prefixlab.analysis.verdicts import verdicts
from prefixlab.records import SampleScore

PRIMARY = {"math": ("suite", "proto", "accuracy", "bare")}
N = 120


def score(i, value, status="ok"):
    return SampleScore(
        item=f"p{i:03}",
        epoch=1,
        metric="accuracy",
        value=value,
        status=status,
        kind="problem",
        category="",
        prompt="q",
        completion="c",
        prefill="",
        answer="",
        target="",
        n_tokens=1,
    )


def cell(arm, right, *, ratio=1.0, control=None, seed=0, missing=False, invalid=0, higher=True, n=N):
    """An arm that is right on the first `right` prompts; its last `invalid` ones have no verdict."""
    info = ArmInfo(
        arm=arm,
        ratio=None if arm == "base" else ratio,
        position=None if arm in ("base", "r000") else "opening",
        prefix_set=None if arm in ("base", "r000") else "set",
        control=control,
        loss_scope="all",
    )
    rows = [score(i, None, "invalid") if i >= n - invalid else score(i, float(i < right)) for i in range(n)]
    return CellScores(
        "m",
        "math",
        info,
        None if arm == "base" else seed,
        "suite",
        "proto",
        "bare",
        {"accuracy": higher},
        1,
        None if missing else rows,
        "missing" if missing else "measured",
    )


def analyse(*cells):
    declared = contrasts(cells, PRIMARY, 0.05)
    rows = results(cells, declared, 0.05)
    return declared, rows, verdicts(rows, declared, PRIMARY, 0.05)


def study(top, neutral, shuffled=None, r000=40, **kwargs):
    cells = [
        cell("base", 20),
        cell("r000", r000, ratio=0.0),
        cell("set-opening-r050", (r000 + top) // 2, ratio=0.5),
        cell("set-opening-r100", top, **kwargs),
        cell("neutral-opening-r100", neutral, control="neutral"),
    ]
    if shuffled is not None:
        cells.append(cell("shuffled-opening-r100", shuffled, control="shuffled"))
    return analyse(*cells)


@pytest.mark.parametrize(
    ("numbers", "word"),
    [
        ((80, 40, 42), "helps because of its words"),
        ((80, 78, 79), "helps as any opening would"),
        ((80, 40, None), "helps; whether because of its words is undecided"),
        ((80, 40, 78), "helps; whether because of its words is undecided"),
        ((20, 40, 40), "hurts"),
        ((42, 40, 40), "undecided"),
    ],
)
def test_verdicts(numbers, word):
    _, _, (verdict,) = study(*numbers)
    assert verdict.verdict == word and word in verdict.sentence


def test_floor_and_ceiling():
    cells = [cell("base", 0), cell("r000", 1, ratio=0.0), cell("set-opening-r100", 3)]
    assert analyse(*cells)[2][0].verdict == "no verdict (floor or ceiling)"


def test_lower_is_better():
    cells = [cell("r000", 80, ratio=0.0, higher=False), cell("set-opening-r100", 40, higher=False)]
    assert analyse(*cells)[2][0].verdict.startswith("helps")


def test_numeric_of_a_row():
    _, rows, _ = study(80, 40)
    row = next(r for r in rows if r.arm == "set-opening-r100" and r.seed is None)
    assert (row.value, row.n, row.n_prompts, row.k, row.n_seeds) == (pytest.approx(80 / N), N, N, 1, 1)
    assert row.diff == pytest.approx(40 / N) and row.diff_ci_low < row.diff < row.diff_ci_high
    assert row.p < 0.001 and row.p <= row.p_holm
    base = next(r for r in rows if r.arm == "base")
    assert (base.seed, base.ratio, base.position, base.control, base.diff) == (None,) * 5
    assert [r.arm for r in rows if r.seed is None][:2] == ["base", "r000"]


def test_treatment_minus_control_is_declared():
    declared, _, _ = study(80, 50)
    row = next(c for c in declared if c.comparison == "vs_control")
    assert (row.arm, row.reference) == ("set-opening-r100", "neutral-opening-r100")
    assert row.diff == pytest.approx(30 / N) and row.primary and row.p_holm is not None
    trend = next(c for c in declared if c.comparison == "trend")
    assert trend.diff == pytest.approx(40 / N, rel=0.1) and trend.p_holm is None


def test_invalid_pairs_leave_and_bounds_decide():
    """A clear difference among the judged prompts is undecided when the unjudged ones could undo it."""
    cells = [cell("r000", 20, ratio=0.0, n=60), cell("set-opening-r100", 36, n=60, invalid=20)]
    declared, rows, (verdict,) = analyse(*cells)
    (row,) = declared
    assert (row.n_prompts, row.n_left_out) == (40, 20) and row.p_holm < 0.05
    assert row.bound_low == pytest.approx((36 - 20) / 60) and row.bound_high == pytest.approx((36 + 20 - 20) / 60)
    assert verdict.verdict != "undecided"
    cells = [cell("r000", 30, ratio=0.0, n=60), cell("set-opening-r100", 39, n=60, invalid=21)]
    cells[0].rows[50] = score(50, 1.0)
    more = [cell("r000", 25, ratio=0.0, n=60, invalid=20), cell("set-opening-r100", 38, n=60, invalid=20)]
    declared, _, (verdict,) = analyse(*more)
    assert declared[0].bound_low < 0 < declared[0].bound_high and declared[0].p_holm < 0.05
    assert verdict.verdict == "undecided"
    assert next(r for r in rows if r.arm == "set-opening-r100").n_invalid == 20


def test_missing_is_not_zero():
    cells = [cell("r000", 40, ratio=0.0), cell("set-opening-r100", 0, missing=True)]
    declared, rows, (verdict,) = analyse(*cells)
    row = next(r for r in rows if r.arm == "set-opening-r100")
    assert (row.value, row.status, row.n, row.diff) == (None, "missing", 0, None)
    assert declared[0].diff is None and verdict.verdict == "not measured"


def test_all_invalid_is_not_zero():
    cells = [cell("r000", 40, ratio=0.0), cell("set-opening-r100", 0, invalid=N)]
    _, rows, (verdict,) = analyse(*cells)
    row = next(r for r in rows if r.arm == "set-opening-r100")
    assert (row.value, row.status, row.n_invalid) == (None, "invalid", N) and verdict.verdict == "not measured"


def test_unequal_prompts_are_paired_on_the_common_ones():
    cells = [cell("r000", 40, ratio=0.0, n=100), cell("set-opening-r100", 60, n=120)]
    declared, _, _ = analyse(*cells)
    assert declared[0].n_prompts == 100


def test_seeds_are_pooled_with_their_own_variance():
    cells = [
        c for s in range(3) for c in (cell("r000", 40 + s, ratio=0.0, seed=s), cell("set-opening-r100", 70 - s, seed=s))
    ]
    declared, rows, _ = analyse(*cells)
    pooled = next(r for r in rows if r.arm == "set-opening-r100" and r.seed is None)
    assert pooled.n_seeds == 3 and declared[0].n_seeds == 3 and "variance components" in declared[0].test
    assert pooled.value == pytest.approx(69 / N) and pooled.n == 3 * N and pooled.n_prompts == N
    assert sum(r.arm == "set-opening-r100" for r in rows) == 4
    assert all(r.p_holm is None for r in rows if r.seed is not None)


def test_family_is_the_primary_contrasts_only():
    declared, _, _ = study(80, 40, 42)
    family = [c for c in declared if c.p_holm is not None]
    assert {c.comparison for c in family} == {"vs_r000", "vs_control"} and len(family) == 6
