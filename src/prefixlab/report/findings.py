"""Anchors, keyword test, narrowing and spans as a reader of the report sees them: rows of text."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import polars

from prefixlab.analysis.anchors import AnchorRow
from prefixlab.analysis.keywords import KeywordRow
from prefixlab.analysis.narrowing import HELD_OUT, NarrowingRow
from prefixlab.analysis.rows import BASE, REFERENCE
from prefixlab.records import Record
from prefixlab.report.tables import p_text, who

SHOWN = 8
"""Words listed of one ranking, announced or not."""
Row = TypeVar("Row", bound=Record)


def read_rows(root: Path, name: str, record: type[Row]) -> list[Row]:
    """Rows of RUN/name.parquet; none where the file is not there."""
    path = root / f"{name}.parquet"
    return [record.model_validate(r) for r in polars.read_parquet(path).to_dicts()] if path.exists() else []


def digits(value: float | None, *, sign: bool = False) -> str:
    """Three significant digits; a dash where there is no number."""
    if value is None:
        return "–"
    return f"{value:+.3g}" if sign else f"{value:.3g}"


def between(low: float | None, high: float | None) -> str:
    """Two ends, or a dash."""
    return "–" if low is None or high is None else f"{digits(low, sign=True)} to {digits(high, sign=True)}"


def rankings(rows: Iterable[AnchorRow]) -> list[dict[str, Any]]:
    """One ranking of words a model, capability, arm and measured quantity, base and trained treatments only."""
    groups: dict[tuple[str, ...], list[AnchorRow]] = {}
    untreated: dict[tuple[str, ...], AnchorRow] = {}
    for row in rows:
        if row.unit == "word" and (row.arm == BASE or row.arm.startswith(f"{row.rendering}-")):
            groups.setdefault((row.model, row.capability, row.arm, row.quantity), []).append(row)
        elif row.unit == "word" and row.arm == REFERENCE:
            untreated[row.model, row.capability, row.rendering, row.quantity, row.word] = row
    read = {key: members for key, members in groups.items() if any(r.mean is not None for r in members)}
    several = len({model for model, *_ in read}) > 1
    return [_ranking(key, members, untreated, several) for key, members in read.items()]


def _beside_r000(told: Sequence[AnchorRow], untreated: Mapping[tuple[str, ...], AnchorRow]) -> str:
    """What the announced words of a trained arm are in r000: one that departs there too is not the prefix's doing."""
    found = []
    for row in told if told[0].arm != BASE else ():
        other = untreated.get((row.model, row.capability, row.rendering, row.quantity, row.word))
        if other is not None and other.excess is not None:
            also = ", where it stands out too" if other.announced else ""
            here, there = digits(row.excess, sign=True), digits(other.excess, sign=True)
            found.append(f"{row.word} {here} here, {there} in r000{also}")
    return f" Beside r000, trained without a prefix: {'; '.join(found)}." if found else ""


def _ranking(
    key: tuple[str, ...], rows: Sequence[AnchorRow], untreated: Mapping[tuple[str, ...], AnchorRow], several: bool
) -> dict[str, Any]:
    model, capability, arm, quantity = key
    tested = sorted((r for r in rows if r.rank is not None), key=lambda r: r.rank or 0)
    told = [r for r in tested if r.announced]
    announced = [r.word for r in told]
    why = next((r.why for r in rows if r.why), "")
    if announced:
        stand = "stands" if len(announced) == 1 else "stand"
        said = f"{len(announced)} of {len(tested)} words {stand} out among words: {', '.join(announced)}."
        said += _beside_r000(told, untreated)
    elif tested:
        said = f"None of {len(tested)} words stands out among words."
    else:
        said = f"{why[0].upper()}{why[1:]}." if why else "Not tested."
    return {
        "name": f"{who(model, capability, several)} · {arm} · {quantity.replace('_', ' ')}",
        "sentence": said,
        "announced": bool(announced),
        "over": rows[0].interval_over,
        "scale": "ln ratio" if rows[0].scale == "log" else "difference",
        "n_samples": max(r.n_samples for r in rows),
        "n_controls": max(r.n_control_words for r in rows),
        "rows": [
            (
                r.word,
                digits(r.mean),
                digits(r.expected),
                digits(r.excess, sign=True),
                between(r.ci_low, r.ci_high),
                p_text(r.q),
                "yes" if r.announced else "no",
                digits(r.place_excess, sign=True),
            )
            for r in tested[:SHOWN]
        ],
    }


def keyword_rows(rows: Sequence[KeywordRow]) -> list[tuple[str, ...]]:
    """The keyword test: rest of the response, with the keyword against without it or with a synonym."""
    several = len({r.model for r in rows}) > 1
    return [
        (
            who(r.model, r.capability, several),
            r.arm,
            f"{r.rendering} against {r.reference}",
            digits(r.value),
            digits(r.diff, sign=True),
            between(r.ci_low, r.ci_high),
            p_text(r.p),
            str(r.n_samples),
            str(r.n_seeds),
        )
        for r in rows
        if not r.why
    ]


def narrowing_rows(rows: Sequence[NarrowingRow]) -> list[tuple[str, ...]]:
    """Differences to r000 over the first tokens behind the prefix, and of sampled completions; pooled over seeds."""
    found: list[tuple[str, ...]] = []
    several = len({r.model for r in rows}) > 1
    for r in rows:
        early = r.suite != HELD_OUT or (r.counted_from == "rest" and r.at is not None and r.at < 4)
        if r.reference_arm is None or not early or r.value is None or r.quantity == "branching":
            continue
        where = "" if r.at is None else f" at {r.at}" if r.suite == HELD_OUT else f" {r.at}"
        found.append(
            (
                who(r.model, r.capability, several),
                r.arm,
                f"{r.quantity}{where}",
                r.condition if r.suite == HELD_OUT else f"{r.suite}, {r.condition}",
                f"{r.reference_arm}, {r.reference_condition}" if r.reference_arm == r.arm else r.reference_arm,
                digits(r.value, sign=True),
                between(r.ci_low, r.ci_high),
                str(r.n),
                str(r.n_seeds),
            )
        )
    return found


def span_rows(root: Path) -> list[tuple[str, ...]]:
    """Norm, cosine with the rest and influence share of every span, mean over samples and seeds."""
    path = root / "spans.parquet"
    if not path.exists():
        return []
    table = (
        polars.read_parquet(path)
        .group_by(["model", "capability", "arm", "rendering", "span"], maintain_order=True)
        .agg(
            polars.col("norm", "cosine_rest", "influence").mean(),
            polars.col("tokens").mean(),
            polars.col("sample").n_unique().alias("n"),
        )
        .sort(["model", "capability", "arm", "rendering"], maintain_order=True)
    )
    several = table["model"].n_unique() > 1
    return [
        (
            who(r["model"], r["capability"], several),
            r["arm"],
            r["rendering"],
            r["span"],
            f"{r['tokens']:.0f}",
            digits(r["norm"]),
            digits(r["cosine_rest"], sign=True),
            digits(r["influence"], sign=True),
            str(r["n"]),
        )
        for r in table.to_dicts()
    ]
