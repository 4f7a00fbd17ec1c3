"""Words and tokens by hand, the place of a word, and the keyword test against the paired contrast."""

import numpy as np
import polars
import pytest

from prefixlab.analysis import stats
from prefixlab.analysis.anchors import anchors
from prefixlab.analysis.keywords import keyword_effect
from prefixlab.analysis.occurrences import occurrences, of_quantity
from prefixlab.errors import UserError


def hand(words, **more):
    """Rows of one sample's prefix under one rendering, a token a word unless `word_index` says otherwise."""
    n = len(words)
    return polars.DataFrame(
        {
            "model": ["m"] * n,
            "capability": "math",
            "arm": "a",
            "seed": polars.Series([1] * n, dtype=polars.Int64),
            "sample": "s0",
            "rendering": "set",
            "control": polars.Series([None] * n, dtype=polars.String),
            "position": range(n),
            "token": words,
            "token_id": range(n),
            "span": "prefix",
            "word": words,
            "word_index": range(n),
            "loss": 1.0,
            **more,
        }
    )


def test_words_and_tokens_by_hand():
    rows = hand(
        ["Sure", "!", " Step", "-by", "-step", ":", "\n\n"],
        word=["Sure!", "Sure!", "step-by-step:", "step-by-step:", "step-by-step:", "step-by-step:", ""],
        word_index=[0, 0, 1, 1, 1, 1, None],
        loss=[4.0, 9.0, 1.0, 2.0, 6.0, 9.0, 9.0],
        position=[3, 4, 5, 6, 7, 8, 9],
        token_id=[10, 11, 12, 13, 14, 15, 16],
    )
    found = of_quantity(occurrences(rows, ["loss"], "word", {10: 0, 12: 99, 13: 9}), "loss")
    about = {r["key"]: r for r in found.iter_rows(named=True)}
    assert about.keys() == {"sure", "step-by-step"}
    assert about["sure"]["total"] == 4.0 and about["step-by-step"]["total"] == 3.0  # means over tokens with letters
    assert (about["sure"]["first"], about["step-by-step"]["first"], about["step-by-step"]["position"]) == (
        1.0,
        0.0,
        1.0,
    )
    assert about["step-by-step"]["log_count"] == pytest.approx((np.log(100) + np.log(10)) / 3)
    tokens = {r["key"]: r for r in of_quantity(occurrences(rows, ["loss"], "token", {}), "loss").iter_rows(named=True)}
    assert tokens.keys() == {"sure", "step", "by"} and tokens["step"]["total"] == 7.0 and tokens["step"]["count"] == 2
    assert tokens["step"]["position"] == 3.0


def test_same_word_at_another_place():
    """The level falls by 0.1 a place and by nothing else: the place excess is what the shuffle moved."""
    own, moved = [f"a{i}" for i in range(12)], [f"a{(5 * i) % 12}" for i in range(12)]
    level = np.exp(-0.1 * np.arange(12))
    frames = []
    for s in range(6):
        frames.append(hand(own, sample=f"s{s}", loss=level))
        frames.append(hand(moved, sample=f"s{s}", loss=level, rendering="shuffled", control="shuffled"))
        frames.append(
            hand([f"n{i}" for i in range(12)], sample=f"s{s}", loss=level, rendering="neutral", control="neutral")
        )
    rows = [
        r
        for r in anchors(polars.concat(frames), "loss", alpha=0.05, rng=np.random.default_rng(0), frequency={})
        if r.unit == "word"
    ]
    for r in rows:
        i = int(r.word[1:])
        assert r.place_excess == pytest.approx(-0.1 * (i - moved.index(r.word)))
        assert r.excess == pytest.approx(0, abs=1e-9) and r.t is None and not r.announced
        assert r.why == "not tested: no control word departs from the fit"


def rest(values, **more):
    """Rows of a response: a prefix of two tokens where `more` has no rendering r000, then its rest."""
    n = len(values)
    spans = ["prefix", "prefix", *["answer"] * (n - 2)]
    return hand([f"x{i}" for i in range(n)], span=spans, loss=values, **more)


def test_keyword_effect_is_the_paired_contrast():
    rng, n, frames = np.random.default_rng(15), 12, []
    mean = {}
    for seed in (1, 2):
        for s in range(n):
            for rendering, shift in (("revised", 0.3), ("synonym", 0.0)):
                values = np.concatenate([[50.0, 60.0], shift + rng.normal(2, 1, 5)])
                mean[rendering, seed, s] = values[2:].mean()
                frames.append(rest(values, seed=seed, sample=f"s{s:02}", rendering=rendering))
    rows = polars.concat(frames)
    tables = [np.array([[mean[r, seed, s] for s in range(n)] for seed in (1, 2)]) for r in ("revised", "synonym")]
    (found,) = keyword_effect(rows, rendering="revised", reference="synonym", alpha=0.05)
    oracle = stats.compare(*tables, 0.05)
    assert (found.diff, found.ci_low, found.ci_high, found.p) == pytest.approx(
        (oracle.diff, oracle.low, oracle.high, oracle.p)
    )
    assert (found.n_samples, found.n_seeds) == (n, 2) and found.value == pytest.approx(tables[0].mean())
    (one,) = keyword_effect(rows.filter(seed=1), rendering="revised", reference="synonym", alpha=0.05)
    assert one.p == pytest.approx(stats.paired(tables[0][0], tables[1][0], 0.05).p) and one.n_seeds == 1


def test_keyword_effect_at_the_edges():
    whole, cut = rest([9.0, 9.0, 1.0, 3.0], rendering="with"), rest([9.0, 9.0], rendering="without")
    rows = polars.concat([whole, cut])
    (found,) = keyword_effect(rows, rendering="with", reference="without", alpha=0.05)
    assert (
        found.n_samples == 0
        and found.diff is None
        and found.why == "not measured: no sample has loss behind the prefix in both"
    )
    (same,) = keyword_effect(rows, rendering="with", reference="with", alpha=0.05)
    assert same.diff == 0 and same.p is None and same.n_samples == 1
    with pytest.raises(UserError, match="unknown rendering 'revised'; allowed: with, without"):
        keyword_effect(rows, rendering="revised", reference="with", alpha=0.05)
