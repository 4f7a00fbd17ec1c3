"""Curves along training, from a trainer's log and from snapshots."""

import polars
import pytest

from prefixlab.analysis.dynamics import held_out_curves, training_curves
from prefixlab.analysis.token_columns import TOKENS


def token(sample, step, span, word, loss, rendering="safety", **more):
    row = dict.fromkeys(TOKENS)
    return {
        **row,
        "sample": sample,
        "rendering": rendering,
        "step": step,
        "span": span,
        "word": word,
        "token": word,
        "loss": loss,
    } | more


def value(table, **where):
    rows = table.filter(**where)
    assert len(rows) == 1
    return rows["value"][0]


def test_the_trainers_log_gives_one_row_a_step_and_span():
    log = [
        {"loss": 2.0, "loss_prefix": 3.0, "logit_gradient_prefix": 0.9, "grad_norm": 1.0},
        {"loss": 1.0, "loss_answer": 1.5},
    ]
    found = training_curves(log)
    assert len(found) == 3
    assert value(found, step=1, name="prefix", quantity="loss") == 3.0
    assert value(found, step=1, name="prefix", quantity="logit_gradient") == 0.9
    assert value(found, step=2, name="answer", quantity="loss") == 1.5


def test_snapshots_average_within_a_sample_first_and_words_lose_their_punctuation():
    rows = [
        token("a", 2, "prefix", "Sure!", 1.0),
        token("a", 2, "prefix", "sure", 3.0),
        token("b", 2, "prefix", "Sure!", 5.0),
        token("a", None, "prefix", "Sure!", 0.5),
        token("a", None, "answer", "", 0.25),
        token("a", None, "prefix", "Sure!", 99.0, rendering="neutral"),
    ]
    found = held_out_curves(polars.DataFrame(rows, schema=TOKENS), "safety", last=4)
    assert value(found, unit="word", name="sure", step=2, quantity="loss") == pytest.approx(3.5)
    assert found.filter(unit="word", name="sure", step=2)["n"][0] == 2
    assert value(found, unit="word", name="sure", step=4, quantity="loss") == 0.5
    assert value(found, unit="span", name="answer", step=4, quantity="loss") == 0.25
    assert set(found["quantity"]) == {"loss"}
    assert set(found.filter(unit="word")["name"]) == {"sure"}
