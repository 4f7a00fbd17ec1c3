"""Requests and replies on disk: what a kill may leave, and what the next run makes of it."""

import subprocess
import sys

import pytest

from prefixlab.errors import UserError
from prefixlab.study import rewrite_log
from prefixlab.study.rewrite_log import Asked, Got, Leaving, Lost, RewriteLog, content_key

SETTINGS = {"teacher": "a/b", "max_tokens": 8}


def opened(path, settings=SETTINGS, wait=0.0):
    return RewriteLog(path, settings, wait=wait)


def got(key, call, cost=0.25):
    return Got(key=key, call=call, text="one\u2028line \U0001f40c", stop="stop", tokens_in=1, tokens_out=2, cost=cost)


def fill(log):
    log.add(Asked(key="k1", call=1, most=1.0))
    assert log.spent == 1.0
    log.add(got("k1", 1))
    log.add(Asked(key="k2", call=2, most=1.0))
    log.add(Lost(key="k2", call=2, why="429", free=True))
    log.add(Asked(key="k2", call=3, most=1.0))
    log.add(Lost(key="k2", call=3, why="it broke", free=False))
    log.add(Asked(key="k2", call=4, most=1.0))


def test_what_is_written_is_read_again(tmp_path):
    path = tmp_path / "o.answers.jsonl"
    with opened(path) as log:
        fill(log)
    with opened(path) as log:
        assert log.got == {"k1": got("k1", 1)} and list(log.open) == [4]
        assert (log.n_lost, log.calls, log.spent) == (1, 4, 2.25)


def test_every_cut_of_the_file_can_be_read(tmp_path):
    """A kill leaves some first part of the file; each goes on, and holds every reply whose line is whole."""
    path, cut = tmp_path / "o.answers.jsonl", tmp_path / "cut.jsonl"
    with opened(path) as log:
        fill(log)
    data = path.read_bytes()
    for size in range(0, len(data), 7):
        cut.write_bytes(data[:size])
        with opened(cut) as log:
            assert len(log.got) == data[:size].count(b'"stop":"stop"') * (b'"cost":0.25}\n' in data[:size])
            log.add(Asked(key="k9", call=log.calls + 1, most=None))
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
            RewriteLog(path, SETTINGS, wait=0.3, tell=told.append)
    assert told == ["waiting for the last replies of the run before"]
    opened(path).__exit__()


def test_the_lock_goes_with_a_killed_process(tmp_path):
    path = tmp_path / "o.answers.jsonl"
    code = (
        "import os, signal, sys; from pathlib import Path; from prefixlab.study.rewrite_log import RewriteLog\n"
        f"RewriteLog(Path(sys.argv[1]), {SETTINGS!r}, wait=0); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)]).returncode == -9
    opened(path).__exit__()


def test_keys_differ_with_everything_that_decides_a_reply():
    keys = {content_key({"t": t}, text, n) for t in "ab" for text in ("x", "y \ud800") for n in (1, 2)}
    assert len(keys) == 8
