"""The nouns of results: scores of a cell, rows of results.parquet and contrasts.parquet, verdicts. No torch."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from prefixlab.records import Measure, Record

REFERENCE = "r000"
BASE = "base"


class ArmInfo(Record):
    """What results say about an arm; all null for the untuned base model."""

    arm: str
    ratio: float | None
    position: str | None
    prefix_set: str | None
    control: str | None
    loss_scope: str | None


@dataclass(frozen=True)
class CellScores:
    """All scores of one cell on one suite under one condition."""

    model: str
    capability: str
    info: ArmInfo
    seed: int | None
    suite: str
    protocol: str
    condition: str
    metrics: Mapping[str, bool]
    """Metric name -> whether higher is better. These are contrasted; diagnostics are reported only."""
    k: int
    rows: Sequence[Measure] | None
    """One a completion and metric, epoch 0 for those of a whole prompt; None where the evaluation has not finished."""
    status: str = "measured"
    """`missing` or `not_applicable` where `rows` is None."""
    why: str = ""
    judges: Mapping[str, str] = field(default_factory=dict)
    """Metric -> who decided, for those that somebody had to decide."""
    diagnostics: Sequence[str] = ()
    proxies: Collection[str] = ()
    """Metrics that stand in for a human's or a guard model's grade."""

    def of(self, metric: str) -> list[Measure]:
        """Rows of one metric."""
        return [r for r in self.rows or () if r.metric == metric]

    def values(self, metric: str) -> dict[str, float]:
        """Mean over the measured samples of each prompt that has at least one."""
        found: dict[str, list[float]] = {}
        for row in self.of(metric):
            if row.value is not None:
                found.setdefault(row.item, []).append(row.value)
        return {item: sum(v) / len(v) for item, v in found.items()}

    def bound(self, metric: str, fill: float) -> dict[str, float]:
        """As `values`, with every unmeasured sample counted as `fill`."""
        found: dict[str, list[float]] = {}
        for row in self.of(metric):
            found.setdefault(row.item, []).append(fill if row.value is None else row.value)
        return {item: sum(v) / len(v) for item, v in found.items()}


class ResultRow(Record):
    """One row of results.parquet."""

    model: str
    capability: str
    arm: str
    seed: int | None
    suite: str
    protocol: str
    condition: str
    metric: str
    ratio: float | None
    position: str | None
    prefix_set: str | None
    control: str | None
    loss_scope: str | None
    judge: str | None
    is_proxy: bool
    value: float | None
    n: int
    n_prompts: int
    k: int
    ci_low: float | None
    ci_high: float | None
    n_invalid: int
    n_truncated: int
    n_error: int
    """Completions that the infrastructure failed to score: neither right nor wrong."""
    n_seeds: int
    status: str
    diff: float | None
    diff_ci_low: float | None
    diff_ci_high: float | None
    p: float | None
    p_holm: float | None


class ContrastRow(Record):
    """One row of contrasts.parquet: treatment minus reference on the same prompts."""

    model: str
    capability: str
    suite: str
    protocol: str
    condition: str
    metric: str
    comparison: str
    """`vs_r000`, `vs_control` or `trend` (slope per unit of ratio)."""
    arm: str
    reference: str
    ratio: float | None
    higher_is_better: bool
    primary: bool
    n_seeds: int
    n_prompts: int
    n_left_out: int
    """Prompts without a verdict in one of the arms."""
    up: int
    down: int
    diff: float | None
    ci_low: float | None
    ci_high: float | None
    bound_low: float | None
    bound_high: float | None
    """The difference with every INVALID verdict at its worst and at its best for the treatment."""
    p: float | None
    p_holm: float | None
    detectable: float | None
    """Smallest difference that 80% power detects at this number of prompts and this share of discordant pairs (at
    least 5% is assumed); null with several seeds."""
    test: str


class Verdict(Record):
    """What a capability's primary contrasts say, in words."""

    model: str
    capability: str
    suite: str
    metric: str
    condition: str
    arm: str
    verdict: str
    sentence: str


Primary = Mapping[str, tuple[str, str, str, str]]
"""Capability -> (suite, protocol, metric, condition)."""
GroupKey = tuple[str, str, str, str, str]
"""(model, capability, suite, protocol, condition)."""
