"""`prefixlab rewrite` as a user meets it: what it says before and after, its exit codes, and one line for a mistake."""

import json

import pytest

from chat_server import Reply, running
from fault_proxy import proxied

ROWS = [
    {"id": f"r{i}", "question": f"What is {i} + {i}?", "answer": f"Sure! {i} + {i} = {2 * i}.\n#### {2 * i}"}
    for i in range(5)
]
PRICES = ("--price-in", "2", "--price-out", "8")


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def teacher(body):
    i = int(body["messages"][-1]["content"].split("What is ")[1].split(" ")[0])
    return Reply(text=f"<answer>\nTwice {i} is {2 * i}.\n#### {2 * i}\n</answer>")


def one_line(done, *words):
    assert done.returncode == 2, (done.returncode, done.stderr)
    (line,) = [x for x in done.stderr.splitlines() if x.startswith("prefixlab: ")]
    assert "Traceback" not in done.stderr and all(word in line for word in words), line


def test_help_has_examples_and_the_exit_code(call):
    text = " ".join(call("rewrite", "--help").stdout.split())
    assert "Example: prefixlab rewrite" in text and "Exit code 3" in text


def test_a_dry_run_shows_examples_and_a_price_and_asks_nothing(call, data, tmp_path):
    done = call("rewrite", data, "--teacher", "nobody/x", "--out", tmp_path / "o.jsonl", *PRICES, "--dry-run")
    assert done.returncode == 0 and done.stdout.count("--- example") == 3 and "What is 0 + 0?" in done.stdout
    last = done.stdout.strip().splitlines()[-1]
    assert last.startswith("5 responses to ask nobody/x about: about ") and "characters a token" in last
    assert "and at most $" in last and [p.name for p in tmp_path.iterdir()] == ["d.jsonl"]
    done = call("rewrite", data, "--teacher", "nobody/x", "--out", tmp_path / "o.jsonl", "--dry-run", "--json")
    found = json.loads(done.stdout)
    assert found["estimate"]["responses"] == 5 and found["estimate"]["cost"] is None and len(found["examples"]) == 3


@pytest.mark.smoke
def test_from_the_data_to_the_file(call, data, tmp_path, monkeypatch):
    out = tmp_path / "o.jsonl"
    arguments = ("rewrite", data, "--teacher", "openai-api/taught/t", "--out", out, *PRICES)
    with running(monkeypatch, teacher, "TAUGHT") as server:
        done = call(*arguments)
        assert done.returncode == 0, done.stderr
        assert "5 rows: 5 rewritten" in done.stdout and "final answers: 5 same" in done.stdout
        assert "5 replies, 25 tokens read and 10 written, $0.0001" in done.stdout
        assert "5 responses to ask" in done.stderr
        again = call(*arguments, "--json")
        assert json.loads(again.stdout)["states"]["rewritten"] == 5 and len(server.requests) == 5
        quiet = call(*arguments, "--quiet")
        assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")
        one_line(call(*arguments, "--max-tokens", "9"), "made with another max tokens (4096, now 9)")
    rows = [json.loads(line) for line in out.read_text().split("\n") if line]
    assert rows[3] == ROWS[3] | {"answer": "Twice 3 is 6.\n#### 6"}
    audited = json.loads(call("audit", out, "--json", "-", "--quiet").stdout)
    assert "Sure" not in json.dumps(audited)


@pytest.mark.slow
def test_a_budget_ends_with_a_code_of_its_own(call, data, tmp_path, monkeypatch):
    arguments = ("rewrite", data, "--teacher", "openai-api/taught/t", "--out", tmp_path / "o.jsonl", *PRICES)
    with running(monkeypatch, teacher, "TAUGHT") as server:
        done = call(*arguments, "--budget", "0.001")
        assert done.returncode == 3 and not server.requests
        last = done.stderr.strip().split("\n")[-1]
        assert last.startswith("prefixlab: budget $0.001: $0.0000 is spent") and "5 of 5 rows are left" in last
        assert call(*arguments, "--budget", "1").returncode == 0
        assert len(server.requests) == 5


@pytest.mark.slow
def test_corrections_of_our_safety_set(call, tmp_path, monkeypatch):
    """Responses that word rules call safe stay; the others get one that the same rules call safe, or are listed."""

    def careful(body):
        return Reply(text="<answer>\nI can't help with hurting anybody.\n</answer>")

    out = tmp_path / "o.jsonl"
    options = ("--mode", "correct", "--teacher", "openai-api/taught/t", "--out", out, "--limit", "12", "--json")
    with running(monkeypatch, careful, "TAUGHT") as server:
        done = call("rewrite", "builtin:safety", *options)
        report = json.loads(done.stdout)
        assert done.returncode == 0 and report["judge"] == "rules" and report["states"]["open"] == 0
        assert 0 < report["states"]["rewritten"] == len(server.requests) < 12
    rows = [json.loads(line) for line in out.read_text().split("\n") if line]
    assert len(rows) == 12 and sum("hurting anybody" in row["response"] for row in rows) == len(server.requests)


@pytest.mark.slow
def test_a_teacher_that_is_down_is_one_line(call, data, tmp_path, monkeypatch):
    out = tmp_path / "o.jsonl"
    arguments = ("rewrite", data, "--teacher", "openai-api/taught/t", "--out", out, "--retries", "0")
    with running(monkeypatch, teacher, "TAUGHT") as server, proxied(server.url, lambda n, text: "401") as proxy:
        monkeypatch.setenv("TAUGHT_BASE_URL", proxy.url)
        one_line(call(*arguments), "turns requests away", "5 of 5 rows are left", "run again")
        monkeypatch.setenv("TAUGHT_BASE_URL", server.url)
        assert call(*arguments).returncode == 0
    monkeypatch.delenv("TAUGHT_API_KEY")
    one_line(call(*arguments[:-4], "--out", tmp_path / "p.jsonl"), "teacher 'openai-api/taught/t' cannot be used")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--budget", "1"], ["--budget needs --price-in and --price-out"]),
        (["--price-in", "1"], ["belong together"]),
        (["--judge", "rubric", "--judge-model", "a/b"], ["for --mode correct"]),
        (["--judge", "rubric", "--mode", "correct"], ["judge.model"]),
        (["--instructions", "none.txt"], ["'none.txt' cannot be read"]),
        (["--column", "respons=x"], ["Did you mean 'response'"]),
        (["--form", "thinking"], ["thinking", "row"]),
        (["--teacher", "gpt"], ["write PROVIDER/MODEL"]),
        (["--out", "o.txt"], ["'o.txt'", ".jsonl"]),
        (["--out", "none/o.jsonl"], ["none/o.jsonl"]),
        (["--out", "d.jsonl"], ["is the data itself"]),
        (["--out", "there.jsonl"], ["is there already and was not made by prefixlab rewrite"]),
    ],
)
def test_mistakes(call, data, tmp_path, more, words):
    (tmp_path / "there.jsonl").write_text("{}\n")
    arguments = ["rewrite", "d.jsonl", "--teacher", "a/b", "--out", "o.jsonl", *more, "--dry-run"]
    one_line(call(*arguments, cwd=tmp_path), *words)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d.jsonl", "there.jsonl"]


def test_data_that_cannot_be_used(call, tmp_path):
    (tmp_path / "d.jsonl").write_text('{"a": 1}\n')
    (tmp_path / "d.eval").write_text("")
    rest = ("--teacher", "a/b", "--out", "o.jsonl", "--dry-run")
    one_line(call("rewrite", "d.jsonl", *rest, cwd=tmp_path), "no layout fits the columns a")
    one_line(call("rewrite", "none.jsonl", *rest, cwd=tmp_path), "'none.jsonl' does not exist")
    one_line(call("rewrite", "d.eval", *rest, "--mode", "correct", cwd=tmp_path), "score it with prefixlab score")
