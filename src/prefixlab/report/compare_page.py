"""The page that compares two runs, with comparison.parquet and .csv beside it. Texts of the runs are escaped."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from prefixlab.analysis.rows import Verdict
from prefixlab.report.compare import compare_runs, model_pairs
from prefixlab.report.compare_rows import CompareRow, clear
from prefixlab.report.tables import RunData, interval, percent, write_table
from prefixlab.report.templating import style, templates

NAMES = ("suite", "prefixes", "name")
"""What the entries of a list in a study are known by."""


@dataclass(frozen=True)
class Difference:
    """A key that differs, with what it is in A and in B; a dash where it is not there."""

    key: str
    a: str
    b: str


@dataclass(frozen=True)
class Comparison:
    """What was found."""

    sentence: str
    banners: tuple[str, ...]
    rows: tuple[CompareRow, ...]


def _named(entries: Sequence[Any]) -> dict[str, Any] | None:
    """Entries of a list by their names, where they all have different ones."""
    for name in NAMES:
        names = [str(e[name]) for e in entries if isinstance(e, dict) and name in e]
        if len(names) == len(entries) and len(set(names)) == len(names):
            return dict(zip(names, entries, strict=True))
    return None


def flat(value: Any, key: str = "") -> dict[str, str]:
    """Dotted keys and the text of their values; a list of plain values is one value."""
    if isinstance(value, dict):
        inner = {k: v for name, entry in value.items() for k, v in flat(entry, f"{key}.{name}".lstrip(".")).items()}
        return inner or {key: "{}"}
    if isinstance(value, list) and any(isinstance(v, dict) for v in value):
        named = _named(value) or {str(i): v for i, v in enumerate(value)}
        return {k: v for name, entry in named.items() for k, v in flat(entry, f"{key}[{name}]").items()}
    return {key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}


def differences(a: Any, b: Any) -> list[Difference]:
    """Keys whose values differ, in A's order."""
    x, y = flat(a), flat(b)
    keys = [*x, *(k for k in y if k not in x)]
    return [Difference(k, x.get(k, "–"), y.get(k, "–")) for k in keys if x.get(k) != y.get(k)]


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _models(data: RunData) -> dict[str, dict[str, Any]]:
    return {m["name"]: {k: m[k] for k in ("fingerprint", "revision", "note")} for m in data.plan["models"]}


def machine_differences(a: RunData, b: RunData) -> list[Difference]:
    """What differs in versions, machine and computing choices."""
    found = []
    for data in (a, b):
        about = {k: v for k, v in _json(data.root / "env.json").items() if k in ("machine", "versions", "python")}
        choices = {k: v for k, v in data.plan["hardware"].items() if k != "why"}
        found.append({**about, "hardware": choices})
    return differences(*found)


def steps_table(a: RunData, b: RunData) -> list[tuple[str, str, str, int]]:
    """Kind of step, finished of planned in A and in B, and how many finished ones are the same step by their id."""
    ids = [{s["id"] for s in d.plan["steps"] if s["slug"] in d.folders} for d in (a, b)]
    kinds = list(dict.fromkeys(s["kind"] for d in (a, b) for s in d.plan["steps"]))
    lines = []
    for kind in kinds:
        counts = []
        for data in (a, b):
            mine = [s["slug"] for s in data.plan["steps"] if s["kind"] == kind]
            counts.append(f"{sum(s in data.folders for s in mine)} of {len(mine)}")
        same = sum(s["kind"] == kind and s["id"] in ids[0] & ids[1] for s in a.plan["steps"])
        lines.append((kind, counts[0], counts[1], same))
    return lines


def verdict_pairs(a: RunData, b: RunData) -> list[tuple[Verdict | None, Verdict | None]]:
    """Verdicts on the same capability, arm, suite, metric and condition, side by side; those of one run alone too."""
    rename = model_pairs(a, b)

    def keyed(data: RunData, names: Mapping[str, str]) -> dict[tuple[str, ...], Verdict]:
        return {
            (names.get(v.model, v.model), v.capability, v.arm, v.suite, v.metric, v.condition): v for v in data.verdicts
        }

    mine, theirs = keyed(a, rename), keyed(b, {})
    return [(mine.get(k), theirs.get(k)) for k in [*mine, *(k for k in theirs if k not in mine)]]


def banners(a: RunData, b: RunData, rows: Sequence[CompareRow]) -> list[str]:
    """What a reader must know before any number."""
    found = []
    for name, data in (("A", a), ("B", b)):
        done = sum(c.rows is not None for c in data.cells)
        missing = [s["slug"] for s in data.plan["steps"] if s["slug"] not in data.folders]
        if not done:
            found.append(f"{name} has no finished evaluation: there is nothing of it to compare yet.")
        elif missing:
            found.append(f"{name} is not complete: {len(missing)} of {len(data.plan['steps'])} steps are missing.")
    pairs = model_pairs(a, b)
    crossed = [(x, y) for x, y in pairs.items() if x != y]
    found += [f"Each run has one model, and they differ: {x} in A is compared with {y} in B." for x, y in crossed]
    weights = [{m["name"]: m["fingerprint"] for m in d.plan["models"]} for d in (a, b)]
    changed = [x for x, y in pairs.items() if x == y and weights[0].get(x) != weights[1].get(y)]
    found += [f"{x} is not the same model in both: the name is, the weights or the tokenizer differ." for x in changed]
    alone = [m for d in (a, b) for m in d.study.models if m not in pairs and m not in pairs.values()]
    if alone:
        found.append(f"Models of one run only, whose names have no counterpart: {', '.join(alone)}.")
    if a.study.analysis.alpha != b.study.analysis.alpha:
        levels = [f"{100 - 100 * d.study.analysis.alpha:.3g}%" for d in (a, b)]
        found.append(f"Intervals of values are at {levels[0]} in A and {levels[1]} in B; differences at {levels[0]}.")
    if any(r.is_proxy and r.state == "compared" for r in rows):
        found.append("Metrics marked (proxy) stand in for a human's or a guard model's grade.")
    return found


def summary(rows: Sequence[CompareRow], alpha: float) -> str:
    """One sentence: how much can be compared, and how much of it differs."""
    main = [r for r in rows if not r.diagnostic]
    made = [r for r in main if r.diff is not None]
    if not main:
        return "Neither run has a result."
    rest = Counter(r.state for r in main if r.diff is None)
    others = ", ".join(f"{n} {state}" for state, n in sorted(rest.items()))
    text = f"{len(made)} of {len(main)} results can be subtracted" + (f" ({others})" if others else "")
    if not made:
        return text + "."
    return (
        f"{text}; in {len(clear(made))} of them the {100 - 100 * alpha:.3g}% interval of B minus A excludes 0 "
        f"(about {alpha * len(made):.1f} would by chance alone, if nothing differed)."
    )


def number(metric: str, value: float | None, *, sign: bool = False) -> str:
    """A value as people read it: lengths in tokens, all else in percent."""
    if metric == "length":
        return "–" if value is None else f"{value:+.1f}" if sign else f"{value:.1f}"
    return percent(value, sign=sign)


def ends(metric: str, low: float | None, high: float | None, *, sign: bool = False) -> str:
    """An interval as people read it."""
    if metric == "length" and low is not None and high is not None:
        return f"{number(metric, low, sign=sign)} to {number(metric, high, sign=sign)}"
    return interval(low, high, sign=sign) if metric != "length" else "–"


def build_comparison(a: RunData, b: RunData, folder: Path) -> Comparison:
    """Write index.html, comparison.parquet and comparison.csv.

    Args:
        a: The run that is subtracted.
        b: The other one.
        folder: Made if missing.
    """
    rows = compare_runs(a, b)
    found = Comparison(summary(rows, a.study.analysis.alpha), tuple(banners(a, b, rows)), tuple(rows))
    folder.mkdir(parents=True, exist_ok=True)
    write_table(folder / "comparison", rows, CompareRow)
    studies = [yaml.safe_load((d.root / "study.yaml").read_text(encoding="utf-8")) for d in (a, b)]
    several = len({m for d in (a, b) for m in d.study.models}) > 1
    page = (
        templates()
        .get_template("compare.html.j2")
        .render(
            style=style(),
            a=a,
            b=b,
            found=found,
            several=several,
            main=[r for r in rows if not r.diagnostic],
            diagnostics=[r for r in rows if r.diagnostic and (r.value_a is not None or r.value_b is not None)],
            id=id,
            clear={id(r) for r in clear(rows)},
            widest=max((max(abs(r.ci_low or 0), abs(r.ci_high or 0)) for r in rows if not r.diagnostic), default=0)
            or 1.0,
            verdicts=verdict_pairs(a, b),
            study=differences(*studies),
            machine=machine_differences(a, b),
            models=differences(_models(a), _models(b)),
            steps=steps_table(a, b),
            level=f"{100 - 100 * a.study.analysis.alpha:.3g}%",
            number=number,
            ends=ends,
            percent=percent,
            interval=interval,
            version=version("prefixlab"),
        )
    )
    scratch = folder / ".index.html.new"
    scratch.write_text(page, encoding="utf-8", errors="replace")
    scratch.replace(folder / "index.html")
    return found
