"""From scores of single completions to results and declared contrasts. No torch.

Pairs are formed on the same prompts. A prompt without a verdict (INVALID) in either arm leaves the pair; the bounds
with all of them at best and at worst stand beside the difference.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from prefixlab.analysis import stats
from prefixlab.analysis.rows import BASE, REFERENCE, CellScores, ContrastRow, GroupKey, Primary, ResultRow
from prefixlab.records import Measure

POWER = 0.8


def _group(cells: Iterable[CellScores]) -> dict[GroupKey, dict[str, dict[int | None, CellScores]]]:
    groups: dict[GroupKey, dict[str, dict[int | None, CellScores]]] = {}
    for cell in cells:
        key = (cell.model, cell.capability, cell.suite, cell.protocol, cell.condition)
        groups.setdefault(key, {}).setdefault(cell.info.arm, {})[cell.seed] = cell
    return groups


def _matrix(
    a: Mapping[int | None, CellScores], b: Mapping[int | None, CellScores], metric: str
) -> tuple[stats.Array, stats.Array, list[int | None], int]:
    """Values of two arms, (seeds, prompts), over the seeds and prompts that both have; and prompts left out."""
    seeds = [s for s in a if s in b and a[s].rows is not None and b[s].rows is not None]
    left = [(a[s].values(metric), b[s].values(metric)) for s in seeds]
    if not left:
        return np.zeros((0, 0)), np.zeros((0, 0)), [], 0
    common = sorted(set.intersection(*(set(x) & set(y) for x, y in left)))
    asked = set().union(*({r.item for r in a[s].of(metric)} for s in seeds))
    first = np.array([[x[i] for i in common] for x, _ in left]).reshape(len(seeds), len(common))
    second = np.array([[y[i] for i in common] for _, y in left]).reshape(len(seeds), len(common))
    return first, second, seeds, len(asked) - len(common)


def _compare(first: stats.Array, second: stats.Array, alpha: float) -> stats.Contrast:
    if first.size == 0:
        return stats.NONE
    if first.shape[0] == 1:
        return stats.paired(first[0], second[0], alpha)
    return stats.crossed(first - second, alpha)


def _bounds(
    a: Mapping[int | None, CellScores], b: Mapping[int | None, CellScores], seeds: Sequence[int | None], metric: str
) -> tuple[float | None, float | None]:
    """Mean difference with every unmeasured value against the treatment, and for it."""
    if not seeds:
        return None, None
    ends = []
    for mine, theirs in ((0.0, 1.0), (1.0, 0.0)):
        diffs = []
        for s in seeds:
            x, y = a[s].bound(metric, mine), b[s].bound(metric, theirs)
            diffs += [x[i] - y[i] for i in sorted(set(x) & set(y))]
        ends.append(float(np.mean(diffs)) if diffs else None)
    return ends[0], ends[1]


def _contrast_row(
    key: GroupKey,
    metric: str,
    arm: Mapping[int | None, CellScores],
    reference: Mapping[int | None, CellScores],
    comparison: str,
    primary: Primary,
    alpha: float,
) -> ContrastRow:
    model, capability, suite, protocol, condition = key
    some, other = next(iter(arm.values())), next(iter(reference.values()))
    first, second, seeds, left_out = _matrix(arm, reference, metric)
    found = _compare(first, second, alpha)
    low, high = _bounds(arm, reference, seeds, metric)
    discordant = max((found.up + found.down) / found.n, 0.05) if found.n else 0.0
    return ContrastRow(
        model=model,
        capability=capability,
        suite=suite,
        protocol=protocol,
        condition=condition,
        metric=metric,
        comparison=comparison,
        arm=some.info.arm,
        reference=other.info.arm,
        ratio=some.info.ratio,
        higher_is_better=some.metrics[metric],
        primary=primary.get(capability) == (suite, protocol, metric, condition),
        n_seeds=len(seeds),
        n_prompts=found.n,
        n_left_out=left_out,
        up=found.up,
        down=found.down,
        diff=found.diff,
        ci_low=found.low,
        ci_high=found.high,
        bound_low=low,
        bound_high=high,
        p=found.p,
        p_holm=None,
        detectable=stats.detectable(found.n, discordant, alpha, POWER) if len(seeds) == 1 else None,
        test=found.test,
    )


def _trend_row(
    key: GroupKey,
    metric: str,
    arms: Sequence[Mapping[int | None, CellScores]],
    primary: Primary,
    alpha: float,
) -> ContrastRow | None:
    """Trend over r000 and the ratios of one prefix set and position; None with fewer than three finished ratios."""
    done = [a for a in arms if all(c.rows is not None for c in a.values())]
    if len(done) < 3:
        return None
    values = []
    for arm in done:
        per_seed = [c.values(metric) for c in arm.values()]
        common = set.intersection(*(set(v) for v in per_seed))
        values.append({i: float(np.mean([v[i] for v in per_seed])) for i in common})
    prompts = sorted(set.intersection(*(set(v) for v in values)))
    if not prompts:
        return None
    ratios = [next(iter(a.values())).info.ratio or 0.0 for a in done]
    found = stats.trend(np.array([[v[i] for i in prompts] for v in values]), ratios, alpha)
    blank = _contrast_row(key, metric, done[-1], done[0], "trend", primary, alpha)
    return blank.model_copy(
        update={
            "n_prompts": found.n,
            "up": found.up,
            "down": found.down,
            "diff": found.diff,
            "ci_low": found.low,
            "ci_high": found.high,
            "bound_low": None,
            "bound_high": None,
            "p": found.p,
            "detectable": None,
            "primary": False,
            "ratio": None,
            "test": found.test,
        }
    )


def contrasts(cells: Sequence[CellScores], primary: Primary, alpha: float) -> list[ContrastRow]:
    """Every declared pair: ratios and controls against r000, treatments against their controls, trends.

    The Holm family is every contrast of an arm (ratios, controls, native) against r000 and of treatments against
    controls on the primary suite, metric and condition of each capability, over the whole study; every other row has
    no adjusted p and is exploratory.
    """
    rows: list[ContrastRow] = []
    for key, arms in _group(cells).items():
        infos = {name: next(iter(by_seed.values())).info for name, by_seed in arms.items()}
        some = next(iter(next(iter(arms.values())).values()))
        if REFERENCE not in arms:
            continue
        for metric in some.metrics:
            for name in arms:
                if name not in (REFERENCE, BASE):
                    rows.append(_contrast_row(key, metric, arms[name], arms[REFERENCE], "vs_r000", primary, alpha))
            for name, info in infos.items():
                if info.control is None:
                    continue
                for treated, other in infos.items():
                    same = (other.ratio, other.position, other.prefix_set) == (
                        info.ratio,
                        info.position,
                        info.prefix_set,
                    )
                    if other.control is None and same:
                        rows.append(_contrast_row(key, metric, arms[treated], arms[name], "vs_control", primary, alpha))
            families = {(i.prefix_set, i.position) for i in infos.values() if i.prefix_set and i.control is None}
            for family in sorted(families, key=str):
                members = [n for n, i in infos.items() if (i.prefix_set, i.position) == family and i.control is None]
                members.sort(key=lambda n: infos[n].ratio or 0.0)
                row = _trend_row(key, metric, [arms[n] for n in [REFERENCE, *members]], primary, alpha)
                rows += [row] if row else []
    family_p = {str(i): r.p for i, r in enumerate(rows) if _in_family(r) and r.p is not None}
    adjusted = stats.holm(family_p)
    return [r.model_copy(update={"p_holm": adjusted.get(str(i))}) for i, r in enumerate(rows)]


def _in_family(row: ContrastRow) -> bool:
    return row.primary and row.comparison in ("vs_r000", "vs_control")


def _truncated(cell: CellScores, mine: Sequence[Measure]) -> int:
    """Truncated completions among those a metric is of, whatever their verdict."""
    cut = {(r.item, r.epoch) for r in cell.of("truncated") if r.value}
    return sum(r.status == "truncated" or (r.item, r.epoch) in cut for r in mine)


def _status(cell: CellScores, mine: Sequence[Measure]) -> str:
    """State of one metric of one cell."""
    if cell.rows is None:
        return cell.status
    if not mine:
        return "not_applicable"
    if any(r.value is not None for r in mine):
        return "measured"
    return "error" if any(r.status == "error" for r in mine) else "invalid"


def _row(cell: CellScores, metric: str, alpha: float) -> ResultRow:
    """Row of one seed, without its difference."""
    mine = cell.of(metric)
    values = cell.values(metric)
    found = stats.estimate(np.array([values[i] for i in sorted(values)]), alpha)
    return ResultRow(
        **cell.info.model_dump(),
        model=cell.model,
        capability=cell.capability,
        seed=cell.seed,
        suite=cell.suite,
        protocol=cell.protocol,
        condition=cell.condition,
        metric=metric,
        judge=cell.judges.get(metric),
        is_proxy=metric in cell.proxies,
        value=found.value,
        n=sum(r.value is not None for r in mine),
        n_prompts=len(values),
        k=cell.k,
        ci_low=found.low,
        ci_high=found.high,
        n_invalid=sum(r.status == "invalid" for r in mine),
        n_truncated=_truncated(cell, mine),
        n_error=sum(r.status == "error" for r in mine),
        n_seeds=1,
        status=_status(cell, mine),
        diff=None,
        diff_ci_low=None,
        diff_ci_high=None,
        p=None,
        p_holm=None,
    )


def _pooled(by_seed: Mapping[int | None, CellScores], metric: str, alpha: float) -> ResultRow:
    """Row over all finished seeds, without its difference."""
    rows = [_row(c, metric, alpha) for c in by_seed.values()]
    done = [c for c in by_seed.values() if c.rows is not None]
    if len(done) <= 1:
        cell = done[0] if done else next(iter(by_seed.values()))
        return _row(cell, metric, alpha).model_copy(update={"seed": None, "n_seeds": len(done)})
    tables = [c.values(metric) for c in done]
    common = sorted(set.intersection(*(set(t) for t in tables)))
    matrix = np.array([[t[i] for i in common] for t in tables])
    spread = stats.crossed(matrix, alpha) if common else stats.NONE
    return rows[0].model_copy(
        update={
            "seed": None,
            "n_seeds": len(done),
            "value": float(matrix.mean()) if common else None,
            "ci_low": spread.low,
            "ci_high": spread.high,
            "n": sum(r.n for r in rows),
            "n_prompts": len(common),
            "n_invalid": sum(r.n_invalid for r in rows),
            "n_truncated": sum(r.n_truncated for r in rows),
            "n_error": sum(r.n_error for r in rows),
            "status": "measured" if common else rows[0].status,
        }
    )


def _seen(cell: CellScores, by_seed: Mapping[int | None, CellScores]) -> list[str]:
    """Diagnostics that were taken of at least one completion."""
    taken = {r.metric for c in by_seed.values() for r in c.rows or ()}
    return [d for d in cell.diagnostics if d in taken and d not in cell.metrics]


def results(cells: Sequence[CellScores], declared: Sequence[ContrastRow], alpha: float) -> list[ResultRow]:
    """Rows of results.parquet: one a seed, one pooled; differences against r000 of the same cell."""
    pooled_diff = {
        (c.model, c.capability, c.suite, c.protocol, c.condition, c.metric, c.arm): c
        for c in declared
        if c.comparison == "vs_r000"
    }
    rows: list[ResultRow] = []
    for key, arms in _group(cells).items():
        reference = arms.get(REFERENCE, {})
        for name, by_seed in arms.items():
            some = next(iter(by_seed.values()))
            for metric in (*some.metrics, *_seen(some, by_seed)):
                pooled = _pooled(by_seed, metric, alpha)
                found = pooled_diff.get((*key, metric, name))
                if found:
                    pooled = pooled.model_copy(
                        update={
                            "diff": found.diff,
                            "diff_ci_low": found.ci_low,
                            "diff_ci_high": found.ci_high,
                            "p": found.p,
                            "p_holm": found.p_holm,
                        }
                    )
                rows.append(pooled)
                for seed, cell in by_seed.items():
                    if seed is None:
                        continue
                    row = _row(cell, metric, alpha)
                    if name != REFERENCE and seed in reference and metric in some.metrics:
                        first, second, _, _ = _matrix({seed: cell}, {seed: reference[seed]}, metric)
                        diff = _compare(first, second, alpha)
                        row = row.model_copy(
                            update={"diff": diff.diff, "diff_ci_low": diff.low, "diff_ci_high": diff.high, "p": diff.p}
                        )
                    rows.append(row)
    return sorted(rows, key=_order)


def _order(row: ResultRow) -> tuple[object, ...]:
    place = 0 if row.arm == BASE else 1 if row.arm == REFERENCE else 3 if row.control else 2
    return (
        row.model,
        row.capability,
        row.suite,
        row.protocol,
        row.condition,
        row.metric,
        place,
        row.ratio if row.ratio is not None else -1.0,
        row.arm,
        row.seed is not None,
        row.seed or 0,
    )
