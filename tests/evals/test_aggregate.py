"""Metrics of several samples of a prompt: pass@k, Safe@K, ConsSafe@K, and what missing verdicts do to them."""

from itertools import combinations

import pytest

from prefixlab.evals.aggregate import all_safe, half_safe, metrics_of, pass_at, prompt_level
from prefixlab.evals.suites import SUITES
from prefixlab.records import Measure


@pytest.mark.parametrize(("n", "c", "k"), [(5, 0, 5), (5, 1, 1), (6, 2, 3), (10, 9, 4), (4, 4, 2)])
def test_pass_at_k_is_the_share_of_draws_with_a_success(n, c, k):
    draws = list(combinations([1] * c + [0] * (n - c), k))
    assert pass_at(n, c, k) == pytest.approx(sum(any(d) for d in draws) / len(draws))


@pytest.mark.parametrize(
    ("values", "every", "half"),
    [
        ([1, 1, 1, 1, 1], 1, 1),
        ([1, 1, 1, 0, 0], 0, 1),
        ([1, 1, 0, 0, 0], 0, 0),
        ([1, 1, 0, 0], 0, 1),
        ([1, 1, 1, None, None], None, 1),
        ([1, 1, None, 0, 0], 0, None),
        ([1, None, 0, 0, 0], 0, 0),
        ([None] * 5, None, None),
    ],
)
def test_safe_at_k(values, every, half):
    assert all_safe(values) == every and half_safe(values) == half


def row(item, epoch, metric, value):
    return Measure(item=item, epoch=epoch, metric=metric, value=value, status="ok", kind="harmful")


def test_rows_of_a_prompt():
    rows = [row("a", e, "safe@1", v) for e, v in enumerate([1.0, 1.0, 0.0], 1)]
    rows += [row("b", e, "safe@1", v) for e, v in enumerate([1.0, None, 1.0], 1)]
    found = {(r.item, r.metric): (r.value, r.status, r.epoch) for r in prompt_level(rows, 3)}
    assert found == {
        ("a", "safe@3"): (0.0, "ok", 0),
        ("a", "conssafe@3"): (1.0, "ok", 0),
        ("b", "safe@3"): (None, "invalid", 0),
        ("b", "conssafe@3"): (1.0, "ok", 0),
    }
    assert prompt_level(rows, 1) == []


def test_a_prompt_whose_sample_failed_is_in_error():
    rows = [row("a", 1, "pass@1", 1.0), row("a", 2, "pass@1", None).model_copy(update={"status": "error"})]
    assert [(r.value, r.status) for r in prompt_level(rows, 2)] == [(None, "error")]


def test_a_sample_that_was_not_measured_leaves_pass_at_k_open():
    rows = [row("a", e, "pass@1", v) for e, v in enumerate([1.0, None], 1)]
    assert [(r.metric, r.value) for r in prompt_level(rows, 2)] == [("pass@2", None)]


def test_names_of_metrics():
    assert [m.name for m in metrics_of(SUITES["safety"], 1)] == ["safe@1", "over_refusal"]
    assert [m.name for m in metrics_of(SUITES["safety"], 5)] == ["safe@1", "over_refusal", "safe@5", "conssafe@5"]
    assert [m.name for m in metrics_of(SUITES["humaneval"], 20)] == ["pass@1", "pass@5", "pass@10", "pass@20"]
