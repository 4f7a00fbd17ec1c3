"""What the declared contrasts say, in words: the rules of docs/methods.md, "Verdicts"."""

from collections.abc import Mapping, Sequence

from prefixlab.analysis.rows import ContrastRow, Primary, ResultRow, Verdict

FLOOR, CEILING = 0.05, 0.95


def verdicts(
    rows: Sequence[ResultRow], declared: Sequence[ContrastRow], primary: Primary, alpha: float
) -> list[Verdict]:
    """One verdict a model, capability and prefix set, on the primary metric at the largest ratio."""
    found: list[Verdict] = []
    groups = sorted({(c.model, c.capability) for c in declared if c.primary and c.comparison == "vs_r000"})
    for model, capability in groups:
        suite, protocol, metric, condition = primary[capability]
        wanted = (model, capability, suite, protocol, metric, condition)
        mine = [c for c in declared if (c.model, c.capability) == (model, capability) and c.primary]
        levels = [
            r.value
            for r in rows
            if (r.model, r.capability, r.suite, r.protocol, r.metric, r.condition) == wanted
            and r.seed is None
            and r.value is not None
        ]
        infos = {r.arm: r for r in rows if r.capability == capability and r.model == model and r.suite == suite}
        treatments = [
            c for c in mine if c.comparison == "vs_r000" and infos[c.arm].control is None and c.arm != "native"
        ]
        for prefix in sorted({(infos[c.arm].prefix_set, infos[c.arm].position) for c in treatments}, key=str):
            group = [c for c in treatments if (infos[c.arm].prefix_set, infos[c.arm].position) == prefix]
            top = max(group, key=lambda c: c.ratio or 0.0)
            versus = {
                infos[c.reference].control: (
                    c,
                    next(m for m in mine if m.comparison == "vs_r000" and m.arm == c.reference),
                )
                for c in mine
                if c.comparison == "vs_control" and c.arm == top.arm
            }
            word = _word(top, versus, levels, alpha)
            found.append(
                Verdict(
                    model=model,
                    capability=capability,
                    suite=suite,
                    metric=metric,
                    condition=condition,
                    arm=top.arm,
                    verdict=word,
                    sentence=_sentence(top, word, alpha) + _against_controls(versus),
                )
            )
    return found


def _clear(row: ContrastRow, alpha: float) -> bool:
    """Whether a contrast is different from 0 after Holm, INVALID verdicts or not."""
    straddles = row.bound_low is not None and row.bound_high is not None and row.bound_low <= 0 <= row.bound_high
    return row.p_holm is not None and row.p_holm < alpha and not straddles


def _gain(row: ContrastRow) -> float:
    """The difference with its sign turned so that more is better."""
    return (row.diff or 0.0) * (1 if row.higher_is_better else -1)


def _word(
    top: ContrastRow,
    versus: Mapping[str | None, tuple[ContrastRow, ContrastRow]],
    levels: Sequence[float],
    alpha: float,
) -> str:
    if top.diff is None:
        return "not measured"
    if levels and (max(levels) < FLOOR or min(levels) > CEILING):
        return "no verdict (floor or ceiling)"
    if not _clear(top, alpha):
        return "undecided"
    if _gain(top) < 0:
        return "hurts"
    words = [versus[c][0] for c in ("neutral", "shuffled") if c in versus]
    if len(words) == 2 and all(_clear(c, alpha) and _gain(c) > 0 for c in words):
        return "helps because of its words"
    bland = versus.get("neutral")
    better = bland is not None and _clear(bland[0], alpha) and _gain(bland[0]) > 0
    if bland and _clear(bland[1], alpha) and _gain(bland[1]) > 0 and not better:
        return "helps as any opening would"
    return "helps; whether because of its words is undecided"


def _against_controls(versus: Mapping[str | None, tuple[ContrastRow, ContrastRow]]) -> str:
    """The treatment minus each control, and which of the two that decide about words was not run."""
    measured = {c: row for c, (row, _) in versus.items() if row.diff is not None}
    text = "".join(
        f" Against the {control} control: {_points(row.diff)} ({_points(row.ci_low)} to {_points(row.ci_high)})."
        for control, row in measured.items()
    )
    missing = [c for c in ("neutral", "shuffled") if c not in measured]
    return text + (f" No {' or '.join(missing)} control was run." if missing else "")


def _points(value: float | None) -> str:
    return "unknown" if value is None else f"{100 * value:+.1f}"


def _sentence(top: ContrastRow, word: str, alpha: float) -> str:
    if top.diff is None:
        return f"{top.capability}: {top.arm} or r000 has not been measured on {top.suite}."
    interval = (
        f"{100 - 100 * alpha:.3g}% interval {_points(top.ci_low)} to {_points(top.ci_high)}"
        if top.ci_low is not None
        else "no interval"
    )
    text = (
        f"{top.capability}: {top.arm} changes {top.metric} on {top.suite} by {_points(top.diff)} points against no "
        f"prefix ({interval}; {top.n_prompts} prompts, {top.n_seeds} seed{'s' if top.n_seeds != 1 else ''}): {word}."
    )
    if word == "undecided" and top.detectable is not None:
        text += f" This many prompts could detect {100 * top.detectable:.0f} points or more."
    if word == "undecided" and top.detectable is None and top.n_seeds == 1:
        text += " This many prompts, with so few that differ between the arms, could not detect any effect."
    return text
