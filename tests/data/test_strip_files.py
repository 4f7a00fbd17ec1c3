"""`prefixlab strip` on files: nothing but the openings changes, and the record gives the source back."""

import json
import subprocess
import sys

import polars
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conftest import SHARED
from prefixlab.data.audit import audit
from prefixlab.data.openings import PREFIX_FAMILIES
from prefixlab.data.rewrite_rows import edit_row
from prefixlab.data.rows import iter_rows
from prefixlab.data.strip import cut_opening, uncut
from prefixlab.data.strip_files import restore_file, strip_file
from prefixlab.data.writing import whole, write_rows
from prefixlab.errors import UserError


def strip(path, out, **kwargs):
    options = {"families": PREFIX_FAMILIES, **kwargs}
    return strip_file(str(path), out, out.with_suffix(".removed"), **options)


def test_only_the_opening_changes_in_the_bytes(tmp_path):
    """Key order, spaces, escapes, number formats, blank lines, CRLF and broken lines stay as they are."""
    source = tmp_path / "d.jsonl"
    lines = [
        b'{"n": 1.50, "response" : "Sure! caf\\u00e9 is here.", "prompt":"q", "big": 12345678901234567890123}\r\n',
        b"\n",
        b"  not json\n",
        b'{"prompt": "q", "response": "Sure! It is 5.", "response_copy": "Sure! It is 5."}\n',
        b'{"prompt":"q","response":"<think>\\nLet me think step by step.\\n\\nTwo.\\n</think>\\n\\nCertainly! Caf\xc3\xa9."}',
    ]
    source.write_bytes(b"".join(lines))
    report = strip(source, tmp_path / "s.jsonl")
    assert (tmp_path / "s.jsonl").read_bytes() == b"".join(
        [
            lines[0].replace(b"Sure! caf", b"Caf"),
            lines[1],
            lines[2],
            lines[3].replace(b'"response": "Sure! ', b'"response": "'),
            lines[4].replace(b"Let me think step by step.\\n\\n", b"").replace(b"Certainly! ", b""),
        ]
    )
    assert (report.n_rows, report.n_skipped, report.n_changed_rows) == (4, 1, 3)
    restore_file(tmp_path / "s.jsonl", tmp_path / "s.removed", tmp_path / "b.jsonl")
    assert (tmp_path / "b.jsonl").read_bytes() == source.read_bytes()


texts = st.one_of(
    st.text(max_size=60),
    st.sampled_from(["Sure! ", "Here is x:\n\n"]).flatmap(lambda p: st.text(max_size=30).map(p.__add__)),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(texts, st.booleans()), min_size=1, max_size=5),
    st.sampled_from([".jsonl", ".json"]),
    st.booleans(),
)
def test_any_json_comes_back(tmp_path_factory, rows, suffix, ascii_only):
    folder = tmp_path_factory.mktemp("s")
    made = [{"prompt": "q", "response": "a" + text if keep else text} for text, keep in rows]
    source = folder / f"d{suffix}"
    if suffix == ".json":
        data = json.dumps(made, ensure_ascii=ascii_only, indent=2)
    else:
        data = "".join(json.dumps(r, ensure_ascii=ascii_only) + "\n" for r in made)
    source.write_bytes(data.encode("utf-8", "surrogatepass"))
    try:
        strip(source, folder / f"s{suffix}")
    except UserError as error:
        assert "none of" in str(error)
        return
    restore_file(folder / f"s{suffix}", folder / "s.removed", folder / f"b{suffix}")
    assert (folder / f"b{suffix}").read_bytes() == source.read_bytes()


@given(texts, st.sampled_from(["reasoning", "answer"]))
def test_cuts(text, name):
    cut = cut_opening(text, "q", name)
    if cut is None:
        return
    assert uncut(cut.rest, cut.removed, cut.lowered) == text
    assert cut.rest.strip() and cut_opening(cut.rest, "q", name) is None
    tail = text[len(cut.removed) :]
    assert cut.rest[1:] == tail[1:] and cut.rest[0].lower() == tail[0].lower()


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_tables_come_back_row_for_row(tmp_path, suffix):
    rows = [{"prompt": "q", "response": "Sure! paris, it is."}, {"prompt": "r", "response": "Plain."}]
    frame = polars.DataFrame(rows)
    source = tmp_path / f"d{suffix}"
    frame.write_csv(source) if suffix == ".csv" else frame.write_parquet(source)
    out = tmp_path / f"s{suffix}"
    assert strip(source, out).mode == "records"
    assert [r.value["response"] for r in iter_rows(str(out))] == ["Paris, it is.", "Plain."]
    restore_file(out, tmp_path / "s.removed", tmp_path / f"b{suffix}")
    assert [r.value for r in iter_rows(str(tmp_path / f"b{suffix}"))] == rows


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("Here's an example: print(x)", "print(x)"),
        ("Sure! iPhone sales grew.", "iPhone sales grew."),
        ("Sure! x = 5", "x = 5"),
        ("Sure! paris is it.", "Paris is it."),
    ],
)
def test_code_and_identifiers_keep_their_case(text, rest):
    cut = cut_opening(text)
    assert cut is not None and cut.rest == rest


def test_families_are_a_choice(tmp_path):
    (tmp_path / "d.jsonl").write_text(
        "".join(
            json.dumps({"prompt": "q", "response": r}) + "\n"
            for r in ("Sure! Paris.", "Great question! Rome.", "I'm sorry, but I can't do that. Ask a lawyer.")
        )
    )
    report = strip(tmp_path / "d.jsonl", tmp_path / "s.jsonl", families=("praise", "refusal"))
    assert report.removed == {"praise": 1, "refusal": 1}
    assert [r.value["response"] for r in iter_rows(str(tmp_path / "s.jsonl"))] == [
        "Sure! Paris.",
        "Rome.",
        "Ask a lawyer.",
    ]


def test_half_a_surrogate_pair(tmp_path):
    (tmp_path / "d.jsonl").write_bytes(b'{"prompt": "\xc3\xbc", "response": "Sure! \\ud800 is half."}\n')
    strip(tmp_path / "d.jsonl", tmp_path / "s.jsonl")
    assert [r.value["response"] for r in iter_rows(str(tmp_path / "s.jsonl"))] == ["\ud800 is half."]
    restore_file(tmp_path / "s.jsonl", tmp_path / "s.removed", tmp_path / "b.jsonl")
    assert (tmp_path / "b.jsonl").read_bytes() == (tmp_path / "d.jsonl").read_bytes()


def test_code_keeps_its_shape(tmp_path):
    """After a colon no letter is raised, and the first line keeps its indentation."""
    cases = {
        "Sure! Here is the code:\n\n    def f():\n        return 1": "    def f():\n        return 1",
        "Here is the code: import os": "import os",
        "Here is the query:\nselect a from b": "select a from b",
        "Sure! paris is it.": "Paris is it.",
    }
    for text, rest in cases.items():
        cut = cut_opening(text)
        assert cut.rest == rest and uncut(cut.rest, cut.removed, cut.lowered) == text


def test_both_sides_of_a_pair(tmp_path):
    row = {"prompt": "q", "chosen": "Sure! Paris.", "rejected": "Sure! Rome."}
    (tmp_path / "d.jsonl").write_text(json.dumps(row) + "\n")
    strip(tmp_path / "d.jsonl", tmp_path / "s.jsonl")
    (found,) = iter_rows(str(tmp_path / "s.jsonl"))
    assert (found.value["chosen"], found.value["rejected"]) == ("Paris.", "Rome.")
    restore_file(tmp_path / "s.jsonl", tmp_path / "s.removed", tmp_path / "b.jsonl")
    assert json.loads((tmp_path / "b.jsonl").read_text()) == row


def test_parquet_keeps_its_types(tmp_path):
    schema = {"prompt": polars.String, "response": polars.String, "n": polars.Int8, "x": polars.Float32}
    polars.DataFrame([("q", "Sure! Paris.", 1, 0.5)], schema=schema, orient="row").write_parquet(tmp_path / "d.parquet")
    strip(tmp_path / "d.parquet", tmp_path / "s.parquet")
    assert dict(polars.read_parquet_schema(tmp_path / "s.parquet")) == schema


def test_unreadable_rows_of_tables_are_counted(tmp_path):
    (tmp_path / "d.csv").write_text("prompt,response\nq,Sure! Paris.\nq,a,b,c\n")
    report = strip(tmp_path / "d.csv", tmp_path / "s.csv")
    assert (report.n_skipped, report.n_dropped) == (1, 1)


def test_mistakes(tmp_path):
    (tmp_path / "d.jsonl").write_text(json.dumps({"prompt": "q", "response": "Sure! Paris."}) + "\n")
    strip(tmp_path / "d.jsonl", tmp_path / "s.jsonl")
    with pytest.raises(UserError, match="is there already"):
        strip(tmp_path / "d.jsonl", tmp_path / "s.jsonl")
    with pytest.raises(UserError, match=r"cannot write .*; allowed: \.jsonl"):
        strip(tmp_path / "d.jsonl", tmp_path / "t.txt")
    with pytest.raises(UserError, match="not the file"):
        restore_file(tmp_path / "d.jsonl", tmp_path / "s.removed", tmp_path / "b.jsonl")
    with pytest.raises(UserError, match="missing or damaged"):
        restore_file(tmp_path / "s.jsonl", tmp_path / "none", tmp_path / "b.jsonl")
    with pytest.raises(UserError, match="restored in its own format"):
        restore_file(tmp_path / "s.jsonl", tmp_path / "s.removed", tmp_path / "b.csv")
    with pytest.raises(UserError, match="not compressed"):
        restore_file(tmp_path / "s.jsonl", tmp_path / "s.removed", tmp_path / "b.jsonl.gz")
    with pytest.raises(UserError, match="there is no folder"):
        strip(tmp_path / "d.jsonl", tmp_path / "none" / "s.jsonl")
    with pytest.raises(UserError, match="both the stripped file and its record"):
        strip_file(str(tmp_path / "d.jsonl"), tmp_path / "u.jsonl", tmp_path / "u.jsonl", families=PREFIX_FAMILIES)
    (tmp_path / "n.jsonl").write_text('{"prompt": "q", "response": ""}\n' * 3 + "{\n")
    with pytest.raises(UserError, match="none of 4 rows can be used; 3 of them: empty response"):
        strip(tmp_path / "n.jsonl", tmp_path / "w.jsonl")
    (tmp_path / "c.jsonl").write_text('{"colour": "red"}\n')
    with pytest.raises(UserError, match=r"no layout fits the columns colour; tried: .*--column"):
        strip(tmp_path / "c.jsonl", tmp_path / "w.jsonl")
    with pytest.raises(UserError, match="no family is chosen"):
        strip(tmp_path / "d.jsonl", tmp_path / "v.jsonl", families=())
    (tmp_path / "m.jsonl").write_text(
        json.dumps({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "Sure! A."}]})
        + "\n"
    )
    with pytest.raises(UserError, match="column 'messages' holds lists or objects"):
        strip(tmp_path / "m.jsonl", tmp_path / "m.csv")


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_a_disk_that_fills_midway_leaves_nothing(tmp_path, suffix):
    """In a process whose files may not grow beyond 20 kB: the write fails, after some of it went through."""
    rows = [{"prompt": f"q{i}", "response": f"Sure! City number {i} lies on a river."} for i in range(1000)]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code = (
        "import resource, sys; from pathlib import Path; from prefixlab.data.strip_files import strip_file\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "strip_file(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), families=('compliance',))"
    )
    out, record = tmp_path / f"s{suffix}", tmp_path / "s.removed"
    made = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "d.jsonl"), str(out), str(record)], capture_output=True, text=True
    )
    assert made.returncode == 1 and "File too large" in made.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["d.jsonl"]
    assert strip(tmp_path / "d.jsonl", out).n_changed_rows == 1000


def test_a_killed_writer_leaves_no_half_file(tmp_path):
    code = (
        "import os, sys; from pathlib import Path; from prefixlab.data.writing import whole\n"
        "with whole(Path(sys.argv[1])) as part:\n"
        "    part.write_text('half')\n"
        "    os.kill(os.getpid(), 9)"
    )
    path = tmp_path / "d.jsonl"
    made = subprocess.run([sys.executable, "-c", code, str(path)])
    assert made.returncode == -9
    assert not path.exists() and (tmp_path / "d.jsonl.part").read_text() == "half"
    write_rows(path, [{"a": 1}])
    assert [p.name for p in tmp_path.iterdir()] == ["d.jsonl"] and json.loads(path.read_text()) == {"a": 1}


def test_a_failing_writer_leaves_what_was_there(tmp_path):
    path = tmp_path / "d.csv"
    write_rows(path, [{"a": "x"}])
    with pytest.raises(UserError, match="half a surrogate pair"):
        write_rows(path, [{"a": "\ud800"}])
    with pytest.raises(ValueError, match="midway"), whole(path) as part:
        part.write_text("half")
        raise ValueError("midway")
    assert path.read_text() == "a\nx\n" and [p.name for p in tmp_path.iterdir()] == ["d.csv"]


def test_edit_row_with_a_key_given_twice():
    raw = b'{"a": "x", "a": "y", "b": 1}'
    assert json.loads(edit_row(raw, json.loads(raw), {("a",): "z"})) == {"a": "z", "b": 1}


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data sets are not there")
@pytest.mark.parametrize(
    "name", ["star1/STAR-1.json", "llamafactory_demo/v1_sft_demo.jsonl", "llamafactory_demo/dpo_en_demo.json"]
)
def test_real_files(tmp_path, name):
    source = SHARED / name
    out = tmp_path / source.name
    report = strip(source, out)
    assert report.n_changed_rows > 20
    found = audit(str(out))
    assert sum(part.n_prefix for part in found.parts.values()) == 0
    back = tmp_path / f"back{source.suffix}"
    restore_file(out, out.with_suffix(".removed"), back)
    assert back.read_bytes() == source.read_bytes()
