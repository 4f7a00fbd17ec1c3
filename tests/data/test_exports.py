"""Arms in other trainers' layouts: load unchanged, come back, carry the prefix's span; the R1 trap."""

import json
from pathlib import Path

import pytest
import trl
from hypothesis import given
from hypothesis import strategies as st

from prefixlab.config import ArmsConfig
from prefixlab.data.arms import arm_specs, build_arm, manifest, originals
from prefixlab.data.chat import chat_format
from prefixlab.data.check import check_arms, render_arm, template_rendering
from prefixlab.data.exports import FORMATS, export_row, export_rows, import_row
from prefixlab.data.strip import strip_all
from prefixlab.errors import UserError
from prefixlab.model.tiny import tokenizer
from prefixlab.records import Message, Sample
from prefixlab.study.datafiles import ArmsOptions, make_arms

R1 = ["<｜begin▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>"]
FOLDER = Path(trl.__file__).parent / "chat_templates"


def samples(n=12, reasoning=True):
    return [
        Sample(
            id=str(i),
            messages=(Message(role="system", content="Be brief."), Message(role="user", content=f"What is {i} + 1?")),
            reasoning=f"Okay, let me think step by step.\n\n{i} and 1 make {i + 1}." if reasoning else None,
            answer=f"Sure! It is {i + 1}.",
        )
        for i in range(n)
    ]


def arms(data, prefixes="reasoning", position="opening", controls=(), ratios=(0.5, 1.0)):
    entry = ArmsConfig(prefixes=prefixes, position=position, ratios=list(ratios), controls=list(controls))
    stripped, records = strip_all(data)
    own = originals(stripped, records, position)
    made = {}
    for spec in arm_specs([entry], "k", native=True):
        rows = build_arm(stripped if spec.stripped else data, spec, "k", "exact", own)
        made[spec.name] = (rows, manifest(rows, spec, "math", "k", "exact", 0, None))
    return made


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("position", ["user", "opening", "answer"])
def test_rows_come_back(layout, position):
    for rows, about in arms(samples(), position=position).values():
        for row in rows:
            written = json.loads(json.dumps(export_row(row, layout)))
            back = import_row(written, about)
            assert (back.prefix, back.sample.reasoning, back.sample.answer) == (
                row.prefix,
                row.sample.reasoning,
                row.sample.answer,
            )
            assert back.sample.prompt == row.sample.prompt and back.loss == row.loss


@pytest.mark.parametrize(
    "scope",
    [{"loss": "prefix"}, {"loss": "first_tokens", "loss_tokens": 5}, {"lookahead": True}],
    ids=["prefix", "first_tokens", "lookahead"],
)
def test_a_loss_scope_comes_back_through_the_manifest(scope):
    entry = ArmsConfig(prefixes="reasoning", ratios=[1.0], controls=[], **scope)
    spec = arm_specs([entry], "k", native=False)[-1]
    rows = build_arm(strip_all(samples(3))[0], spec, "k", "exact", None)
    about = manifest(rows, spec, "math", "k", "exact", 0, None)
    for row in rows:
        written = export_row(row, "messages")
        back = import_row(written, about)
        assert (back.loss, back.loss_tokens, back.lookahead) == (row.loss, row.loss_tokens, row.lookahead)
        assert written["prefix_loss"] is True, "only the control masked takes the loss off the prefix"


@given(st.text(), st.one_of(st.none(), st.text()), st.text(min_size=1), st.sampled_from(["opening", "answer", "user"]))
def test_the_span_is_the_prefix(answer, reasoning, prefix, position):
    sample = samples(1)[0].model_copy(update={"answer": answer, "reasoning": reasoning})
    row = build_arm(
        [sample],
        arm_specs([ArmsConfig(prefixes="neutral", ratios=[1.0], controls=[])], "k", native=False)[1],
        "k",
        "exact",
    )[0]
    row = row.model_copy(update={"prefix": prefix, "position": position})
    written = export_row(row, "messages")
    place = -1 if written["prefix_field"] == "response" else -2
    text = written["messages"][place]["content"]
    assert text[written["prefix_start"] : written["prefix_end"]] == prefix


def test_earlier_turns_come_back_from_alpaca():
    turns = [("user", "a"), ("assistant", "b"), ("user", "c")]
    one = samples(1)[0].model_copy(update={"messages": tuple(Message(role=r, content=c) for r, c in turns)})
    rows, about = arms([one])["r000"]
    (written,) = export_rows(rows, "alpaca", control=None)
    assert [m.content for m in import_row(written, about).sample.messages] == ["a", "b", "c"]
    odd = one.model_copy(update={"messages": one.messages[1:]})
    with pytest.raises(UserError, match="alternating turns"):
        export_rows(arms([odd])["r000"][0], "alpaca", control=None)


def test_masked_needs_a_span():
    rows, _ = arms(samples(), controls=["masked"])["reasoning_masked-opening-r100"]
    assert len(export_rows(rows, "messages", control="masked")) == 12
    for layout in ("alpaca", "sharegpt"):
        with pytest.raises(UserError, match=f"format '{layout}' cannot carry the control 'masked'"):
            export_rows(rows, layout, control="masked")


def test_original_gives_back_what_the_data_had():
    data = samples()
    made = arms(data, "original", "opening", ["shuffled", "random", "masked"], [1.0])
    rows, about = made["original-opening-r100"]
    assert {r.prefix for r in rows} == {"Okay, let me think step by step.\n\n"} and about.n_treated == 12
    assert about.n_eligible == 12
    shuffled = made["original_shuffled-opening-r100"][0][0].prefix
    assert sorted(shuffled.split()) == sorted("Okay, let me think step by step.".split()) and shuffled.endswith("\n\n")
    noise = made["original_random-opening-r100"][0][0].prefix
    assert len(noise.split()) == 7 and not set(noise.lower().split()) & {"okay,", "think", "step"}
    bare = [s.model_copy(update={"answer": "It is 5."}) for s in data[:3]] + data[3:]
    answers = arms(bare, "original", "answer", [], [1.0])["original-answer-r100"][1]
    assert (answers.n_eligible, answers.n_treated) == (9, 9)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"controls": ["neutral"]}, "control 'neutral' needs templates of known length"),
        ({"position": "user", "controls": []}, "openings of responses have no place in a prompt"),
    ],
)
def test_original_refuses(change, words):
    with pytest.raises(UserError, match=words):
        arms(samples(), "original", **change)


def test_random_control_matches_lengths():
    made = arms(samples(40), controls=["random"])
    _, about = made["reasoning_random-opening-r100"]
    assert all(abs(a - b) <= 1 for a, b in zip(about.template_words, about.treatment_words, strict=True))
    assert len(set(about.templates)) == 5 and made["reasoning_random-opening-r100"][1].n_treated == 40


def r1(name):
    made = tokenizer((FOLDER / f"{name}.jinja").read_text(), special=R1)
    made.bos_token = R1[0]
    return made


def test_the_r1_trap():
    """The stock template deletes a prefix inside the reasoning: every arm is the same text. Ours keeps all of them."""
    made = {name: rows for name, (rows, _) in arms(samples()).items()}
    stock = r1("deepseek_r1_distill")
    naive = template_rendering(made, stock, model="r1")
    by_arm = {a.arm: a for a in naive.arms}
    assert by_arm["reasoning-opening-r100"].n_lost == by_arm["reasoning-opening-r100"].n_treated == 12
    assert by_arm["reasoning-opening-r100"].n_same_as_r000 == 12
    assert ("r000", "reasoning-opening-r100") in naive.identical and naive.problems()
    repaired = template_rendering(made, r1("deepseek_r1_distill_training"), model="r1")
    assert sum(a.n_lost for a in repaired.arms) == 0 and not repaired.problems()
    ours = check_arms(
        made, stock, chat_format(stock), model="r1", capability="math", max_length=4096, no_reasoning="refuse"
    )
    assert not ours.problems()
    assert {a.arm: a.n_prefix_in_ids for a in ours.arms}["reasoning-opening-r100"] == 12


def test_over_long_samples():
    tok = tokenizer()
    chat = chat_format(tok)
    made = {name: rows for name, (rows, _) in arms(samples()).items()}
    options = {"model": "m", "capability": "math", "no_reasoning": "refuse"}
    whole = check_arms(made, tok, chat, max_length=4096, **options)
    longest = max(a.longest for a in whole.arms)
    with pytest.raises(UserError, match="raise max_length or set over_long: cut"):
        check_arms(made, tok, chat, max_length=longest - 3, **options)
    cut = check_arms(made, tok, chat, max_length=longest - 3, over_long="cut", **options)
    assert sum(a.n_cut for a in cut.arms) > 0 and not cut.problems()
    assert all(a.n_prefix_in_ids == a.n_treated for a in cut.arms)
    kept = {
        name: [
            r.no_prefix_length
            for r in render_arm(rows, tok, chat, max_length=longest - 3, no_reasoning="refuse", over_long="cut")
        ]
        for name, rows in made.items()
    }
    assert kept["r000"] == kept["reasoning-opening-r100"]
    with pytest.raises(UserError, match="prompt and prefix alone fill"):
        check_arms(made, tok, chat, max_length=40, over_long="cut", **options)


@pytest.mark.parametrize("layout", FORMATS)
def test_exports_load_in_datasets_and_trl(tmp_path, layout):
    from datasets import load_dataset
    from trl import maybe_apply_chat_template

    (tmp_path / "d.jsonl").write_text(
        "".join(
            json.dumps(
                {
                    "prompt": f"q{i}",
                    "response": f"<think>\nOkay, so I need to see.\n\n{i}.\n</think>\n\nSure! It is {i}.",
                }
            )
            + "\n"
            for i in range(6)
        )
    )
    made = make_arms(
        str(tmp_path / "d.jsonl"),
        "reasoning",
        "opening",
        "0,0.5,1",
        ["neutral"],
        tmp_path / "arms",
        ArmsOptions(layout=layout),
    )
    for about in made.arms:
        loaded = load_dataset(
            "json",
            data_files=str(tmp_path / "arms" / about.arm / "data.jsonl"),
            split="train",
            cache_dir=str(tmp_path / "c"),
        )
        assert len(loaded) == 6 and sum(end > 0 for end in loaded["prefix_end"]) == about.n_treated
        if layout in ("messages", "prompt_completion"):
            text = maybe_apply_chat_template(loaded[0], tokenizer())
            assert "<think>" in (text["text"] if layout == "messages" else text["completion"])
        if layout == "sharegpt":
            assert [t["from"] for t in loaded[0]["conversations"]] == ["human", "gpt"]
        if layout == "alpaca":
            assert loaded[0]["instruction"].startswith("q") and loaded[0]["output"].startswith("<think>")
