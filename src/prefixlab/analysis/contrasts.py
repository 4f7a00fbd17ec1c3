"""Declared pairs of arms, compared on the same prompts: from scores of single completions to contrasts. No torch.

A prompt without a value in either arm, or in any of the seeds compared, leaves the pair and is counted; the bounds with
every INVALID verdict at best and at worst stand beside the difference. Rules: docs/methods.md, sections 8 and 9.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from prefixlab.analysis import stats
from prefixlab.analysis.intervals import is_binary
from prefixlab.analysis.rows import BASE, REFERENCE, ArmInfo, CellScores, ContrastRow, GroupKey, Rules

POWER = 0.8
LEAST_DISCORDANT = 0.05
"""Share of discordant pairs that is assumed where fewer were seen."""

BySeed = Mapping[int | None, CellScores]
"""One arm's cells."""


def group(cells: Iterable[CellScores]) -> dict[GroupKey, dict[str, dict[int | None, CellScores]]]:
    """Cells that share suite, protocol and condition, by arm and seed."""
    groups: dict[GroupKey, dict[str, dict[int | None, CellScores]]] = {}
    for cell in cells:
        key = (cell.model, cell.capability, cell.suite, cell.protocol, cell.condition)
        groups.setdefault(key, {}).setdefault(cell.info.arm, {})[cell.seed] = cell
    return groups


def info_of(arm: BySeed) -> ArmInfo:
    """What an arm is."""
    return next(iter(arm.values())).info


@dataclass(frozen=True)
class Matched:
    """Values of two arms on the prompts and seeds that both have."""

    first_S_N: stats.Array
    second_S_N: stats.Array
    seeds: tuple[int | None, ...]
    prompts: tuple[str, ...]
    left_out: int
    """Prompts asked of either arm that have no value in one of them."""

    def contrast(self, alpha: float) -> stats.Contrast:
        """First minus second."""
        return stats.compare(self.first_S_N, self.second_S_N, alpha)


def common_seeds(*arms: BySeed) -> list[int | None]:
    """Seeds that are finished in every arm, in the first arm's order."""
    return [s for s in arms[0] if all(s in a and a[s].rows is not None for a in arms)]


def table(arm: BySeed, seeds: Sequence[int | None], prompts: Sequence[str], metric: str) -> stats.Array:
    """Values of one arm, (S, N); every prompt has one in every seed."""
    values = [arm[s].values(metric) for s in seeds]
    return np.array([[v[i] for i in prompts] for v in values], dtype=np.float64).reshape(len(seeds), len(prompts))


def common_prompts(arms: Sequence[BySeed], seeds: Sequence[int | None], metric: str) -> list[str]:
    """Prompts with a value in every arm and seed."""
    return sorted(set.intersection(*(set(a[s].values(metric)) for a in arms for s in seeds))) if seeds else []


def match(a: BySeed, b: BySeed, metric: str) -> Matched:
    """Pair two arms on what both have."""
    seeds = common_seeds(a, b)
    prompts = common_prompts((a, b), seeds, metric)
    asked = {r.item for arm in (a, b) for s in seeds for r in arm[s].of(metric)}
    return Matched(
        first_S_N=table(a, seeds, prompts, metric),
        second_S_N=table(b, seeds, prompts, metric),
        seeds=tuple(seeds),
        prompts=tuple(prompts),
        left_out=len(asked) - len(prompts),
    )


def _bounds(a: BySeed, b: BySeed, seeds: Sequence[int | None], metric: str) -> tuple[float | None, float | None]:
    """Mean difference with every unmeasured value against the treatment, and for it; None where they are no shares."""
    measured = (v for arm in (a, b) for s in seeds for v in arm[s].values(metric).values())
    if not all(0 <= v <= 1 for v in measured):
        return None, None
    ends = []
    for mine, theirs in ((0.0, 1.0), (1.0, 0.0)):
        diffs = []
        for s in seeds:
            x, y = a[s].bound(metric, mine), b[s].bound(metric, theirs)
            diffs += [x[i] - y[i] for i in sorted(set(x) & set(y))]
        ends.append(float(np.mean(diffs)) if diffs else None)
    return ends[0], ends[1]


@dataclass(frozen=True)
class _Pair:
    """One declared comparison, before it is made."""

    key: GroupKey
    metric: str
    comparison: str
    arm: BySeed
    reference: BySeed
    between: tuple[BySeed, ...] = ()
    """All arms of a trend, r000 first; empty for a pair."""


def _declared(cells: Sequence[CellScores]) -> Iterator[_Pair]:
    """Every pair that a study declares, in the order of contrasts.parquet."""
    for key, arms in group(cells).items():
        if REFERENCE not in arms:
            continue
        infos = {name: info_of(arm) for name, arm in arms.items()}
        for metric in next(iter(next(iter(arms.values())).values())).metrics:
            for name in arms:
                if name not in (REFERENCE, BASE):
                    yield _Pair(key, metric, "vs_r000", arms[name], arms[REFERENCE])
            for name, info in infos.items():
                place = (info.ratio, info.position, info.prefix_set)
                for treated, other in infos.items():
                    same = (other.ratio, other.position, other.prefix_set) == place
                    if info.control is not None and other.control is None and same:
                        yield _Pair(key, metric, "vs_control", arms[treated], arms[name])
            families = {(i.prefix_set, i.position) for i in infos.values() if i.prefix_set and i.control is None}
            for family in sorted(families, key=str):
                members = [n for n, i in infos.items() if (i.prefix_set, i.position) == family and i.control is None]
                members.sort(key=lambda n: infos[n].ratio or 0.0)
                line = [a for a in (arms[n] for n in (REFERENCE, *members)) if _finished(a)]
                if len(line) > 2:
                    yield _Pair(key, metric, "trend", line[-1], line[0], tuple(line))


def _finished(arm: BySeed) -> bool:
    """Whether at least one seed of an arm has been measured."""
    return any(c.rows is not None for c in arm.values())


def _in_family(pair: _Pair, rules: Rules) -> bool:
    return pair.comparison in ("vs_r000", "vs_control") and rules.is_primary(pair.key, pair.metric)


def _turned(found: stats.Contrast, higher_is_better: bool) -> stats.Contrast:
    """A contrast with its sign turned so that more is better."""
    if higher_is_better:
        return found

    def minus(value: float | None) -> float | None:
        return None if value is None else -value

    return replace(
        found,
        diff=minus(found.diff),
        low=minus(found.high),
        high=minus(found.low),
        centre=minus(found.centre),
        up=found.down,
        down=found.up,
    )


def _row(pair: _Pair, rules: Rules, family: int) -> ContrastRow:
    """A pair or a trend, compared; `family` is the size of the Holm family it is in, 0 for none."""
    model, capability, suite, protocol, condition = pair.key
    some = next(iter(pair.arm.values()))
    better, margin = some.metrics[pair.metric], rules.margin_of(pair.key, pair.metric)
    if pair.between:
        seeds = common_seeds(*pair.between)
        prompts = common_prompts(pair.between, seeds, pair.metric)
        asked = {r.item for arm in pair.between for s in seeds for r in arm[s].of(pair.metric)}
        n_seeds, left_out = len(seeds), len(asked) - len(prompts)
        found, low, high = _trend(pair, seeds, prompts, rules.alpha), None, None
        size = _Size(None, None, None)
    else:
        matched = match(pair.arm, pair.reference, pair.metric)
        n_seeds, left_out = len(matched.seeds), matched.left_out
        found = matched.contrast(rules.alpha)
        low, high = _bounds(pair.arm, pair.reference, matched.seeds, pair.metric)
        size = _sizes(matched, found, rules.alpha / max(1, family), margin if family else None)
    same = stats.equivalence(_turned(found, better), margin, rules.alpha)
    return ContrastRow(
        model=model,
        capability=capability,
        suite=suite,
        protocol=protocol,
        condition=condition,
        metric=pair.metric,
        comparison=pair.comparison,
        arm=some.info.arm,
        reference=info_of(pair.reference).arm,
        ratio=None if pair.between else some.info.ratio,
        higher_is_better=better,
        primary=not pair.between and rules.is_primary(pair.key, pair.metric),
        n_seeds=n_seeds,
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
        se=found.se,
        margin=margin,
        p_equivalent=same.p_equivalent,
        p_equivalent_holm=None,
        p_noninferior=same.p_noninferior,
        p_noninferior_holm=None,
        detectable=size.detectable,
        prompts_needed=size.prompts,
        seeds_needed=size.seeds,
        test=found.test,
    )


def _trend(pair: _Pair, seeds: Sequence[int | None], prompts: Sequence[str], alpha: float) -> stats.Contrast:
    """Slope over the ratio on the prompts and seeds that every ratio has."""
    if not prompts:
        return stats.NONE
    values_R_S_N = np.array([table(arm, seeds, prompts, pair.metric) for arm in pair.between])
    ratios = [info_of(arm).ratio or 0.0 for arm in pair.between]
    return stats.trend(values_R_S_N.transpose(1, 0, 2), ratios, alpha)


@dataclass(frozen=True)
class _Size:
    """What a design can see, and what would be needed to see the margin."""

    detectable: float | None
    prompts: int | None
    seeds: int | None


def _sizes(matched: Matched, found: stats.Contrast, level: float, margin: float | None) -> _Size:
    """From the spread seen; where outcomes are 0 and 1, at least LEAST_DISCORDANT of the pairs are taken to differ.

    Args:
        matched: Values of the two arms.
        found: Their contrast.
        level: Alpha at which the numbers hold.
        margin: Effect that prompts and seeds are asked for; None leaves them out, since they take time.
    """
    seeds, n = len(matched.seeds), found.n
    if n == 0:
        return _Size(None, None, None)
    if seeds == 1 and is_binary(matched.first_S_N, matched.second_S_N):
        discordant = max((found.up + found.down) / n, LEAST_DISCORDANT)
        effect = stats.detectable(n, discordant, level, POWER)
        if effect is None:
            effect = stats.one_way(lambda share: stats.mcnemar_power(n, share, 0.0, level), POWER)
        return _Size(effect, stats.pairs_needed(margin, discordant, level, POWER) if margin else None, None)
    diffs_S_N = matched.first_S_N - matched.second_S_N
    seen = stats.components(diffs_S_N) if seeds > 1 else stats.Components(0.0, float(diffs_S_N.var()), 0.0)
    if seen is None:
        return _Size(None, None, None)
    parts = seen if seen.discordant is None else _differing(seen, max(seen.discordant, LEAST_DISCORDANT))
    effect = stats.mde(parts, n, seeds, level, POWER)
    if effect is None and parts.discordant is not None:
        least = parts.discordant  # what was seen does not suffice, so the shares that are asked about are larger
        effect = stats.one_way(
            lambda share: stats.crossed_power(share, _differing(parts, max(least, share)), n, seeds, level) or 0.0,
            POWER,
        )
    return _Size(
        effect,
        stats.prompts_needed(margin, parts, seeds, level, POWER) if margin else None,
        stats.seeds_needed(margin, parts, n, level, POWER) if margin and seeds > 1 else None,
    )


def _differing(parts: stats.Components, discordant: float) -> stats.Components:
    """Variances where more of the cells differ: half of what that adds is shared by the seeds."""
    more = (discordant - (parts.discordant or 0.0)) / 2
    return replace(
        parts,
        prompt=parts.prompt + more,
        error=parts.error + more,
        differing=max(parts.differing, discordant),
        discordant=discordant,
    )


def contrasts(cells: Sequence[CellScores], rules: Rules) -> list[ContrastRow]:
    """Every declared pair: ratios, controls and `native` against r000, treatments against their controls, trends.

    The Holm family is every contrast of an arm against r000 and of treatments against controls on the primary suite,
    metric and condition of each capability, over the whole study. Each of the three questions (is it different, is it
    equivalent, is it not worse) is adjusted over that family by itself; every other row is exploratory. A member that
    is not measured counts as p = 1: a half-finished study must not find what the finished one takes back.
    """
    pairs = list(_declared(cells))
    family = [_in_family(p, rules) for p in pairs]
    rows = [_row(p, rules, sum(family) if f else 0) for p, f in zip(pairs, family, strict=True)]
    for name in ("p", "p_equivalent", "p_noninferior"):
        found = {str(i): getattr(r, name) for i, r in enumerate(rows) if family[i]}
        adjusted = stats.holm({i: 1.0 if p is None else p for i, p in found.items()})
        known = {i: adjusted[i] for i, p in found.items() if p is not None}
        rows = [r.model_copy(update={f"{name}_holm": known.get(str(i))}) for i, r in enumerate(rows)]
    return rows
