"""Detection against parts labelled by reading. The texts are in ../shared/data; here are places, hashes and offsets.

development and second: used while the rules were written (`second` was scored once before that). final: labelled by two
readers who had not seen the rules, drawn afterwards, scored at the end.
"""

import hashlib
import json
from functools import cache

import pytest

from conftest import ROOT, SHARED
from prefixlab.data.openings import find_opening
from prefixlab.data.parts import split_response

GOLD = ROOT / "tests" / "data" / "gold"
PROMPTS = ("instruction", "prompt", "question")
RESPONSES = ("output", "response", "answer")


@cache
def source(name):
    text = (SHARED / name).read_text(encoding="utf-8")
    return json.loads(text) if name.endswith(".json") else [json.loads(line) for line in text.split("\n") if line]


def gold(half):
    if not SHARED.is_dir():
        pytest.skip("the shared data sets are not there")
    for line in (GOLD / f"{half}.jsonl").read_text().splitlines():
        label = json.loads(line)
        row = source(label["file"])[label["row"]]
        prompt = next(row[c] for c in PROMPTS if c in row)
        reasoning, answer = split_response(next(row[c] for c in RESPONSES if c in row))
        text = reasoning if label["part"] == "reasoning" else answer
        assert hashlib.sha256(text.encode()).hexdigest()[:16] == label["sha256"], label
        found = find_opening(text, prompt, label["part"])
        yield label, found.end if found and found.family != "refusal" else 0


def scores(pairs, *, alternatives=False):
    """Precision, recall, share of exact ends among the hits, hits."""
    hits = wrong = missed = exact = 0
    for label, end in pairs:
        accepted = {label["end"], *(label["others"] if alternatives else [])}
        if end:
            good = end in accepted or any(accepted)
            hits, wrong, exact = hits + good, wrong + (not good), exact + (end in accepted)
        else:
            missed += 0 not in accepted
    return hits / (hits + wrong), hits / (hits + missed), exact / hits, hits


def test_final_half_meets_the_bounds():
    """Must reach: precision 0.97, recall 0.95, exact ends in 0.90 of the hits, on sure rows."""
    pairs = list(gold("final"))
    precision, recall, exact, hits = scores([p for p in pairs if not p[0]["unsure"]])
    print(f"final, sure rows: precision {precision:.3f} recall {recall:.3f} exact {exact:.3f} hits {hits}")
    print("final, all rows:", scores(pairs), "alternatives accepted:", scores(pairs, alternatives=True))
    assert len(pairs) == 400 and hits > 120
    assert precision >= 0.97 and recall >= 0.95 and exact >= 0.90


@pytest.mark.parametrize("half", ["development", "second"])
def test_no_regression_where_the_rules_were_made(half):
    precision, recall, exact, _ = scores([p for p in gold(half) if not p[0]["unsure"]])
    assert precision >= 0.97 and recall >= 0.95 and exact >= 0.95


def test_gold_files_hold_no_text():
    for path in GOLD.iterdir():
        for line in path.read_text().splitlines():
            assert set(json.loads(line)) == {"file", "row", "part", "sha256", "end", "family", "unsure", "others"}
