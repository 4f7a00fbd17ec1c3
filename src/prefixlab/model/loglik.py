"""Log-likelihoods of continuations, as multiple-choice suites need them.

The pairs are run longest context first. What all contexts share is run once, and so is every distinct context (the
options of one question); options stand to the right of their context and only their positions reach the output head.
`encode_pair` splits text into ids by the rule of lm-eval's HFLM (EleutherAI/lm-evaluation-harness, lm_eval/api/model.py
`_encode_pair`, 0.4.13), so that numbers can be compared.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prefixlab.model.decode import Forward, Group, Pass, open_forward
from prefixlab.model.kv import KV
from prefixlab.model.prefill import SLOTS, prefill

Pair = tuple[tuple[int, ...], tuple[int, ...]]
"""Ids of a context and of its continuation."""
HEAD_ROWS = 256
"""Positions whose logits are held at once."""


@dataclass(frozen=True)
class LogLik:
    """Sum of log p over a continuation (nats), whether greedy decoding would write it, and its number of tokens."""

    total: float
    greedy: bool
    n: int


def encode_pair(tokenizer: PreTrainedTokenizerBase, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """Ids of a context and its continuation.

    White space at the end of the context moves to the continuation; both are tokenised together, and the ids are cut at
    the number of ids that the context alone has.

    Raises:
        ValueError: The context is empty.
    """
    if not context:
        raise ValueError("the context is empty: give at least the token that begins a text")
    head = context.rstrip()
    # The default: special tokens as the tokenizer adds them, to the whole and to the context alike.
    whole = tokenizer.encode(head + context[len(head) :] + continuation)
    cut = len(tokenizer.encode(head))
    return whole[:cut], whole[cut:]


@dataclass(frozen=True)
class _Option:
    """One distinct continuation of one distinct context; `places` are those of the pairs that ask for it."""

    context: int
    ids: tuple[int, ...]
    places: tuple[int, ...]


def _batches(options: Sequence[_Option], stems: Sequence[tuple[int, ...]], tokens: int) -> Iterator[list[_Option]]:
    """Options of similar length together: at most `tokens` with their padding, and `SLOTS` with their contexts."""
    batch: list[_Option] = []
    longest = 0
    for option in sorted(options, key=lambda o: -len(o.ids)):
        longest = max(longest, len(stems[option.context]))
        rows, width = len(batch) + 1, len(batch[0].ids) if batch else 0
        if batch and (rows * width > tokens or rows * (longest + width) > SLOTS):
            yield batch
            batch, longest = [], len(stems[option.context])
        batch.append(option)
    if batch:
        yield batch


def _score(
    forward: Forward,
    stems: Sequence[tuple[int, ...]],
    done: KV | None,
    row_of: Mapping[int, int],
    options: Sequence[_Option],
    pad: int,
) -> Iterator[tuple[_Option, LogLik]]:
    """Run options behind their prefilled contexts; a context's last token is run with its option."""
    device = forward.model.device
    lengths = [len(stems[o.context]) - 1 for o in options]
    before, width = max(lengths), max(len(o.ids) for o in options)
    kv = KV(forward.model, len(options), before + width)
    starts = [before - n for n in lengths]
    kv.hide(starts)
    if done is not None:
        for row, (option, n) in enumerate(zip(options, lengths, strict=True)):
            source = row_of[option.context]
            kv.fill(slice(row, row + 1), before, done, slice(source, source + 1), n)
    inputs = [(stems[o.context][-1], *o.ids[:-1]) for o in options]
    ids = torch.tensor([list(i) + [pad] * (width - len(i)) for i in inputs], device=device)
    positions = torch.tensor(lengths, device=device)[:, None] + torch.arange(width, device=device)
    groups: list[Group] = [(a, 0, len(options)) for a in forward.default]
    hidden = forward.hidden(Pass(ids, positions, kv, starts, before + width, None, groups))
    real = torch.tensor([[j < len(o.ids) for j in range(width)] for o in options], device=device)
    states = hidden[real]
    targets = torch.tensor([t for o in options for t in o.ids], device=device)
    chosen, best = torch.empty(len(targets)), torch.empty(len(targets), dtype=torch.bool)
    for a in range(0, len(targets), HEAD_ROWS):
        logits = forward.logits(states[a : a + HEAD_ROWS]).float()
        picked = logits.gather(1, targets[a : a + HEAD_ROWS, None])[:, 0]
        chosen[a : a + HEAD_ROWS] = picked - logits.logsumexp(-1)
        best[a : a + HEAD_ROWS] = picked == logits.amax(-1)
    at = 0
    for option in options:
        part = slice(at, at + len(option.ids))
        at = part.stop
        yield option, LogLik(float(chosen[part].double().sum()), bool(best[part].all()), len(option.ids))


@torch.inference_mode()
def log_likelihoods(
    model: PreTrainedModel, pairs: Sequence[Pair], *, pad: int, batch_tokens: int = 1024
) -> list[LogLik]:
    """Log p(continuation | context) of every pair, in the order of the pairs.

    Args:
        model: In evaluation mode; a merged or wrapped adapter is used as it is.
        pairs: Ids of contexts and continuations; neither may be empty.
        pad: Token id for padding; hidden by the mask.
        batch_tokens: Tokens of continuations in one forward pass, padding included.

    Raises:
        ValueError: An empty context or continuation.
    """
    places: dict[Pair, list[int]] = {}
    for i, (context, continuation) in enumerate(pairs):
        if not context or not continuation:
            raise ValueError(f"pair {i} has an empty {'continuation' if context else 'context'}")
        places.setdefault((tuple(context), tuple(continuation)), []).append(i)
    stems = list(dict.fromkeys(context for context, _ in places))
    number = {stem: i for i, stem in enumerate(stems)}
    options = [_Option(number[context], ids, tuple(where)) for (context, ids), where in places.items()]
    forward = open_forward(model)
    found: dict[int, LogLik] = {}

    def score(done: KV | None, row_of: Mapping[int, int], mine: Sequence[_Option]) -> None:
        for batch in _batches(mine, stems, batch_tokens):
            for option, value in _score(forward, stems, done, row_of, batch, pad):
                found.update(dict.fromkeys(option.places, value))

    alone = [o for o in options if len(stems[o.context]) == 1]
    if alone:
        score(None, {}, alone)
    # Contexts may be equal without their last tokens; each is run once.
    heads: dict[tuple[int, ...], list[int]] = {}
    for i, stem in enumerate(stems):
        if len(stem) > 1:
            heads.setdefault(stem[:-1], []).append(i)
    if heads:
        prompts = list(heads)
        for done in prefill(forward, prompts, pad, forward.default):
            row_of = {i: row for row, head in enumerate(done.indices) for i in heads[prompts[head]]}
            score(done.kv, row_of, [o for o in options if o.context in row_of])
    return [found[i] for i in range(len(pairs))]
