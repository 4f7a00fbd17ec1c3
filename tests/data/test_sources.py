"""Sources: layouts, ids, limits, splits, and each mistake in one line with its place."""

import json

import pytest

from prefixlab.config import DataConfig
from prefixlab.data.overlap import find_overlaps, normalise
from prefixlab.data.sources import BUILTIN_DATA, read_samples, test_safety, test_sums, worked_sum
from prefixlab.errors import UserError

test_safety.__test__ = test_sums.__test__ = False


def jsonl(tmp_path, *rows):
    path = tmp_path / "d.jsonl"
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return str(path)


def read(source, **kwargs):
    return read_samples(DataConfig(source=source, held_out=0, **kwargs), "k")[0]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "response": "a"},
        {"prompt": "q", "completion": "a"},
        {"question": "q", "answer": "a"},
        {"instruction": "q", "input": "", "output": "a"},
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
    ],
)
def test_layouts(tmp_path, row):
    (sample,) = read(jsonl(tmp_path, row))
    assert (sample.prompt, sample.answer, sample.reasoning) == ("q", "a", None)


def test_alpaca_input_joins_the_prompt(tmp_path):
    (sample,) = read(jsonl(tmp_path, {"instruction": "q", "input": "more", "output": "a"}))
    assert sample.prompt == "q\nmore"


def test_reasoning_is_a_part(tmp_path):
    (sample,) = read(jsonl(tmp_path, {"prompt": "q", "response": "<think>\nr\n</think>\n\na"}))
    assert (sample.reasoning, sample.answer) == ("r", "a")


def test_named_columns(tmp_path):
    source = jsonl(tmp_path, {"q": "x", "a": "y", "n": 5})
    (sample,) = read(source, columns={"prompt": "q", "response": "a", "id": "n"})
    assert (sample.id, sample.prompt, sample.answer) == ("5", "x", "y")


@pytest.mark.parametrize("command", ["audit", "strip", "arms"])
def test_a_misspelled_role_is_refused(call, tmp_path, command):
    source = jsonl(tmp_path, {"q": "x", "a": "y"})
    more = {"audit": [], "strip": ["--out", tmp_path / "o"], "arms": ["--prefixes", "safety", "--out", tmp_path / "o"]}
    made = call(command, source, "--column", "prompt=q", "--column", "respons=a", *more[command])
    assert made.returncode == 2 and made.stderr.count("\n") == 1
    assert "--column: unknown role 'respons'" in made.stderr and "Did you mean 'response'?" in made.stderr
    with pytest.raises(ValueError, match="unknown role 'respons'"):
        DataConfig(source=source, columns={"prompt": "q", "respons": "a"})


def test_ids(tmp_path):
    same = {"prompt": "q", "response": "a"}
    first, second, own = read(jsonl(tmp_path, same, same, {**same, "id": "mine"}))
    assert second.id == f"{first.id}#2" and own.id == "mine"


def test_limit_and_held_out_do_not_depend_on_order(tmp_path):
    rows = [{"prompt": f"q{i}", "response": "a"} for i in range(30)]
    config = {"limit": 10, "held_out": 5}
    a = read_samples(DataConfig(source=jsonl(tmp_path, *rows), **config), "k")
    b = read_samples(DataConfig(source=jsonl(tmp_path, *rows[::-1]), **config), "k")
    assert [len(x) for x in a] == [10, 5]
    assert {s.id for s in a[0]} == {s.id for s in b[0]} and {s.id for s in a[1]} == {s.id for s in b[1]}
    assert not {s.id for s in a[0]} & {s.id for s in a[1]}


@pytest.mark.parametrize("suffix", [".json", ".csv", ".parquet"])
def test_formats(tmp_path, suffix):
    import polars

    path = tmp_path / f"d{suffix}"
    table = polars.DataFrame({"prompt": ["q", "r"], "response": ["a", "b"]})
    {".json": table.write_json, ".csv": table.write_csv, ".parquet": table.write_parquet}[suffix](path)
    assert [s.prompt for s in read(str(path))] == ["q", "r"]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"prompt": "q", "response": "a"}, "{broken"], "row 2: not valid JSON"),
        (["[1]"], "row 1: a row must be a JSON object"),
        ([{"prompt": "q"}], "row 1: no layout fits the columns prompt"),
        ([{"prompt": "q", "response": None}], "row 1: response is null"),
        ([{"prompt": "q", "response": " "}], "empty response"),
        ([{"messages": [{"role": "user", "content": "q"}]}], "no assistant turn"),
        ([{"messages": "q"}], "messages must be a list"),
        ([], "holds no rows"),
    ],
)
def test_mistakes(tmp_path, rows, words):
    with pytest.raises(UserError, match=words.replace("(", r"\(")) as error:
        read(jsonl(tmp_path, *rows))
    assert "d.jsonl" in str(error.value)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("none.jsonl", "does not exist"),
        ("builtin:maths", "unknown built-in data set 'maths'"),
        ("a.txt", "does not exist"),
    ],
)
def test_bad_sources(source, words):
    with pytest.raises(UserError, match=words):
        read(source)


def test_hub_out_of_reach_is_one_line():
    with pytest.raises(UserError, match="could not be read from the hub"):
        read("nobody/nothing")


def test_half_a_surrogate_pair_is_skipped_with_its_reason(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_text('{"prompt": "q \\ud83d", "response": "a"}\n{"prompt": "q", "response": "a"}\n')
    skipped = []
    samples, _ = read_samples(DataConfig(source=str(path), held_out=0), "k", skipped=skipped)
    assert [s.prompt for s in samples] == ["q"] and "surrogate" in skipped[0][1]
    with pytest.raises(UserError, match="row 1: holds half a surrogate pair"):
        read(str(path))


def test_no_more_rows_than_held_out(tmp_path):
    with pytest.raises(UserError, match="no more than held_out"):
        read_samples(DataConfig(source=jsonl(tmp_path, {"prompt": "q", "response": "a"}), held_out=8), "k")


def test_built_in_halves_are_disjoint():
    for name, tests in (("chain_sum", test_sums()), ("safety", test_safety())):
        train = BUILTIN_DATA[name]()
        (found,) = find_overlaps(train, {name: tests}, {})
        assert found.exact == () and len(train) > 80 and len(tests) > 80


def test_safety_set_is_what_it_says():
    both = [*(r for r in BUILTIN_DATA["safety"]())]
    kinds = {
        kind: sum(s.source == kind for s in both) + sum(t.kind == kind for t in test_safety())
        for kind in ("harmful", "harmless")
    }
    assert kinds["harmful"] >= 80 and kinds["harmless"] >= 40
    assert len({s.category for s in both}) >= 8


@pytest.mark.parametrize(
    ("question", "solution", "answer"),
    [
        ("problem: 12 + 7 - 3 =", "12 + 7 = 19. 19 - 3 = 16. The answer is 16.", "16"),
        ("problem: 3 - 9 =", "3 - 9 = -6. The answer is -6.", "-6"),
        ("problem: -5 + 2 =", "-5 + 2 = -3. The answer is -3.", "-3"),
    ],
)
def test_worked_sums(question, solution, answer):
    assert worked_sum(question) == (solution, answer)


def test_every_worked_sum_is_right():
    for item in test_sums():
        expression = item.messages[0].content.split(":")[1].removesuffix("=").strip()
        assert item.target == str(eval(expression))


def test_overlap_ignores_case_and_punctuation_but_not_signs():
    assert normalise("What is  it?!") == normalise("what is it")
    assert normalise("12 + 3 =") != normalise("12 - 3 =")
