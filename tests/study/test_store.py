"""Steps are whole or not there; folders belong to one study and one process."""

import errno
import json

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
    with pytest.raises(UserError, match=r"in use by another run"), Store(store.root).locked():
        pass


def study(**changes):
    return parse_study(tiny_study(**changes), "test")


def test_folder_of_another_study(store):
    assert store.adopt(study()) == []
    assert store.adopt(study()) == []
    assert store.adopt(study(seeds=[1])) == ["seeds"]
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
