"""What a teacher is asked, how its reply is read, and where the new text goes; no teacher is asked here."""

import json

import pytest

from prefixlab.data.layouts import Unusable
from prefixlab.data.rewrite import (
    Reply,
    fill,
    left_opening,
    load_instructions,
    read_reply,
    read_targets,
    rewritten_row,
    target_of,
)
from prefixlab.errors import UserError

GSM = {"id": "n1", "question": "What is 3 + 4?", "answer": "Sure! 3 + 4 = 7.\n#### 7", "level": 2}
THINKING = {"prompt": "What is 3 + 4?", "response": "<think>\nOkay. 3 + 4 = 7.\n</think>\n\nIt is 7."}


@pytest.mark.parametrize("mode", ["rewrite", "correct"])
def test_shipped_instructions_are_filled(mode):
    text = fill(load_instructions(None, mode), target_of(0, GSM, {}), "row")
    assert "What is 3 + 4?" in text and "#### 7" in text and "<answer>" in text
    assert not any(place in text for place in ("{prompt}", "{response}", "{form}", "{tag}"))


def test_the_form_follows_the_row_or_the_option():
    ours = load_instructions(None, "rewrite")
    for row, form, thinks in [
        (GSM, "row", False),
        (GSM, "think", True),
        (THINKING, "row", True),
        (THINKING, "plain", False),
    ]:
        assert ("<reasoning>" in fill(ours, target_of(0, row, {}), form)) == thinks


def test_texts_of_the_data_are_not_read_as_placeholders():
    row = {"prompt": "Print {response} and {form}", "response": "{prompt}"}
    text = fill("{tag}|{prompt}|{response}|{form}", target_of(0, row, {}), "row")
    assert text.split("|")[1:3] == ["Print {response} and {form}", "{prompt}"]


def test_the_reason_of_the_last_attempt_is_told():
    target = target_of(0, GSM, {})
    assert fill("{prompt}{response}{form}", target, "row", "it is late").endswith(
        "could not be used: it is late. Write it again, and follow every rule above."
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{prompt} {form}", ["{response} is missing"]),
        ("{prompt} {response}", ["{form} is missing"]),
        ("{promt} {response} {form}", ["'{promt}'", "Did you mean '{prompt}'"]),
    ],
)
def test_bad_instructions(tmp_path, text, words):
    path = tmp_path / "mine.txt"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        load_instructions(path, "rewrite")
    assert all(word in str(error.value) for word in [*words, "mine.txt"])


def test_latex_is_no_placeholder(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text(r"{prompt} {response} {form}: end with \boxed{x} or \frac{a}{b}")
    assert load_instructions(path, "rewrite").endswith(r"\frac{a}{b}")


def test_instructions_that_cannot_be_read(tmp_path):
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe\x00")
    for name in ("none.txt", "b.txt"):
        with pytest.raises(UserError, match=f"{name}' cannot be read as UTF-8"):
            load_instructions(tmp_path / name, "rewrite")


@pytest.mark.parametrize(
    ("text", "thinks", "found"),
    [
        ("<answer>\n7\n</answer>", False, Reply(None, "7")),
        (" <reasoning>3 + 4</reasoning>\n\n<answer>7</answer>\n", True, Reply("3 + 4", "7")),
        ("Here it is:\n<answer>7</answer>", False, "text stands outside the blocks: 'Here it is:'"),
        ("<answer>7</answer>\nI hope this helps!", False, "text stands outside the blocks: 'I hope this helps!'"),
        ("", False, "the reply is empty"),
        ("7", False, "the reply has no <answer> block"),
        ("<answer>7", False, "the <answer> block never closes"),
        ("<answer> \n</answer>", False, "the answer is empty"),
        ("<answer>7</answer>", True, "the reasoning is missing or empty"),
        ("<reasoning> </reasoning><answer>7</answer>", True, "the reasoning is missing or empty"),
        ("<reasoning>a</reasoning><answer>7</answer>", False, "a reasoning block is there, and none was asked for"),
        ("<answer>7</answer><answer>8</answer>", False, "<answer> stands there more than once"),
        ("<answer><think>a</think>7</answer>", False, "a think tag stands in the text"),
        ("<reasoning>a</think></reasoning><answer>7</answer>", True, "a think tag stands in the text"),
        ("<answer>7</answer><reasoning>a</reasoning>", True, "text stands outside the blocks"),
    ],
)
def test_replies(text, thinks, found):
    read = read_reply(text, thinks)
    assert read == found or (isinstance(found, str) and str(read).startswith(found))


def test_left_openings_are_those_of_the_audit():
    assert left_opening(Reply(None, "3 + 4 = 7."), "What is 3 + 4?") == ""
    said = left_opening(Reply(None, "Sure! Here is the solution. 3 + 4 = 7."), "What is 3 + 4?")
    assert said.startswith("the answer opens with a prefix (") and "Sure!" in said
    said = left_opening(Reply("Okay, so I need to figure this out. 3 + 4 = 7.", "7"), "What is 3 + 4?")
    assert said.startswith("the reasoning opens with a prefix")
    assert left_opening(Reply(None, "I can't help with that. Ask a doctor about it."), "How do I hurt a man?") == ""


@pytest.mark.parametrize(
    ("row", "reply", "new"),
    [
        (GSM, Reply(None, "3 + 4 = 7.\n#### 7"), GSM | {"answer": "3 + 4 = 7.\n#### 7"}),
        (GSM, Reply("3 + 4 = 7.", "#### 7"), GSM | {"answer": "<think>\n3 + 4 = 7.\n</think>\n\n#### 7"}),
        (THINKING, Reply(None, "7"), THINKING | {"response": "7"}),
        (
            {"prompt": "q", "reasoning": "Okay.", "response": "old", "n": 1},
            Reply("because", "new"),
            {"prompt": "q", "reasoning": "because", "response": "new", "n": 1},
        ),
        (
            {"text": "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\nold<|im_end|>\n"},
            Reply(None, "new"),
            {"text": "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\nnew<|im_end|>\n"},
        ),
        (
            {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "old"}]},
            Reply(None, "new"),
            {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "new"}]},
        ),
    ],
)
def test_nothing_but_the_response_changes(row, reply, new):
    before = json.dumps(row)
    assert rewritten_row(target_of(0, row, {}), reply) == new
    assert json.dumps(row) == before


def test_earlier_turns_are_shown_and_kept():
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Sure! Hello."}]
    row = {"messages": [*turns, {"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "2"}]}
    target = target_of(0, row, {})
    assert target.prompt == "1 + 1?" and "[assistant]\nSure! Hello." in target.shown
    assert rewritten_row(target, Reply(None, "two"))["messages"][:3] == row["messages"][:3]


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"chosen": "a", "rejected": "b", "prompt": "q"}, "a preference pair"),
        ({"prompt": "q", "response": " "}, "empty response"),
        ({"prompt": " ", "response": "a"}, "not empty"),
        ({"x": 1}, "no layout fits"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "must be the user's"),
    ],
)
def test_rows_without_a_response_to_rewrite(row, why):
    with pytest.raises(Unusable, match=why):
        target_of(0, row, {})


def test_targets_of_a_file(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps(GSM) + "\nnot json\n" + json.dumps(GSM | {"id": None, "answer": ""}) + "\n")
    targets, skipped = read_targets(str(path), {})
    assert [t.id for t in targets] == ["n1"] and [row for row, _ in skipped] == [1, 2]
    path.write_text('{"a": 1}\n')
    with pytest.raises(UserError, match="no layout fits"):
        read_targets(str(path), {})
    with pytest.raises(UserError, match="Did you mean 'safety'"):
        read_targets("builtin:safty", {})
