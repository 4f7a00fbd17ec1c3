"""Which words of a prefix stand out, against controls matched for place and frequency. No torch.

The claim under test is that a word anchors the response: that a quantity (loss, a gradient, an influence) is larger at
it than at other words. Early tokens have large losses and gradients in any text, rare words too, and words differ from
each other for no reason that matters here. So the null distribution is that of **words**: the words of the controls
`neutral` and `random`, whose means are regressed on place and frequency, and whose spread around the fit says by how
much a word departs from its expectation by itself. A test whose only noise is that of the samples would announce
nearly every word once there are enough samples. Samples and seeds are resampled for a second question: how well the
excess of this word is known.

The control `shuffled` holds the treatment's own words and is no null for them. It answers another question, reported
beside: is the word larger here than the same word at another place of the same prefix?

Derivation and limits: docs/methods.md, "Anchors".
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars
from numpy.typing import NDArray
from scipy import stats as distributions

from prefixlab.analysis.occurrences import CELL, Unit, occurrences, of_quantity
from prefixlab.analysis.stats import ROUNDING
from prefixlab.analysis.word_levels import NOTHING, Array, Levels, Spread, Words, words_of
from prefixlab.errors import unknown
from prefixlab.records import Record

SIGNED = ("influence", "token_influence")
"""Quantities that may be negative: compared as they are. All others are norms or nats, compared as logarithms."""
QUANTITIES = (
    *("loss", "entropy", "rank", "kl", "logit_gradient", "input_gradient", "contribution", "token_gradient"),
    *SIGNED,
)
KINDS = {None: 0, "neutral": 1, "random": 1, "shuffled": 2}
"""What a rendering is by its control: the treatment, of the null, or the same words elsewhere. Others are not read."""
MIN_CONTROL_WORDS = 10


class AnchorRow(Record):
    """One word or token of a treatment's templates, for one quantity and one trained (or untrained) model."""

    model: str
    capability: str
    arm: str
    rendering: str
    """The treatment set whose templates were read."""
    unit: Unit
    word: str
    quantity: str
    scale: str
    """`log` or `raw`: of the excess, its interval and the place excess."""
    rank: int | None
    """1 for the word that departs most, upwards, from its expectation; null where it is not tested."""
    mean: float | None
    """Over occurrences, in the quantity's own unit."""
    expected: float | None
    """What control words at its place and of its frequency have, in the quantity's own unit."""
    excess: float | None
    """mean against expected: ln(mean / expected) on the log scale, else their difference."""
    ci_low: float | None
    ci_high: float | None
    """Of the excess, over samples and seeds; it does not hold the spread between words, which is in p."""
    interval_over: str
    """`samples and seeds`, or `samples only` where there is one seed or none: training variance is then unknown."""
    t: float | None
    p: float | None
    q: float | None
    """p, Benjamini-Hochberg-adjusted over the tested words of this model, arm, rendering, unit and quantity."""
    announced: bool
    place_excess: float | None
    """Against the same word in the shuffled template of the same samples; null where there is none."""
    place_low: float | None
    place_high: float | None
    position: float
    """Mean index within the prefix, from 0."""
    log_count: float
    """Mean of ln(1 + count in the training data) over the word's tokens."""
    n_samples: int
    n_seeds: int
    n_control_words: int
    why: str
    """Why the word was not tested or not measured; empty where it was."""


def units(
    rows: polars.DataFrame, quantities: Sequence[str], frequency: Mapping[int, int]
) -> dict[Unit, polars.DataFrame]:
    """The words and the tokens of every reading, for `ranked`.

    Args:
        rows: Token rows of all models; columns as docs/methods.md lists them.
        quantities: Of `QUANTITIES`.
        frequency: Count of each token id in the training data.

    Raises:
        UserError: Unknown quantity.
    """
    for quantity in quantities:
        if quantity not in QUANTITIES:
            raise unknown("quantity", quantity, QUANTITIES)
    names: tuple[Unit, ...] = ("word", "token")
    return {
        unit: occurrences(rows, quantities, unit, frequency).with_columns(
            kind=polars.col("control").replace_strict(KINDS, default=-1, return_dtype=polars.Int64)
        )
        for unit in names
    }


def anchors(
    rows: polars.DataFrame, quantity: str, *, alpha: float, rng: np.random.Generator, frequency: Mapping[int, int]
) -> list[AnchorRow]:
    """`ranked` of one quantity, from token rows: for arguments see there and at `units`."""
    return ranked(units(rows, [quantity], frequency), quantity, alpha=alpha, rng=rng)


def ranked(
    tables: Mapping[Unit, polars.DataFrame], quantity: str, *, alpha: float, rng: np.random.Generator
) -> list[AnchorRow]:
    """Rank the words and tokens of every treatment's templates.

    Args:
        tables: Of `units`.
        quantity: One of those that the tables hold.
        alpha: False-discovery rate, and 1 - the intervals' level.
        rng: For the resampling.

    Returns:
        Rows by model, capability, arm, rendering and unit, best rank first. Empty without a rendering that puts a
        prefix into the response.
    """
    found: list[AnchorRow] = []
    for unit, table in tables.items():
        for cell, group in of_quantity(table, quantity).group_by(CELL, maintain_order=True):
            treated = group.filter(polars.col("control").is_null())["rendering"].unique(maintain_order=True)
            for rendering in treated:
                names = dict(zip(CELL, cell, strict=True)) | {"rendering": rendering, "unit": unit}
                found += _ranking(group, names, quantity, alpha, rng)
    return found


def _ranking(
    group: polars.DataFrame, names: Mapping[str, object], quantity: str, alpha: float, rng: np.random.Generator
) -> list[AnchorRow]:
    """The words of one treatment under one model."""
    other = (group["rendering"] != names["rendering"]).to_numpy()
    kind_R = np.where(other & (group["kind"].to_numpy() == 0), -1, group["kind"].to_numpy())
    words = words_of(group, kind_R)
    base = {**names, "quantity": quantity, "scale": "raw" if quantity in SIGNED else "log"}
    rows = _measured(words, base, alpha, rng) if words else []
    unmeasured = (kind_R == 0) & (group["count"].to_numpy() == 0)
    if not unmeasured.any():
        return rows
    rest = group.filter(polars.Series(unmeasured), ~polars.col("key").is_in({r.word for r in rows}))
    about = rest.group_by("key").agg(polars.col("position").mean(), polars.col("log_count").mean()).sort("key")
    why = f"not measured: {quantity} is null here"
    return rows + [_row(base, key, position, log_count, why=why) for key, position, log_count in about.iter_rows()]


def _row(base: Mapping[str, object], word: str, position: float, log_count: float, **known: object) -> AnchorRow:
    """A row in which everything that is not given is not measured."""
    numbers = ("rank", "mean", "expected", "excess", "ci_low", "ci_high", "t", "p", "q")
    fields: dict[str, object] = dict.fromkeys((*numbers, "place_excess", "place_low", "place_high"))
    fields |= {"interval_over": "", "announced": False, "n_samples": 0, "n_seeds": 0, "n_control_words": 0, "why": ""}
    return AnchorRow.model_validate(
        fields | {**base, "word": word, "position": position, "log_count": log_count} | known
    )


@dataclass(frozen=True)
class _Test:
    """The departure of every word of the treatment from what control words say."""

    excess: Spread
    expected_T: Array
    t_T: Array
    p_T: Array
    varied_T: NDArray[np.bool_]
    """Whether there is any variance to judge it by."""


def _test(levels: Levels) -> _Test | str:
    """Regress the control words, and judge the others by the spread around the fit; or why that cannot be done.

    With s^2 the residual variance of the C control words, v the variance that resampling gives an excess, and v_C the
    mean of that of the controls' residuals:

        tau^2 = max(0, s^2 - v_C)           spread between words that no sample explains
        V     = tau^2 (1 + leverage) + v    not below s^2 (1 + leverage) for a word seen no more often than controls
        t     = excess / sqrt(V)            Satterthwaite's df, C - rank for the first part
    """
    words = levels.words
    own, null = words.kind_W == 0, words.kind_W == 1
    c = int(null.sum())
    if c < MIN_CONTROL_WORDS:
        return f"not tested: {c} words of the controls neutral and random were read, {MIN_CONTROL_WORDS} are needed"
    varies = np.ptp(words.design_W_4[null], axis=0) > 0
    varies[0] = True
    design = words.design_W_4[:, varies]
    inverse = np.linalg.pinv(design[null])
    rank = int(np.linalg.matrix_rank(design[null]))
    excess = levels.spread(lambda x: x[own] - design[own] @ (inverse @ x[null]), words.n_W[own])
    control = levels.spread(lambda x: x[null] - design[null] @ (inverse @ x[null]), words.n_W[null])
    hat_T = ((design[own] @ inverse) ** 2).sum(axis=1)
    s2 = float((control.value_T**2).sum()) / (c - rank)
    tau2 = max(0.0, s2 - float(np.maximum(control.samples_T, control.seeds_T).sum()) / (c - rank))
    variance = tau2 * (1 + hat_T) + excess.total_T
    few = excess.n_T <= control.n_T.mean()
    variance = np.where(few, np.maximum(variance, s2 * (1 + hat_T)), variance)
    varied = variance > (ROUNDING * np.maximum(1.0, np.abs(levels.level_W[own]))) ** 2
    t = np.where(varied, excess.value_T / np.sqrt(np.where(varied, variance, 1.0)), 0.0)
    p = 2 * distributions.t.sf(np.abs(t), excess.df(tau2 * (1 + hat_T), c - rank))
    if s2 > ROUNDING**2:
        p = np.maximum(p, _heavy_tailed(t, control.value_T))
    return _Test(excess, levels.level_W[own] - excess.value_T, t, p, varied)


def _heavy_tailed(t_T: Array, residual_C: Array) -> Array:
    """The p value under a t distribution of variance 1 whose tails are as heavy as the controls allow.

    Its kurtosis, 6 / (df - 4), is theirs plus one standard error, sqrt(24 / C).
    """
    kurtosis = float(distributions.kurtosis(residual_C, bias=False)) + math.sqrt(24 / len(residual_C))
    if kurtosis <= 0:
        return np.asarray(2 * distributions.norm.sf(np.abs(t_T)))
    df = 4 + 6 / kurtosis
    return np.asarray(2 * distributions.t.sf(np.abs(t_T) * math.sqrt(df / (df - 2)), df))


def _measured(words: Words, base: Mapping[str, object], alpha: float, rng: np.random.Generator) -> list[AnchorRow]:
    """Rows of the words that were measured in at least one sample, tested ones first."""
    levels = Levels(words, base["scale"] == "raw", rng)
    own = np.flatnonzero(words.kind_W == 0)
    known: list[dict[str, object]] = [
        {
            "mean": float(levels.mean_W[w]),
            "n_samples": int(words.n_W[w]),
            "n_seeds": words.n_seeds,
            "n_control_words": int((words.kind_W == 1).sum()),
            "interval_over": "samples and seeds" if words.n_seeds > 1 else "samples only",
        }
        for w in own
    ]
    if float(np.abs(levels.mean_W[words.kind_W != 2]).max()) <= NOTHING:
        flat: dict[str, object] = {"expected": 0.0, "excess": 0.0, "p": 1.0, "q": 1.0}
        flat["why"] = f"not tested: {base['quantity']} is 0 at every word, as where an adapter is the base"
        known = [k | flat for k in known]
    else:
        test = _test(levels)
        _compare(known, test, levels, alpha)
        _place(known, levels, alpha)
    order = sorted(range(len(own)), key=lambda i: (known[i].get("rank") or len(own) + 1, words.keys[own[i]]))
    design = words.design_W_4[own]
    return [_row(base, words.keys[own[i]], float(design[i, 2]), float(design[i, 3]), **known[i]) for i in order]


def _compare(known: Sequence[dict[str, object]], test: _Test | str, levels: Levels, alpha: float) -> None:
    """Add test, interval and announcement to the words' fields."""
    if isinstance(test, str):
        for fields in known:
            fields["why"] = test
        return
    tested = np.flatnonzero((test.excess.n_T > 1) & test.varied_T).tolist()
    q = dict(zip(tested, distributions.false_discovery_control(test.p_T[tested]).tolist(), strict=True))
    intervals = test.excess.intervals(alpha)
    ranked = sorted(tested, key=lambda i: -test.t_T[i])
    for i, fields in enumerate(known):
        low, high = intervals[i]
        fields |= {
            "expected": levels.back(float(test.expected_T[i])),
            "excess": float(test.excess.value_T[i]),
            "ci_low": low,
            "ci_high": high,
        }
        if i not in q:
            one = test.excess.n_T[i] < 2
            fields["why"] = (
                f"not tested: {'read in one sample only' if one else 'no control word departs from the fit'}"
            )
            continue
        fields |= {"rank": ranked.index(i) + 1, "t": float(test.t_T[i]), "p": float(test.p_T[i]), "q": q[i]}
        fields["announced"] = bool(q[i] < alpha and low is not None and low > 0)


def _place(known: Sequence[dict[str, object]], levels: Levels, alpha: float) -> None:
    """Add the excess over the same word in the shuffled template, where it was read there."""
    words = levels.words
    shuffled = {words.keys[w]: w for w in np.flatnonzero(words.kind_W == 2)}
    pairs = [
        (i, w, shuffled[words.keys[w]])
        for i, w in enumerate(np.flatnonzero(words.kind_W == 0))
        if words.keys[w] in shuffled
    ]
    if not pairs:
        return
    first, second = np.array([p[1] for p in pairs]), np.array([p[2] for p in pairs])
    n = np.minimum(words.n_W[first], words.n_W[second])
    spread = levels.spread(lambda x: x[first] - x[second], n)
    intervals = spread.intervals(alpha)
    for at, (i, _, _) in enumerate(pairs):
        low, high = intervals[at]
        known[i] |= {"place_excess": float(spread.value_T[at]), "place_low": low, "place_high": high}
