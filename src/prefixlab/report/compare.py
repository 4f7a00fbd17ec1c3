"""Two runs side by side, in numbers: which results belong together, and which of them may be subtracted.

A difference is made only where the question was the same: the same suite and condition, decoded alike, judged by the
same judge, as many samples a prompt, on prompts of the same id, text and target. Prompts are paired, seeds are crossed
with them as everywhere else (analysis/stats.py). What may not be subtracted is listed with its reason.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from prefixlab.analysis import stats
from prefixlab.analysis.contrasts import BySeed, common_seeds, group, match
from prefixlab.analysis.rows import CellScores, ResultRow
from prefixlab.records import SampleScore
from prefixlab.report.compare_rows import CompareRow, State
from prefixlab.report.tables import RunData, pooled

DECODING = ("max_tokens", "temperature", "top_p", "repetition_penalty")


@dataclass(frozen=True)
class _Side:
    """A row of one run with its cells and how they were made."""

    row: ResultRow
    cells: BySeed
    decoding: Mapping[str, Any]
    prompting: Any
    judging: Any

    @property
    def diagnostic(self) -> bool:
        return self.row.metric not in next(iter(self.cells.values())).metrics


Key = tuple[str, str, str, str, str, str]
"""(model, capability, arm, suite, condition, metric)."""


def model_pairs(a: RunData, b: RunData) -> dict[str, str]:
    """Model of A -> model of B: the same names; across names only where each run has exactly one."""
    if len(a.study.models) == len(b.study.models) == 1:
        return {a.study.models[0]: b.study.models[0]}
    return {name: name for name in a.study.models if name in b.study.models}


def _made(data: RunData) -> dict[tuple[str, ...], tuple[Mapping[str, Any], Any, Any]]:
    """Decoding, prompting and judge of every planned evaluation, whatever its seed."""
    steps = {s["slug"]: s for s in data.plan["steps"]}
    found: dict[tuple[str, ...], tuple[Mapping[str, Any], Any, Any]] = {}
    for step in steps.values():
        if step["kind"] == "eval":
            config = step["config"]
            sampled = steps[step["inputs"]["log"]]["config"]
            about = (config["suite"]["suite"], config["protocol"], config["condition"])
            key = (config["model"]["name"], config["capability"], config["arm"]["arm"], *about)
            found[key] = (sampled["decoding"], sampled["prompting"], config["judge_settings"])
    return found


def _sides(data: RunData, rename: Mapping[str, str]) -> dict[Key, list[_Side]]:
    """Pooled rows of a run by what they are a result of; several where a suite was asked under several protocols."""
    groups, made = group(data.cells), _made(data)
    found: dict[Key, list[_Side]] = {}
    for row in pooled(data.results):
        cells = groups[row.model, row.capability, row.suite, row.protocol, row.condition][row.arm]
        about = made.get((row.model, row.capability, row.arm, row.suite, row.protocol, row.condition), ({}, None, None))
        key = (rename.get(row.model, row.model), row.capability, row.arm, row.suite, row.condition, row.metric)
        found.setdefault(key, []).append(_Side(row, cells, *about))
    return found


def _paired_off(a: list[_Side], b: list[_Side]) -> Iterable[tuple[_Side | None, _Side | None]]:
    """Sides of one key: of the same protocol first; a single one left on each side are each other's."""
    theirs = {s.row.protocol: s for s in b}
    same = [s for s in a if s.row.protocol in theirs]
    yield from ((s, theirs.pop(s.row.protocol)) for s in same)
    left, right = [s for s in a if s not in same], list(theirs.values())
    if len(left) == len(right) == 1:
        yield left[0], right[0]
        return
    yield from ((s, None) for s in left)
    yield from ((None, s) for s in right)


def compare_runs(a: RunData, b: RunData) -> list[CompareRow]:
    """Every pooled row of both runs, matched; intervals at A's level.

    Args:
        a: The one that is subtracted.
        b: The other.
    """
    pairs = model_pairs(a, b)
    mine, theirs = _sides(a, pairs), _sides(b, {})
    alpha, texts = a.study.analysis.alpha, _Texts()
    return [
        _row(x, y, alpha, texts)
        for key in [*mine, *(k for k in theirs if k not in mine)]
        for x, y in _paired_off(mine.get(key, []), theirs.get(key, []))
    ]


def _row(a: _Side | None, b: _Side | None, alpha: float, texts: "_Texts") -> CompareRow:
    some = a or b
    assert some is not None
    state, why, found = _verdict(a, b, alpha, texts)
    row, contrast = some.row, found.contrast if found else stats.NONE
    one, two = (side.row if side else None for side in (a, b))
    return CompareRow(
        capability=row.capability,
        arm=row.arm,
        suite=row.suite,
        condition=row.condition,
        metric=row.metric,
        model_a=one and one.model,
        model_b=two and two.model,
        protocol_a=one and one.protocol,
        protocol_b=two and two.protocol,
        judge_a=one and one.judge,
        judge_b=two and two.judge,
        is_proxy=bool(one and one.is_proxy) or bool(two and two.is_proxy),
        diagnostic=some.diagnostic,
        value_a=one and one.value,
        ci_low_a=one and one.ci_low,
        ci_high_a=one and one.ci_high,
        n_prompts_a=one and one.n_prompts,
        n_seeds_a=one and one.n_seeds,
        status_a=one and one.status,
        value_b=two and two.value,
        ci_low_b=two and two.ci_low,
        ci_high_b=two and two.ci_high,
        n_prompts_b=two and two.n_prompts,
        n_seeds_b=two and two.n_seeds,
        status_b=two and two.status,
        state=state,
        why=why,
        diff=contrast.diff,
        ci_low=contrast.low,
        ci_high=contrast.high,
        p=contrast.p,
        n_prompts=contrast.n if found else None,
        n_left_out=found.left_out if found else None,
        n_seeds=found.n_seeds if found else None,
        up=contrast.up if found else None,
        down=contrast.down if found else None,
        test=contrast.test,
    )


@dataclass(frozen=True)
class _Found:
    contrast: stats.Contrast
    n_seeds: int
    left_out: int


def _verdict(a: _Side | None, b: _Side | None, alpha: float, texts: "_Texts") -> tuple[State, str, _Found | None]:
    """Whether two sides may be subtracted, and their difference."""
    if a is None or b is None:
        return ("only in B" if a is None else "only in A"), "", None
    states = (("A", a.row.status), ("B", b.row.status))
    if any(status != "measured" for _, status in states):
        words = (f"{status.replace('_', ' ')} in {name}" for name, status in states if status != "measured")
        return "not measured", ", ".join(words), None
    reasons = _reasons(a, b)
    if reasons:
        return reasons[0][0], "; ".join(why for _, why in reasons), None
    shared, asked = texts.shared(a.cells, b.cells, a.row.metric)
    found = _difference(a.cells, b.cells, a.row.metric, shared, alpha)
    if found is None or found.contrast.n == 0:
        said = f"{len(shared)} of {asked} prompts are in both runs with the same text and target"
        return "different prompts", said + (", none of them with a value in both" if shared else ""), None
    limits = [] if len(shared) == asked else [f"on the {len(shared)} of {asked} prompts that both have"]
    if found.left_out:
        limits.append(f"{found.left_out} of them without a value in one of the runs")
    if found.n_seeds == 0:
        limits.append("no seed in common: means over seeds, and an interval over prompts only")
    elif found.n_seeds < max(a.row.n_seeds, b.row.n_seeds):
        limits.append(f"with the {found.n_seeds} {'seed' if found.n_seeds == 1 else 'seeds'} that both have")
    if found.contrast.low is None:
        limits.append("no interval: " + ("one prompt" if found.contrast.n == 1 else "every prompt differs alike"))
    return "compared", "; ".join(limits), found


def _reasons(a: _Side, b: _Side) -> list[tuple[State, str]]:
    """Everything about how two numbers were made that forbids to subtract them."""
    found: list[tuple[State, str]] = []
    if a.row.protocol != b.row.protocol:
        found.append(("other protocol", f"protocol {a.row.protocol} in A, {b.row.protocol} in B"))
    changed = [n for n in DECODING if a.decoding.get(n) != b.decoding.get(n)]
    for name in changed:
        found.append(("other protocol", f"{name} {a.decoding.get(name)} in A, {b.decoding.get(name)} in B"))
    if a.prompting != b.prompting:
        found.append(("other protocol", "another prefix set, position or template in the prompts"))
    if a.row.judge != b.row.judge:
        found.append(("other judge", f"judge {a.row.judge or 'none'} in A, {b.row.judge or 'none'} in B"))
    elif a.row.judge not in (None, "rules") and a.judging != b.judging:
        changed = sorted(k for k in {*a.judging, *b.judging} if a.judging.get(k) != b.judging.get(k))
        found.append(("other judge", f"judge {a.row.judge} with another {', '.join(changed)}"))
    if a.row.k != b.row.k:
        found.append(("other samples", f"{a.row.k} samples a prompt in A, {b.row.k} in B"))
    return found


class _Texts:
    """Prompts and targets of cells, each read once."""

    def __init__(self) -> None:
        self._read: dict[int, tuple[CellScores, dict[str, tuple[str, str]]]] = {}

    def of(self, cell: CellScores) -> dict[str, tuple[str, str]]:
        """Item -> prompt and target."""
        if id(cell) not in self._read:
            rows = (r for r in cell.rows or () if isinstance(r, SampleScore))
            self._read[id(cell)] = (cell, {r.item: (r.prompt, r.target) for r in rows})
        return self._read[id(cell)][1]

    def shared(self, a: BySeed, b: BySeed, metric: str) -> tuple[frozenset[str], int]:
        """Items that were the same question in every finished cell of both, and how many were asked in any."""
        cells = [c for side in (a, b) for c in side.values() if c.rows is not None]
        asked = [{r.item for r in c.of(metric)} for c in cells]
        common = set.intersection(*asked) if asked else set()
        tables = [self.of(c) for c in cells]
        same = frozenset(i for i in common if i in tables[0] and all(t.get(i) == tables[0][i] for t in tables))
        return same, len(set().union(*asked))


def _only(cells: BySeed, metric: str, items: frozenset[str]) -> dict[int | None, CellScores]:
    """Finished cells with the rows of one metric on some items."""
    return {
        seed: replace(cell, rows=[r for r in cell.of(metric) if r.item in items])
        for seed, cell in cells.items()
        if cell.rows is not None
    }


def _difference(a: BySeed, b: BySeed, metric: str, items: frozenset[str], alpha: float) -> _Found | None:
    """B minus A on some items: seeds that both have are crossed with prompts, else means over seeds are paired."""
    first, second = _only(b, metric, items), _only(a, metric, items)
    if common_seeds(first, second):
        matched = match(first, second, metric)
        return _Found(matched.contrast(alpha), len(matched.seeds), matched.left_out)
    tables = [[c.values(metric) for c in side.values()] for side in (first, second)]
    if not all(tables):
        return None
    prompts = sorted(set.intersection(*(set(t) for side in tables for t in side)))
    theirs, mine = (np.array([np.mean([t[i] for t in side]) for i in prompts], dtype=np.float64) for side in tables)
    return _Found(stats.paired(theirs, mine, alpha), 0, len(items) - len(prompts))
