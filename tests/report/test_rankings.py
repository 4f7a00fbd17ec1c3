"""Rankings of words as the report tells them."""

from prefixlab.analysis.anchors import AnchorRow
from prefixlab.report.findings import rankings


def row(arm, word, excess, *, announced=False, rank=1):
    about = {"model": "m", "capability": "safety", "rendering": "safety", "unit": "word", "quantity": "kl"}
    numbers = dict.fromkeys(("ci_low", "ci_high", "t", "p", "q", "place_excess", "place_low", "place_high"))
    return AnchorRow(
        **about,
        **numbers,
        arm=arm,
        word=word,
        excess=excess,
        rank=rank,
        announced=announced,
        mean=1.0,
        expected=1.0,
        scale="log",
        interval_over="samples",
        position=0.0,
        log_count=0.0,
        n_samples=6,
        n_seeds=1,
        n_control_words=34,
        why="",
    )


def test_an_announced_word_stands_beside_r000():
    (told,) = rankings(
        [
            row("safety-opening-r100", "harm", 2.0, announced=True),
            row("safety-opening-r100", "safe", 0.5, rank=2),
            row("r000", "harm", 1.4, announced=True),
            row("neutral-opening-r100", "harm", 0.3),
        ]
    )
    assert told["announced"] and told["name"] == "safety · safety-opening-r100 · kl"
    assert told["sentence"] == (
        "1 of 2 words stands out among words: harm. "
        "Beside r000, trained without a prefix: harm +2 here, +1.4 in r000, where it stands out too."
    )


def test_without_r000_nothing_is_said_of_it():
    words = [row("safety-opening-r100", w, 2.0, announced=True, rank=i) for i, w in enumerate(("harm", "safe"), 1)]
    (told,) = rankings(words)
    assert told["sentence"] == "2 of 2 words stand out among words: harm, safe."
    (quiet,) = rankings([row("base", "harm", 0.1)])
    assert quiet["sentence"] == "None of 1 words stands out among words." and not quiet["announced"]
