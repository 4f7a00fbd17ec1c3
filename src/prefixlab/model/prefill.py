"""Prompts into keys and values, each token once: what all prompts share at their start, then every distinct prompt."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prefixlab.model.decode import Forward, Group, Pass
from prefixlab.model.kv import KV

TOKENS = 512
"""Tokens of one forward pass. More need more memory and gain nothing on a CPU."""
SLOTS = 16384
"""Slots of the keys and values of one pass."""
WORTH = 4
"""Shared tokens from which a pass of their own pays."""


@dataclass
class Prefilled:
    """Some prompts after their forward pass."""

    indices: list[int]
    """Which prompts, in the order of the rows."""
    kv: KV
    """Each prompt from slot 0 on; what stands behind its end is padding."""
    hidden: Tensor
    """(n, C): final hidden state of each prompt's last token."""


def shared_prefix(prompts: Sequence[Sequence[int]]) -> int:
    """Number of leading tokens all prompts share, at most one less than the shortest."""
    first, last = min(map(tuple, prompts)), max(map(tuple, prompts))
    limit = min(len(p) for p in prompts) - 1
    n = 0
    while n < limit and first[n] == last[n]:
        n += 1
    return n


def _run(
    forward: Forward, kv: KV, rows: Sequence[Sequence[int]], pad: int, adapter: tuple[int, ...], begin: int
) -> Tensor:
    """Run right-padded rows from slot `begin` on; final hidden states (B, C) of their last tokens.

    One row may be longer than a pass: it runs in blocks of positions.
    """
    device, width = forward.model.device, max(len(r) for r in rows)
    ids = torch.tensor([list(r) + [pad] * (width - len(r)) for r in rows], device=device)
    positions = torch.arange(begin, begin + width, device=device)[None].expand(len(rows), -1)
    groups: list[Group] = [(a, 0, len(rows)) for a in adapter]
    starts = [0] * len(rows)
    step = TOKENS if len(rows) == 1 else width
    for a in range(0, width, step):
        b = min(a + step, width)
        last = torch.tensor([min(len(r), b) - 1 - a for r in rows], device=device)
        job = Pass(ids[:, a:b], positions[:, a:b], kv, starts, begin + b, last, groups)
        hidden = forward.hidden(job)[:, 0].clone()
    return hidden


def prefill(
    forward: Forward, prompts: Sequence[tuple[int, ...]], pad: int, adapter: tuple[int, ...]
) -> Iterator[Prefilled]:
    """Run distinct prompts, longest first, in chunks of similar length.

    Args:
        forward: How the model runs.
        prompts: Distinct and not empty.
        pad: Token id for padding; hidden by the mask.
        adapter: The unmerged adapter of all these prompts, if there is one.
    """
    common = shared_prefix(prompts) if len(prompts) > 1 else 0
    common = common if common >= WORTH else 0
    trunk = None
    if common:
        trunk = KV(forward.model, 1, common)
        _run(forward, trunk, [prompts[0][:common]], pad, adapter, 0)
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    while order:
        longest = len(prompts[order[0]]) - common
        count = max(1, min(TOKENS // longest, SLOTS // (common + longest)))
        chunk, order = order[:count], order[count:]
        rests = [prompts[i][common:] for i in chunk]
        kv = KV(forward.model, len(chunk), common + longest)
        if trunk is not None:
            kv.fill(slice(None), common, trunk, slice(None), common)
        yield Prefilled(chunk, kv, _run(forward, kv, rests, pad, adapter, common))
