"""Requests and replies on disk: what a kill may leave, and what the next run makes of it."""

import resource
import signal
import subprocess
import sys

import pytest

from prefixlab.errors import UserError
from prefixlab.study import rewrite_log
from prefixlab.study.rewrite_log import Asked, Got, Leaving, Lost, RewriteLog, content_key

SETTINGS = {"teacher": "a/b", "max_tokens": 8}


def cost(read, written):
    return 0.125 * read + 0.0625 * written


def opened(path, settings=SETTINGS, wait=0.0, cost=cost):
    return RewriteLog(path, settings, cost=cost, wait=wait)


def got(key, call, took=(1, 2)):
    return Got(key=key, call=call, text="one\u2028line \U0001f40c", stop="stop", tokens_in=took[0], tokens_out=took[1])


def fill(log):
    log.add(Asked(key="k1", call=1, most=(4, 8)))
    assert log.spent == (log.cost(4, 8) or 0)
    log.add(got("k1", 1))
    log.add(Asked(key="k2", call=2, most=(4, 8)))
    log.add(Lost(key="k2", call=2, why="429", free=True))
    log.add(Asked(key="k2", call=3, most=(4, 8)))
    log.add(Lost(key="k2", call=3, why="it broke", free=False))
    log.add(Asked(key="k2", call=4, most=(4, 8)))


def test_what_is_written_is_read_again(tmp_path):
    path = tmp_path / "o.answers.jsonl"
    with opened(path) as log:
        fill(log)
    with opened(path) as log:
        assert log.got == {"k1": got("k1", 1)} and list(log.open) == [4]
        assert (log.n_lost, log.calls, log.spent) == (1, 4, 2.25) and log.cost_of(log.got["k1"]) == 0.25


def test_what_was_paid_is_worked_out_with_the_prices_of_the_run_that_reads_it(tmp_path):
    """A first run without prices, and prices that were mistyped, hide nothing from a budget."""
    path = tmp_path / "o.answers.jsonl"
    with opened(path, cost=lambda read, written: None) as log:
        fill(log)
        log.add(Asked(key="k3", call=5, most=(4, 8)))
        log.add(got("k3", 5, (None, None)))
        assert log.spent == 0 and log.cost_of(log.got["k1"]) is None and "$" not in " ".join(log.notes())
    with opened(path) as log:
        assert log.spent == 3.25 and log.cost_of(log.got["k3"]) == 1.0
        assert log.notes()[0] == "2 replies of earlier runs are kept and used; $3.2500 are spent"
    with opened(path, cost=lambda read, written: 10 * cost(read, written)) as log:
        assert log.spent == 32.5


def test_a_full_disk_is_one_line_and_nothing_is_written_behind_half_a_line(tmp_path):
    path = tmp_path / "o.answers.jsonl"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with opened(path) as log:
            log.add(Asked(key="k1", call=1, most=(4, 8)))
            resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 20, hard))
            with pytest.raises(UserError, match=r"cannot write .*make room"):
                log.add(got("k1", 1))
            with pytest.raises(UserError, match="make room"):
                log.add(Asked(key="k2", call=2, most=(4, 8)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    with opened(path) as log:
        assert not log.got and list(log.open) == [1]


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "o.answers.jsonl").mkdir()
    with pytest.raises(UserError, match=r"cannot write .*choose another --out"):
        opened(tmp_path / "o.answers.jsonl")


def test_every_cut_of_the_file_can_be_read(tmp_path):
    """A kill leaves some first part of the file; each goes on, and holds every reply whose line is whole."""
    path, cut = tmp_path / "o.answers.jsonl", tmp_path / "cut.jsonl"
    with opened(path) as log:
        fill(log)
    data = path.read_bytes()
    for size in range(0, len(data), 7):
        cut.write_bytes(data[:size])
        with opened(cut) as log:
            assert len(log.got) == (b'"tokens_out":2}\n' in data[:size])
            log.add(Asked(key="k9", call=log.calls + 1, most=(4, 8)))
        with opened(cut) as log:
            assert "k9" in [line.key for line in log.open.values()]


def test_other_settings_are_refused(tmp_path):
    path = tmp_path / "o.answers.jsonl"
    opened(path).__exit__()
    before = path.read_bytes()
    with pytest.raises(UserError, match="made with another max tokens \\(8, now 9\\)"):
        opened(path, SETTINGS | {"max_tokens": 9})
    assert path.read_bytes() == before


def test_damage_is_named(tmp_path):
    path = tmp_path / "o.answers.jsonl"
    with opened(path) as log:
        fill(log)
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([*lines[:2], b"{}", *lines[2:]]))
    with pytest.raises(UserError, match="line 3 is damaged"):
        opened(path)
    path.write_bytes(b'{"kind":"leaving"}\n')
    with pytest.raises(UserError, match="is no record of replies"):
        opened(path)


def test_two_runs_are_refused_and_one_that_leaves_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(rewrite_log, "PATIENCE", 0.1)
    path, told = tmp_path / "o.answers.jsonl", []
    with opened(path) as log:
        with pytest.raises(UserError, match="in use by another run"):
            opened(path)
        log.add(Leaving())
        with pytest.raises(UserError, match="in use by another run"):
            RewriteLog(path, SETTINGS, cost=cost, wait=0.3, tell=told.append)
    assert told == ["waiting for the last replies of the run before"]
    opened(path).__exit__()


def test_the_lock_goes_with_a_killed_process(tmp_path):
    path = tmp_path / "o.answers.jsonl"
    code = (
        "import os, signal, sys; from pathlib import Path; from prefixlab.study.rewrite_log import RewriteLog\n"
        f"RewriteLog(Path(sys.argv[1]), {SETTINGS!r}, cost=lambda r, w: None, wait=0); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)]).returncode == -9
    opened(path).__exit__()


def test_keys_differ_with_everything_that_decides_a_reply():
    keys = {content_key({"t": t}, text, n) for t in "ab" for text in ("x", "y \ud800") for n in (1, 2)}
    assert len(keys) == 8
