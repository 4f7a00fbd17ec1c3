"""How well the rules find refusals: XSTest's human labels, and rates on other sets' rates.

    python benchmarks/refusals.py [--data ../shared/data] [--quick]

XSTest: full refusal against full compliance, rows labelled partial left out of both; recall of a class counts only
exact labels; the confusion has all three. The other sets have no labels: there the share of each label is given.
"""

import argparse
import csv
import json
import os
import platform
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from prefixlab.evals.refusals import compliance

Row = tuple[str, str]
LABELS = {
    "1_full_compliance": "full_compliance",
    "3_partial_refusal": "partial_refusal",
    "2_full_refusal": "full_refusal",
}


def xstest(folder: Path) -> dict[str, list[tuple[str, str, str]]]:
    """Prompt, completion and human label of every row, by model."""
    found = {}
    for path in sorted(folder.glob("*completions*.csv")):
        with path.open(encoding="utf-8") as file:
            rows = [(r["prompt"], r["completion"], LABELS[r["final_label"]]) for r in csv.DictReader(file)]
        found[path.name.split("_")[3]] = rows
    return found


def agreement(rows: list[tuple[str, str, str]]) -> tuple[dict[str, float], dict[str, dict[str, int]]]:
    """Recall of each class, balanced accuracy of the two full ones, and the confusion (human label, then ours)."""
    counts = Counter((label, compliance(prompt, answer)) for prompt, answer, label in rows)
    confusion = {a: {b: counts[a, b] for b in LABELS.values()} for a in LABELS.values()}
    recall = {a: confusion[a][a] / sum(confusion[a].values()) for a in confusion}
    balanced = (recall["full_compliance"] + recall["full_refusal"]) / 2
    return {"balanced_accuracy": balanced} | {f"recall_{a}": r for a, r in recall.items()}, confusion


def unlabelled(data: Path) -> Iterator[tuple[str, list[Row]]]:
    """Prompts and answers of the other sets."""
    for path in sorted((data / "alpaca_eval_outputs").glob("*.json")):
        yield f"alpaca_eval_{path.stem}", [(r["instruction"], r["output"]) for r in json.loads(path.read_text())]
    star = json.loads((data / "star1" / "STAR-1.json").read_text())
    yield "star1", [(r["question"], r["response"]) for r in star]
    for path in sorted((data / "r1_distill_traces").glob("*.jsonl")):
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
        yield f"r1_traces_{path.stem}", [(str(r["prompt"]), r["response"]) for r in rows]
    lines = (data / "gsm8k" / "test.jsonl").read_text().splitlines()
    yield "gsm8k", [(r["question"], r["answer"]) for r in map(json.loads, lines)]


def figure(values: list[float], unit: str) -> dict[str, float | int | str]:
    """Median and range."""
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "n": len(values),
        "unit": unit,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    parser.add_argument("--quick", action="store_true", help="XSTest alone")
    options = parser.parse_args()
    figures, confusions, milliseconds = {}, {}, []
    for model, rows in xstest(options.data / "xstest").items():
        found, confusions[model] = agreement(rows)
        figures |= {f"xstest_{model}_{name}": figure([value], "share") for name, value in found.items()}
    for name, rows in [] if options.quick else unlabelled(options.data):
        start = time.perf_counter()
        counts = Counter(compliance(*row) for row in rows)
        milliseconds.append((time.perf_counter() - start) / len(rows) * 1e3)
        for label in ("full_refusal", "partial_refusal"):
            figures[f"{name}_{label}"] = figure([counts[label] / len(rows)], f"share of {len(rows)}")
    if milliseconds:
        figures["time_per_answer"] = figure(milliseconds, "ms, mean of a set")
    print(
        json.dumps(
            {
                "benchmark": "refusals",
                "machine": {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()},
                "versions": {"prefixlab": version("prefixlab"), "python": platform.python_version()},
                "figures": figures,
                "ratios": {},
                "confusion": confusions,
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
