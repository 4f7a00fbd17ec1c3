"""Which prefixes make the responses of a data set likelier to the base model, before anything is trained.

The same response is read behind each candidate, behind a neutral sentence of its length, and bare; what is compared is
the loss of the rest, the tokens behind the prefix, which are the same in all of them (docs/methods.md, "Suggest").
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedModel

from prefixlab.analysis import stats
from prefixlab.data.prefixes import words
from prefixlab.errors import UserError
from prefixlab.model.loglik import log_likelihoods
from prefixlab.model.loss import IGNORE
from prefixlab.records import Position, Record, Rendered

NONE = ""
"""The rendering without a prefix."""


@dataclass(frozen=True)
class Candidate:
    """A prefix, and the neutral sentence that it is measured against; both with their separator."""

    prefix_set: str
    template: int
    text: str
    neutral: str


class SuggestRow(Record):
    """One candidate: what it does to the loss of the rest of the responses. Gains above 0 are lower losses."""

    rank: int
    prefix_set: str
    template: int
    """Index in the set, from 0; in a file of sentences, among the lines that are not blank."""
    text: str
    neutral: str
    """The neutral sentence it is measured against."""
    words: int
    neutral_words: int
    tokens: int
    """Of the prefix as rendered, separator included."""
    neutral_tokens: int
    n: int
    """Samples."""
    loss: float
    """Of the rest behind the candidate: nats a token, mean over samples."""
    gain: float | None
    """Loss behind the neutral sentence minus loss behind the candidate, nats a token: the order of the rows."""
    ci_low: float | None
    ci_high: float | None
    p: float | None
    p_holm: float | None
    """Over all candidates."""
    gain_total: float
    """The same in nats a response."""
    gain_none: float | None
    """Loss without any prefix minus loss behind the candidate, nats a token."""
    none_low: float | None
    none_high: float | None
    test: str


@dataclass(frozen=True)
class Rests:
    """Renderings whose labels are left on the tokens that all renderings of a sample share at their end."""

    samples: dict[str, list[Rendered]]
    """By prefix text; the same samples in the same order everywhere."""
    n_without: int
    """Samples left out because no token of theirs is the same in all renderings."""
    n_border: int
    """Tokens left out, over all samples: the first ones of a rest, where some prefix merges with them."""


def shared_rests(renderings: Mapping[str, Sequence[Rendered]], position: Position) -> Rests:
    """Keep the labels of what follows the prefix, in tokens that are the same behind every prefix.

    Args:
        renderings: By prefix text, NONE included; the same samples in the same order, none of them cut.
        position: Where the prefixes stand: what follows one at `answer` is the answer alone.
    """
    names = ("answer",) if position == "answer" else ("reasoning", "answer")
    kept: dict[str, list[Rendered]] = {text: [] for text in renderings}
    without = border = 0
    for group in zip(*renderings.values(), strict=True):
        stretches = []
        for sample in group:
            mine = [span for span in sample.spans if span.name in names]
            stretches.append((mine[0].start, mine[-1].end) if mine else (0, 0))
        rests = [sample.ids[a:b] for sample, (a, b) in zip(group, stretches, strict=True)]
        same = min(_common_end(rests[0], rest) for rest in rests)
        if not same:
            without += 1
            continue
        border += max(map(len, rests)) - same
        for text, sample, (_, end) in zip(renderings, group, stretches, strict=True):
            labels = [IGNORE] * len(sample.ids)
            labels[end - same : end] = sample.ids[end - same : end]
            kept[text].append(sample.model_copy(update={"labels": tuple(labels)}))
    return Rests(kept, without, border)


def _common_end(first: Sequence[int], second: Sequence[int]) -> int:
    """Number of tokens that two sequences share at their ends."""
    pairs = zip(reversed(first), reversed(second), strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))


def suggest_rows(
    model: PreTrainedModel,
    candidates: Sequence[Candidate],
    rests: Mapping[str, Sequence[Rendered]],
    *,
    pad: int,
    alpha: float = 0.05,
    tick: Callable[[int, int], None] = lambda done, total: None,
) -> list[SuggestRow]:
    """Rank candidates by how much they lower the loss of the rest beyond their neutral sentence.

    The renderings are read one after another, so that a candidate's losses do not depend on the other candidates.

    Args:
        model: The base, in evaluation mode.
        candidates: Their `text` and `neutral` are keys of `rests`.
        rests: `shared_rests(...).samples`, at least one sample.
        pad: Padding id.
        alpha: 1 - the level of the intervals.
        tick: Called with (sequences read, all sequences) after every rendering.

    Raises:
        UserError: A loss that is not finite.
    """
    losses = _losses(model, rests, pad, tick)
    lengths = np.array([sample.n_supervised for sample in rests[NONE]], dtype=np.float64)
    contrasts = [stats.paired(losses[c.neutral] / lengths, losses[c.text] / lengths, alpha) for c in candidates]
    adjusted = stats.holm({str(i): c.p for i, c in enumerate(contrasts) if c.p is not None})
    rows: list[SuggestRow] = []
    for i in sorted(range(len(candidates)), key=lambda i: (-(contrasts[i].diff or 0.0), i)):
        candidate, found = candidates[i], losses[candidates[i].text]
        bare = stats.paired(losses[NONE] / lengths, found / lengths, alpha)
        rows.append(
            SuggestRow(
                rank=len(rows) + 1,
                prefix_set=candidate.prefix_set,
                template=candidate.template,
                text=candidate.text.strip(),
                neutral=candidate.neutral.strip(),
                words=words(candidate.text),
                neutral_words=words(candidate.neutral),
                tokens=_prefix_tokens(rests[candidate.text][0]),
                neutral_tokens=_prefix_tokens(rests[candidate.neutral][0]),
                n=len(lengths),
                loss=float((found / lengths).mean()),
                gain=contrasts[i].diff,
                ci_low=contrasts[i].low,
                ci_high=contrasts[i].high,
                p=contrasts[i].p,
                p_holm=adjusted.get(str(i)),
                gain_total=float((losses[candidate.neutral] - found).mean()),
                gain_none=bare.diff,
                none_low=bare.low,
                none_high=bare.high,
                test=contrasts[i].test,
            )
        )
    return rows


def _losses(
    model: PreTrainedModel, rests: Mapping[str, Sequence[Rendered]], pad: int, tick: Callable[[int, int], None]
) -> dict[str, stats.Array]:
    """Summed loss of every sample's rest, nats, by prefix text.

    Raises:
        UserError: One is not finite.
    """
    total, done = sum(map(len, rests.values())), 0
    losses: dict[str, stats.Array] = {}
    for text, samples in rests.items():
        found = np.array([-x.total for x in log_likelihoods(model, [_rest(s) for s in samples], pad=pad)])
        if not np.isfinite(found).all():
            bad = samples[int(np.flatnonzero(~np.isfinite(found))[0])].id
            raise UserError(f"the model's loss on sample {bad!r} is not finite behind the prefix {text.strip()!r}")
        losses[text] = found
        done += len(samples)
        tick(done, total)
    return losses


def _rest(sample: Rendered) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Ids before the rest, and the rest: what `shared_rests` left labels on."""
    at = [i for i, label in enumerate(sample.labels) if label != IGNORE]
    return sample.ids[: at[0]], sample.ids[at[0] : at[-1] + 1]


def _prefix_tokens(sample: Rendered) -> int:
    span = sample.span("prefix")
    return span.end - span.start if span else 0
