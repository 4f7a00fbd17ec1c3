"""How different K sampled completions of one prompt are, and how many of them it takes to pass. No torch.

Words are runs of letters and digits, in lower case.

    distinct-n = different n-grams of all K texts / n-grams of all K texts          (Li et al. 2016, arXiv 1510.03055)
    similarity = mean over the K (K - 1) / 2 pairs of |A and B| / |A or B|, A and B the sets of words (Jaccard)
    answers    = number of different final answers among the K
    pass@k     = 1 - C(n - c, k) / C(n, k), c of n pass                             (arXiv 2107.03374)

distinct-n falls with the length of the texts and with K, so arms are compared at the same K only, and their lengths
should be read beside it.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import TypeVar

from prefixlab.analysis.narrowing import Series
from prefixlab.errors import UserError
from prefixlab.evals.aggregate import pass_at

NGRAMS = (1, 2, 3)
_WORD = re.compile(r"\w+")
Text = TypeVar("Text")
"""A text as it is, or its words."""
BySeed = Mapping[int | None, Mapping[str, Sequence[str]]]
"""Seed -> prompt -> its K texts."""


@dataclass(frozen=True)
class Sampled:
    """K completions a prompt of one model and arm under one condition."""

    model: str
    capability: str
    arm: str
    suite: str
    condition: str
    texts: BySeed
    answers: BySeed | None = None
    """The final answers, as the suite's scorer reads them; a text without one has the empty string."""
    passed: Mapping[int | None, Mapping[str, tuple[int, int]]] | None = None
    """Seed -> prompt -> (c, n): c of n samples pass."""


def distinct(texts: Sequence[str], n: int) -> float | None:
    """Share of different n-grams among all of them; None where no text has n words."""
    return _distinct([_words(text) for text in texts], n)


def similarity(texts: Sequence[str]) -> float | None:
    """Mean Jaccard similarity of the word sets of all pairs; two texts without words are alike. None for one text."""
    return _similarity([_words(text) for text in texts])


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _distinct(texts: Sequence[Sequence[str]], n: int) -> float | None:
    """`distinct` of texts that are split into words."""
    grams = [gram for words in texts for gram in zip(*(words[i:] for i in range(n)), strict=False)]
    return len(set(grams)) / len(grams) if grams else None


def _similarity(texts: Sequence[Sequence[str]]) -> float | None:
    """`similarity` of texts that are split into words."""
    sets = [frozenset(words) for words in texts]
    pairs = [len(a & b) / len(a | b) if a | b else 1.0 for a, b in combinations(sets, 2)]
    return sum(pairs) / len(pairs) if pairs else None


def diversity_series(sampled: Sampled) -> list[Series]:
    """distinct-1 to 3, similarity, and the number of different answers where there are answers.

    Only prompts with all K completions count; with K = 1 nothing is measured, and `why` says so.
    """
    k = max((len(t) for by_prompt in sampled.texts.values() for t in by_prompt.values()), default=0)
    why = "" if k > 1 else f"not measured: {k} completion{'s' * (k != 1)} a prompt, two are needed"
    whole = {} if why else {s: {p: t for p, t in own.items() if len(t) == k} for s, own in sampled.texts.items()}
    words = {s: {p: [_words(t) for t in texts] for p, texts in own.items()} for s, own in whole.items()}
    found = [_series(sampled, "distinct", n, words, partial(_distinct, n=n), k, why) for n in NGRAMS]
    found.append(_series(sampled, "similarity", None, words, _similarity, k, why))
    if sampled.answers is not None:
        given = {} if why else {s: {p: t for p, t in own.items() if len(t) == k} for s, own in sampled.answers.items()}
        found.append(_series(sampled, "answers", None, given, lambda t: float(len(set(t))), k, why))
    return found


def _series(
    sampled: Sampled,
    quantity: str,
    at: int | None,
    texts: Mapping[int | None, Mapping[str, Sequence[Text]]],
    measure: Callable[[Sequence[Text]], float | None],
    k: int,
    why: str,
) -> Series:
    values: dict[int | None, dict[str, float]] = {}
    for seed, by_prompt in texts.items():
        measured = ((prompt, measure(own)) for prompt, own in by_prompt.items())
        values[seed] = {prompt: value for prompt, value in measured if value is not None}
    about = (sampled.model, sampled.capability, sampled.arm, sampled.suite, sampled.condition)
    return Series(*about, quantity, "", at, None, values, k, why)


def pass_series(sampled: Sampled, ks: Sequence[int] | None = None) -> list[Series]:
    """The pass@k curve: a series a k, at every power of two up to the number of samples, and at that number.

    Args:
        sampled: With `passed`; prompts with fewer than the largest number of samples are left out.
        ks: Other values of k.

    Raises:
        UserError: Counts that cannot be, or a k above the number of samples.
    """
    counts = sampled.passed or {}
    for by_prompt in counts.values():
        for prompt, (c, n) in by_prompt.items():
            if not 0 <= c <= n:
                raise UserError(f"prompt {prompt!r}: {c} of {n} samples pass; give passes first, at most the samples")
    n = max((n for by_prompt in counts.values() for _, n in by_prompt.values()), default=0)
    wanted = sorted(ks) if ks is not None else sorted({*(2**i for i in range(n.bit_length())), n} - {0})
    wrong = [k for k in wanted if not 1 <= k <= n]
    if wrong:
        raise UserError(f"pass@{wrong[0]} with {n} samples a prompt; k is 1 to {n}")
    about = (sampled.model, sampled.capability, sampled.arm, sampled.suite, sampled.condition)
    if not wanted:
        return [Series(*about, "pass", "", None, None, {}, n, "not measured: nothing was scored")]
    whole = {seed: {p: c for p, (c, m) in by_prompt.items() if m == n} for seed, by_prompt in counts.items()}
    return [
        Series(
            *about, "pass", "", k, None, {s: {p: pass_at(n, c, k) for p, c in t.items()} for s, t in whole.items()}, n
        )
        for k in wanted
    ]
