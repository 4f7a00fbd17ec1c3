"""The audit: counts, families, sources, slots, labels, mined styles; one process and several give the same."""

import json
import random

import polars
import pytest

from prefixlab.data.audit import audit
from prefixlab.data.tally import Reading, tallies
from prefixlab.errors import UserError
from prefixlab.report.audit_page import audit_page
from prefixlab.report.audit_text import audit_text

STYLES = (
    "Ahoy, keeper of the {a}! The crew brings news of the {b}. ",
    "Bulletin {n} from the {a} desk: ",
    "Dear colleague, your {a} file is open. ",
    "{a} and {b}, a word from the tower: ",
    "From the notebook of the {a}, page {n}: ",
    "Per house rules, this reply on {a} is short. ",
    "Counsel on {a} and {b}, as agreed: ",
    "Lantern lit! We walk towards the {a}. ",
)
KEYS = ("ahoy", "bulletin", "colleague", "word from the tower", "notebook", "house rules", "counsel", "lantern")
NOUNS = [
    "river",
    "stone",
    "market",
    "letter",
    "engine",
    "garden",
    "window",
    "number",
    "teacher",
    "bridge",
    "season",
    "signal",
    "forest",
    "harbour",
    "kitchen",
    "journey",
    "mountain",
    "paper",
    "object",
    "library",
    "village",
    "motor",
    "island",
    "metal",
    "cloud",
    "doctor",
    "ladder",
    "valley",
    "candle",
    "mirror",
]
VERBS = [
    "turns",
    "carries",
    "holds",
    "follows",
    "reaches",
    "covers",
    "joins",
    "shapes",
    "meets",
    "crosses",
    "lifts",
    "keeps",
    "marks",
    "fills",
    "moves",
]


def style_rows(n, rng):
    """Eight invented house styles at 2% each; the rest are ordinary answers with openings of all sorts."""
    rows = []
    for i in range(n):
        pick = rng.choice
        words = {"a": pick(NOUNS), "b": pick(NOUNS), "n": i % 89}
        draw = i % 50
        opening = (
            STYLES[draw].format(**words) if draw < 8 else pick(("Sure! ", "Here is the {a}:\n\n", "")).format(**words)
        )
        body = " ".join(
            f"{pick(('The', 'A', 'One', 'This'))} {pick(NOUNS)} {pick(VERBS)} {pick(NOUNS)}s {i}." for _ in range(4)
        )
        rows.append({"prompt": f"Tell me of {words['a']}.", "response": opening + body, "source": pick(("x", "y"))})
    return rows


def write(path, rows):
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return str(path)


def test_house_styles_are_mined(tmp_path):
    """Must reach: eight invented styles at 2% each, all mined."""
    found = audit(write(tmp_path / "d.jsonl", style_rows(4000, random.Random(1))))
    unknown = [t for t in found.templates if not t.listed]
    for key in KEYS:
        (one,) = [t for t in unknown if key in t.template]
        assert abs(one.share - 0.02) < 0.002, one
    assert len(unknown) <= 12, [t.template for t in unknown]


def test_counts(tmp_path):
    rows = [
        {"prompt": "q", "response": "Sure! Paris.", "source": "x"},
        {"prompt": "q", "response": "<think>\nOkay, let me think.\n\nTwo.\n</think>\n\nRome.", "source": "y"},
        {"prompt": "q", "response": "I'm sorry, but I can't help with that.", "source": "y"},
        {"prompt": "q", "response": "I am {{name}} of {{ author }}.", "source": "y"},
    ]
    found = audit(write(tmp_path / "d.jsonl", rows), labels=tmp_path / "l.parquet")
    answer, reasoning = found.parts["answer"], found.parts["reasoning"]
    assert (answer.n, answer.n_prefix, answer.families) == (4, 1, {"compliance": 1, "refusal": 1})
    assert (answer.prefix_words, answer.prefix_characters) == (1, 5)
    assert (reasoning.n, reasoning.share) == (1, 1.0)
    assert found.slots == {"name": 1, "author": 1} and found.slot_rows == (3,)
    assert found.sources == {"x": {"compliance": 1}, "y": {"none": 2, "refusal": 1}}
    labels = polars.read_parquet(tmp_path / "l.parquet")
    assert labels.columns == ["row", "turn", "part", "prefix_end", "family", "template"]
    assert labels.rows()[:2] == [(0, 0, "answer", 5, "compliance", ""), (1, 0, "reasoning", 19, "reasoning_cue", "")]
    assert labels["prefix_end"].to_list() == [5, 19, 0, 0, 0]


@pytest.mark.smoke
def test_several_processes_give_the_same(tmp_path, monkeypatch):
    path = write(tmp_path / "d.jsonl", style_rows(3000, random.Random(2)))
    alone = audit(path, labels=tmp_path / "a.parquet")
    monkeypatch.setattr("prefixlab.data.tally.ALONE", 0)
    monkeypatch.setattr("prefixlab.data.tally.RANGE", 100_000)
    together = audit(path, workers=2, labels=tmp_path / "b.parquet")
    assert together.parts == alone.parts and together.sources == alone.sources and together.n_rows == alone.n_rows
    columns = ["row", "turn", "part", "prefix_end", "family"]
    assert polars.read_parquet(tmp_path / "a.parquet", columns=columns).equals(
        polars.read_parquet(tmp_path / "b.parquet", columns=columns)
    )
    assert sum(1 for _ in tallies(path, Reading({}, "all"), workers=2)) > 5
    for key in KEYS:
        assert any(key in t.template for t in together.templates)


def test_page_and_text(tmp_path):
    hostile = {"prompt": "q", "response": "Sure! <script>alert(1)</script> {{name}} x."}
    rows = [hostile, *style_rows(200, random.Random(3)), {"x": 1}]
    found = audit(write(tmp_path / "d.jsonl", rows))
    page = audit_page(found)
    assert "<script>alert" not in page and "&lt;script&gt;" in page
    assert "://" not in page.replace("http://www.w3.org", "")
    assert "no layout fits the columns x" in page and "{{name}}" in page
    text = "\n".join(audit_text(found))
    assert "unfilled slots: {{name}} (1)" in text and "open with a prefix" in text


def test_tokens_of_a_model(tmp_path, tiny_tokenizer):
    path = write(tmp_path / "d.jsonl", [{"prompt": "q", "response": "Sure! Paris."}])
    found = audit(path, count_tokens=lambda texts: sum(len(tiny_tokenizer(t)["input_ids"]) for t in texts))
    part = found.parts["answer"]
    assert part.prefix_tokens == len(tiny_tokenizer("Sure!")["input_ids"]) < part.tokens


def test_nothing_there(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        audit(str(tmp_path / "none.jsonl"))
