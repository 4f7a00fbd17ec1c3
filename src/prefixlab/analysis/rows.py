"""The nouns of results: scores of a cell, rows of results.parquet and contrasts.parquet, verdicts. No torch."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from prefixlab.records import Measure, Record

REFERENCE = "r000"
BASE = "base"
UNASKED = ("not_applicable", "not_supported")
"""States of evaluations that a study asks for and that are not done: said once, below the results."""


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
    """All scores of one cell on one suite under one condition; its rows are read once and then kept by metric."""

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
    """`missing`, `not_applicable` or `not_supported` (by a model server) where `rows` is None."""
    why: str = ""
    judges: Mapping[str, str] = field(default_factory=dict)
    """Metric -> who decided, for those that somebody had to decide."""
    diagnostics: Sequence[str] = ()
    proxies: Collection[str] = ()
    """Metrics that stand in for a human's or a guard model's grade."""

    @cached_property
    def _by_metric(self) -> dict[str, list[Measure]]:
        found: dict[str, list[Measure]] = {}
        for row in self.rows or ():
            found.setdefault(row.metric, []).append(row)
        return found

    @cached_property
    def _means(self) -> dict[str, dict[str, float]]:
        """What `values` has returned."""
        return {}

    @cached_property
    def cut(self) -> Collection[tuple[str, int]]:
        """Item and epoch of the completions that the diagnostic `truncated` says were cut; epoch 0: their prompts."""
        return {(r.item, epoch) for r in self.of("truncated") if r.value for epoch in (r.epoch, 0)}

    def of(self, metric: str) -> list[Measure]:
        """Rows of one metric."""
        return self._by_metric.get(metric, [])

    def values(self, metric: str) -> dict[str, float]:
        """Mean over the measured samples of each prompt that has at least one."""
        if metric not in self._means:
            found: dict[str, list[float]] = {}
            for row in self.of(metric):
                if row.value is not None:
                    found.setdefault(row.item, []).append(row.value)
            self._means[metric] = {item: sum(v) / len(v) for item, v in found.items()}
        return self._means[metric]

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
    se: float | None
    margin: float
    """The difference that does not matter, in the metric's units; per unit of ratio for a trend."""
    p_equivalent: float | None
    """Two one-sided tests against the margin on both sides."""
    p_equivalent_holm: float | None
    p_noninferior: float | None
    """One-sided test against being worse by the margin."""
    p_noninferior_holm: float | None
    detectable: float | None
    """Smallest difference that 80% power detects with these prompts and seeds, from the spread seen here (one seed:
    from the share of discordant pairs, at least 5% of them assumed). At alpha over the size of the Holm family where
    the row is in it, as here and below: the strictest level that Holm can ask for."""
    prompts_needed: int | None
    """Prompts with which 80% power detects the margin, seeds as they are; null where no number would do, and, as the
    next, outside the Holm family."""
    seeds_needed: int | None
    """Seeds with which 80% power detects the margin, prompts as they are; null with one seed, whose variance nobody
    knows, and where no number would do."""
    test: str


VerdictKind = Literal[
    "helps_words",
    "helps_opening",
    "helps",
    "hurts",
    "equivalent",
    "undecided",
    "floor_or_ceiling",
    "not_measured",
]


class Verdict(Record):
    """What a capability's primary contrasts say of one prefix set at one position, in words and in numbers."""

    model: str
    capability: str
    suite: str
    metric: str
    condition: str
    arm: str
    """The largest ratio of the prefix set, or `native`: the data with the openings it came with."""
    prefix_set: str | None
    position: str | None
    kind: VerdictKind
    equivalent: bool
    """Whether the difference is shown to be within the margin, clear or not."""
    verdict: str
    """`kind` in words, with what limits it most: one training seed, or an effect within the margin."""
    sentence: str
    effect: float | None
    """Treatment minus r000 in the metric's units, whichever direction is better."""
    higher_is_better: bool
    ci_low: float | None
    ci_high: float | None
    p_holm: float | None
    margin: float
    p_equivalent_holm: float | None
    p_noninferior_holm: float | None
    n_prompts: int
    n_seeds: int
    mde: float | None
    prompts_needed: int | None
    seeds_needed: int | None
    held_by_invalid: bool
    """Whether only INVALID verdicts keep it from being decided."""
    limits: tuple[str, ...]
    """What a reader must know before acting on it, a sentence each."""


class FrontArm(Record):
    """One arm on the objectives of its capability."""

    arm: str
    prefix_set: str | None
    position: str | None
    ratio: float | None
    control: str | None
    values: dict[str, float | None]
    """Objective -> mean over its suites and conditions, in its own direction; None where one is not measured."""
    against_r000: dict[str, tuple[float | None, float | None, float | None]]
    """Objective -> difference to r000 turned so that more is better, and its interval: on the same prompts."""
    on_front: bool | None
    """Whether no arm dominates it; None where an objective is not measured."""
    dominated_by: str | None
    """The arm that does, the clearest first."""
    clear: bool
    """Whether the interval of at least one of the differences to that arm excludes 0."""


class Front(Record):
    """Which arms of a capability no other arm beats on every objective: exploratory, point estimates."""

    model: str
    capability: str
    objectives: tuple[str, ...]
    """Those that were measured, of `safety`, `attack robustness`, `over-refusal` and `accuracy`."""
    not_measured: tuple[str, ...]
    arms: tuple[FrontArm, ...]


Action = Literal["add", "keep", "strip", "leave out", "weigh", "free choice", "test more"]


class Advice(Record):
    """What to do, for one capability: derived from its verdicts and its front, and from nothing else."""

    model: str
    capability: str
    sentences: tuple[str, ...]
    """One to three."""
    actions: dict[str, Action]
    """By the arm of each verdict."""
    front: Front


Primary = Mapping[str, tuple[str, str, str, str]]
"""Capability -> (suite, protocol, metric, condition)."""
GroupKey = tuple[str, str, str, str, str]
"""(model, capability, suite, protocol, condition)."""


@dataclass(frozen=True)
class Rules:
    """By what a study decides, declared before anything is measured."""

    primary: Primary
    alpha: float
    """Level of intervals and of the Holm family."""
    margin: float
    """Difference that does not matter, in a metric's units."""
    margins: Mapping[str, float] = field(default_factory=dict)
    """Capability -> margin of its primary metric, where it has one of its own."""

    def is_primary(self, key: GroupKey, metric: str) -> bool:
        """Whether a metric of a group of cells is its capability's declared one."""
        _, capability, suite, protocol, condition = key
        return self.primary.get(capability) == (suite, protocol, metric, condition)

    def margin_of(self, key: GroupKey, metric: str) -> float:
        """The margin of a metric."""
        return self.margins.get(key[1], self.margin) if self.is_primary(key, metric) else self.margin
