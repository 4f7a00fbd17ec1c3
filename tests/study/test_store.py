"""Steps are whole or not there; folders belong to one study and one process."""

import errno
import json
import os
import re
import socket
import subprocess
import sys
import threading

import pytest

from conftest import tiny_study
from prefixlab.errors import UserError
from prefixlab.study.store import DONE, Store, disk_may_be_full
from prefixlab.study_file import parse_study


@pytest.fixture
def store(tmp_path):
    made = Store(tmp_path / "run")
    with made.locked():
        yield made


def write(store, slug="a-1", text="x"):
    with store.writing(slug, "id") as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "f").write_text(text)


def test_done(store):
    assert store.state("a-1") == "missing"
    write(store)
    assert store.state("a-1") == "done"
    marker = store.marker("a-1")
    assert marker.id == "id" and list(marker.files) == ["sub/f"]


@pytest.mark.parametrize("damage", ["marker", "text", "gone", "empty marker"])
def test_damage_is_seen(store, damage):
    write(store)
    folder = store.folder("a-1")
    if damage == "marker":
        (folder / DONE).unlink()
    elif damage == "text":
        (folder / "sub" / "f").write_text("y")
    elif damage == "gone":
        (folder / "sub" / "f").unlink()
    else:
        (folder / DONE).write_text("")
    assert store.state("a-1") == "broken"
    write(store, text="again")
    assert store.state("a-1") == "done"


def test_an_error_leaves_nothing(store):
    with pytest.raises(ValueError), store.writing("a-1", "id") as folder:
        (folder / "f").write_text("x")
        raise ValueError
    assert store.state("a-1") == "missing" and list(store.steps.iterdir()) == []


def test_full_disk_is_one_line(store):
    for error in (OSError(errno.ENOSPC, "x"), RuntimeError("I/O error: No space left on device (os error 28)")):
        with (
            pytest.raises(UserError, match=r"no space left .* finished steps are kept"),
            disk_may_be_full(store.root),
            store.writing("a-1", "id"),
        ):
            raise error
        assert list(store.steps.iterdir()) == []
    with pytest.raises(ValueError, match="other"), disk_may_be_full(store.root):
        raise ValueError("other")


def test_leftovers_are_swept(store):
    (store.steps / ".writing-a-1").mkdir()
    store.sweep()
    assert list(store.steps.iterdir()) == []


def test_second_run_is_refused(store):
    who = rf"in use by another run \(process {os.getpid()} on {re.escape(socket.gethostname())}\)"
    for _ in range(2):  # who is refused leaves the holder's name alone
        with pytest.raises(UserError, match=who), Store(store.root).locked():
            pass


HOLD = """
import sys, time
from pathlib import Path
from prefixlab.study.store import Store
with Store(Path(sys.argv[1])).locked():
    print("held", flush=True)
    time.sleep(600)
"""


def test_the_lock_of_a_killed_process_is_free(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n" and Store(tmp_path).in_use()
        with pytest.raises(UserError, match=rf"process {holder.pid} on "), Store(tmp_path).locked():
            pass
    finally:
        holder.kill()
        holder.communicate()
    assert (tmp_path / ".lock").exists() and not Store(tmp_path).in_use()
    with Store(tmp_path).locked():
        assert Store(tmp_path).in_use()


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.raises(UserError, match=r"has no file locks \(No locks available\).*mount it with locks"):
        Store(tmp_path).locked().__enter__()


def test_of_two_tries_the_first_that_ends_counts(store):
    with store.writing("a-1", "id", "one") as one:
        (one / "f").write_text("one")
        with store.writing("a-1", "id", "two") as two:
            (two / "f").write_text("two")
        assert store.finished("a-1", "id") and not store.finished("a-1", "other")
    assert store.finished("a-1", "id") and (store.folder("a-1") / "f").read_text() == "two"
    assert [p.name for p in store.steps.iterdir()] == ["a-1"]


def test_tries_that_end_together_never_show_half_a_step(store):
    """Several threads write the same step, each something else, while another one looks all the time."""
    slugs, seen = [f"a-{i}" for i in range(20)], set()
    over = threading.Event()

    def look():
        while not over.is_set():
            seen.update(store.state(slug) for slug in slugs)

    def write_one(slug, i, together):
        with store.writing(slug, "id", str(i)) as folder:
            for name in "abc":
                (folder / name).write_text(f"{i}" * 1000)
            together.wait()

    watcher = threading.Thread(target=look)
    watcher.start()
    for slug in slugs:
        together = threading.Barrier(4)
        tries = [threading.Thread(target=write_one, args=(slug, i, together)) for i in range(4)]
        for t in tries:
            t.start()
        for t in tries:
            t.join()
        assert store.finished(slug, "id")
    over.set()
    watcher.join()
    assert seen == {"missing", "done"}
    assert {p.name for p in store.steps.iterdir()} == set(slugs)


def study(**changes):
    return parse_study(tiny_study(**changes), "test")


def test_folder_of_another_study(store):
    assert store.adopt(study()) == []
    assert store.adopt(study()) == []
    assert store.adopt(study(seeds=[1])) == store.adopt(study(seeds=[1])) == ["seeds"], "kept with its plan only"
    store.keep(study(seeds=[1]))
    assert store.adopt(study(seeds=[1])) == []
    with pytest.raises(UserError, match=r"belongs to study 'tiny', not 'other'"):
        store.adopt(study(name="other"))


def test_foreign_folder(store):
    (store.root / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match=r"holds no study.yaml|has files but no study.yaml"):
        store.adopt(study())
    assert (store.root / "thesis.tex").read_text() == "x"


def test_damaged_study_file(store):
    store.adopt(study())
    (store.root / "study.yaml").write_text("a: [")
    with pytest.raises(UserError, match=r"damaged"):
        store.adopt(study())


def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written"), Store(tmp_path / "file" / "run").locked():
        pass


def test_marker_is_json(store):
    write(store)
    assert json.loads((store.folder("a-1") / DONE).read_text())["files"]["sub/f"][0] == 1
