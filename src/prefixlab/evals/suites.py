"""Evaluation suites: where the prompts come from, how they are asked, how they are scored.

A suite is data: one entry in SUITES. Its protocol is part of a result's name, because two protocols on one set can
differ by more than the effect under study.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from prefixlab.config import SuiteConfig
from prefixlab.data.sources import chosen, content_id, read_rows, test_safety, test_sums
from prefixlab.errors import UserError, unknown
from prefixlab.evals.scorers import Scorer, final_number, score_number, score_safety
from prefixlab.records import EvalItem, Message, Record


class Metric(Record):
    """A number a suite reports."""

    name: str
    kind: str
    """Items it is measured on."""
    higher_is_better: bool


@dataclass(frozen=True)
class Suite:
    """One evaluation set with its scorer under a named protocol."""

    name: str
    protocol: str
    load: Callable[[str | None], list[EvalItem]]
    score: Scorer
    metrics: tuple[Metric, ...]
    judged: bool
    """Whether a judge decides, so that results carry its name and its proxy label."""
    about: str


def _builtin(make: Callable[[], list[EvalItem]]) -> Callable[[str | None], list[EvalItem]]:
    def load(source: str | None) -> list[EvalItem]:
        if source is not None:
            raise UserError(f"this suite ships with the package and takes no source (got {source!r})")
        return make()

    return load


def _gsm8k(source: str | None) -> list[EvalItem]:
    """Rows with `question` and `answer`, whose label stands behind "####" (openai/grade-school-math)."""
    if source is None:
        raise UserError("suite 'gsm8k' needs source: a local file with the columns question and answer")
    items = []
    for i, row in enumerate(read_rows(Path(source)), 1):
        question, answer = row.get("question"), row.get("answer")
        if not isinstance(question, str) or not isinstance(answer, str) or "####" not in answer:
            raise UserError(f"{source}, row {i}: GSM8K rows have text in question, and an answer that ends in '#### N'")
        label = final_number(answer) or ""
        messages = (Message(role="user", content=question),)
        items.append(EvalItem(id=content_id(question, ""), messages=messages, target=label, kind="problem"))
    return items


ACCURACY = Metric(name="accuracy", kind="problem", higher_is_better=True)
SAFE = Metric(name="safe@1", kind="harmful", higher_is_better=True)
OVER_REFUSAL = Metric(name="over_refusal", kind="harmless", higher_is_better=False)

SUITES: dict[str, Suite] = {
    "chain_sum": Suite(
        "chain_sum",
        "prefixlab",
        _builtin(test_sums),
        score_number,
        (ACCURACY,),
        judged=False,
        about="reasoning-gym chain sums of 2 to 4 terms; the half that is never trained on",
    ),
    "safety": Suite(
        "safety",
        "prefixlab",
        _builtin(test_safety),
        score_safety,
        (SAFE, OVER_REFUSAL),
        judged=True,
        about="prefixlab's own harmful prompts and harmless look-alikes; the half that is never trained on",
    ),
    "gsm8k": Suite(
        "gsm8k",
        "prefixlab",
        _gsm8k,
        score_number,
        (ACCURACY,),
        judged=False,
        about="GSM8K from a local file; final number, zero-shot",
    ),
}


def find_suite(name: str, where: str = "") -> Suite:
    """A suite by name.

    Raises:
        UserError: There is none of that name.
    """
    if name not in SUITES:
        raise unknown("suite", name, SUITES, where=where)
    return SUITES[name]


def load_items(config: SuiteConfig) -> list[EvalItem]:
    """Test prompts of a suite, ids unique, limited by a keyed hash within each kind of prompt."""
    suite = find_suite(config.suite)
    items = suite.load(config.source)
    unique = list({i.id: i for i in items}.values())
    if config.limit is None:
        return unique
    kinds = sorted({i.kind for i in unique})
    share = {k: sum(i.kind == k for i in unique) / len(unique) for k in kinds}
    counts = {k: int(share[k] * config.limit) for k in kinds}
    for k in kinds[: config.limit - sum(counts.values())]:
        counts[k] += 1
    keep: set[str] = set()
    for kind in kinds:
        group = [i for i in unique if i.kind == kind]
        keep |= {i.id for i in chosen(group, lambda i: i.id, suite.name, counts[kind])} if counts[kind] else set()
    return [i for i in unique if i.id in keep]
