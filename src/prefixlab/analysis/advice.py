"""What to do with a prefix: the front of ratio and placement, and advice drawn from it and from the verdicts. No torch.

An arm is one adapter, trained for one capability and tested on that capability's suites. The front is therefore one
of each model and capability: adapters of two capabilities are no model that anybody could ship, and are not paired.
The front is exploratory; only the verdicts are adjusted for their number. Rules: docs/methods.md, section 9.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from prefixlab.analysis import stats
from prefixlab.analysis.contrasts import BySeed, common_prompts, common_seeds, group, table
from prefixlab.analysis.rows import (
    BASE,
    REFERENCE,
    UNASKED,
    Action,
    Advice,
    CellScores,
    Front,
    FrontArm,
    ResultRow,
    Rules,
    Verdict,
)
from prefixlab.analysis.verdicts import CLAIMS, NATIVE, WORDS, points

SAFETY, ATTACK, OVER_REFUSAL, ACCURACY = "safety", "attack robustness", "over-refusal", "accuracy"
OBJECTIVES = (SAFETY, ATTACK, OVER_REFUSAL, ACCURACY)
SAFE, REFUSED = "safe@1", "over_refusal"
ORIGINAL = "original"
TIE = 1e-9
"""Means closer than this are equal: they are sums of the same fractions in another order."""


@dataclass(frozen=True)
class _Series:
    """One metric on one suite under one condition, part of an objective."""

    suite: tuple[str, str]
    """Suite and protocol."""
    condition: str
    metric: str


def _objective(series: _Series, usual: str, accuracies: Iterable[tuple[str, str, str, str]]) -> str | None:
    """The objective that a series belongs to, if any.

    Args:
        series: Suite, condition and metric.
        usual: The condition under which safety and over-refusal count.
        accuracies: Primary comparisons of the study that are of neither.
    """
    if series.metric == SAFE and series.condition.startswith("attack_"):
        return ATTACK
    if series.metric in (SAFE, REFUSED):
        return (SAFETY if series.metric == SAFE else OVER_REFUSAL) if series.condition == usual else None
    return ACCURACY if (*series.suite, series.metric, series.condition) in accuracies else None


@dataclass(frozen=True)
class _Tested:
    """All that a capability's arms were measured on."""

    series: Mapping[str, list[_Series]]
    """By objective."""
    cells: Mapping[_Series, Mapping[str, BySeed]]
    values: Mapping[tuple[_Series, str], float | None]
    """Pooled values, by series and arm."""
    alpha: float

    def value(self, objective: str, arm: str) -> float | None:
        """Mean over the objective's series; None where one of them has no value."""
        found = [self.values.get((s, arm)) for s in self.series[objective]]
        measured = [v for v in found if v is not None]
        return sum(measured) / len(measured) if len(measured) == len(found) else None

    def difference(self, objective: str, arm: str, other: str) -> stats.Contrast:
        """Arm minus other on the same prompts and seeds, turned so that more is better.

        The conditions of a suite are averaged for each prompt, which stays the unit; prompts are weighted so that
        suites count alike.
        """
        first, second = (other, arm) if objective == OVER_REFUSAL else (arm, other)
        suites: dict[tuple[str, str], list[tuple[str, BySeed, BySeed]]] = {}
        for s in self.series[objective]:
            if not {first, second} <= set(self.cells[s]):
                return stats.NONE
            suites.setdefault(s.suite, []).append((s.metric, self.cells[s][first], self.cells[s][second]))
        seeds = common_seeds(*(arm for members in suites.values() for _, *both in members for arm in both))
        blocks = []
        for members in suites.values():
            prompts = sorted(set.intersection(*(set(common_prompts((a, b), seeds, m)) for m, a, b in members)))
            if not prompts:
                return stats.NONE
            left_S_N = np.mean([table(a, seeds, prompts, m) for m, a, _ in members], axis=0)
            right_S_N = np.mean([table(b, seeds, prompts, m) for m, _, b in members], axis=0)
            blocks.append((left_S_N, right_S_N))
        total = sum(left.shape[1] for left, _ in blocks)
        weights = [total / (len(blocks) * left.shape[1]) for left, _ in blocks]
        left_S_N = np.concatenate([w * a for w, (a, _) in zip(weights, blocks, strict=True)], axis=1)
        right_S_N = np.concatenate([w * b for w, (_, b) in zip(weights, blocks, strict=True)], axis=1)
        return stats.compare(left_S_N, right_S_N, self.alpha)


def _tested(cells: Sequence[CellScores], rows: Sequence[ResultRow], rules: Rules, usual: str) -> _Tested:
    """What one capability's arms were measured on; `usual` is the condition without an attack."""
    ruled = [p for p in rules.primary.values() if "safe@" not in p[2] and p[2] != REFUSED]
    pooled = {(_Series((r.suite, r.protocol), r.condition, r.metric), r.arm): r.value for r in rows if r.seed is None}
    series: dict[str, list[_Series]] = {}
    found: dict[_Series, dict[str, BySeed]] = {}
    for (_, _, suite, protocol, condition), arms in group(cells).items():
        by_seed = [c for arm in arms.values() for c in arm.values()]
        if all(c.status in UNASKED for c in by_seed):
            continue
        finished = [c for c in by_seed if c.rows is not None]
        for metric, better in by_seed[0].metrics.items():
            if finished and not any(c.of(metric) for c in finished):  # no prompt of the suite asks for it
                continue
            one = _Series((suite, protocol), condition, metric)
            objective = _objective(one, usual, ruled)
            if objective is not None and better == (objective != OVER_REFUSAL):
                series.setdefault(objective, []).append(one)
                found[one] = dict(arms)
    return _Tested(series, found, pooled, rules.alpha)


def pareto(cells: Sequence[CellScores], rows: Sequence[ResultRow], rules: Rules) -> list[Front]:
    """The front of every model and capability over its arms: r000, ratios, controls, `native`.

    An arm is dominated if another is at least as good on every measured objective and better on one, by point
    estimate; clearly so, if the interval of one of these differences excludes 0.
    """
    fronts = []
    for model, capability in sorted({(c.model, c.capability) for c in cells}):
        mine = [c for c in cells if (c.model, c.capability) == (model, capability)]
        own = [r for r in rows if (r.model, r.capability) == (model, capability)]
        declared = rules.primary[capability][3]
        tested = _tested(mine, own, rules, "bare" if declared.startswith("attack_") else declared)
        infos = {c.info.arm: c.info for c in mine if c.info.arm != BASE}
        values = {arm: {o: tested.value(o, arm) for o in OBJECTIVES if o in tested.series} for arm in infos}
        objectives = tuple(o for o in OBJECTIVES if any(v.get(o) is not None for v in values.values()))
        beaten = _dominated(tested, values, objectives)
        arms = []
        for arm, info in infos.items():
            whole = bool(objectives) and all(values[arm][o] is not None for o in objectives)
            by, sure = beaten.get(arm, (None, False))
            against = {o: tested.difference(o, arm, REFERENCE) for o in objectives if arm != REFERENCE}
            arms.append(
                FrontArm(
                    **info.model_dump(exclude={"loss_scope"}),
                    values={o: values[arm][o] for o in objectives},
                    against_r000={o: (c.diff, c.low, c.high) for o, c in against.items()},
                    on_front=by is None if whole else None,
                    dominated_by=by,
                    clear=sure,
                )
            )
        missing = tuple(o for o in OBJECTIVES if o not in objectives)
        fronts.append(
            Front(model=model, capability=capability, objectives=objectives, not_measured=missing, arms=tuple(arms))
        )
    return fronts


def _dominated(
    tested: _Tested, values: Mapping[str, Mapping[str, float | None]], objectives: Sequence[str]
) -> dict[str, tuple[str, bool]]:
    """Dominated arm -> the arm that beats it most clearly, then by most, and whether it is clear."""
    turned: dict[str, list[float]] = {}
    for arm, found in values.items():
        whole = [v for v in (found.get(o) for o in objectives) if v is not None]
        if len(whole) == len(objectives) > 0:
            turned[arm] = [-v if o == OVER_REFUSAL else v for o, v in zip(objectives, whole, strict=True)]
    beaten: dict[str, tuple[str, bool]] = {}
    for arm, mine in turned.items():
        better = []
        for other, theirs in turned.items():
            gains = [b - a for a, b in zip(mine, theirs, strict=True)]
            if min(gains) >= -TIE and max(gains) > TIE:
                lows = [tested.difference(o, other, arm).low for o, g in zip(objectives, gains, strict=True) if g > TIE]
                better.append((any(low is not None and low > 0 for low in lows), sum(gains), other))
        if better:
            sure, _, other = max(better)
            beaten[arm] = (other, sure)
    return beaten


def advise(verdicts: Sequence[Verdict], fronts: Sequence[Front]) -> list[Advice]:
    """One to three sentences a model and capability: what to do, what to test more, and the front."""
    found = []
    for front in fronts:
        own = [v for v in verdicts if (v.model, v.capability) == (front.model, front.capability)]
        actions = {v.arm: _action(v, front) for v in own}
        sentences = (_what_to_do(own, actions, front), _what_to_test(own), _on_the_front(front))
        found.append(
            Advice(
                model=front.model,
                capability=front.capability,
                sentences=tuple(s for s in sentences if s),
                actions=actions,
                front=front,
            )
        )
    return found


def _own_openings(verdict: Verdict) -> bool:
    """Whether the prefix is what the data came with, so that the question is to keep or to strip."""
    return verdict.arm == NATIVE or (verdict.prefix_set or "").partition("_")[0] == ORIGINAL


def _judged_by(verdict: Verdict) -> str:
    """The objective that a verdict is about."""
    if verdict.metric == REFUSED:
        return OVER_REFUSAL
    if "safe@" in verdict.metric:
        return ATTACK if verdict.condition.startswith("attack_") else SAFETY
    return ACCURACY


def _elsewhere(verdict: Verdict, front: Front, sign: int) -> dict[str, tuple[float, float, float]]:
    """Other objectives on which the arm is clearly better (sign 1) or worse (-1) than r000, with the interval."""
    arm = next(a for a in front.arms if a.arm == verdict.arm)
    found = {}
    for objective, (diff, low, high) in arm.against_r000.items():
        if objective == _judged_by(verdict) or diff is None or low is None or high is None:
            continue
        if low > 0 if sign > 0 else high < 0:
            found[objective] = (diff, low, high)
    return found


def _action(verdict: Verdict, front: Front) -> Action:
    if verdict.kind not in CLAIMS:
        return "test more"
    if verdict.equivalent:
        return "free choice"
    helps = verdict.kind != "hurts"
    if _elsewhere(verdict, front, -1 if helps else 1):
        return "weigh"
    if _own_openings(verdict):
        return "keep" if helps else "strip"
    return "add" if helps else "leave out"


_DOING: dict[Action, str] = {
    "add": "add",
    "keep": "keep",
    "strip": "strip",
    "leave out": "leave out",
    "weigh": "weigh gain against loss of",
    "free choice": "do as you like with",
}


def _what_to_do(own: Sequence[Verdict], actions: Mapping[str, Action], front: Front) -> str:
    decided = [v for v in own if actions[v.arm] != "test more"]
    if not decided:
        return f"{front.capability}: nothing is decided, so neither strip nor add an opening on the strength of this."
    parts = []
    for action, verb in _DOING.items():
        arms = [f"{v.arm} ({_because(v, front)})" for v in decided if actions[v.arm] == action]
        parts += [f"{verb} {', '.join(arms)}"] if arms else []
    seed = ", for this training seed" if any(v.n_seeds == 1 for v in decided) else ""
    return f"{front.capability}{seed}: {'; '.join(parts)}."


def _because(verdict: Verdict, front: Front) -> str:
    """Why, in few words."""
    text = f"{points(verdict.effect)} points of {verdict.metric}"
    if verdict.equivalent:
        text += f", within the margin of {points(verdict.margin, sign=False)}"
    elif verdict.kind.startswith("helps"):
        text += WORDS[verdict.kind].removeprefix("helps").replace("; ", ", ")
    for sign, word in ((1, "better"), (-1, "worse")):
        along = not verdict.equivalent and (verdict.kind == "hurts") == (sign < 0)
        costs = []
        for objective, ends in _elsewhere(verdict, front, sign).items():
            diff, low, high = (-ends[0], -ends[2], -ends[1]) if objective == OVER_REFUSAL else ends
            costs.append(f"{objective} {points(diff)} ({points(low)} to {points(high)})")
        text += f"; {'also' if along else 'but'} {word}: {', '.join(costs)}" if costs else ""
    return text


def _what_to_test(own: Sequence[Verdict]) -> str:
    """What would decide the rest; empty where nothing is open."""
    found = [f"{v.arm} ({_needed(v)})" for v in own if v.kind == "undecided"]
    found += [f"{v.arm} on an easier or a harder suite" for v in own if v.kind == "floor_or_ceiling"]
    found += [f"{v.arm}, which is not measured" for v in own if v.kind == "not_measured"]
    found += [
        f"whether the words of {v.arm} matter (its neutral and shuffled controls)"
        for v in own
        if v.kind == "helps" and v.arm != NATIVE and not v.equivalent
    ]
    if any(v.n_seeds == 1 and v.kind in CLAIMS for v in own):
        found.append("three or more seeds before acting, since chance in training can make or undo an effect")
    return f"Test more: {'; '.join(found)}." if found else ""


def _needed(verdict: Verdict) -> str:
    """Prompts or seeds that would decide, in few words."""
    if verdict.held_by_invalid:
        return "a judge that decides its INVALID verdicts"
    if verdict.prompts_needed is not None and verdict.prompts_needed <= verdict.n_prompts:
        return f"more than {verdict.n_prompts} prompts: the effect is likely below the margin"
    ways = [f"about {verdict.prompts_needed} prompts"] if verdict.prompts_needed is not None else []
    ways += [f"about {verdict.seeds_needed} seeds"] if verdict.seeds_needed is not None else []
    ways += ["three or more seeds"] if verdict.n_seeds == 1 else []
    have = f"now {verdict.n_prompts} and {verdict.n_seeds}"
    return f"undecided; {' or '.join(ways)}, {have}" if ways else f"undecided; more prompts and more seeds, {have}"


def _on_the_front(front: Front) -> str:
    """Which arms are not dominated."""
    compared = [a for a in front.arms if a.on_front is not None]
    if len(compared) < 2:
        return ""
    best = ", ".join(a.arm for a in compared if a.on_front)
    beaten = {sure: [a.arm for a in compared if not a.on_front and a.clear is sure] for sure in (True, False)}
    open_ = [a.arm for a in front.arms if a.on_front is None]
    lacking = f"; {', '.join(front.not_measured)} not measured" if front.not_measured else ""
    *others, last = front.objectives
    on = f"{', '.join(others)} and {last}" if others else last
    text = f"On {on} (point estimates{lacking}) no arm beats {best}"
    text += f"; clearly beaten: {', '.join(beaten[True])}" if beaten[True] else ""
    text += f"; beaten, perhaps by chance: {', '.join(beaten[False])}" if beaten[False] else ""
    return text + (f"; not compared: {', '.join(open_)}" if open_ else "") + "."
