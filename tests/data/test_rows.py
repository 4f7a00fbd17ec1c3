"""Reading: formats, layouts, places of parts, and every kind of bad row: counted, listed, never fatal."""

import bz2
import gzip
import json
import lzma

import polars
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from prefixlab.data.audit import audit
from prefixlab.data.layouts import Unusable, layout_of, parts_of, value_at, with_value
from prefixlab.data.parts import find_parts, split_response
from prefixlab.data.rows import is_hub_id, iter_rows
from prefixlab.errors import UserError

PAIR = {"prompt": "q", "response": "Sure! Paris."}


def parts(row, columns=None, which="all"):
    return [(p.turn, p.name, p.text, p.prompt) for p in parts_of(layout_of(row, columns)[1](row), which)]


CHAT = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "Sure! Paris."}]
GPT = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "Sure! Paris."}]


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("messages", {"messages": CHAT}),
        ("messages", {"messages": [{"role": "system", "content": "s"}, *CHAT]}),
        (
            "messages",
            {"messages": [CHAT[0], {"role": "assistant", "content": [{"type": "text", "text": "Sure! Paris."}]}]},
        ),
        (
            "messages",
            {"messages": [CHAT[0], {"role": "assistant", "content": [{"type": "text", "value": "Sure! Paris."}]}]},
        ),
        ("sharegpt", {"conversations": GPT, "system": "s"}),
        ("preference", {"prompt": "q", "chosen": "Sure! Paris.", "rejected": "no"}),
        ("preference", {"chosen": CHAT, "rejected": CHAT}),
        ("preference", {"conversations": GPT[:1], "chosen": GPT[1], "rejected": GPT[1]}),
        ("alpaca", {"instruction": "q", "input": "", "output": "Sure! Paris."}),
        ("pair", PAIR),
        ("pair", {"prompt": CHAT[:1], "completion": CHAT[1:]}),
        ("pair", {"question": "q", "answer": "Sure! Paris."}),
        ("pair", {"query": "q", "solution": "Sure! Paris."}),
        ("text", {"text": "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\nSure! Paris.<|im_end|>\n"}),
        ("text", {"text": "[INST] q [/INST] Sure! Paris.</s>"}),
        ("text", {"text": "<start_of_turn>user\nq<end_of_turn>\n<start_of_turn>model\nSure! Paris.<end_of_turn>"}),
        ("text", {"text": "### Instruction:\nq\n\n### Response:\nSure! Paris."}),
        (
            "text",
            {
                "text": "<|start_header_id|>user<|end_header_id|>\n\nq<|eot_id|>"
                "<|start_header_id|>assistant<|end_header_id|>\n\nSure! Paris.<|eot_id|>"
            },
        ),
    ],
)
def test_layouts(name, row):
    found = layout_of(row)
    assert found[0] == name
    ((turn, part, text, prompt),) = parts(row)
    assert (turn, part, text, prompt.strip()) == (0, "answer", "Sure! Paris.", "q")
    (place,) = parts_of(found[1](row))
    assert value_at(row, place.path)[place.start :].startswith("Sure! Paris.")
    changed = with_value(row, place.path, "new")
    assert value_at(changed, place.path) == "new" and value_at(row, place.path) != "new"


def test_turns_and_reasoning():
    two = {
        "messages": [
            *CHAT,
            {"role": "user", "content": "r"},
            {"role": "assistant", "content": "<think>\nb\n</think>\nc"},
        ]
    }
    assert [p[:3] for p in parts(two)] == [(0, "answer", "Sure! Paris."), (1, "reasoning", "b"), (1, "answer", "c")]
    assert [p[0] for p in parts(two, which="last")] == [1, 1]
    own = {"messages": [CHAT[0], {"role": "assistant", "content": "c", "reasoning_content": " b "}]}
    assert [p[1:3] for p in parts(own)] == [("reasoning", "b"), ("answer", "c")]
    assert parts({"q": "x", "a": "y"}, {"prompt": "q", "response": "a"}) == [(0, "answer", "y", "x")]


@pytest.mark.parametrize(
    ("text", "reasoning", "answer"),
    [
        ("a", None, "a"),
        ("<think>\nr\n</think>\n\na", "r", "a"),
        ("r\n</think>\n\na", "r", "a"),
        ("<think>\nr", "r", ""),
        ("<think>\nthe tag `</think>` ends it\n</think>\n\na", "the tag `</think>` ends it", "a"),
        ('<think>\nthey wrote "</think>" there\n</think>\na', 'they wrote "</think>" there', "a"),
        ("<think>\nI write </think> here\n</think>\na", "I write </think> here", "a"),
        ("Use the `</think>` tag.", None, "Use the `</think>` tag."),
        ("<think></think>a", "", "a"),
        ("  ", None, ""),
        ("Sure. <think>r</think> a", "r", "a"),
    ],
)
def test_parts(text, reasoning, answer):
    assert split_response(text) == (reasoning, answer)


@given(st.lists(st.sampled_from(["<think>", "</think>", "`", "\n", " ", "a", "é", "😀"])).map("".join), st.booleans())
def test_parts_are_stretches_of_the_text(text, preopened):
    reasoning, answer = find_parts(text, preopened=preopened)
    for part in filter(None, (reasoning, answer)):
        assert 0 <= part.start <= part.end <= len(text)
        assert text[part.start : part.end] == text[part.start : part.end].strip()
    assert reasoning is None or reasoning.end <= answer.start


def test_whole_numbers_stay_whole(tmp_path):
    ids = [12345678901234567890123, 12345678901234567890124]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps({"id": i, **PAIR}) + "\n" for i in ids))
    assert [r.value["id"] for r in iter_rows(str(tmp_path / "d.jsonl"))] == ids


def test_history_of_alpaca_and_two_reasoning_columns():
    row = {
        "instruction": "q2",
        "input": "",
        "output": "a2",
        "history": [["q1", "a1"]],
        "reasoning": "r",
        "thinking": "t",
    }
    assert parts(row) == [(0, "answer", "a1", "q1"), (1, "reasoning", "r", "q2"), (1, "answer", "a2", "q2")]
    assert parts({"prompt": "q", "response": "a", "why": "r"}, {"reasoning": "why"})[0] == (0, "reasoning", "r", "q")


def compressed(data, suffix):
    return {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstandard.compress}.get(
        suffix, bytes
    )(data)


@pytest.mark.parametrize("suffix", ["", ".gz", ".bz2", ".xz", ".zst"])
@pytest.mark.parametrize("kind", [".jsonl", ".json", ".csv", ".parquet"])
def test_formats(tmp_path, kind, suffix):
    rows = [PAIR, {"prompt": "ü", "response": 'a "b"\nc'}]
    path = tmp_path / f"d{kind}{suffix}"
    frame = polars.DataFrame(rows)
    if kind == ".parquet":
        frame.write_parquet(tmp_path / "raw")
        data = (tmp_path / "raw").read_bytes()
    elif kind == ".csv":
        data = frame.write_csv().encode()
    elif kind == ".json":
        data = json.dumps(rows).encode()
    else:
        data = "".join(json.dumps(r) + "\n" for r in rows).encode()
    path.write_bytes(compressed(data, suffix))
    assert [r.value for r in iter_rows(str(path))] == rows


def test_zstandard_files_of_several_frames_and_cut_off(tmp_path):
    row = json.dumps(PAIR).encode() + b"\n"
    data = row * 50_000
    whole = zstandard.compress(data) + zstandard.compress(row)
    (tmp_path / "whole.jsonl.zst").write_bytes(whole)
    assert sum(r.value == PAIR for r in iter_rows(str(tmp_path / "whole.jsonl.zst"))) == 50_001
    (tmp_path / "cut.jsonl.zst").write_bytes(zstandard.compress(data)[:-9])
    with pytest.raises(UserError, match="ended before"):
        list(iter_rows(str(tmp_path / "cut.jsonl.zst")))


@pytest.mark.parametrize(
    ("text", "prompt"),
    [
        ("### Instruction:\nTranslate.\n\n### Input:\nHaus\n\n### Response:\nhouse", "Translate.\n\n### Input:\nHaus"),
        ("A chat between a person and a helper. USER: Translate Haus. ASSISTANT: house</s>", "Translate Haus."),
        ("A chat.\nUSER: Translate Haus. ASSISTANT: house", "Translate Haus."),
        ("USER: Hello. ASSISTANT: Hi.</s>USER: Translate Haus. ASSISTANT: house</s>", "Translate Haus."),
    ],
)
def test_templates_inside_texts(text, prompt):
    found = parts({"text": text})
    assert [(p[2].strip(), p[3].strip()) for p in found][-1] == ("house", prompt)


@pytest.mark.parametrize("output", [[], [{"role": "assistant", "content": "a"}] * 2])
def test_an_alpaca_row_without_one_answer_is_skipped_with_its_reason(output):
    layout = layout_of({"instruction": "q", "output": output})
    with pytest.raises(Unusable, match="output"):
        layout[1]({"instruction": "q", "output": output})


def test_a_role_named_inside_an_answer_does_not_end_it():
    text = "A chat. USER: How do I log in? ASSISTANT: Type USER: and your name.</s>"
    assert parts({"text": text})[-1][2].strip() == "Type USER: and your name."


def test_json_of_other_shapes(tmp_path):
    for text in (
        json.dumps({"version": 1, "data": [PAIR]}),
        json.dumps(PAIR) + "\n" + json.dumps(PAIR),
        "\ufeff[" + json.dumps(PAIR) + "]",
    ):
        (tmp_path / "d.json").write_text(text)
        assert next(iter_rows(str(tmp_path / "d.json"))).value == PAIR
    (tmp_path / "d.json").write_text(json.dumps(PAIR))
    assert [r.value for r in iter_rows(str(tmp_path / "d.json"))] == [PAIR]
    (tmp_path / "d.csv").write_text("prompt,prompt,response\na,b,c\n")
    with pytest.raises(UserError, match="two columns are named 'prompt'"):
        list(iter_rows(str(tmp_path / "d.csv")))
    (tmp_path / "d.json").write_text('{"a": 1}')
    with pytest.raises(UserError, match="holds no rows"):
        list(iter_rows(str(tmp_path / "d.json")))


def test_folder_saved_by_datasets(tmp_path):
    from datasets import Dataset, DatasetDict

    made = Dataset.from_list([PAIR] * 3)
    made.save_to_disk(tmp_path / "one")
    DatasetDict({"train": made, "test": made.select([0])}).save_to_disk(tmp_path / "many")
    assert [r.value for r in iter_rows(str(tmp_path / "one"))] == [PAIR] * 3
    assert len(list(iter_rows(str(tmp_path / "many")))) == 3
    assert len(list(iter_rows(str(tmp_path / "many"), split="test"))) == 1
    with pytest.raises(UserError, match="no split 'dev'; splits there: train, test"):
        list(iter_rows(str(tmp_path / "many"), split="dev"))
    with pytest.raises(UserError, match=r"without state\.json"):
        list(iter_rows(str(tmp_path)))


def test_hub_ids(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_hub_id("owner/name") and not is_hub_id("a/b.jsonl") and not is_hub_id("./x/y") and not is_hub_id("x")
    with pytest.raises(UserError, match="could not be read from the hub"):
        list(iter_rows("no-such-owner/no-such-name"))


GOOD = json.dumps(PAIR)
BAD = {
    b'{"prompt": "q", "response": null}': "response is null",
    b'{"prompt": "q", "response": 5}': "response must be text, found int",
    b'{"prompt": "q", "response": "  "}': "empty response",
    b'{"prompt": "q", "response": ""}': "empty response",
    b'{"prompt": "q"': "not valid JSON",
    b'{"prompt": "q", "response": "\xff"}': "not valid UTF-8",
    b'{"prompt": "q", "response": "\x00"}': "not valid JSON",
    b"[1]": "a row must be a JSON object, not list",
    b'{"other": 1}': "no layout fits the columns other",
    b'{"messages": [{"role": "user", "content": "q"}]}': "no assistant turn",
    b'{"messages": "x"}': "messages must be a list of turns",
    b'{"messages": null}': "messages must be a list of turns, found null",
    b'{"messages": [{"role": "wizard", "content": "q"}]}': "unknown role 'wizard'",
    b'{"messages": [{"role": "assistant", "content": [{"type": "image"}]}]}': "list of image",
    b'{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": null, "tool_calls": [1]}]}': "no assistant",
    b'{"text": "plain"}': "no chat template we know",
    b"[" * 100_000: "nested too deeply",
}


@pytest.mark.parametrize(("bad", "reason"), BAD.items(), ids=[r[:24] for r in BAD.values()])
def test_bad_rows_are_counted_and_listed(tmp_path, bad, reason):
    path = tmp_path / "d.jsonl"
    path.write_bytes(GOOD.encode() + b"\n" + bad + b"\n\n" + GOOD.encode() + b"\n")
    found = audit(str(path))
    assert (found.n_rows, found.n_used, found.n_skipped) == (3, 2, 1)
    assert found.skipped[0].row == 1 and reason in found.skipped[0].reason
    assert sum(found.skipped_by_reason.values()) == 1


def test_odd_but_good_rows(tmp_path):
    odd = ["\u202eمرحبا", "日本語です。はい。", "😀😀", "a\r\nb\u2028c", "x" * 3_000_000, "a\u0000b", "\ud800"]
    path = tmp_path / "d.jsonl"
    path.write_text("".join(json.dumps({"id": 1, "prompt": "q", "response": t}) + "\r\n" for t in odd))
    found = audit(str(path), labels=tmp_path / "l.parquet")
    assert found.n_used == len(odd) and polars.read_parquet(tmp_path / "l.parquet").height == len(odd)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("d.jsonl", b"", "holds no rows"),
        ("d.json", b"{", "not valid JSON"),
        ("d.json", b"\xff\xfe", "not valid UTF-8"),
        ("d.parquet", b"x", "not valid parquet"),
        ("d.jsonl.gz", b"x", "cannot be read"),
        ("d.txt", b"x", "unknown format '.txt'; allowed: .jsonl"),
        ("d.jsonl", b'{"a": 1}\n', "tried: messages .role, content.; conversations"),
        ("d.jsonl", b'{"prompt": "q", "response": ""}\n', "none of 1 rows can be used"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=words):
        audit(str(tmp_path / name))
