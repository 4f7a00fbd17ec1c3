"""A study file's mistakes are told in one line that names the key, the allowed set and the nearest match."""

import pytest
import yaml

from conftest import tiny_study
from prefixlab.errors import UserError
from prefixlab.study_file import load_study


def load(tmp_path, study, overrides=()):
    path = tmp_path / "s.yaml"
    path.write_text(yaml.safe_dump(study))
    return load_study(path, overrides)


def changed(path, value):
    study = tiny_study()
    node = study
    *parents, last = path.split(".")
    for part in parents:
        node = node[int(part)] if part.isdigit() else node[part]
    node[last] = value
    return study


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("trainning", {}, ["unknown key 'trainning'", "Did you mean 'training'?"]),
        ("training.epoch", 2, ["training.epoch", "Did you mean 'epochs'?"]),
        ("training.preset", "papr", ["training.preset", "allowed: modern, paper", "Did you mean 'paper'?"]),
        ("arms.0.ratios", [0, 1.5], ["arms[0].ratios[1]", "less than or equal to 1", "1.5"]),
        ("arms.0.ratios", [-0.1], ["arms[0].ratios[0]", "greater than or equal to 0"]),
        ("arms.0.ratios", [0], ["at least one ratio above 0"]),
        ("arms.0.controls", ["neutrl"], ["Did you mean 'neutral'?"]),
        ("arms.0.controls", ["neutral", "neutral"], ["named twice"]),
        ("arms.0.position", "front", ["arms[0].position", "answer, opening, user"]),
        ("arms.0.capabilities", ["maths"], ["'maths' is not among"]),
        ("name", "a/b", ["'a/b'", "letters, digits"]),
        ("models", [], ["models", "at least 1"]),
        ("seeds", ["x"], ["seeds[0]", "integer"]),
        ("capabilities.math.primary", {"suite": "gsm8k", "metric": "accuracy"}, ["primary.suite 'gsm8k'", "chain_sum"]),
        ("capabilities.math.data.limit", 0, ["capabilities.math.data.limit", "greater than 0"]),
        (
            "capabilities.math.data",
            {"source": "d.jsonl", "columns": {"prompt": "q", "respons": "answer"}},
            [
                "s.yaml: capabilities.math.data.columns: unknown role 'respons'",
                "allowed: id, prompt, reasoning, response, source",
                "Did you mean 'response'?",
            ],
        ),
        ("conditions", ["prefil"], ["Did you mean 'prefill'?"]),
        ("analysis.margin", 0, ["analysis.margin", "greater than 0"]),
        ("capabilities.math.primary.margin", -0.1, ["capabilities.math.primary.margin", "greater than 0"]),
    ],
)
def test_mistakes_are_one_line(tmp_path, path, value, words):
    with pytest.raises(UserError) as error:
        load(tmp_path, changed(path, value))
    text = str(error.value)
    assert "\n" not in text
    for word in words:
        assert word in text, text


def test_masked_at_user_is_refused(tmp_path):
    study = changed("arms.0.position", "user")
    study["arms"][0]["controls"] = ["masked"]
    with pytest.raises(UserError, match="'masked' at position 'user'"):
        load(tmp_path, study)


def test_overrides_reach_into_lists_and_maps(tmp_path):
    study = load(tmp_path, tiny_study(), ["training.epochs=3", "arms.0.ratios=[0, 0.25]", "seeds=[1, 2]"])
    assert (study.training.epochs, study.arms[0].ratios, study.seeds) == (3, [0, 0.25], [1, 2])


@pytest.mark.parametrize(
    "text", ["training.epochs", "arms.9.ratios=[1]", "name.x=1", "seeds=[0,1", "name=a: b: c", "name=@x"]
)
def test_bad_overrides(tmp_path, text):
    with pytest.raises(UserError):
        load(tmp_path, tiny_study(), [text])


@pytest.mark.parametrize("content", ["- a\n", "a: [", ""])
def test_not_a_study(tmp_path, content):
    path = tmp_path / "s.yaml"
    path.write_text(content)
    with pytest.raises(UserError):
        load_study(path)


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        load_study(tmp_path / "none.yaml")
