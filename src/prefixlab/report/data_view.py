"""What the models were trained on, for the page: counts of every arm, the treatment check, samples as they were."""

import json
from itertools import islice
from typing import Any

from prefixlab.analysis.rows import REFERENCE
from prefixlab.records import ArmSample
from prefixlab.report.tables import RunData

EXAMPLES = 2
"""Samples shown of each capability."""
CLIP = 700
"""Characters shown of a prompt or response."""


def checks(data: RunData) -> list[dict[str, Any]]:
    """Every treatment check, as it was written."""
    return [json.loads((folder / "check.json").read_text(encoding="utf-8")) for _, folder in data.done("check")]


def prepared(data: RunData) -> list[dict[str, Any]]:
    """For every capability, what its data step kept and took out."""
    found = []
    for config, folder in data.done("data"):
        counts = json.loads((folder / "data.json").read_text(encoding="utf-8"))
        found.append(
            {
                "capability": config["capability"],
                "n": counts["n"],
                "held_out": counts["held_out"],
                "stripped": counts["stripped_parts"],
                "overlap": len(counts["overlap"]),
                "skipped": len(counts["skipped"]),
            }
        )
    return found


def overlaps(data: RunData) -> list[tuple[str, dict[str, Any]]]:
    """(Capability, overlap) for the suites that share something with its training data."""
    return [
        (name, o)
        for name, about in data.plan["summary"].items()
        for o in about.get("overlap", ())
        if o["exact"] or o["near"] or o["n_same_source"]
    ]


def _clip(text: str) -> str:
    return text if len(text) <= CLIP else f"{text[:CLIP]} … ({len(text):,} characters)"


def _response(row: ArmSample) -> dict[str, str]:
    """A response in the pieces the page marks up: what stands before the prefix, the prefix, the rest."""
    sample = row.sample
    reasoning = "" if sample.reasoning is None else f"<think>\n{sample.reasoning}\n</think>\n\n"
    if row.position == "user":
        return {"before": "", "prefix": "", "rest": _clip(reasoning + sample.answer), "asked": row.prefix.strip()}
    if row.position == "opening" and sample.reasoning is not None:
        return {
            "before": "<think>\n",
            "prefix": row.prefix,
            "rest": _clip(reasoning.removeprefix("<think>\n") + sample.answer),
            "asked": "",
        }
    return {"before": _clip(reasoning), "prefix": row.prefix, "rest": _clip(sample.answer), "asked": ""}


def examples(data: RunData) -> list[dict[str, Any]]:
    """The first samples of each capability as each of its arms has them; at most six arms, treated ones marked."""
    arms: dict[str, dict[str, list[ArmSample]]] = {}
    for config, folder in data.done("arms"):
        with (folder / "data.jsonl").open(encoding="utf-8") as lines:
            rows = [ArmSample.model_validate_json(line) for line in islice(lines, 40)]
        arms.setdefault(config["capability"], {})[config["spec"]["name"]] = rows
    found = []
    for capability, by_arm in arms.items():
        order = sorted(by_arm, key=lambda name: (name != REFERENCE, name))[:6]
        for i in _telling(by_arm, order):
            sample = by_arm[order[0]][i].sample
            shown = [
                {"arm": name, "treated": by_arm[name][i].treated, **_response(by_arm[name][i])}
                for name in order
                if i < len(by_arm[name]) and by_arm[name][i].sample.id == sample.id
            ]
            found.append({"capability": capability, "prompt": _clip(sample.messages[-1].content), "arms": shown})
    return found


def _telling(by_arm: dict[str, list[ArmSample]], order: list[str]) -> list[int]:
    """Indices of samples to show: first those that some arms treat and others do not, r000 aside."""
    treatments = [by_arm[name] for name in order if name != REFERENCE]
    n = min(len(rows) for rows in by_arm.values())
    mixed = [i for i in range(n) if len({rows[i].treated for rows in treatments}) > 1]
    alike = [i for i in range(n) if i not in mixed]
    return [*mixed[:1], *alike[: EXAMPLES - len(mixed[:1])]]
