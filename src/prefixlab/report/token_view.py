"""Token tables for the page: one part for each held-out sample and text it was read with, with every arm's quantities.

Numbers travel as whole numbers and a scale: four digits, which is more than a shade or a reader can tell apart.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars

from prefixlab.records import Sample, jsonl_lines
from prefixlab.report.parts import Parts, to_json
from prefixlab.report.tables import RunData, who

QUANTITIES = (
    "loss",
    "entropy",
    "rank",
    "kl",
    "logit_gradient",
    "input_gradient",
    "contribution",
    "influence",
    "token_gradient",
    "token_influence",
)
DIGITS = 9999
"""Largest whole number that a quantity is scaled to."""
Key = tuple[str, str, str, str]
"""Model, capability, sample, rendering."""


def read_table(folder: Path, columns: tuple[str, ...]) -> polars.DataFrame:
    """Rows of the finished adapter, without those of its snapshots; columns that an older run lacks are left out."""
    scan = polars.scan_parquet(folder / "token_loss.parquet")
    there = scan.collect_schema().names()
    if "step" in there:
        scan = scan.filter(polars.col("step").is_null())
    return scan.select([c for c in columns if c in there]).collect()


def _numbers(name: str) -> list[polars.Expr]:
    """Scale of one quantity within a group, and its whole numbers joined by commas; null where any is missing."""
    column = polars.col(name).cast(polars.Float64)
    top = column.abs().max()
    scale = polars.lit(1.0) if name == "rank" else polars.when(top > 0).then(top / DIGITS).otherwise(1.0)
    whole = (column / scale).round().cast(polars.Int64, strict=False).cast(polars.String)
    known = (column.is_finite().all() & column.is_not_null().all()).fill_null(False)
    return [
        scale.first().alias(f"{name}_scale"),
        polars.when(known).then(whole.str.join(",")).otherwise(None).alias(name),
    ]


def _arm(row: Mapping[str, Any]) -> str:
    """JSON of one arm's quantities of one sample: name -> [scale, whole numbers]."""
    found = [f'"{q}":[{row[f"{q}_scale"]:.6g},[{row[q]}]]' for q in QUANTITIES if row.get(q) is not None]
    return "{" + ",".join(found) + "}"


def _prompts(data: RunData) -> dict[tuple[str, str], str]:
    """(Capability, sample) -> text of a held-out sample's last turn."""
    found = {}
    for config, folder in data.done("data"):
        path = folder / "held_out.jsonl"
        for line in jsonl_lines(path) if path.exists() else ():
            sample = Sample.model_validate_json(line)
            found[config["capability"], sample.id] = sample.messages[-1].content
    return found


def token_samples(data: RunData, parts: Parts) -> list[dict[str, Any]]:
    """Write the parts; for each sample its name and the path of its part by rendering."""
    frames: dict[Key, str] = {}
    arms: dict[Key, list[str]] = {}
    for config, folder in data.done("tokens"):
        label = config["arm"]["arm"] + ("" if config["seed"] is None else f" · seed {config['seed']}")
        table = read_table(folder, ("sample", "rendering", "token", "span", *QUANTITIES))
        there = [q for q in QUANTITIES if q in table.columns]
        groups = table.group_by(["sample", "rendering"], maintain_order=True).agg(
            polars.col("token"), polars.col("span"), *(e for q in there for e in _numbers(q))
        )
        for row in groups.iter_rows(named=True):
            key = (config["model"]["name"], config["capability"], row["sample"], row["rendering"])
            if key not in frames:
                frames[key] = f'"tokens":{to_json(row["token"])},"spans":{to_json(row["span"])}'
            arms.setdefault(key, []).append(f"[{to_json(label)},{_arm(row)}]")
    prompts, several = _prompts(data), len(data.study.models) > 1
    found: dict[tuple[str, str, str], dict[str, Any]] = {}
    for number, (key, frame) in enumerate(frames.items()):
        model, capability, sample, rendering = key
        text = f'{{"prompt":{to_json(prompts.get((capability, sample), ""))},{frame},"arms":[{",".join(arms[key])}]}}'
        entry = found.setdefault(
            (model, capability, sample),
            {"name": f"{who(model, capability, several)} · {_short(prompts.get((capability, sample), sample))}"},
        )
        entry.setdefault("parts", {})[rendering] = parts.add(f"tokens-{number}", text)
    return list(found.values())


def _short(text: str) -> str:
    """A prompt on one short line."""
    line = " ".join(text.split())
    return line if len(line) <= 60 else line[:59] + "…"


def span_means(data: RunData) -> list[dict[str, Any]]:
    """Mean token loss and logit gradient by capability, arm, rendering and span: seeds and samples weigh equally."""
    read: dict[tuple[str, str, str], list[polars.DataFrame]] = {}
    by = ["rendering", "span", "sample"]
    numbers = [polars.col("loss").mean(), polars.col("logit_gradient").mean()]
    for config, folder in data.done("tokens"):
        key = (config["model"]["name"], config["capability"], config["arm"]["arm"])
        table = read_table(folder, (*by, "loss", "logit_gradient"))
        read.setdefault(key, []).append(table.group_by(by).agg(*numbers))
    several = len(data.study.models) > 1
    rows = []
    for (model, capability, arm), tables in read.items():
        means = (
            polars.concat(tables)
            .group_by(["rendering", "span"])
            .agg(*numbers, polars.col("sample").n_unique().alias("n"))
            .sort(["rendering", "span"])
        )
        rows += [{"capability": who(model, capability, several), "arm": arm, **row} for row in means.to_dicts()]
    return rows
