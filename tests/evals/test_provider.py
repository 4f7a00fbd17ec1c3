"""Planned batches whatever the order of arrival, errors that reach the user, logs that Inspect reads and that score alone."""

import json
import math

import pytest
from inspect_ai.log import read_eval_log

from prefixlab.config import SuiteConfig
from prefixlab.errors import StepError, UserError
from prefixlab.evals.conditions import Prompt
from prefixlab.evals.diagnostics import Reading
from prefixlab.evals.harness import EvalJob, Scoring, generate_log, rows_of_log, score_log
from prefixlab.evals.judges import RulesJudge
from prefixlab.evals.planning import Answer, Kept, plan_batches
from prefixlab.evals.protocols import decoding
from prefixlab.evals.provider import PlannedProvider
from prefixlab.evals.safety import Judging
from prefixlab.evals.scores import read_measures, read_scores, write_scores
from prefixlab.evals.suites import SUITES, find_suite, load_items
from prefixlab.model.generate import Completion

READING = Reading(preopened=False, position=None, templates=())
REFUSAL = "I can't help with that."


class Run:
    """A suite with a scripted engine: what `evaluate` would be if a model cost nothing."""

    def __init__(self, tokenizer, suite="safety", limit=8, epochs=1, batch_size=3, temperature=0.0):
        self.tokenizer = tokenizer
        config = SuiteConfig(suite=suite, limit=limit, epochs=epochs, max_tokens=5, temperature=temperature)
        self.suite = find_suite(suite)
        self.items = load_items(config)
        prompts = {
            (i.id, e): Prompt(ids=tuple(tokenizer(i.messages[-1].content)["input_ids"]))
            for i in self.items
            for e in range(1, epochs + 1)
        }
        self.epochs = epochs
        self.plan = plan_batches(prompts, decoding(config, 5), suite, batch_size)

    def generate(self, engine, folder, keep=None):
        provider = PlannedProvider(
            "test", self.plan, engine, self.tokenizer.decode, lambda n: None, Kept(keep, self.plan)
        )
        job = EvalJob(self.suite.name, self.items, self.epochs, {"arm": "x"})
        return generate_log(job, provider, folder, sum(map(len, self.plan.batches)))

    def score(self, log, folder):
        judging = Judging(RulesJudge(), "answer", READING) if self.suite.judged else None
        folder.mkdir(exist_ok=True)
        return score_log(log, Scoring(self.suite, READING, judging), folder)


def scripted(tokenizer, text, seen=None, truncated=False):
    def engine(requests):
        if seen is not None:
            seen.append([r.ids for r in requests])
        return [Completion(tuple(tokenizer(text)["input_ids"]), truncated) for _ in requests]

    return engine


@pytest.mark.smoke
def test_every_planned_batch_runs_once_as_planned(tiny_tokenizer, tmp_path):
    run, seen = Run(tiny_tokenizer, epochs=2), []
    log = run.generate(scripted(tiny_tokenizer, REFUSAL, seen), tmp_path)
    assert sorted(seen) == sorted([r.ids for r in b] for b in run.plan.batches)
    main, _ = run.score(log, tmp_path / "scored")
    assert len(main) == 16 and {r.epoch for r in main} == {1, 2} and {r.value for r in main} == {1.0}


@pytest.mark.smoke
def test_more_requests_than_inspects_adaptive_limit(tiny_tokenizer, tmp_path):
    run = Run(tiny_tokenizer, suite="chain_sum", limit=130, batch_size=130)
    log = run.generate(scripted(tiny_tokenizer, "The answer is 3."), tmp_path)
    assert len(run.score(log, tmp_path / "scored")[0]) == 130


@pytest.mark.smoke
def test_logs_are_standard_ones_and_score_alone(tiny_tokenizer, tmp_path):
    run = Run(tiny_tokenizer)
    path = run.generate(scripted(tiny_tokenizer, REFUSAL), tmp_path)
    assert read_eval_log(str(path)).samples[0].scores == {}
    rows = run.score(path, tmp_path / "scored")
    log = read_eval_log(str(tmp_path / "scored" / path.name))
    assert log.status == "success" and log.eval.metadata["arm"] == "x"
    metrics = {s.name: next(iter(s.metrics.values())).value for s in log.results.scores}
    assert metrics["safe@1"] == 1.0 and metrics["over_refusal"] == 1.0
    assert rows_of_log(log, "safety") == rows
    write_scores(tmp_path / "s.jsonl", rows[0])
    write_scores(tmp_path / "m.jsonl", rows[1])
    assert (read_scores(tmp_path / "s.jsonl"), read_measures(tmp_path / "m.jsonl")) == rows
    assert read_measures(tmp_path / "absent.jsonl") == []


def test_invalid_has_no_value(tiny_tokenizer, tmp_path):
    run = Run(tiny_tokenizer)
    main, _ = run.score(run.generate(scripted(tiny_tokenizer, "..."), tmp_path), tmp_path / "scored")
    assert {(r.value, r.status) for r in main} == {(None, "invalid")}
    log = read_eval_log(str(next((tmp_path / "scored").glob("*.eval"))))
    named = {s.name: next(iter(s.metrics.values())).value for s in log.results.scores}
    assert math.isnan(named["safe@1"]) and math.isnan(named["over_refusal"])


def test_truncation_is_counted(tiny_tokenizer, tmp_path):
    run = Run(tiny_tokenizer, suite="chain_sum")
    log = run.generate(scripted(tiny_tokenizer, "The answer is 3.", truncated=True), tmp_path)
    main, more = run.score(log, tmp_path / "scored")
    assert {(r.value, r.status) for r in main} == {(0.0, "truncated")}
    assert {r.value for r in more if r.metric == "truncated"} == {1.0}


@pytest.mark.smoke
def test_an_engine_that_fails_stops_the_step(tiny_tokenizer, tmp_path):
    def engine(requests):
        raise RuntimeError("out of memory")

    with pytest.raises(StepError, match="out of memory"):
        Run(tiny_tokenizer).generate(engine, tmp_path)


@pytest.mark.smoke
def test_a_killed_evaluation_goes_on_at_its_planned_batches(tiny_tokenizer, tmp_path):
    run, seen = Run(tiny_tokenizer, epochs=2), []
    keep = tmp_path / "keep" / "batches.jsonl"

    def dies_in_the_third(requests):
        if len(seen) == 2:
            raise RuntimeError("killed")
        seen.append([r.ids for r in requests])
        words = f"I can't help with number {len(seen)}."
        return [Completion(tuple(tiny_tokenizer(words)["input_ids"]), False) for _ in requests]

    with pytest.raises(StepError, match="killed"):
        run.generate(dies_in_the_third, tmp_path / "first", keep)
    with keep.open("a") as file:  # what a kill leaves of the line it was writing
        file.write('[4, [{"ids": [1, 2')
    again = []
    log = run.generate(scripted(tiny_tokenizer, REFUSAL, again), tmp_path / "second", keep)
    assert len(again) == len(run.plan.batches) - 2 and not any(batch in seen for batch in again)
    written = [s.output.completion for s in read_eval_log(str(log)).samples]
    assert sum("number 1" in text for text in written) == 2 and sum("number 2" in text for text in written) == 2


def test_finished_batches_of_another_plan_are_not_used(tiny_tokenizer, tmp_path):
    one, other = Run(tiny_tokenizer), Run(tiny_tokenizer, temperature=1.0)
    Kept(tmp_path / "k", one.plan).add(0, [Answer(ids=(1,))])
    assert set(Kept(tmp_path / "k", one.plan).batches) == {0}
    assert Kept(tmp_path / "k", other.plan).batches == {}


def test_a_scorer_that_cannot_run_is_one_line(tiny_tokenizer, tmp_path):
    """A target that no grader can read is the user's to mend, not a traceback of groups of errors."""
    run = Run(tiny_tokenizer, suite="chain_sum")
    run.items = [i.model_copy(update={"target": "many"}) for i in run.items]
    log = run.generate(scripted(tiny_tokenizer, "The answer is 3."), tmp_path)
    with pytest.raises(UserError, match="many"):
        run.score(log, tmp_path / "scored")


def test_plan_is_sorted_keyed_and_complete(tiny_tokenizer):
    plan = Run(tiny_tokenizer, epochs=3, temperature=1.0).plan
    flat = [r for b in plan.batches for r in b]
    assert [len(r.ids) for r in flat] == sorted((len(r.ids) for r in flat), reverse=True)
    assert len({r.seed for r in flat}) == len(flat) == 24
    assert [len(b) for b in plan.batches] == [3] * 8
    assert Run(tiny_tokenizer, epochs=3, temperature=1.0).plan == plan


def test_samples_of_a_prompt_stay_in_one_batch(tiny_tokenizer):
    plan = Run(tiny_tokenizer, epochs=5, batch_size=12, temperature=1.0).plan
    assert [len(b) for b in plan.batches] == [10] * 4
    assert all(sum(r.item == q.item for q in b) == 5 for b in plan.batches for r in b)


def test_limits_keep_the_kinds(tiny_tokenizer):
    whole = load_items(SuiteConfig(suite="safety"))
    some = load_items(SuiteConfig(suite="safety", limit=30))
    assert len(some) == 30 and {i.id for i in some} < {i.id for i in whole}
    share = [sum(i.kind == "harmful" for i in x) / len(x) for x in (whole, some)]
    assert abs(share[0] - share[1]) < 0.03


def test_every_suite_says_what_it_measures():
    for suite in SUITES.values():
        assert suite.metrics and suite.about and suite.link.startswith("https://")
        assert (suite.rows is None) != (suite.items is None)
        assert json.dumps([m.model_dump() for m in suite.metrics])
