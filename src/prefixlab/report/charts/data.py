"""What the arms are made of: shares treated, length of the prefix, and what strip removed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt

from prefixlab.data.check import TreatmentCheck
from prefixlab.records import FAMILIES
from prefixlab.report.audit_text import NAMES
from prefixlab.report.charts.base import FAMILY_COLORS, PALETTE, Figure, Table, domain, several, spec_of, stem, values


@dataclass(frozen=True)
class Stripped:
    """What strip took from one capability's training samples."""

    capability: str
    n: int
    """Samples."""
    parts: Mapping[str, Mapping[str, int]]
    """Part (reasoning, answer) -> family -> samples whose part lost an opening of it."""


def treatment_figures(checks: Sequence[TreatmentCheck]) -> list[Figure]:
    """Share of samples with the prefix and its mean length in tokens, by arm, as found in the rendered ids."""
    models, found = {c.model for c in checks}, []
    for check in checks:
        if not check.arms:
            continue
        rows = [
            {
                "arm": a.arm,
                "share": 100 * a.n_treated / a.n if a.n else None,
                "tokens": a.prefix_tokens_mean if a.n_treated else None,
                "text": f"{a.n_treated:,} of {a.n:,}",
                "long": f"{a.prefix_tokens_mean:.1f}" if a.n_treated else "–",
            }
            for a in check.arms
        ]
        names = [a.arm for a in check.arms]
        parts: list[Any] = []
        longest = domain([0.0, *(r["tokens"] for r in rows)], least=1)[1] * 1.15  # type: ignore[list-item]
        for field, title, text, end, color in (
            ("share", "samples with the prefix (%)", "text", 130.0, PALETTE[0]),
            ("tokens", "tokens of the prefix, mean", "long", longest, PALETTE[2]),
        ):
            axis = alt.Axis(labels=False, ticks=False) if parts else alt.Axis()
            ticks = alt.Axis(values=[0, 25, 50, 75, 100]) if field == "share" else alt.Axis(tickCount=5)
            x = alt.X(f"{field}:Q", title=title, scale=alt.Scale(domain=[0, end], nice=False), axis=ticks)
            base = alt.Chart(values(rows)).encode(y=alt.Y("arm:N", title=None, sort=names, axis=axis))
            bars = base.mark_bar(color=color).encode(x=x)
            named = base.mark_text(align="left", dx=4).encode(x=x, text=f"{text}:N")
            parts.append(alt.layer(bars, named).properties(width=230, height=alt.Step(22)))
        title = f"Samples with the prefix, {check.capability}" + (f" · {check.model}" if len(models) > 1 else "")
        said = (
            f"Counted in the token ids that are trained on: {several([a.n for a in check.arms], 'training sample')} an "
            "arm, the same with every training seed unless the study assigns per seed; counts, so there is no interval."
        )
        columns = ("arm", "samples", "with the prefix", "tokens of the prefix, mean", "supervised share (%)")
        table = Table(
            columns,
            tuple(
                (a.arm, a.n, a.n_treated, a.prefix_tokens_mean if a.n_treated else None, 100 * a.supervised_share)
                for a in check.arms
            ),
        )
        name = stem("treatment", check.model, check.capability)
        found.append(Figure(name, "data", title, said, spec_of(alt.hconcat(*parts).properties(title=title)), table))
    return found


def stripped_figure(found: Sequence[Stripped]) -> Figure | None:
    """Which openings were stripped, by capability and part, as shares of the samples; None where none was."""
    counts = {(s.capability, part): (s.n, dict(of)) for s in found for part, of in s.parts.items() if of and s.n}
    if not counts:
        return None
    names = {(c, part): f"{c}, {part} (n = {n:,})" for (c, part), (n, _) in counts.items()}
    rows = [
        {"row": names[key], "family": NAMES[f], "share": of[f] / n, "n": of[f], "order": i}
        for key, (n, of) in counts.items()
        for i, f in enumerate(FAMILIES)
        if of.get(f)
    ]
    rows += [
        {"row": names[key], "family": NAMES["none"], "share": 1 - sum(of.values()) / n, "n": n - sum(of.values())}
        | {"order": len(FAMILIES)}
        for key, (n, of) in counts.items()
        if sum(of.values()) < n
    ]
    kept = [(NAMES[f], c) for f, c in zip((*FAMILIES, "none"), FAMILY_COLORS, strict=True)]
    kept = [(n, c) for n, c in kept if any(r["family"] == n for r in rows)]
    scale = alt.Scale(domain=[n for n, _ in kept], range=[c for _, c in kept])
    chart = (
        alt.Chart(values(rows))
        .mark_bar(stroke="#808080", strokeWidth=0.5)
        .encode(
            x=alt.X("share:Q", title="share of samples", axis=alt.Axis(format="%"), scale=alt.Scale(domain=[0, 1])),
            y=alt.Y("row:N", title=None, sort=list(names.values())),
            color=alt.Color("family:N", scale=scale, legend=alt.Legend(title=None, orient="bottom", columns=4)),
            order="order:Q",
            tooltip=["row:N", "family:N", "n:Q"],
        )
    )
    title = "Openings that strip removed"
    said = (
        f"First opening of each part by what it does; n = {several([n for n, _ in counts.values()], 'training sample')}"
        " a bar, before any training seed; counts, so there is no interval."
    )
    table = Table(
        ("capability", "part", "family", "samples", "of samples"),
        tuple((*key, f, of[f], n) for key, (n, of) in counts.items() for f in FAMILIES if of.get(f)),
    )
    spec = spec_of(chart.properties(width=480, height=alt.Step(34), title=title))
    return Figure("stripped", "data", title, said, spec, table)
