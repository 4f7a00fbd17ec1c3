"""What the declared contrasts say, in words: the rules of docs/methods.md, "Verdicts"."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from prefixlab.analysis.rows import REFERENCE, ContrastRow, ResultRow, Rules, Verdict, VerdictKind

FLOOR, CEILING = 0.05, 0.95
NATIVE = "native"
FEW_PROMPTS = 60
"""Below this many the intervals of several seeds have not been checked by simulation (benchmarks/calibration.py)."""
NOTABLE = 0.02
"""Share of completions above which truncated or INVALID ones are named."""
DECIDING = ("neutral", "shuffled")
"""Controls that decide whether an effect is one of the words."""
WORDS: dict[VerdictKind, str] = {
    "helps_words": "helps because of its words",
    "helps_opening": "helps as any opening would",
    "helps": "helps; whether because of its words is undecided",
    "hurts": "hurts",
    "equivalent": "equivalent within the margin",
    "undecided": "undecided",
    "floor_or_ceiling": "no verdict (floor or ceiling)",
    "not_measured": "not measured",
}
CLAIMS: tuple[VerdictKind, ...] = ("helps_words", "helps_opening", "helps", "hurts", "equivalent")
"""Kinds that say something of the prefix."""


@dataclass(frozen=True)
class Evidence:
    """All that one verdict is drawn from."""

    top: ContrastRow
    """The treatment at its largest ratio, or `native`, against r000."""
    versus: Mapping[str, tuple[ContrastRow, ContrastRow]]
    """Control -> (treatment minus control, control minus r000)."""
    rows: Sequence[ResultRow]
    """The primary comparison's rows, pooled and by seed, of every arm and the base."""
    alpha: float

    @property
    def levels(self) -> list[float]:
        """Values of the base and of every arm."""
        return [r.value for r in self.rows if r.seed is None and r.value is not None]

    def pooled(self, arm: str) -> ResultRow:
        """One arm's row over all seeds."""
        return next(r for r in self.rows if r.arm == arm and r.seed is None)


def verdicts(rows: Sequence[ResultRow], declared: Sequence[ContrastRow], rules: Rules) -> list[Verdict]:
    """One verdict a model, capability, prefix set and position, and one of `native`, on the primary comparison.

    The treatment is judged at its largest ratio.
    """
    found: list[Verdict] = []
    for model, capability in sorted({(c.model, c.capability) for c in declared if c.primary}):
        wanted = (model, capability, *rules.primary[capability])
        mine = [c for c in declared if (c.model, c.capability) == (model, capability) and c.primary]
        own = [r for r in rows if (r.model, r.capability, r.suite, r.protocol, r.metric, r.condition) == wanted]
        infos = {r.arm: r for r in own}
        against = {c.arm: c for c in mine if c.comparison == "vs_r000"}
        groups: dict[tuple[str | None, str | None], list[ContrastRow]] = {}
        for contrast in against.values():
            info = infos[contrast.arm]
            if info.control is None:
                groups.setdefault((info.prefix_set, info.position), []).append(contrast)
        for key in sorted(groups, key=str):
            top = max(groups[key], key=lambda c: c.ratio or 0.0)
            pairs = [c for c in mine if c.comparison == "vs_control" and c.arm == top.arm]
            versus = {infos[c.reference].control or "": (c, against[c.reference]) for c in pairs}
            found.append(_verdict(Evidence(top, versus, own, rules.alpha), *key))
    return found


def _verdict(seen: Evidence, prefix_set: str | None, position: str | None) -> Verdict:
    top, kind = seen.top, _kind(seen)
    equivalent = kind in CLAIMS and within(top, seen.alpha)
    words = in_words(kind, equivalent=equivalent, n_seeds=top.n_seeds)
    return Verdict(
        model=top.model,
        capability=top.capability,
        suite=top.suite,
        metric=top.metric,
        condition=top.condition,
        arm=top.arm,
        prefix_set=prefix_set,
        position=position,
        kind=kind,
        equivalent=equivalent,
        verdict=words,
        sentence=" ".join([_main_sentence(seen, words), *_explained(seen, kind, equivalent), *_against_controls(seen)]),
        effect=top.diff,
        higher_is_better=top.higher_is_better,
        ci_low=top.ci_low,
        ci_high=top.ci_high,
        p_holm=top.p_holm,
        margin=top.margin,
        p_equivalent_holm=top.p_equivalent_holm,
        p_noninferior_holm=top.p_noninferior_holm,
        n_prompts=top.n_prompts,
        n_seeds=top.n_seeds,
        mde=top.detectable,
        prompts_needed=top.prompts_needed,
        seeds_needed=top.seeds_needed,
        held_by_invalid=_held_by_invalid(top, seen.alpha),
        limits=tuple(_limits(seen)),
    )


def straddles(row: ContrastRow) -> bool:
    """Whether the INVALID bounds enclose 0."""
    return row.bound_low is not None and row.bound_high is not None and row.bound_low <= 0 <= row.bound_high


def clear(row: ContrastRow, alpha: float) -> bool:
    """Whether a contrast is different from 0 after Holm, INVALID verdicts or not."""
    return row.p_holm is not None and row.p_holm < alpha and not straddles(row)


def within(row: ContrastRow, alpha: float) -> bool:
    """Whether a contrast is shown to be inside the margin after Holm, INVALID verdicts or not."""
    ends = [e for e in (row.bound_low, row.bound_high) if e is not None]
    shown = row.p_equivalent_holm is not None and row.p_equivalent_holm < alpha
    return shown and all(abs(e) < row.margin for e in ends)


def not_worse(row: ContrastRow, alpha: float) -> bool:
    """Whether a contrast is shown to be no worse than the margin allows after Holm, INVALID verdicts or not."""
    worst = row.bound_low if row.higher_is_better else None if row.bound_high is None else -row.bound_high
    shown = row.p_noninferior_holm is not None and row.p_noninferior_holm < alpha
    return shown and (worst is None or worst > -row.margin)


def _held_by_invalid(row: ContrastRow, alpha: float) -> bool:
    """Whether a difference, or its absence, is shown but for the INVALID verdicts."""
    shown = (row.p_holm, row.p_equivalent_holm)
    return any(p is not None and p < alpha for p in shown) and not clear(row, alpha) and not within(row, alpha)


def gain(row: ContrastRow) -> float:
    """The difference with its sign turned so that more is better."""
    return (row.diff or 0.0) * (1 if row.higher_is_better else -1)


def _kind(seen: Evidence) -> VerdictKind:
    """The first rule that fits."""
    top, alpha, levels = seen.top, seen.alpha, seen.levels
    if top.diff is None:
        return "not_measured"
    if min(levels) >= 0 and max(levels) <= 1 and (max(levels) < FLOOR or min(levels) > CEILING):  # shares only
        return "floor_or_ceiling"
    if not clear(top, alpha):
        return "equivalent" if within(top, alpha) else "undecided"
    if gain(top) < 0:
        return "hurts"
    words = [seen.versus[c][0] for c in DECIDING if c in seen.versus]
    if len(words) == len(DECIDING) and all(clear(c, alpha) and gain(c) > 0 for c in words):
        return "helps_words"
    if "neutral" in seen.versus:
        beyond, bland = seen.versus["neutral"]
        no_more = within(beyond, alpha) or (clear(beyond, alpha) and gain(beyond) < 0)
        if clear(bland, alpha) and gain(bland) > 0 and no_more:
            return "helps_opening"
    return "helps"


def in_words(kind: VerdictKind, *, equivalent: bool, n_seeds: int) -> str:
    """A verdict with what limits it most."""
    notes = ["yet equivalent within the margin"] if equivalent and kind != "equivalent" else []
    notes += ["for this training seed"] if kind in CLAIMS and n_seeds == 1 else []
    return WORDS[kind] + (f" ({'; '.join(notes)})" if notes else "")


def points(value: float | None, *, sign: bool = True) -> str:
    """A share in points."""
    if value is None:
        return "unknown"
    return f"{100 * value:+.1f}" if sign else f"{100 * value:.3g}"


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"


def _main_sentence(seen: Evidence, words: str) -> str:
    top = seen.top
    if top.diff is None:
        arms = [a for a in (top.arm, REFERENCE) if seen.pooled(a).value is None]
        why = " and ".join(f"{a} ({_why_none(seen, a)})" for a in arms)
        return f"{top.capability}: {top.arm} against r000 on {top.suite}: {words}; " + (
            f"there is no value of {why}." if arms else "the two share no seed and prompt with a value."
        )
    interval = (
        f"{100 - 100 * seen.alpha:.3g}% interval {points(top.ci_low)} to {points(top.ci_high)}"
        if top.ci_low is not None
        else "no interval"
    )
    against = "the stripped data" if top.arm == NATIVE else "no prefix"
    return (
        f"{top.capability}: {top.arm} changes {top.metric} on {top.suite} by {points(top.diff)} points against "
        f"{against} ({interval}; {_count(top.n_prompts, 'prompt')}, {_count(top.n_seeds, 'seed')}): {words}."
    )


def _why_none(seen: Evidence, arm: str) -> str:
    """Why an arm has no pooled value: its state, or those of the seeds that have none."""
    planned = [r for r in seen.rows if r.arm == arm and r.seed is not None]
    gone = [r for r in planned if r.value is None]
    if not gone or (len(gone) == len(planned) and len({r.status for r in gone}) == 1):
        return gone[0].status if gone else seen.pooled(arm).status
    return ", ".join(f"seed {r.seed}: {r.status}" for r in gone)


def _explained(seen: Evidence, kind: VerdictKind, equivalent: bool) -> list[str]:
    """Why the verdict is what it is, and what would decide, where the words do not say it."""
    top, margin = seen.top, f"the margin of {points(seen.top.margin, sign=False)} points"
    if kind == "floor_or_ceiling":
        where = f"below {100 * FLOOR:.0f}%" if max(seen.levels) < FLOOR else f"above {100 * CEILING:.0f}%"
        return [f"Base and all arms are {where}: this suite cannot tell them apart, another one might."]
    if equivalent:
        text = f"The difference is shown to be smaller than {margin}"
        return [text + ("." if kind == "equivalent" else ": it is there, but counts as none.")]
    if kind != "undecided":
        return []
    found = []
    held = _held_by_invalid(top, seen.alpha)
    if held:
        found.append(
            f"It would be clear but for the INVALID verdicts: with all of them at worst and at best it is "
            f"{points(top.bound_low)} to {points(top.bound_high)}. A judge that decides these would settle it."
        )
    if not_worse(top, seen.alpha):
        found.append(f"It is shown not to be worse by {margin}.")
    return found if held else [*found, deciding(top)]


def deciding(row: ContrastRow) -> str:
    """What would decide a comparison: the prompts and seeds with which 80% power detects the margin."""
    mde = row.detectable
    margin = f"{points(row.margin, sign=False)} points"
    have = f"{_count(row.n_prompts, 'prompt')} and {_count(row.n_seeds, 'seed')}"
    text = (
        f"With {have}, 80% power sees {points(mde, sign=False)} points or more."
        if mde is not None
        else f"With {have}, 80% power sees no effect of any size."
    )
    if row.prompts_needed is not None and row.prompts_needed <= row.n_prompts:
        return f"{text} That is enough for {margin}: the effect is likely smaller, and only more would show it."
    seeds = "this seed" if row.n_seeds == 1 else f"these {row.n_seeds} seeds"
    ways = [f"about {row.prompts_needed} prompts with {seeds}"] if row.prompts_needed is not None else []
    if row.seeds_needed is not None:
        ways.append(f"about {row.seeds_needed} seeds with these prompts")
    needed = (
        f"To detect {margin} would take {' or '.join(ways)}"
        if ways
        else f"No number of prompts with {seeds} is enough for {margin}"
    )
    unknown = "; how many seeds, one seed cannot say: train three or more" if row.n_seeds == 1 else ""
    return f"{text} {needed}{unknown}."


def _against_controls(seen: Evidence) -> list[str]:
    """The treatment minus each control, and which of the two that decide about words is missing."""
    found = []
    for control, (row, _) in seen.versus.items():
        found.append(
            f"Against the {control} control: {points(row.diff)} ({points(row.ci_low)} to {points(row.ci_high)})."
            if row.diff is not None
            else f"The {control} control has not been measured."
        )
    missing = [c for c in DECIDING if c not in seen.versus] if seen.top.arm != NATIVE else []
    return found + ([f"No {' or '.join(missing)} control was run."] if missing and seen.top.diff is not None else [])


def _limits(seen: Evidence) -> list[str]:
    """What a reader must know before acting on a verdict."""
    top = seen.top
    if top.diff is None:
        return []
    found = []
    if top.n_seeds == 1:
        found.append("One training seed: how far another seed would move the effect is unknown.")
    for arm in (top.arm, REFERENCE):
        planned = [r for r in seen.rows if r.arm == arm and r.seed is not None]
        gone = [r for r in planned if r.value is None]
        if gone:
            which = ", ".join(str(r.seed) for r in gone)
            found.append(f"{arm} has no value for {len(gone)} of {_count(len(planned), 'seed')} ({which}).")
    if seen.pooled(top.arm).is_proxy:
        judge = seen.pooled(top.arm).judge
        found.append(f"{top.metric} is a proxy, decided by {'word rules' if judge in (None, 'rules') else judge}.")
    for what in ("truncated", "INVALID"):
        shares = {a: _share(seen.pooled(a), what) for a in (top.arm, REFERENCE)}
        if max(shares.values()) > NOTABLE:
            listed = ", ".join(f"{100 * share:.0f}% of {arm}" for arm, share in shares.items())
            found.append(f"{what[0].upper()}{what[1:]}: {listed}.")
    if top.n_left_out:
        found.append(
            f"{_count(top.n_left_out, 'prompt')} left out: INVALID, failed, or not asked in one of the two arms."
        )
    if top.n_prompts < FEW_PROMPTS:
        found.append(f"Fewer than {FEW_PROMPTS} prompts.")
    if top.up + top.down == 0:
        found.append("Not one prompt differs between the two arms.")
    elif top.p is None:
        found.append(
            "No test exists: every prompt differs by the same amount, so that there is no spread to test with."
        )
    return found


def _share(row: ResultRow, what: str) -> float:
    """Share of an arm's completions that are truncated or INVALID."""
    asked = row.n + row.n_invalid + row.n_error
    return (row.n_truncated if what == "truncated" else row.n_invalid) / asked if asked else 0.0
