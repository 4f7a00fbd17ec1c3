"""Completions for the page: a small table of states to filter by, and the texts in parts that are loaded by need."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from prefixlab.analysis.rows import BASE, CellScores
from prefixlab.records import SampleScore
from prefixlab.report.parts import Parts, to_json
from prefixlab.report.tables import RunData

PART = 400_000
"""Characters of one part of texts, about; one prompt with all its completions is never cut."""

MISSING, GOOD, BAD, GRADED, INVALID, ERROR = ".", "1", "0", "~", "i", "e"
"""State of one completion under its suite's metric; a graded one is neither 0 nor 1."""
TRUNCATED = {GOOD: "T", BAD: "t", GRADED: "g"}
"""The same, cut off at the limit of tokens."""


def label(cell: CellScores) -> str:
    """Arm, with its seed where it has one."""
    return cell.info.arm if cell.seed is None else f"{cell.info.arm} · seed {cell.seed}"


def state(row: SampleScore, better: bool) -> str:
    """One character for a completion.

    Args:
        row: Main metric of the completion.
        better: Whether higher is better.
    """
    if row.status == "invalid":
        return INVALID
    if row.value is None:
        return ERROR
    found = GRADED if row.value not in (0.0, 1.0) else GOOD if bool(row.value) == better else BAD
    return TRUNCATED[found] if row.status == "truncated" else found


def _logs(data: RunData) -> dict[tuple[Any, ...], str]:
    """Path of every evaluation's Inspect log, relative to the report."""
    found = {}
    for c, folder in data.done("eval"):
        log = next(iter(sorted(folder.glob("*.eval"))), None)
        if log is not None:
            seed = None if c["arm"]["arm"] == BASE else c["seed"]
            key = (c["model"]["name"], c["capability"], c["arm"]["arm"], seed, c["suite"]["suite"], c["protocol"])
            found[*key, c["condition"]] = Path("..", log.relative_to(data.root)).as_posix()
    return found


def _log_key(cell: CellScores) -> tuple[Any, ...]:
    return (cell.model, cell.capability, cell.info.arm, cell.seed, cell.suite, cell.protocol, cell.condition)


def _main(cell: CellScores) -> list[SampleScore]:
    """One row a completion, of its suite's metrics in their order."""
    return [row for m in cell.metrics for row in cell.of(m) if isinstance(row, SampleScore)]


def _completion(row: SampleScore) -> dict[str, Any]:
    found: dict[str, Any] = {"t": row.prefill + row.completion, "n": row.n_tokens}
    if row.prefill:
        found["f"] = len(row.prefill)
    if row.answer:
        found["a"] = row.answer
    if row.value is not None and row.value not in (0.0, 1.0):
        found["v"] = round(row.value, 4)
    return found


def _prompts(members: Sequence[CellScores]) -> dict[tuple[str, str], list[dict[int, SampleScore]]]:
    """(Item, metric) -> for every cell, its completions by sample number."""
    found: dict[tuple[str, str], list[dict[int, SampleScore]]] = {}
    for index, cell in enumerate(members):
        for row in _main(cell):
            if row.epoch:
                found.setdefault((row.item, row.metric), [{} for _ in members])[index][row.epoch] = row
    return found


def _entry(cells: Sequence[Mapping[int, SampleScore]]) -> dict[str, Any]:
    """One prompt with its completions, as the page shows it."""
    first = next(row for samples in cells for row in samples.values())
    arms = [[_completion(samples[k]) for k in sorted(samples)] for samples in cells]
    return {"p": first.prompt, "t": first.target, "a": arms}


def _states(cells: Sequence[Mapping[int, SampleScore]], better: bool) -> list[str]:
    """For every sample number, one character a cell."""
    epochs = sorted({k for samples in cells for k in samples})
    return ["".join(state(s[k], better) if k in s else MISSING for s in cells) for k in epochs]


def completion_sets(data: RunData, parts: Parts) -> list[dict[str, Any]]:
    """Write the parts; for each model, capability, suite, protocol and condition what the page needs to find them.

    Returns:
        For each set its name, its columns (arm with seed, path of the log), the path of its table of states, and
        (path, number of prompts) of its parts, in the order of that table.
    """
    groups: dict[tuple[str, ...], list[CellScores]] = {}
    for cell in data.cells:
        if cell.rows is not None:
            groups.setdefault((cell.model, cell.capability, cell.suite, cell.protocol, cell.condition), []).append(cell)
    logs, several = _logs(data), len({c.model for c in data.cells}) > 1
    found: list[dict[str, Any]] = []
    for (model, capability, suite, protocol, condition), members in groups.items():
        prompts = sorted(_prompts(members).items())
        if not prompts:
            continue

        def entries(prompts: list[Any] = prompts) -> Iterator[dict[str, Any]]:
            return (_entry(cells) for _, cells in prompts)

        table = [
            {
                "id": item,
                "m": metric,
                "k": next(row.kind for samples in cells for row in samples.values()),
                "s": _states(cells, members[0].metrics[metric]),
            }
            for (item, metric), cells in prompts
        ]
        stem = f"completions-{len(found)}"
        found.append(
            {
                "name": f"{capability} · {suite} · {condition}"
                + ("" if protocol == "prefixlab" else f" · {protocol}")
                + (f" · {model}" if several else ""),
                "columns": [{"arm": label(c), "log": logs.get(_log_key(c))} for c in members],
                "prompts": len(table),
                "samples": max(len(row["s"]) for row in table),
                "table": parts.add(f"{stem}-table", to_json(table)),
                "parts": parts.add_lists(stem, entries(), PART),
            }
        )
    return found
