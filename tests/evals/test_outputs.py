"""Every malformed reasoning block that models write, as a table; no thinking is ever scored as an answer."""

import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefixlab.data.parts import split_response
from prefixlab.evals.diagnostics import Reading
from prefixlab.evals.outputs import Parsed, parse_output

PREOPENED = [
    # what the model wrote, reasoning, answer, state
    ("I add.\n</think>\n\nIt is 5.", "I add.", "It is 5.", "closed"),
    ("<think>\nI add.\n</think>\n\nIt is 5.", "I add.", "It is 5.", "closed"),
    ("\n<think>\n<think>I add.</think>It is 5.", "I add.", "It is 5.", "closed"),
    ("I add.</think>", "I add.", "", "closed"),
    ("I add.\n</Think>\n5", "I add.", "5", "closed"),
    ("I add.\n</ think >\n5", "I add.", "5", "closed"),
    ("I add.\n< / THINK >\n5", "I add.", "5", "closed"),
    ("I must end with `</think>` soon.\n</think>\n5", "I must end with `</think>` soon.", "5", "closed"),
    ("I must end with </think> soon.\n</think>\n5", "I must end with </think> soon.", "5", "closed"),
    ('He said "no."</think>\n5', 'He said "no."', "5", "closed"),
    ("A code `x`</think>\n5", "A code `x`", "5", "closed"),
    ("I add.\n</think>\nThe tag `</think>` ends it.", "I add.", "The tag `</think>` ends it.", "closed"),
    ("I add.\n</think>\nUse `<think>a</think>`.", "I add.", "Use `<think>a</think>`.", "closed"),
    ("I add.\n</think>\n<tool_call>{}</tool_call>", "I add.", "<tool_call>{}</tool_call>", "closed"),
    ("I add.\n</think>\n<answer>5</answer>", "I add.", "<answer>5</answer>", "closed"),
    ("I see <tool_call>x</tool_call>\n</think>\n5", "I see <tool_call>x</tool_call>", "5", "closed"),
    ("</think>\n\n5", "", "5", "empty"),
    (" \n\n</think>\n\n5", "", "5", "empty"),
    ("<think>\n\n</think>\n\n5", "", "5", "empty"),
    ("</think>", "", "", "empty"),
    ("", "", "", "unclosed"),
    (" \n ", "", "", "unclosed"),
    ("I add. It is 5.", "I add. It is 5.", "", "unclosed"),
    ("<think>\nI add. The answer is 5", "I add. The answer is 5", "", "unclosed"),
    ("I add. </thinking> It is 5.", "I add. </thinking> It is 5.", "", "unclosed"),
    ("I must write `</think>` and then 5", "I must write `</think>` and then 5", "", "unclosed"),
    ("I add.\n</think>\n5\n<think>\nWait, 6.\n</think>\n6", "I add.\n\nWait, 6.", "5\n\n6", "reopened"),
    ("I add.\n</think>\n5 <think> Wait, 6.", "I add.\n\nWait, 6.", "5", "reopened"),
    ("I add.\n</think>\n<think>\nWait, 6.", "I add.\n\nWait, 6.", "", "reopened"),
    ("</think>\n<think>\nI add.\n</think>\n5", "I add.", "5", "reopened"),
    ("a</think>b<think>c</think>d</think>e", "a\n\nc\n\nd", "b\n\ne", "reopened"),
    ("I add.\n</think>\nOh, wait.\n</think>\n5", "I add.\n\nOh, wait.", "5", "stray_close"),
    ("I add.\n</think>\n5\n</think>", "I add.", "5", "stray_close"),
    ("I add.\n</think>\n</think>\n5", "I add.", "5", "stray_close"),
    ("a</think>b</think>c</think>", "a\n\nb", "c", "stray_close"),
]
BARE = [
    ("It is 5.", None, "It is 5.", "none"),
    ("", None, "", "none"),
    (" \n\t", None, "", "none"),
    ("I think > 5", None, "I think > 5", "none"),
    ("<thinking>I add.</thinking>5", None, "<thinking>I add.</thinking>5", "none"),
    ("The tags `<think>` and '</think>' mark it.", None, "The tags `<think>` and '</think>' mark it.", "none"),
    ("<tool_call>{}</tool_call>", None, "<tool_call>{}</tool_call>", "none"),
    ("<think>\nI add.\n</think>\n5", "I add.", "5", "closed"),
    ("<THINK> I add. </THINK> 5", "I add.", "5", "closed"),
    ("Sure!\n<think>\nI add.\n</think>\n5", "I add.", "Sure!\n\n5", "closed"),
    ("<think></think>5", "", "5", "empty"),
    ("<think>\nI add. It is 5", "I add. It is 5", "", "unclosed"),
    ("<think>", "", "", "unclosed"),
    ("The answer is 4.\n<think>\nOr is it 5", "Or is it 5", "", "unclosed"),
    ("I add.\n</think>\n\nIt is 5.", "I add.", "It is 5.", "stray_close"),
    ("</think>\n\nIt is 5.", "", "It is 5.", "stray_close"),
    ("It is 5.\n</think>", "It is 5.", "", "stray_close"),
    ("a</think>b\n<think>c</think>d", "a\n\nc", "b\n\nd", "reopened"),
    ("<think>a</think>b<think>c</think>d", "a\n\nc", "b\n\nd", "reopened"),
    ("<think>a <think> b</think>c</think>d", "a <think> b\n\nc", "d", "stray_close"),
]


@pytest.mark.parametrize("truncated", [False, True])
@pytest.mark.parametrize(
    ("preopened", "text", "reasoning", "answer", "state"), [(True, *c) for c in PREOPENED] + [(False, *c) for c in BARE]
)
def test_forms(preopened, text, reasoning, answer, state, truncated):
    assert parse_output(text, preopened=preopened, truncated=truncated) == Parsed(reasoning, answer, truncated, state)


@pytest.mark.parametrize(
    ("preopened", "prefill", "text", "reasoning", "answer", "state"),
    [
        (True, "\n</think>\n\n", "It is 5.", "", "It is 5.", "empty"),
        (True, "Short.\n</think>\n\n", "It is 5.", "Short.", "It is 5.", "closed"),
        (True, "Short.\n</think>\n\n", "<think>\nI add.\n</think>\n5", "Short.\n\nI add.", "5", "reopened"),
        (True, "\n</think>\n\n", "I add.\n</think>\n\n5", "I add.", "5", "stray_close"),
        (True, "I add.\n</think>\n\nSure, ", "it is 5.", "I add.", "Sure, it is 5.", "closed"),
        (True, "Let us see. ", "I add.\n</think>\n5", "Let us see. I add.", "5", "closed"),
        (True, "Let us see. ", "I add.", "Let us see. I add.", "", "unclosed"),
        (True, "<think>\n", "I add.\n</think>\n5", "I add.", "5", "closed"),
        (False, "<think>\n", "I add.\n</think>\n5", "I add.", "5", "closed"),
        (False, "<think>\n", "<think>\nI add.\n</think>\n5", "I add.", "5", "closed"),
        (False, "<think>\n", "I add, it is 5", "I add, it is 5", "", "unclosed"),
        (False, "<think>\n\n</think>\n\n", "It is 5.", "", "It is 5.", "empty"),
        (False, "<think>Short.</think>", "It is 5.", "Short.", "It is 5.", "closed"),
        (False, "Sure, ", "it is 5.", None, "Sure, it is 5.", "none"),
        (False, "I add.</thi", "nk>5", "I add.", "5", "stray_close"),
    ],
)
def test_prefilled_turns(preopened, prefill, text, reasoning, answer, state):
    assert parse_output(text, preopened=preopened, prefill=prefill) == Parsed(reasoning, answer, False, state)


def test_the_same_turn_is_read_the_same_however_it_is_divided():
    for preopened, table in ((True, PREOPENED), (False, BARE)):
        for text, *_ in table:
            whole = parse_output(text, preopened=preopened)
            assert all(
                parse_output(text[at:], preopened=preopened, prefill=text[:at]) == whole for at in range(len(text) + 1)
            )


PIECES = ["<think>", "</think>", "</Think >", "\n", " ", "`", '"', "Wait.", "So 5.", "«", "<answer>"]


@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join), st.booleans())
def test_every_turn_has_a_state_that_fits_its_parts(text, preopened):
    made = parse_output(text, preopened=preopened)
    assert (made.reasoning is None) == (made.state == "none")
    assert made.answer == made.answer.strip()
    if made.state in ("closed", "empty"):
        assert bool(made.reasoning) == (made.state == "closed")
    if made.state == "unclosed":
        assert made.answer == ""
    if preopened:
        assert made.state != "none"


@given(st.text(alphabet="ab .\n`'\"<>/", max_size=40), st.text(alphabet="ab .\n<>/", max_size=40))
def test_a_well_formed_turn_comes_back_as_it_was_written(reasoning, answer):
    made = parse_output(f"<think>\n{reasoning}\n</think>\n\n{answer}", preopened=False)
    assert (made.reasoning, made.answer) == (reasoning.strip(), answer.strip())
    assert made.state == ("closed" if reasoning.strip() else "empty")


def test_real_traces(shared):
    """R1 distills, run without a pre-opened block: closed, or cut at the limit. Instruct models: no reasoning."""
    states = {}
    for path in sorted((shared / "r1_distill_traces").glob("*.jsonl")):
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
        counts = states[path.stem] = Counter()
        for row in rows:
            made = parse_output(row["response"], preopened=False)
            counts[made.state] += 1
            if made.state in ("none", "closed", "unclosed"):
                assert (made.reasoning, made.answer) == split_response(row["response"])
            if "</think>" not in row["response"]:
                assert made.state in ("none", "unclosed")
    print({name: dict(counts) for name, counts in states.items()})
    for name, counts in states.items():
        if "r1-distill" in name:
            assert counts["none"] == 0 and counts["closed"] > 50
            assert counts["closed"] + counts["unclosed"] == counts.total()
        else:
            assert counts == {"none": 100}


def test_a_trace_that_is_cut_anywhere_never_shows_its_thinking(shared):
    states = Counter()
    for path in sorted((shared / "r1_distill_traces").glob("*r1-distill*.jsonl")):
        for line in path.read_text(encoding="utf-8").split("\n"):
            if not line:
                continue
            text = json.loads(line)["response"]
            whole = parse_output(text, preopened=False)
            inside = text.replace("<think>", "", 1)
            assert parse_output(inside, preopened=True) == whole
            assert parse_output(inside, preopened=False) == Parsed(whole.reasoning, whole.answer, False, "stray_close")
            for part in range(1, 20):
                cut = parse_output(text[: len(text) * part // 20], preopened=False, truncated=True)
                states[cut.state] += 1
                assert whole.answer.startswith(cut.answer)
    assert set(states) == {"unclosed", "closed"} and min(states.values()) > 1000


@pytest.mark.parametrize(
    ("text", "truncated", "inside"),
    [("I think and", True, True), ("It is 5.", False, False), ("I think.</think>It is", True, False)],
)
def test_what_a_server_sends_of_a_template_that_opens_the_reasoning(text, truncated, inside):
    reading = Reading(preopened=False, position=None, templates=(), template_opens=True)
    assert reading.begins_inside(text, truncated) is inside
    local = Reading(preopened=True, position=None, templates=())
    assert local.begins_inside(text, truncated)
    assert not Reading(preopened=False, position=None, templates=()).begins_inside(text, truncated)
