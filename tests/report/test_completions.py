"""Completions for the page: every one of them, its state, and parts that can be found again."""

import json
from dataclasses import replace

import pytest
from test_page import HOSTILE, data

from prefixlab.records import SampleScore
from prefixlab.report import completions
from prefixlab.report.completions import completion_sets, label, state
from prefixlab.report.parts import Parts


def load(folder, path):
    text = (folder / path).read_text(encoding="utf-8")
    call, _, rest = text.partition(",")
    assert call == f'prefixlabPart("{path}"'
    return json.loads(rest.rstrip()[:-2])


def score(value, status="ok"):
    return SampleScore(
        **{"item": "p", "epoch": 1, "metric": "accuracy", "value": value, "status": status, "kind": "problem"},
        **{"prompt": "?", "completion": "x", "prefill": "", "answer": "", "target": "", "n_tokens": 1},
    )


@pytest.mark.parametrize(
    ("value", "status", "better", "found"),
    [
        (1.0, "ok", True, "1"),
        (0.0, "ok", True, "0"),
        (1.0, "ok", False, "0"),  # over-refusal: 1 is a refusal
        (0.0, "ok", False, "1"),
        (0.25, "ok", True, "~"),
        (0.0, "truncated", True, "t"),
        (1.0, "truncated", True, "T"),
        (0.25, "truncated", True, "g"),
        (None, "invalid", True, "i"),
        (None, "error", True, "e"),
    ],
)
def test_states(value, status, better, found):
    assert state(score(value, status), better) == found


def test_every_completion_is_in_one_part(tmp_path, monkeypatch):
    monkeypatch.setattr(completions, "PART", 300)
    run = data(tmp_path)
    (found,) = completion_sets(run, Parts(tmp_path))
    assert [c["arm"] for c in found["columns"]] == ["base", "r000 · seed 0", "reasoning-opening-r100 · seed 0"]
    assert (found["prompts"], found["samples"]) == (10, 1) and len(found["parts"]) > 2
    table = load(tmp_path, found["table"])
    assert [row["s"] for row in table[:4]] == [["111"], ["111"], ["011"], ["001"]]
    assert table[9] == {"id": "p9", "m": "accuracy", "k": "problem", "s": ["ttt"]}
    texts = [load(tmp_path, path) for path, _ in found["parts"]]
    assert [len(part) for part in texts] == [n for _, n in found["parts"]]
    rows = [row for part in texts for row in part]
    assert len(rows) == 10 and all(len(arm) == 1 for row in rows for arm in row["a"])
    assert rows[0]["a"][0][0] == {"t": "I can't help with that.", "n": 3, "a": "1"}


def second_sample(cells):
    for cell in cells[1:]:
        cell.rows.extend([r.model_copy(update={"epoch": 2, "value": 1.0}) for r in cell.rows[:9]])


def test_samples_of_one_prompt_and_arms_without_it(tmp_path):
    (found,) = completion_sets(data(tmp_path, spoil=second_sample), Parts(tmp_path))
    table = load(tmp_path, found["table"])
    assert found["samples"] == 2
    assert table[5]["s"] == ["001", ".11"] and table[9]["s"] == ["ttt"]
    ((path, _),) = found["parts"]
    assert [len(arm) for arm in load(tmp_path, path)[5]["a"]] == [1, 2, 2]


def test_prefilled_text_graded_values_and_broken_unicode(tmp_path):
    def spoil(cells):
        row = cells[2].rows[0]
        cells[2].rows[0] = row.model_copy(update={"prefill": "Sure! ", "value": 0.123456, "completion": HOSTILE})

    (found,) = completion_sets(data(tmp_path, spoil=spoil), Parts(tmp_path))
    one = load(tmp_path, found["parts"][0][0])[0]["a"][2][0]
    assert one["t"] == "Sure! " + HOSTILE.replace("\ud800", "\ufffd") and (one["f"], one["v"]) == (6, 0.1235)


def test_names_of_columns_and_sets(tmp_path):
    run = data(tmp_path)
    other = [replace(c, model="other", protocol="star1", condition="prefill") for c in run.cells]
    found = completion_sets(replace(run, cells=[*run.cells, *other]), Parts(tmp_path))
    assert [s["name"] for s in found] == [
        "math · chain_sum · bare · tiny-random",
        "math · chain_sum · prefill · star1 · other",
    ]
    assert label(run.cells[0]) == "base"


def test_logs_are_linked(tmp_path):
    run = data(tmp_path)
    folder = tmp_path / "steps" / "eval-x"
    folder.mkdir(parents=True)
    (folder / "log.eval").touch()
    config = {"model": {"name": "tiny-random"}, "capability": "math", "arm": {"arm": "r000"}, "seed": 0}
    config |= {"suite": {"suite": "chain_sum"}, "protocol": "prefixlab", "condition": "bare"}
    run.plan["steps"].append({"slug": "eval-x", "kind": "eval", "config": config})
    run.folders["eval-x"] = folder
    (found,) = completion_sets(run, Parts(tmp_path))
    assert [c["log"] for c in found["columns"]] == [None, "../steps/eval-x/log.eval", None]


def test_an_older_page_keeps_its_parts_until_the_new_one_stands(tmp_path):
    first = Parts(tmp_path)
    old, same = first.add("a", "1"), first.add("b", "2")
    second = Parts(tmp_path)
    assert second.add("b", "2") == same and (tmp_path / old).exists()
    new = second.add("a", "3")
    second.sweep()
    assert {p.name for p in (tmp_path / "data").iterdir()} == {new.split("/")[1], same.split("/")[1]}


def test_what_is_no_number_never_reaches_a_part(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        Parts(tmp_path).add_lists("a", [float("nan")], 10)
