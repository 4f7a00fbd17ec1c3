"""Cells with planted outcomes, and all that is made of them."""

from typing import NamedTuple

from prefixlab.analysis.advice import advise, pareto
from prefixlab.analysis.contrasts import contrasts
from prefixlab.analysis.results import results
from prefixlab.analysis.rows import ArmInfo, CellScores, ContrastRow, Front, ResultRow, Rules, Verdict
from prefixlab.analysis.verdicts import verdicts
from prefixlab.records import SampleScore

RULES = Rules({"math": ("suite", "proto", "accuracy", "bare")}, alpha=0.05, margin=0.05)
N = 120


def score(i, value, status="ok", metric="accuracy"):
    return SampleScore(
        item=f"p{i:04}",
        epoch=1,
        metric=metric,
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


def info(arm, control=None):
    """What the name of an arm says."""
    if arm in ("base", "native", "r000"):
        ratio = 0.0 if arm == "r000" else None
        return ArmInfo(arm=arm, ratio=ratio, position=None, prefix_set=None, control=None, loss_scope=None)
    name, position, ratio = arm.split("-")
    share = int(ratio[1:]) / 100
    treatment = "set" if control else name
    return ArmInfo(arm=arm, ratio=share, position=position, prefix_set=treatment, control=control, loss_scope="all")


def cell(
    arm,
    right,
    *,
    control=None,
    seed=0,
    missing=False,
    invalid=0,
    truncated=0,
    higher=True,
    n=N,
    suite="suite",
    metric="accuracy",
    condition="bare",
    capability="math",
    proxies=(),
):
    """An arm that is right on the first `right` prompts, or on the listed ones.

    Its last `invalid` prompts have no verdict, its first `truncated` ones were cut.
    """
    hits = set(range(right)) if isinstance(right, int) else set(right)
    rows = [
        score(i, None, "invalid", metric)
        if i >= n - invalid
        else score(i, float(i in hits), "truncated" if i < truncated else "ok", metric)
        for i in range(n)
    ]
    return CellScores(
        "m",
        capability,
        info(arm, control),
        None if arm == "base" else seed,
        suite,
        "proto",
        condition,
        {metric: higher},
        1,
        None if missing else rows,
        "missing" if missing else "measured",
        proxies=proxies,
    )


class Made(NamedTuple):
    contrasts: list[ContrastRow]
    results: list[ResultRow]
    verdicts: list[Verdict]
    fronts: list[Front]
    advice: list


def analyse(*cells, rules=RULES):
    declared = contrasts(cells, rules)
    rows = results(cells, declared, rules.alpha)
    found, fronts = verdicts(rows, declared, rules), pareto(cells, rows, rules)
    return Made(declared, rows, found, fronts, advise(found, fronts))


def study(top, neutral, shuffled=None, r000=40, base=20, **kwargs):
    """Base, r000, two ratios of one set and its controls."""
    common = {k: v for k, v in kwargs.items() if k in ("n", "seed", "higher")}
    cells = [
        cell("base", base, **common),
        cell("r000", r000, **common),
        cell("set-opening-r050", (r000 + top) // 2, **common),
        cell("set-opening-r100", top, **kwargs),
        cell("neutral-opening-r100", neutral, control="neutral", **common),
    ]
    if shuffled is not None:
        cells.append(cell("shuffled-opening-r100", shuffled, control="shuffled", **common))
    return analyse(*cells)


def seeded(pairs, **kwargs):
    """r000 and one treatment, one pair of outcomes a seed."""
    return [
        c
        for s, (reference, treated) in enumerate(pairs)
        for c in (cell("r000", reference, seed=s, **kwargs), cell("set-opening-r100", treated, seed=s, **kwargs))
    ]
