"""The provider: planned batches whatever the order of arrival, errors that reach the user, logs that Inspect reads."""

import math

import pytest
from inspect_ai.log import read_eval_log

from prefixlab.config import SuiteConfig
from prefixlab.errors import StepError
from prefixlab.evals.provider import EvalJob, evaluate, plan_batches, rescore_log
from prefixlab.evals.scores import read_scores, write_scores
from prefixlab.evals.suites import SUITES, find_suite, load_items
from prefixlab.model.generate import Completion


def make(tokenizer, suite="safety", limit=8, epochs=1, batch_size=3, temperature=0.0):
    config = SuiteConfig(
        suite=suite, limit=limit, epochs=epochs, batch_size=batch_size, max_tokens=5, temperature=temperature
    )
    items = load_items(config)
    prompts = {i.id: (tuple(tokenizer(i.messages[-1].content)["input_ids"]), "") for i in items}
    plan = plan_batches(prompts, config, suite)
    return EvalJob("test", find_suite(suite), items, plan, epochs, "rules", False, {"arm": "x"})


def scripted(tokenizer, text, seen=None, truncated=False):
    def engine(requests):
        if seen is not None:
            seen.append([r.ids for r in requests])
        return [Completion(tuple(tokenizer(text)["input_ids"]), truncated) for _ in requests]

    return engine


@pytest.mark.smoke
def test_every_planned_batch_runs_once_as_planned(tiny_tokenizer, tmp_path):
    job, seen = make(tiny_tokenizer, epochs=2), []
    rows = evaluate(job, scripted(tiny_tokenizer, "I can't help with that.", seen), tiny_tokenizer, tmp_path)
    assert sorted(seen) == sorted([r.ids for r in b] for b in job.plan.batches)
    assert len(rows) == 16 and {r.epoch for r in rows} == {1, 2}
    assert {r.value for r in rows} == {1.0}


@pytest.mark.smoke
def test_more_requests_than_inspects_adaptive_limit(tiny_tokenizer, tmp_path):
    job = make(tiny_tokenizer, suite="chain_sum", limit=130, batch_size=130)
    rows = evaluate(job, scripted(tiny_tokenizer, "The answer is 3."), tiny_tokenizer, tmp_path)
    assert len(rows) == 130


@pytest.mark.smoke
def test_the_log_is_a_standard_one(tiny_tokenizer, tmp_path):
    job = make(tiny_tokenizer)
    rows = evaluate(job, scripted(tiny_tokenizer, "I can't help with that."), tiny_tokenizer, tmp_path)
    (path,) = tmp_path.glob("*.eval")
    log = read_eval_log(str(path))
    assert log.status == "success" and log.eval.metadata["arm"] == "x"
    harmful = sum(i.kind == "harmful" for i in job.items)
    metrics = {s.name: next(iter(s.metrics.values())).value for s in log.results.scores}
    assert metrics == {"safe@1": 1.0, "over_refusal": 1.0} and 0 < harmful < 8
    assert rescore_log(path, "safety") == rows
    write_scores(tmp_path / "s.jsonl", rows)
    assert read_scores(tmp_path / "s.jsonl") == rows


def test_invalid_has_no_value(tiny_tokenizer, tmp_path):
    rows = evaluate(make(tiny_tokenizer), scripted(tiny_tokenizer, "..."), tiny_tokenizer, tmp_path)
    assert {(r.value, r.status) for r in rows} == {(None, "invalid")}
    log = read_eval_log(str(next(tmp_path.glob("*.eval"))))
    assert all(math.isnan(next(iter(s.metrics.values())).value) for s in log.results.scores)


def test_truncation_is_counted(tiny_tokenizer, tmp_path):
    job = make(tiny_tokenizer, suite="chain_sum")
    rows = evaluate(job, scripted(tiny_tokenizer, "The answer is 3.", truncated=True), tiny_tokenizer, tmp_path)
    assert {(r.value, r.status) for r in rows} == {(0.0, "truncated")}


@pytest.mark.smoke
def test_an_engine_that_fails_stops_the_step(tiny_tokenizer, tmp_path):
    def engine(requests):
        raise RuntimeError("out of memory")

    with pytest.raises(StepError, match="out of memory"):
        evaluate(make(tiny_tokenizer), engine, tiny_tokenizer, tmp_path)


def test_plan_is_sorted_keyed_and_complete(tiny_tokenizer):
    plan = make(tiny_tokenizer, epochs=3, temperature=1.0).plan
    flat = [r for b in plan.batches for r in b]
    assert [len(r.ids) for r in flat] == sorted((len(r.ids) for r in flat), reverse=True)
    assert len({r.seed for r in flat}) == len(flat) == 24
    assert [len(b) for b in plan.batches] == [3] * 8
    assert make(tiny_tokenizer, epochs=3, temperature=1.0).plan == plan


def test_limits_keep_the_kinds(tiny_tokenizer):
    whole = load_items(SuiteConfig(suite="safety"))
    some = load_items(SuiteConfig(suite="safety", limit=30))
    assert len(some) == 30 and {i.id for i in some} < {i.id for i in whole}
    share = [sum(i.kind == "harmful" for i in x) / len(x) for x in (whole, some)]
    assert abs(share[0] - share[1]) < 0.03


def test_every_suite_says_what_it_measures():
    for suite in SUITES.values():
        assert suite.metrics and suite.protocol and suite.about
