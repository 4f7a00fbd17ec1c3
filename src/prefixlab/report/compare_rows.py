"""One row of a comparison of two runs: the noun of comparison.parquet."""

from collections.abc import Sequence
from typing import Literal

from prefixlab.records import Record

State = Literal[
    "compared",
    "only in A",
    "only in B",
    "not measured",
    "other protocol",
    "other judge",
    "other samples",
    "different prompts",
]


class CompareRow(Record):
    """One row of comparison.parquet: a pooled result in A, in B, and B minus A where that means something."""

    capability: str
    arm: str
    suite: str
    condition: str
    metric: str
    model_a: str | None
    model_b: str | None
    protocol_a: str | None
    protocol_b: str | None
    judge_a: str | None
    judge_b: str | None
    is_proxy: bool
    diagnostic: bool
    """Whether the metric is a form of the completions, not a metric of its suite."""
    value_a: float | None
    ci_low_a: float | None
    ci_high_a: float | None
    n_prompts_a: int | None
    n_seeds_a: int | None
    status_a: str | None
    """Null where the run has no such row, as all fields of a side then are."""
    value_b: float | None
    ci_low_b: float | None
    ci_high_b: float | None
    n_prompts_b: int | None
    n_seeds_b: int | None
    status_b: str | None
    state: State
    why: str
    """What stands in the way of a difference, or what limits it."""
    diff: float | None
    """B minus A, on the prompts that both have."""
    ci_low: float | None
    ci_high: float | None
    p: float | None
    """Not adjusted for the number of comparisons."""
    n_prompts: int | None
    n_left_out: int | None
    """Prompts asked in both runs that have no value in one of them."""
    n_seeds: int | None
    """Seeds that both runs have; 0 where they have none in common and means over seeds are compared."""
    up: int | None
    down: int | None
    test: str


def clear(rows: Sequence[CompareRow]) -> list[CompareRow]:
    """Rows whose interval excludes 0."""
    return [r for r in rows if r.ci_low is not None and r.ci_high is not None and (r.ci_low > 0 or r.ci_high < 0)]
