"""From scores of single completions to the rows of results.parquet. No torch."""

from collections.abc import Mapping, Sequence

import numpy as np

from prefixlab.analysis import stats
from prefixlab.analysis.contrasts import BySeed, common_prompts, group, match, table
from prefixlab.analysis.rows import BASE, REFERENCE, CellScores, ContrastRow, ResultRow
from prefixlab.records import Measure


def _truncated(cell: CellScores, mine: Sequence[Measure]) -> int:
    """Truncated completions among those a metric is of, whatever their verdict; of whole prompts: prompts."""
    return sum(r.status == "truncated" or (r.item, r.epoch) in cell.cut for r in mine)


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


def _pooled(by_seed: BySeed, singles: Mapping[int | None, ResultRow], metric: str, alpha: float) -> ResultRow:
    """Row over all finished seeds, without its difference, from the seeds' own rows."""
    rows = list(singles.values())
    done = [c for c in by_seed.values() if c.rows is not None]
    if len(done) <= 1:
        seed = done[0].seed if done else next(iter(singles))
        return singles[seed].model_copy(update={"seed": None, "n_seeds": len(done)})
    common = common_prompts([by_seed], [c.seed for c in done], metric)
    values_S_N = table(by_seed, [c.seed for c in done], common, metric)
    share = bool(((values_S_N >= 0) & (values_S_N <= 1)).all())
    found = stats.level(values_S_N, alpha, share=share)
    return rows[0].model_copy(
        update={
            "seed": None,
            "n_seeds": len(done),
            "value": found.value,
            "ci_low": found.low,
            "ci_high": found.high,
            "n": sum(r.n for r in rows),
            "n_prompts": len(common),
            "n_invalid": sum(r.n_invalid for r in rows),
            "n_truncated": sum(r.n_truncated for r in rows),
            "n_error": sum(r.n_error for r in rows),
            "status": "measured" if common else rows[0].status,
        }
    )


def _seen(cell: CellScores, by_seed: BySeed) -> list[str]:
    """Diagnostics that were taken of at least one completion."""
    return [d for d in cell.diagnostics if d not in cell.metrics and any(c.of(d) for c in by_seed.values())]


def results(cells: Sequence[CellScores], declared: Sequence[ContrastRow], alpha: float) -> list[ResultRow]:
    """Rows of results.parquet: one a seed, one pooled; differences against r000 of the same cell."""
    pooled_diff = {
        (c.model, c.capability, c.suite, c.protocol, c.condition, c.metric, c.arm): c
        for c in declared
        if c.comparison == "vs_r000"
    }
    rows: list[ResultRow] = []
    for key, arms in group(cells).items():
        reference = arms.get(REFERENCE, {})
        for name, by_seed in arms.items():
            some = next(iter(by_seed.values()))
            for metric in (*some.metrics, *_seen(some, by_seed)):
                singles = {seed: _row(cell, metric, alpha) for seed, cell in by_seed.items()}
                pooled = _pooled(by_seed, singles, metric, alpha)
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
                    row = singles[seed]
                    if name != REFERENCE and seed in reference and metric in some.metrics:
                        diff = match({seed: cell}, {seed: reference[seed]}, metric).contrast(alpha)
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
