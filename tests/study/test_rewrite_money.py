"""What `prefixlab rewrite` pays: the cap under concurrency and over runs, and replies that nothing loses."""

import pytest
from taught import answering, do, good, job_of, lines_of, number_in, rows, write

from chat_server import Reply, running
from fault_proxy import proxied
from prefixlab.errors import UserError
from prefixlab.evals.rewriting import check_rewrite
from prefixlab.study import rewrite_calls
from prefixlab.study.rewrite_job import RowRecord
from prefixlab.study.rewriting import count_reasons, estimate, grouped, read_work


def test_the_budget_is_never_passed(tmp_path, monkeypatch):
    """Requests on their way count at their most; a larger budget goes on and pays for nothing twice."""
    prices = {"price_in": 10.0, "price_out": 10.0}
    most = estimate(job_of(tmp_path, attempts=1, **prices), grouped(j := job_of(tmp_path), read_work(j).targets))
    each = most.cost_at_most / 6
    took = {"prompt_tokens": 1000, "completion_tokens": 50, "total_tokens": 1050}
    with running(monkeypatch, answering(good), "TAUGHT") as server:
        monkeypatch.setattr(server, "payload", lambda reply, body: type(server).payload(reply, body) | {"usage": took})
        report = do(job_of(tmp_path, budget=1.5 * each, concurrency=6, **prices))
        assert report.stopped == "budget" and "is spent, and the next request can cost up to" in report.message
        assert not (tmp_path / "o.jsonl").exists() and 0 < report.states["rewritten"] < 6
        n = len(server.requests)
        assert report.cost <= 1.5 * each and n == report.replies
        report = do(job_of(tmp_path, budget=20 * each, concurrency=6, **prices))
    assert report.states["rewritten"] == 6 and len(server.requests) == 6


@pytest.mark.slow
def test_a_budget_counts_what_was_paid_before_there_were_prices(tmp_path, monkeypatch):
    """The first run names no price; the second one's cap covers it all the same."""
    with running(monkeypatch, answering(good), "TAUGHT") as server:
        do(job_of(tmp_path, limit=5))
        assert len(server.requests) == 5
        each = 5 * 1.0 + 2 * 2.0
        report = do(job_of(tmp_path, budget=5.5 * each / 1e6, price_in=1.0, price_out=2.0))
        assert report.stopped == "budget" and len(server.requests) == 5
        assert report.cost == pytest.approx(5 * each / 1e6)


@pytest.mark.slow
def test_many_workers_do_not_pass_the_budget_together(tmp_path, monkeypatch):
    """Slow replies that cost the most they can: as many requests as the budget covers, never one more."""
    job = job_of(tmp_path, rows(24), concurrency=12, price_in=0.0, price_out=1e6, budget=7 * 50.0)

    def slow(text):
        return Reply(text=good(text), delay=0.2)

    took = {"prompt_tokens": 9, "completion_tokens": 50, "total_tokens": 59}
    with running(monkeypatch, answering(slow), "TAUGHT") as server:
        monkeypatch.setattr(server, "payload", lambda reply, body: type(server).payload(reply, body) | {"usage": took})
        report = do(job)
    assert len(server.requests) == 7 and report.cost == 350.0 and report.stopped == "budget"


@pytest.mark.slow
def test_a_service_that_asks_for_hours_ends_the_run(tmp_path, monkeypatch):
    with (
        running(monkeypatch, answering(good), "TAUGHT") as server,
        proxied(server.url, lambda n, body: "tomorrow" if n > 2 else "") as proxy,
    ):
        monkeypatch.setenv("TAUGHT_BASE_URL", proxy.url)
        report = do(job_of(tmp_path))
    assert report.stopped == "teacher" and "asks to wait 86,400 s" in report.message and report.replies == 2


@pytest.mark.slow
def test_a_defect_in_one_row_loses_no_reply_about_the_others(tmp_path, monkeypatch):
    """Replies on their way are paid for: they are awaited and kept before the error goes its way."""

    def broken(target, stop, reply):
        if target.id == "r0":
            raise ZeroDivisionError("a defect")
        return check_rewrite(target, stop, reply)

    def teacher(text):
        return Reply(text=good(text), delay=0.0 if number_in(text) == 0 else 0.5)

    job = job_of(tmp_path, concurrency=4)
    with running(monkeypatch, answering(teacher), "TAUGHT") as server:
        with monkeypatch.context() as patch:
            patch.setattr(rewrite_calls, "check_rewrite", broken)
            with pytest.raises(ZeroDivisionError):
                do(job)
        assert len(server.requests) == 4
        report = do(job)
        assert len(server.requests) == 6 and report.states["rewritten"] == 6 and report.unknown == 0


def test_a_limit_holds_where_every_row_has_the_same_id(tmp_path):
    job = job_of(tmp_path, [row | {"id": "gsm8k"} for row in rows(9)], limit=3)
    assert len(read_work(job).targets) == 3


@pytest.mark.slow
def test_an_output_that_was_made_from_other_data_is_left_alone(tmp_path, monkeypatch):
    with running(monkeypatch, answering(good), "TAUGHT") as server:
        do(job_of(tmp_path))
        before = (tmp_path / "o.jsonl").read_bytes()
        other = write(tmp_path / "e.jsonl", [{"question": "What is 9 + 9?", "answer": "18.\n#### 18"}])
        with pytest.raises(UserError, match=r"was made from other data.*another --out"):
            do(job_of(tmp_path, source=str(other)))
        assert (tmp_path / "o.jsonl").read_bytes() == before and len(server.requests) == 6
        write(other, [*rows(1), {"question": "What is 9 + 9?", "answer": "18.\n#### 18"}])
        assert do(job_of(tmp_path, source=str(other))).states["rewritten"] == 2
        assert len(server.requests) == 7


def test_a_small_budget_asks_nothing(tmp_path, monkeypatch):
    with running(monkeypatch, answering(good), "TAUGHT") as server:
        report = do(job_of(tmp_path, budget=1e-7, price_in=1.0, price_out=1.0))
    assert report.stopped == "budget" and not server.requests


@pytest.mark.slow
def test_replies_without_usage_are_counted_and_cost_their_most(tmp_path, monkeypatch):
    with running(monkeypatch, answering(good), "TAUGHT") as server:
        monkeypatch.setattr(server, "payload", lambda reply, body: type(server).payload(reply, body) | {"usage": None})
        report = do(job_of(tmp_path, price_in=1.0, price_out=2.0))
    assert report.without_usage == 6 and report.tokens_in == 0
    assert report.cost > 6 * 50 * 2.0 / 1e6
    assert lines_of(tmp_path / "o.jsonl.record.jsonl")[1]["tokens_in"] is None


def test_reasons_are_counted_without_what_they_quote():
    def row(*reasons):
        return RowRecord(row=0, id="", state="refused", reasons=reasons)

    found = count_reasons(
        [
            row("the final answer is '99' instead of '2'", "text stands outside the blocks: \"It's done: 'x'\""),
            row("the final answer is 'a \\'b\\'' instead of '3'", "turned away by the teacher's provider: 'E: no'"),
        ]
    )
    assert found == {
        "the final answer is ... instead of ...": 2,
        "text stands outside the blocks": 1,
        "turned away by the teacher's provider": 1,
    }
