"""Where the numbers of a report come from and what they cost."""

import json
from typing import Any

from prefixlab.records import SampleScore
from prefixlab.report.tables import RunData


def _trained(data: RunData) -> tuple[int, int]:
    """Tokens that went through training, and those of them that carried loss."""
    tokens = supervised = 0
    for _, folder in data.done("train"):
        path = folder / "metrics.jsonl"
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
            row = json.loads(line)
            tokens += row.get("tokens", 0)
            supervised += row.get("supervised_tokens", 0)
    return tokens, supervised


def costs(data: RunData) -> list[tuple[str, str]]:
    """What the finished steps took: (what, how much)."""
    by_kind: dict[str, tuple[int, float]] = {}
    for step in data.plan["steps"]:
        if step["slug"] in data.seconds:
            n, seconds = by_kind.get(step["kind"], (0, 0.0))
            by_kind[step["kind"]] = (n + 1, seconds + data.seconds[step["slug"]])
    rows = [
        (f"{kind} ({n} step{'' if n == 1 else 's'})", duration(seconds))
        for kind, (n, seconds) in sorted(by_kind.items(), key=lambda item: -item[1][1])
    ]
    rows.append(("all steps", duration(sum(seconds for _, seconds in by_kind.values()))))
    tokens, supervised = _trained(data)
    if tokens:
        rows.append(("tokens trained on, all epochs and cells", f"{tokens:,}, of which {supervised:,} carried loss"))
    written = {
        (c.model, c.capability, c.info.arm, c.seed, c.suite, c.protocol, c.condition, r.item, r.epoch): r.n_tokens
        for c in data.cells
        for r in c.rows or ()
        if isinstance(r, SampleScore) and r.epoch
    }
    if written:
        rows.append(("tokens generated", f"{sum(written.values()):,} in {len(written):,} completions"))
    rows.append(("energy", _energy(data)))
    return rows


def _energy(data: RunData) -> str:
    """What the machine's own meter said, where it has one."""
    path = data.root / "energy.json"
    if not path.exists():
        return "not measured: the machine gave no reading"
    read = json.loads(path.read_text(encoding="utf-8"))
    return f"{read['joules'] / 3.6e6:.3f} kWh ({read['meter']}; {duration(read['seconds'])} of work)"


def duration(seconds: float) -> str:
    """Seconds in words a reader can weigh."""
    if seconds < 90:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    whole = round(seconds)
    return f"{whole // 60} min {whole % 60} s" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def skipped(data: RunData) -> list[str]:
    """What the study asked for and did not get, in sentences."""
    found = []
    missing: dict[str, list[str]] = {}
    for step in data.plan["steps"]:
        if step["slug"] not in data.folders:
            missing.setdefault(step["kind"], []).append(step["slug"])
    for kind, slugs in missing.items():
        more = f" and {len(slugs) - 3} more" if len(slugs) > 3 else ""
        found.append(f"{len(slugs)} step{'' if len(slugs) == 1 else 's'} of kind {kind}: {', '.join(slugs[:3])}{more}.")
    for suite, condition, why in sorted(
        {(c.suite, c.condition, f"{c.status.replace('_', ' ')}, {c.why}") for c in data.cells if c.why}
    ):
        found.append(f"{suite} under {condition}: {why}.")
    for name, about in data.plan["summary"].items():
        if about.get("skipped_rows"):
            found.append(f"{name}: {about['skipped_rows']:,} rows of its data could not be read and were left out.")
    return found


def environment(data: RunData) -> dict[str, Any]:
    """env.json; empty where the run has not begun."""
    path = data.root / "env.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found
