"""`prefixlab suggest`: a ranking as table, JSON and file; mistakes in one line; a real model names a planted prefix."""

import json

import polars
import pytest

from prefixlab.data.prefixes import load_set, sentence_file, words
from prefixlab.errors import UserError


def rows_of(n, answer="The river flows to the sea, and it is long."):
    return [{"prompt": f"Tell me about river {i}.", "response": f"Sure! {answer} {i}"} for i in range(n)]


def write(folder, rows):
    (folder / "d.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return folder / "d.jsonl"


def ranked(call, data, *options):
    done = call("suggest", data, "--model", "tiny-random", *options, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_files_and_the_table(call, tmp_path):
    data = write(tmp_path, rows_of(9))
    (tmp_path / "mine.txt").write_text("Let us look at the river together now.\n\nHere we go, friend.\n")
    options = ("--prefixes", "reasoning", "--candidates", tmp_path / "mine.txt", "--samples", 5)
    found = ranked(call, data, *options, "--out", tmp_path / "t.parquet")
    assert (found["n"], found["position"], found["n_too_long"], found["n_border"]) == (5, "opening", 0, 0)
    assert len(found["rows"]) == 7 and [r["rank"] for r in found["rows"]] == list(range(1, 8))
    assert {r["prefix_set"] for r in found["rows"]} == {"reasoning", "mine"}
    gains = [r["gain"] for r in found["rows"]]
    assert gains == sorted(gains, reverse=True) and all(
        abs(r["words"] - r["neutral_words"]) <= 1 for r in found["rows"]
    )
    table = polars.read_parquet(tmp_path / "t.parquet")
    assert table.to_dicts() == found["rows"]
    again = call("suggest", data, "--model", "tiny-random", *options)
    lines = again.stdout.splitlines()
    assert lines[0].split()[:2] == ["rank", "gain"] and len(lines) == 9 and found["rows"][0]["text"] in lines[1]
    assert f"{gains[0]:+.4f}" in lines[1] and "5 samples, position opening" in lines[-1] and again.stderr == ""
    quiet = call("suggest", data, "--model", "tiny-random", *options, "--quiet", "--out", tmp_path / "t.csv")
    assert quiet.stdout == "" and len((tmp_path / "t.csv").read_text().splitlines()) == 8
    assert ranked(call, data, *options) == found


def test_all_sets_by_default_and_positions(call, tmp_path):
    data = write(tmp_path, rows_of(3))
    found = ranked(call, data, "--samples", 3, "--position", "user")
    assert {r["prefix_set"] for r in found["rows"]} == {"reasoning", "revised", "safety", "coding", "factuality"}
    assert len(found["rows"]) == 25 and found["n"] == 3
    neutral = load_set("neutral")
    assert all(r["neutral"] in neutral.templates + neutral.bank for r in found["rows"])


def test_samples_that_do_not_fit_are_left_out_and_counted(call, tmp_path):
    data = write(tmp_path, [*rows_of(4), {"prompt": "Long?", "response": "word " * 400}])
    found = ranked(call, data, "--prefixes", "safety", "--samples", 5, "--max-length", 400)
    assert (found["n"], found["n_too_long"], found["max_length"]) == (4, 1, 400)
    shown = call("suggest", data, "--model", "tiny-random", "--prefixes", "safety", "--max-length", 400)
    assert "1 samples longer than --max-length 400 left out" in shown.stderr


def test_a_separator_that_merges(call, tmp_path):
    (tmp_path / "own.yaml").write_text('name: own\nseparator: " "\ntemplates: ["Sure, here is the long answer."]\n')
    found = ranked(call, write(tmp_path, rows_of(4)), "--prefixes", tmp_path / "own.yaml")
    assert found["n"] == 4 and found["n_border"] > 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--prefixes", "reasonning"], "Did you mean 'reasoning'"),
        (["--prefixes", "original"], "has no templates of its own"),
        (["--prefixes", "neutral"], "measured against"),
        (["--candidates", "none.txt"], "'none.txt' cannot be read"),
        (["--candidates", "empty.txt"], "'empty.txt' is empty: one sentence a line"),
        (["--candidates", "twice.txt"], "stands there twice"),
        (["--candidates", "bytes.txt"], "is not UTF-8"),
        (["--candidates", "long.txt"], "has no neutral match: no control sentence is within one word"),
        (["--prefixes", "safety", "--max-length", "12"], "none of 4 samples fits --max-length 12"),
        (["--prefixes", "safety", "--out", "t.xlsx"], "cannot write 't.xlsx'"),
        (["--prefixes", "safety", "--out", "d.jsonl"], "is the data itself"),
        (["--column", "answer=x"], "unknown role 'answer'"),
    ],
)
def test_mistakes_are_one_line(call, tmp_path, options, words):
    data = write(tmp_path, rows_of(4))
    (tmp_path / "empty.txt").write_text("\n  \n")
    (tmp_path / "twice.txt").write_text("Here we go now.\nHere we go now.\n")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe")
    (tmp_path / "long.txt").write_text("so " * 60)
    before = data.read_bytes()
    done = call("suggest", "d.jsonl", "--model", "tiny-random", *options, cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == "" and words in " ".join(done.stderr.split())
    assert len([x for x in done.stderr.splitlines() if x.strip()]) == 1 and data.read_bytes() == before


def test_sentence_files(tmp_path):
    path = tmp_path / "my list.txt"
    path.write_text("One sentence here.  \n\nAnother one: here!\n")
    found = sentence_file(path)
    assert (found.name, found.templates, found.separator) == (
        "my_list",
        ("One sentence here.", "Another one: here!"),
        "\n\n",
    )
    assert [words(t) for t in found.templates] == [3, 3]
    path.write_text("{{slot}} is there\n")
    with pytest.raises(UserError, match="unfilled slot"):
        sentence_file(path)


@pytest.mark.slow
def test_a_real_model_names_the_prefix_that_tells_the_answer(call, tmp_path):
    """One candidate gives away what every response says; the others say nothing of it."""
    answers = [
        "Bananas are yellow and sweet, and monkeys like them",
        "The banana is a sweet, yellow fruit, dear reader",
    ]
    rows = [{"prompt": f"Name fruit {i}.", "response": f"{answers[i % 2]}, number {i}."} for i in range(12)]
    planted = "Bananas are yellow, and a banana is a sweet fruit that monkeys like."
    (tmp_path / "c.txt").write_text(
        f"Here is what you have asked me about, in a few words.\n{planted}\nLet us go through the rules of chess now.\n"
    )
    options = ("--model", "smollm2-135m", "--candidates", tmp_path / "c.txt", "--samples", 8, "--json")
    done = call("suggest", write(tmp_path, rows), *options)
    first, *others = json.loads(done.stdout)["rows"]
    assert first["text"] == planted and first["gain"] > 0.1 and first["p_holm"] < 0.01
    assert all(r["gain"] < first["gain"] / 2 for r in others)
