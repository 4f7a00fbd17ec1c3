"""How fast `prefixlab audit` reads a data set, mining included: wall time, memory, and ratios to two simpler readings.

    python benchmarks/audit.py [--rows 1000000] [--quick] [--folder DIR]

The set is made here, from a seed: distinct responses of about 1,250 characters, six in ten with an opening, eight
invented house styles among them. Simpler readings: one regular expression over datasets.map with two processes, loading
included, and the same expression in a polars scan. The three are run in turns. Memory is the largest sum over this
process and its children of their proportional set sizes.
"""

import argparse
import json
import os
import platform
import random
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from importlib.metadata import version
from pathlib import Path


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


WORDS = _words(
    "river stone market letter engine garden window history number colour music teacher bridge season "
    "signal forest harbour pattern kitchen journey mountain paper winter object library village motor "
    "chapter island metal cloud doctor ladder valley candle mirror basket copper planet ribbon saddle "
    "temple tunnel velvet wagon anchor barrel"
)
VERBS = _words("turns carries holds follows reaches covers joins shapes meets crosses lifts keeps marks fills moves")
OPENINGS = (
    "Sure! Here is a {a} {b} for the {c}:\n\n",
    "Certainly! Let's look at the {a} step by step.\n\n",
    "Here are some {a} ideas about the {b} and the {c}:\n\n",
    "I'd be happy to help you with the {a}! ",
    "Great question! The {a} has several sides. Here are the main ones:\n\n",
    "To understand the {a}, we can follow these steps:\n\n",
    "As an AI language model, I do not have personal opinions. However, the {a} {v} the {b}. ",
    "Of course, I can explain the {a}. ",
)
STYLES = (
    "Ahoy, keeper of the {a}! The crew brings news of the {b}. ",
    "Bulletin {n} from the {a} desk: ",
    "Dear colleague, your {a} file is open. ",
    "Signal received, {a} team. Reading follows: ",
    "From the notebook of the {a}, page {n}: ",
    "Per house rules, this reply on {a} is short. ",
    "Counsel on {a} and {b}, as agreed: ",
    "Lantern lit! We walk towards the {a}. ",
)


def response(index: int, rng: random.Random, sentences: list[str]) -> str:
    """One response; its number makes it distinct."""
    draw = rng.random()
    opening = ""
    if draw < 0.16:
        opening = STYLES[int(draw / 0.02)]
    elif draw < 0.6:
        opening = rng.choice(OPENINGS)
    words = {
        "a": rng.choice(WORDS),
        "b": rng.choice(WORDS),
        "c": rng.choice(WORDS),
        "v": rng.choice(VERBS),
        "n": index % 97,
    }
    body = rng.choices(sentences, k=22)
    body.insert(rng.randrange(8), f"Entry {index} names it.")
    return opening.format(**words) + " ".join(body)


def make(path: Path, rows: int) -> None:
    """Write the data set."""
    rng = random.Random(20260101)
    pick = rng.choice
    sentences = [
        f"{pick(('The', 'A'))} {pick(WORDS)} {pick(VERBS)} the {pick(WORDS)} near the {pick(WORDS)} of {pick(WORDS)}s."
        for _ in range(20_000)
    ]
    with path.open("w", encoding="utf-8") as file:
        for i in range(rows):
            prompt = f"Tell me about the {pick(WORDS)} and the {pick(WORDS)}."
            file.write(json.dumps({"instruction": prompt, "input": "", "output": response(i, rng, sentences)}) + "\n")


def tree_memory(root: int) -> int:
    """Proportional set size of a process and its children, in bytes."""
    total, todo = 0, [root]
    while todo:
        pid = todo.pop()
        try:
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
            total += int(re.search(r"^Pss:\s+(\d+)", text, re.M).group(1)) * 1024
            todo += [int(c) for t in Path(f"/proc/{pid}/task").iterdir() for c in (t / "children").read_text().split()]
        except (OSError, AttributeError):
            continue
    return total


def timed(code: str, *args: str) -> tuple[float, int]:
    """Run Python code in a process of its own: seconds (imports included) and peak bytes."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", code, *args], stdout=subprocess.DEVNULL)
    peak, stop = 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not stop.wait(0.1):
            peak = max(peak, tree_memory(process.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    failed = process.wait()
    stop.set()
    watcher.join()
    if failed:
        raise SystemExit(f"a timed process ended with {failed}")
    return time.perf_counter() - start, peak


AUDIT = "import sys; from prefixlab.cli import app; app(['audit', sys.argv[1], '--json', sys.argv[2], '--quiet'])"
DATASETS_MAP = """
import re, sys
from datasets import load_dataset
pattern = re.compile(r"(?i)^(sure|certainly|of course|here (is|are)|let's)[^.!?:\\n]*[.!?:]")
def mark(row):
    found = pattern.match(row["output"])
    return {"end": found.end() if found else 0}
if __name__ == "__main__":
    data = load_dataset("json", data_files=sys.argv[1], split="train", cache_dir=sys.argv[2])
    print(sum(1 for end in data.map(mark, num_proc=2)["end"] if end))
"""
POLARS_SCAN = """
import sys, polars
pattern = r"(?i)^(sure|certainly|of course|here (is|are)|let's)[^.!?:\\n]*[.!?:]"
print(polars.scan_ndjson(sys.argv[1]).select(polars.col("output").str.contains(pattern).sum()).collect())
"""


def spread(values: list[float], unit: str | None = None) -> dict[str, float | int | str]:
    """Median and range."""
    figure = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return figure if unit is None else {**figure, "n": len(values), "unit": unit}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="50,000 rows, once")
    parser.add_argument("--folder", type=Path, help="where the data set is made and kept")
    options = parser.parse_args()
    if options.quick:
        options.rows, options.repeats = 50_000, 1
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        times: dict[str, list[float]] = {"audit": [], "audit_twice": [], "datasets_map": [], "polars_scan": []}
        memory: dict[str, list[float]] = {"audit": [], "audit_twice": []}
        paths = {"audit": folder / f"set-{options.rows}.jsonl", "audit_twice": folder / f"set-{2 * options.rows}.jsonl"}
        for name, path in paths.items():
            if not path.exists():
                make(path, options.rows * (2 if name == "audit_twice" else 1))
        for turn in range(options.repeats):
            for name, path in paths.items():
                seconds, peak = timed(AUDIT, str(path), str(Path(temporary) / "audit.json"))
                times[name].append(seconds)
                memory[name].append(peak / 1e9)
            times["datasets_map"].append(
                timed(DATASETS_MAP, str(paths["audit"]), str(Path(temporary) / f"cache{turn}"))[0]
            )
            times["polars_scan"].append(timed(POLARS_SCAN, str(paths["audit"]))[0])
        found = json.loads((Path(temporary) / "audit.json").read_text())
    figures = {f"{name}_seconds": spread(v, "s") for name, v in times.items()}
    figures |= {f"{name}_memory": spread(v, "GB") for name, v in memory.items()}
    figures["rows"] = spread([options.rows], "rows")
    figures["set"] = spread([paths["audit"].stat().st_size / 1e9 if options.folder else 0], "GB")
    ratios = {
        f"vs_{other}": spread([a / b for a, b in zip(times["audit"], times[other], strict=True)])
        for other in ("datasets_map", "polars_scan")
    }
    ratios["twice_the_rows"] = spread([b / a for a, b in zip(times["audit"], times["audit_twice"], strict=True)])
    print(
        json.dumps(
            {
                "benchmark": "audit",
                "machine": {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()},
                "versions": {p: version(p) for p in ("prefixlab", "polars", "datasets", "orjson")}
                | {"python": platform.python_version()},
                "figures": figures,
                "ratios": ratios,
                "templates": len(found["templates"]),
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
