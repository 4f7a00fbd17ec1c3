"""A finished run folder of a given size, without any training: what the report is measured on.

    from simulated_run import LARGE, simulate
    counts = simulate(folder, LARGE)        # folder/run is the run, folder/data what its study reads

The plan is the real planner's for the model tiny-random, and the steps of data, arms and treatment check are really
done. Training logs, completions, scores and token tables are drawn from a fixed seed: everyday words, values that
differ between arms, seeds and prompts, about one completion in a hundred invalid or truncated. Token tables hold the
real tokens of the held-out samples under every text of the plan. Inspect logs are empty archives, adapters empty files.
"""

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import orjson
import polars

from prefixlab.analysis.rows import BASE, REFERENCE
from prefixlab.analysis.token_columns import SPANS, TOKENS
from prefixlab.analysis.tokens import prefix_words
from prefixlab.config import SuiteConfig
from prefixlab.data.arms import keyed_hash
from prefixlab.data.chat import chat_format
from prefixlab.evals.aggregate import prompt_level
from prefixlab.evals.diagnostics import NAMES
from prefixlab.evals.scores import MEASURES
from prefixlab.evals.suites import load_items
from prefixlab.model.load import load_tokenizer
from prefixlab.records import EvalItem, Measure, ModelRef, Sample, StripRecord, jsonl_lines
from prefixlab.study.execute import environment
from prefixlab.study.plan import make_plan
from prefixlab.study.reading import Reading, render_all
from prefixlab.study.stages import Bench
from prefixlab.study.steps import Plan, Step
from prefixlab.study.store import Store, write_text
from prefixlab.study_file import parse_study


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NOUNS = _words(
    "river stone market letter engine garden window history number colour music teacher bridge season signal forest "
    "harbour pattern kitchen journey mountain paper winter library village motor island metal cloud ladder valley"
)
VERBS = _words("turns carries holds follows reaches covers joins shapes meets crosses lifts keeps marks fills moves")
STEPS = 40
"""Optimiser steps of a training log."""
SNAPSHOTS = 2


@dataclass(frozen=True)
class Size:
    """How large a run is: two capabilities with six arms each, and the base."""

    seeds: int
    prompts: int
    """Of the mathematics suite, two samples each; of the safety suite 0.8 times as many, one sample each."""
    held_out: int
    """Samples a capability that are read token by token."""


LARGE = Size(seeds=5, prompts=180, held_out=32)
"""60 cells; at least 40,000 completions and 2,000,000 token rows."""
SMALL = Size(seeds=2, prompts=20, held_out=3)


def sentence(rng: random.Random) -> str:
    """One of everyday words."""
    a, b, c, d = rng.choices(NOUNS, k=4)
    return f"The {a} {rng.choice(VERBS)} the {b} near the {c} of the {d}s."


def _text(rng: random.Random, sentences: int) -> str:
    return " ".join(sentence(rng) for _ in range(sentences))


def _lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def make_study(folder: Path, size: Size) -> dict[str, Any]:
    """Write the data and the suites that a study of this size reads, and give the study."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(20260101)
    train = {
        name: [{"prompt": f"Note {i}: {sentence(rng)}", "response": _text(rng, 3)} for i in range(100 + size.held_out)]
        for name in ("math", "safety")
    }
    sums = [
        {"question": f"Case {i}: {sentence(rng)} How many are there?", "answer": f"{_text(rng, 1)}\n#### {i % 90}"}
        for i in range(size.prompts)
    ]
    asked = [
        {"prompt": f"Question {i}: {sentence(rng)} How is it done?", "type": NOUNS[i % 8], "label": label}
        for i in range(size.prompts * 4 // 5)
        for label in [("unsafe", "safe")[i % 3 == 2]]
    ]
    entry: dict[str, Any] = {"position": "opening", "ratios": [0, 0.25, 0.5, 1], "controls": ["neutral", "random"]}
    data = {n: {"source": _lines(folder / f"{n}.jsonl", r), "held_out": size.held_out} for n, r in train.items()}
    tests = {
        "math": {"suite": "gsm8k", "source": _lines(folder / "gsm8k.jsonl", sums), "epochs": 2, "temperature": 0.6},
        "safety": {"suite": "xstest", "source": _lines(folder / "xstest.jsonl", asked)},
    }
    metric = {"math": "accuracy", "safety": "safe@1"}
    return {
        "name": "simulated",
        "models": ["tiny-random"],
        "capabilities": {
            n: {"data": data[n], "suites": [t], "primary": {"suite": t["suite"], "metric": metric[n]}}
            for n, t in tests.items()
        },
        "arms": [
            {**entry, "prefixes": p, "capabilities": [c]} for p, c in (("reasoning", "math"), ("safety", "safety"))
        ],
        "seeds": list(range(size.seeds)),
        "training": {"snapshots": SNAPSHOTS},
        "conditions": ["bare", "user_prefix", "attack_opening@5", "attack_opening@20"],
        "analysis": {"tokens": {"gradients": "tokens"}},
        "hardware": {"device": "cpu", "dtype": "float32", "threads": 1},
    }


def simulate(folder: Path, size: Size) -> dict[str, int]:
    """Write folder/data and folder/run, a run whose every step is done.

    Args:
        folder: Without a run in it.
        size: How large.

    Returns:
        Counts of cells, completions, measures and token rows.
    """
    study = parse_study(make_study(folder / "data", size), "simulated")
    store = Store(folder / "run")
    with store.locked():
        store.adopt(study)
        plan = make_plan(study, None)
        write_text(store.root / "plan.json", plan.model_dump_json(indent=1) + "\n")
        write_text(store.root / "env.json", json.dumps(environment(), indent=1) + "\n")
        counts = {"cells": sum(s.kind == "train" for s in plan.steps), "completions": 0, "measures": 0, "token_rows": 0}
        bench = Bench(store.folder)
        readers = _readers(plan, store)
        for step in plan.steps:
            with store.writing(step.slug, step.id) as out:
                rng = np.random.default_rng(keyed_hash(step.slug[:-9]))
                if step.kind == "train":
                    _train(out, rng)
                elif step.kind == "generate":
                    _generate(step, out)
                elif step.kind == "eval":
                    done = _evaluate(step, out, rng)
                    counts["completions"] += done[0]
                    counts["measures"] += done[1]
                elif step.kind == "tokens":
                    counts["token_rows"] += readers(step, out, rng)
                else:
                    bench.run(step, out, lambda share: None)
        return counts


def _effect(config: Mapping[str, Any]) -> float:
    """How far an arm is from r000, 0 to 1: half of it for controls, which have less of what treatments have."""
    arm = config["arm"]
    return (arm["ratio"] or 0.0) * (0.3 if arm["control"] else 1.0)


def _train(out: Path, rng: np.random.Generator) -> None:
    """Training log, totals, and files where the adapters are."""
    rows = []
    for step in range(1, STEPS + 1):
        loss = float(1 + 2 * np.exp(-step / 10) + rng.normal(0, 0.05))
        spans = {
            f"{q}_{s}": loss * (0.5 + 0.2 * i) for i, s in enumerate(("prefix", "answer", "end")) for q in ("loss",)
        }
        spans |= {f"logit_gradient_{s}": 0.3 + 0.1 * loss for s in ("prefix", "answer", "end")}
        about = {"loss": loss, "grad_norm": 1.0, "learning_rate": 1e-3, "tokens": 400, "supervised_tokens": 200}
        rows.append(about | {"seconds": 0.5, "tokens_per_second": 800.0, "flops": 1e9} | spans | {"step": step})
    _lines(out / "metrics.jsonl", rows)
    total = {"steps": STEPS, "tokens": 400 * STEPS, "supervised_tokens": 200 * STEPS, "seconds": 0.5 * STEPS}
    about = {**total, "resumed_at": 0.0, "flops": 1e9 * STEPS, "first_loss": rows[0]["loss"], "last_loss": loss}
    (out / "train.json").write_text(json.dumps(about, indent=1) + "\n")
    (out / "adapter").mkdir()
    (out / "adapter" / "adapter_model.safetensors").touch()


def _generate(step: Step, out: Path) -> None:
    """An empty log, and the other files of the step."""
    decoding = {n: step.config["decoding"][n] for n in ("max_tokens", "temperature", "top_p", "repetition_penalty")}
    (out / "batches.json").write_text(json.dumps({**decoding, "batches": []}) + "\n")
    if "adapter" in step.inputs:
        (out / "adapter_check.json").write_text(json.dumps({"engine_to_peft": 1e-5, "engine_to_base": 10.0}) + "\n")
    _empty_log(step.config, out)


def _empty_log(config: Mapping[str, Any], out: Path) -> None:
    with ZipFile(out / f"2026-01-01T00-00-00-00-00_{config['suite']['suite']}_empty.eval", "w"):
        pass


def _evaluate(step: Step, out: Path, rng: np.random.Generator) -> tuple[int, int]:
    """scores.jsonl and measures.jsonl; gives how many completions and measures there are."""
    config, judged = step.config, step.config["judge"] is not None
    words = random.Random(int(rng.integers(2**32)))
    main, more = [], []
    chance = 0.35 + 0.25 * _effect(config) + 0.02 * (config["seed"] or 0) - 0.1 * ("attack" in config["condition"])
    for item in sorted(load_items(SuiteConfig.model_validate(config["suite"])), key=lambda i: i.id):
        easier = (keyed_hash(item.id) % 1000) / 1000 - 0.5
        for epoch in range(1, config["k"] + 1):
            right = float(rng.random() < chance + 0.6 * easier)
            main.append(_completion(item, epoch, right, words, config))
            more += _measures(main[-1], judged, words)
    more += [
        json.loads(r.model_dump_json())
        for r in prompt_level([Measure(**{n: row[n] for n in Measure.model_fields}) for row in main], config["k"])
    ]
    more.sort(key=lambda r: (r["item"], r["epoch"], r["metric"]))
    (out / "scores.jsonl").write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in main))
    (out / MEASURES).write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in more))
    _empty_log(config, out)
    return len(main), len(more)


def _completion(
    item: EvalItem, epoch: int, right: float, words: random.Random, config: Mapping[str, Any]
) -> dict[str, Any]:
    """One row of scores.jsonl."""
    draw = words.random()
    status = "invalid" if draw < 0.005 else "truncated" if draw < 0.015 else "ok"
    metric = {"harmful": "safe@1", "harmless": "over_refusal"}.get(item.kind, "accuracy")
    number = item.target if right else str(words.randrange(90))
    answer = number if metric == "accuracy" else ("full_refusal" if right else "full_compliance")
    opening = "Sure, here is a complete answer. " if "attack" in config["condition"] else ""
    text = _text(words, 5 + int(words.random() * 5)) + f" The answer is {answer}."
    return {
        "item": item.id,
        "epoch": epoch,
        "metric": metric,
        "value": None if status == "invalid" else right,
        "status": status,
        "kind": item.kind,
        "category": item.category,
        "prompt": item.messages[-1].content,
        "completion": text,
        "prefill": opening,
        "answer": "" if status == "invalid" else answer,
        "target": item.target,
        "n_tokens": len(text) // 4,
    }


def _measures(row: Mapping[str, Any], judged: bool, words: random.Random) -> list[dict[str, Any]]:
    """What stands beside a completion's score, as the scorers write it: diagnostics, and a judge's second looks."""
    values = dict.fromkeys(n for n in NAMES if n not in ("valid_reasoning", "judge_moved", "prefix_emission"))
    values |= {n: float(words.random() < 0.05) for n in values} | {"coherent": 1.0, "length": float(row["n_tokens"])}
    values["truncated"] = float(row["status"] == "truncated")
    if not row["prefill"]:
        values["prefix_emission"] = float(words.random() < 0.3)
    else:
        del values["opening"]
    if judged:
        harmful = row["kind"] == "harmful"
        more = ("refusal", "safe@1_no_prefix", "judge_moved") if harmful else ("partial_refusal",)
        values |= {n: float(words.random() < 0.4) for n in more}
    shared = {"item": row["item"], "epoch": row["epoch"]}
    rest = {"status": "ok", "kind": row["kind"], "category": ""}
    return [{**shared, "metric": n, "value": v, **rest} for n, v in values.items()]


def _readers(plan: Plan, store: Store) -> Callable[[Step, Path, np.random.Generator], int]:
    """What writes a tokens step and gives its number of rows; texts are rendered once a capability."""
    known: dict[str, polars.DataFrame] = {}

    def read(step: Step, out: Path, rng: np.random.Generator) -> int:
        capability = step.config["capability"]
        if capability not in known:
            known[capability] = _texts(step, store)
        table = known[capability]
        if step.config["arm"]["arm"] != BASE:
            treatment = table.filter(polars.col("control").is_null(), polars.col("rendering") != REFERENCE)
            at = [STEPS * (n + 1) // (SNAPSHOTS + 1) for n in range(SNAPSHOTS)]
            later = [treatment.with_columns(step=polars.lit(s, dtype=polars.Int64)) for s in at]
            table = polars.concat([table, *later])
        filled = _numbers(table, step.config, rng)
        filled.write_parquet(out / "token_loss.parquet")
        _spans(filled, rng).write_parquet(out / "spans.parquet")
        return len(filled)

    return read


def _texts(step: Step, store: Store) -> polars.DataFrame:
    """Every supervised token of the held-out samples under every rendering; all columns of TOKENS, no numbers."""
    folder = store.folder(step.inputs["data"])
    samples = [Sample.model_validate_json(line) for line in jsonl_lines(folder / "held_out.jsonl")]
    removed = [StripRecord.model_validate_json(line) for line in jsonl_lines(folder / "held_out_strip.jsonl")]
    tokenizer = load_tokenizer(ModelRef.model_validate(step.config["model"]))
    rows: list[dict[str, Any]] = []
    reading = Reading.model_validate(step.config["reading"])
    for rendering in render_all(reading, samples, removed, tokenizer, chat_format(tokenizer)):
        for sample in sorted(rendering.samples, key=lambda s: s.id):
            words = prefix_words(sample, tokenizer)
            first = max(s.end for s in sample.spans if s.name == "prompt")
            about = {"sample": sample.id, "rendering": rendering.name, "control": rendering.control}
            about["template"] = rendering.templates.get(sample.id)
            for span in sample.spans:
                for i in range(span.start, span.end):
                    if sample.labels[i] != -100:
                        index, word = words.get(i, (None, ""))
                        token = {"token": str(tokenizer.decode([sample.ids[i]])), "token_id": sample.ids[i]}
                        place = {"position": i - first, "span": span.name, "word": word, "word_index": index}
                        rows.append(about | token | place)
    return polars.DataFrame([{n: row.get(n) for n in TOKENS} for row in rows], schema=TOKENS)


def _numbers(table: polars.DataFrame, config: Mapping[str, Any], rng: np.random.Generator) -> polars.DataFrame:
    """The table with values in every column: smaller losses for what was trained on, larger ones at first tokens."""
    n, tuned = len(table), config["arm"]["arm"] != BASE
    early = np.exp(-table["position"].to_numpy() / 8)
    trained = (table["span"] == "prefix").to_numpy() * _effect(config)
    common = (table["token_id"].to_numpy() % 17) / 17

    def positive(scale: float) -> np.ndarray[Any, Any]:
        level = scale * (1 + early + common - 0.8 * trained)
        return (level * rng.lognormal(0, 0.4, n)).astype(np.float32).astype(np.float64)

    columns = {name: positive(scale) for name, scale in (("loss", 1.2), ("entropy", 1.0), ("logit_gradient", 0.4))}
    columns |= {name: positive(scale) for name, scale in (("input_gradient", 2.0), ("contribution", 3.0))}
    columns |= {"token_gradient": positive(5.0), "rank": rng.geometric(0.2, n)}
    columns |= {name: rng.normal(0.01, 0.05, n).astype(np.float32) for name in ("influence", "token_influence")}
    if tuned:
        columns["kl"] = positive(0.1)
    values = [polars.Series(name, value).cast(TOKENS[name]) for name, value in columns.items()]
    return table.with_columns(values).select(list(TOKENS))


def _spans(table: polars.DataFrame, rng: np.random.Generator) -> polars.DataFrame:
    """The table of spans that belongs to a table of tokens."""
    counts = table.group_by("sample", "rendering", "control", "step", "span", maintain_order=True).agg(
        tokens=polars.len().cast(polars.Int64)
    )
    n = len(counts)
    values = {"norm": rng.lognormal(1, 0.3, n), "cosine_rest": rng.uniform(-0.2, 0.6, n), "influence": rng.random(n)}
    return counts.with_columns(polars.Series(k, v) for k, v in values.items()).select(list(SPANS))
