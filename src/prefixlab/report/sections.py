"""What the sections of the report say: rows of tables and sentences, ready for the templates."""

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from prefixlab.analysis.anchors import AnchorRow
from prefixlab.analysis.keywords import KeywordRow
from prefixlab.analysis.narrowing import NarrowingRow
from prefixlab.analysis.rows import BASE, UNASKED, CellScores, ResultRow
from prefixlab.records import SampleScore
from prefixlab.report import data_view, findings, provenance, tables, token_view
from prefixlab.report.completions import completion_sets
from prefixlab.report.parts import Parts
from prefixlab.report.tables import RunData

CONTRAST_HEADER = (
    "capability",
    "suite",
    "metric",
    "comparison",
    "arm",
    "against",
    "prompts",
    "seeds",
    "diff",
    "interval",
    "INVALID bounds",
    "higher / lower",
    "p",
    "p Holm",
    "margin",
    "p equivalent",
    "p not worse",
    "detects",
    "test",
)
LIMIT = 0.02
"""Share of truncated or invalid completions that a reader is warned of."""


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
    found += _shares(data)
    failed = ({(r.item, r.epoch) for r in c.rows or () if r.status == "error" and r.epoch} for c in data.cells)
    if errors := sum(map(len, failed)):
        found.append(f"{errors} completions could not be scored, because the sandbox failed: they count as nothing.")
    missing = [s["slug"] for s in data.plan["steps"] if s["slug"] not in data.folders]
    if missing:
        found.append(
            f"Not complete: {len(missing)} of {len(data.plan['steps'])} steps are missing, first {missing[0]}."
        )
    return found


def _shares(data: RunData) -> list[str]:
    """Warnings of truncated and invalid completions."""
    found, done = [], [c for c in data.cells if c.rows]
    for what in ("truncated", "invalid"):
        shares = [(_share(c, what), c) for c in done]
        bad = [pair for pair in shares if pair[0] > LIMIT]
        if bad:
            share, worst = max(bad, key=lambda pair: pair[0])
            found.append(
                f"More than {100 * LIMIT:.0f}% of the completions are {what} in {len(bad)} of {len(done)} evaluations "
                f"(worst: {worst.info.arm}, {worst.capability}, {worst.suite}: {100 * share:.0f}%)."
            )
    return found


def _share(cell: CellScores, status: str) -> float:
    """Share of an evaluation's completions with a status."""
    main = [r for r in cell.rows or () if isinstance(r, SampleScore)]
    if status == "truncated" and cell.of("truncated"):
        return sum(bool(r.value) for r in cell.of("truncated")) / max(len(main), 1)
    return sum(r.status == status for r in main) / max(len(main), 1)


def _grids(data: RunData) -> list[dict[str, Any]]:
    """Train-by-test tables, as rows of text."""
    return [
        {
            "name": g["name"],
            "conditions": g["conditions"],
            "rows": [[arm, *(values.get(c, "–") for c in g["conditions"])] for arm, values in g["arms"].items()],
        }
        for g in tables.train_by_test(data.cells, data.results)
    ]


def _diagnostics(data: RunData, several: bool) -> list[tuple[Any, ...]]:
    """Rows about the form of completions."""
    return [
        (
            *(tables.who(r.model, r.capability, several), r.arm, tables.suite_text(r)),
            r.metric + (" (proxy)" if r.is_proxy else ""),
            f"{r.value:.0f} tokens" if r.metric == "length" and r.value is not None else tables.percent(r.value),
            r.n,
        )
        for r in tables.diagnostic_rows(data.cells, data.results)
    ]


def _contrasts(data: RunData, several: bool) -> list[tuple[Any, ...]]:
    """Declared pairs and trends, in CONTRAST_HEADER's columns."""
    return [
        (
            *(
                tables.who(c.model, c.capability, several),
                tables.suite_text(c),
                c.metric,
                c.comparison.replace("_", " "),
            ),
            *(c.arm, c.reference, c.n_prompts, c.n_seeds),
            tables.percent(c.diff, sign=True),
            tables.interval(c.ci_low, c.ci_high, sign=True),
            "–" if c.bound_low == c.bound_high else tables.interval(c.bound_low, c.bound_high, sign=True),
            f"{c.up} / {c.down}",
            *(tables.p_text(c.p), tables.p_text(c.p_holm), tables.percent(c.margin)),
            *(tables.p_text(c.p_equivalent_holm), tables.p_text(c.p_noninferior_holm)),
            *(tables.percent(c.detectable), c.test or "none exists"),
        )
        for c in data.contrasts
        if c.primary or c.comparison == "trend"
    ]


def _checks(data: RunData) -> list[tuple[str, list[tuple[Any, ...]]]]:
    """Every treatment check: its name and a row an arm."""
    return [
        (
            f"{check['capability']} ({check['model']})",
            [
                (
                    *(a["arm"], a["n"], a["n_treated"]),
                    f"{a['n_prefix_in_ids']} of {a['n_treated']}",
                    f"{a['n_equal_reference']} of {a['n_untreated']}",
                    f"{a['prefix_tokens_mean']:.1f}" if a["n_treated"] else "–",
                    *(f"{a['supervised_share']:.2f}", f"{a['tokens']:,}"),
                )
                for a in check["arms"]
            ],
        )
        for check in data_view.checks(data)
    ]


def _classes(shown: Sequence[ResultRow]) -> list[str]:
    """A class a row of the result table: the base opens a group."""
    bases = [r.arm == BASE for r in tables.pooled(shown) if r.status not in UNASKED]
    return [("base group" if i else "base") if base else "" for i, base in enumerate(bases)]


def context(data: RunData, parts: Parts) -> dict[str, Any]:
    """What the templates show, by name; the larger parts are written beside the page."""
    several = len(data.study.models) > 1
    shown = tables.main_rows(data.cells, data.results)
    return {
        "several": several,
        "study": data.study,
        "verdicts": data.verdicts,
        "advice": data.advice,
        "banners": banners(data),
        "percent": tables.percent,
        "grids": _grids(data),
        "header": tables.HEADER,
        "rows": tables.text_rows(shown, tables.same_source(data.plan)),
        "row_classes": _classes(shown),
        "absent": sorted({(c.suite, c.condition, c.status.replace("_", " "), c.why) for c in data.cells if c.why}),
        "diagnostics": _diagnostics(data, several),
        "contrast_header": CONTRAST_HEADER,
        "contrasts": _contrasts(data, several),
        "tokens": token_view.token_samples(data, parts),
        "span_rows": _span_rows(data),
        "rankings": findings.rankings(findings.read_rows(data.root, "anchors", AnchorRow)),
        "keywords": findings.keyword_rows(findings.read_rows(data.root, "keywords", KeywordRow)),
        "narrowing": findings.narrowing_rows(findings.read_rows(data.root, "narrowing", NarrowingRow)),
        "spans": findings.span_rows(data.root),
        "sets": completion_sets(data, parts),
        "prepared": data_view.prepared(data),
        "overlaps": data_view.overlaps(data),
        "checks": _checks(data),
        "examples": data_view.examples(data),
        "plan": data.plan,
        "environment": provenance.environment(data),
        "protocols": sorted({c.protocol for c in data.cells}),
        "costs": provenance.costs(data),
        "skipped": provenance.skipped(data),
        "steps": [(s["slug"], s["id"][:16], _state(data, s["slug"])) for s in data.plan["steps"]],
        "study_yaml": (data.root / "study.yaml").read_text(encoding="utf-8"),
        "version": version("prefixlab"),
    }


def _span_rows(data: RunData) -> list[tuple[Any, ...]]:
    """Means of token loss and logit gradient, by arm, text and span."""
    return [
        (
            *(r["capability"], r["arm"], r["rendering"], r["span"]),
            *(_three(r["loss"]), _three(r["logit_gradient"]), r["n"]),
        )
        for r in token_view.span_means(data)
    ]


def _three(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _state(data: RunData, slug: str) -> str:
    return f"done in {provenance.duration(data.seconds.get(slug, 0.0))}" if slug in data.folders else "missing"
