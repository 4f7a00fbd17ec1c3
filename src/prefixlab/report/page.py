"""The report: one HTML page that needs no network and opens from the file system.

Model output is hostile text: it travels as JSON with "<" escaped and reaches the page through textContent only.
"""

import json
import re
from collections.abc import Sequence
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import polars
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from prefixlab.analysis.anchors import AnchorRow
from prefixlab.analysis.keywords import KeywordRow
from prefixlab.analysis.narrowing import NarrowingRow
from prefixlab.analysis.rows import BASE, CellScores
from prefixlab.records import SampleScore
from prefixlab.report import figures, findings, tables
from prefixlab.report.tables import RunData

SURROGATE = re.compile("[\ud800-\udfff]")


def embed(value: Any) -> Markup:
    """JSON that is safe inside a script element; half a surrogate pair becomes the replacement character."""
    text = SURROGATE.sub("\ufffd", json.dumps(value, ensure_ascii=False, separators=(",", ":")))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _arm_label(cell: CellScores) -> str:
    return cell.info.arm if cell.seed is None or cell.seed == 0 else f"{cell.info.arm} (seed {cell.seed})"


def _completion(row: SampleScore) -> dict[str, Any]:
    return {
        "text": row.prefill + row.completion,
        "prefill": len(row.prefill),
        "value": row.value,
        "status": row.status,
        "answer": row.answer,
    }


def completions(cells: Sequence[CellScores]) -> list[dict[str, Any]]:
    """Side by side: one entry a capability, suite, condition, with every arm's completion of every prompt."""
    groups: dict[tuple[str, ...], list[CellScores]] = {}
    for cell in cells:
        if cell.rows is not None:
            key = (cell.model, cell.capability, cell.suite, cell.protocol, cell.condition)
            groups.setdefault(key, []).append(cell)
    found = []
    for (model, capability, suite, protocol, condition), members in groups.items():
        prompts: dict[str, dict[str, Any]] = {}
        for index, cell in enumerate(members):
            for row in cell.rows or ():
                if row.epoch != 1 or not isinstance(row, SampleScore):
                    continue
                entry = prompts.setdefault(
                    row.item,
                    {
                        "prompt": row.prompt,
                        "target": row.target,
                        "kind": row.kind,
                        "metric": row.metric,
                        "arms": [None] * len(members),
                    },
                )
                entry["arms"][index] = _completion(row)
        found.append(
            {
                "name": f"{capability} · {suite} · {condition}"
                + ("" if protocol == "prefixlab" else f" · {protocol}")
                + ("" if len({c.model for c in cells}) == 1 else f" · {model}"),
                "arms": [_arm_label(c) for c in members],
                "prompts": [prompts[k] for k in sorted(prompts)],
            }
        )
    return found


def _token_table(folder: Path) -> polars.DataFrame:
    """Token rows of the finished adapter, without those of its snapshots."""
    table = polars.read_parquet(folder / "token_loss.parquet")
    return table.filter(polars.col("step").is_null()) if "step" in table.columns else table  # older runs: no snapshots


def token_samples(data: RunData) -> list[dict[str, Any]]:
    """Held-out samples with every arm's token losses, one entry a capability and sample."""
    found: dict[tuple[str, str, str, str], dict[str, Any]] = {}
    for step in data.plan["steps"]:
        if step["kind"] != "tokens" or step["slug"] not in data.folders:
            continue
        config = step["config"]
        arm = config["arm"]["arm"] + (f" (seed {config['seed']})" if config["seed"] else "")
        table = _token_table(data.folders[step["slug"]])
        for (sample, rendering), rows in table.group_by(["sample", "rendering"], maintain_order=True):
            key = (config["model"]["name"], config["capability"], str(sample), str(rendering))
            entry = found.setdefault(
                key,
                {
                    "name": f"{tables.who(key[0], key[1], len(data.study.models) > 1)} · {sample}",
                    "rendering": rendering,
                    "tokens": rows["token"].to_list(),
                    "spans": rows["span"].to_list(),
                    "arms": {},
                },
            )
            entry["arms"][arm] = {
                "loss": [round(x, 3) for x in rows["loss"].to_list()],
                "gradient": [round(x, 3) for x in rows["logit_gradient"].to_list()],
            }
    return [found[k] for k in found]


def span_means(data: RunData) -> list[dict[str, Any]]:
    """Mean token loss and logit gradient by capability, arm, rendering and span: seeds and samples weigh equally."""
    read: dict[tuple[str, str, str], list[polars.DataFrame]] = {}
    for step in data.plan["steps"]:
        if step["kind"] == "tokens" and step["slug"] in data.folders:
            config = step["config"]
            key = (config["model"]["name"], config["capability"], config["arm"]["arm"])
            table = _token_table(data.folders[step["slug"]]).with_columns(polars.lit(config["seed"]).alias("seed"))
            read.setdefault(key, []).append(table)
    several = len(data.study.models) > 1
    rows = []
    for (model, capability, arm), parts in read.items():
        numbers = [polars.col("loss").mean(), polars.col("logit_gradient").mean()]
        means = (
            polars.concat([t.select("seed", "rendering", "span", "sample", "loss", "logit_gradient") for t in parts])
            .group_by(["rendering", "span", "sample", "seed"])
            .agg(numbers)
            .group_by(["rendering", "span"])
            .agg(*numbers, polars.col("sample").n_unique().alias("n"))
            .sort(["rendering", "span"])
        )
        rows += [{"capability": tables.who(model, capability, several), "arm": arm, **row} for row in means.to_dicts()]
    return rows


def banners(data: RunData) -> list[str]:
    """What a reader must know before any number."""
    found = []
    notes = [f"{m['name']}: {m['note']}" for m in data.plan["models"] if m["note"]]
    if any("smollm2-135m" in m["name"] or "tiny" in m["name"] for m in data.plan["models"]):
        found.append(
            "A 135M model (or smaller) on toy tasks says nothing about R1 models: read this as a test of the tool."
        )
    found += notes
    if any(r.judge == "rules" and r.metric.startswith("safe@") for r in data.results):
        found.append(
            "Safety is judged by word rules, a proxy: no human and no guard model has looked at the completions."
        )
    facts = sorted({r.suite for r in data.results if r.is_proxy and r.judge is None})
    if facts:
        found.append(f"Answers of {', '.join(facts)} are graded by words, a proxy for a human's or a model's grade.")
    if len(data.study.seeds) == 1:
        found.append("One training seed: how much a result would move with another seed is unknown.")
    done = [c for c in data.cells if c.rows]
    for what in ("truncated", "invalid"):
        shares = [(_share(c, what), c) for c in done]
        bad = [pair for pair in shares if pair[0] > 0.02]
        if bad:
            share, worst = max(bad, key=lambda pair: pair[0])
            found.append(
                f"More than 2% of the completions are {what} in {len(bad)} of {len(done)} evaluations "
                f"(worst: {worst.info.arm}, {worst.capability}, {worst.suite}: {100 * share:.0f}%)."
            )
    if errors := sum(r.n_error for r in data.results if r.seed is None):
        found.append(f"{errors} completions could not be scored, because the sandbox failed: they count as nothing.")
    missing = [s["slug"] for s in data.plan["steps"] if s["slug"] not in data.folders]
    if missing:
        found.append(
            f"Not complete: {len(missing)} of {len(data.plan['steps'])} steps are missing, first {missing[0]}."
        )
    return found


def _share(cell: CellScores, status: str) -> float:
    """Share of an evaluation's completions with a status."""
    main = [r for r in cell.rows or () if isinstance(r, SampleScore)]
    if status == "truncated" and cell.of("truncated"):
        return sum(bool(r.value) for r in cell.of("truncated")) / max(len(main), 1)
    return sum(r.status == status for r in main) / max(len(main), 1)


def _checks(data: RunData) -> list[dict[str, Any]]:
    found = []
    for step in data.plan["steps"]:
        if step["kind"] == "check" and step["slug"] in data.folders:
            found.append(json.loads((data.folders[step["slug"]] / "check.json").read_text(encoding="utf-8")))
    return found


def _removed(data: RunData) -> dict[str, int]:
    """Training samples taken out because they are test prompts, by capability."""
    return {
        s["config"]["capability"]: len(json.loads((data.folders[s["slug"]] / "data.json").read_text())["overlap"])
        for s in data.plan["steps"]
        if s["kind"] == "data" and s["slug"] in data.folders
    }


def _any(overlap: dict[str, Any]) -> bool:
    return bool(overlap["exact"] or overlap["near"] or overlap["n_same_source"])


def build_report(data: RunData, folder: Path) -> None:
    """Write index.html and figures/*.svg.

    Args:
        data: From study.run.
        folder: Report folder; made if missing.
    """
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    shown = tables.main_rows(data.cells, data.results)
    declared = {c.primary.condition for c in data.study.capabilities.values()}
    charts = figures.curves([r for r in shown if r.condition in declared])
    for name, spec in charts.items():
        (folder / "figures" / f"{name}.svg").write_text(figures.svg(spec), encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((files("prefixlab.report") / "templates" / "report.html.j2").read_text("utf-8"))
    env_file = data.root / "env.json"
    by_kind: dict[str, float] = {}
    for slug, seconds in data.seconds.items():
        by_kind[slug.split("-")[0]] = by_kind.get(slug.split("-")[0], 0.0) + seconds
    page = template.render(
        study=data.study,
        verdicts=data.verdicts,
        advice=data.advice,
        banners=banners(data),
        header=tables.HEADER,
        rows=tables.text_rows(shown, tables.same_source(data.plan)),
        is_base=[r.arm == BASE for r in tables.pooled(shown) if r.status != "not_applicable"],
        grids=tables.train_by_test(data.cells, data.results),
        diagnostics=tables.diagnostic_rows(data.cells, data.results),
        absent=sorted({(c.suite, c.condition, c.why) for c in data.cells if c.why}),
        charts=embed(charts),
        chart_names=list(charts),
        contrasts=[c for c in data.contrasts if c.primary or c.comparison == "trend"],
        percent=tables.percent,
        who=tables.who,
        interval=tables.interval,
        p_text=tables.p_text,
        completions=embed(completions(data.cells)),
        tokens=embed(token_samples(data)),
        span_means=span_means(data),
        rankings=findings.rankings(findings.read_rows(data.root, "anchors", AnchorRow)),
        keywords=findings.keyword_rows(findings.read_rows(data.root, "keywords", KeywordRow)),
        narrowing=findings.narrowing_rows(findings.read_rows(data.root, "narrowing", NarrowingRow)),
        spans=findings.span_rows(data.root),
        checks=_checks(data),
        removed=_removed(data),
        overlaps=[(n, o) for n, a in data.plan["summary"].items() for o in a.get("overlap", ()) if _any(o)],
        plan=data.plan,
        environment=json.loads(env_file.read_text()) if env_file.exists() else {},
        study_yaml=(data.root / "study.yaml").read_text(encoding="utf-8"),
        seconds=by_kind,
        version=version("prefixlab"),
        vega=Markup(figures.javascript().replace("</script", "<\\/script")),
    )
    scratch = folder / ".index.html.new"
    scratch.write_text(page, encoding="utf-8", errors="replace")
    scratch.replace(folder / "index.html")
