"""Next tokens for a batch, each row by its own settings and its own random numbers.

Order as in transformers: repetition penalty, temperature, top-k, top-p. A row is drawn by inverse CDF over its
kept tokens. The vocabulary is not sorted: the most probable tokens are taken first, with their exact probabilities;
only for rows whose nucleus does not end among them the smallest kept probability is looked for among all.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

CANDIDATES = 64
"""Tokens looked at first."""
BLOCK = 256
"""Tokens whose maximum is taken at once."""


def first_largest(logits_B_V: Tensor) -> Tensor:
    """The first index of each row's maximum, by maxima of blocks: on CPUs several times faster than argmax."""
    rows, vocabulary = logits_B_V.shape
    if logits_B_V.device.type != "cpu" or vocabulary % BLOCK:
        return logits_B_V.argmax(-1)
    blocks = logits_B_V.view(rows, -1, BLOCK)
    best = blocks.amax(-1).argmax(-1)
    return best * BLOCK + blocks[torch.arange(rows), best].argmax(-1)


def penalise(logits_B_V: Tensor, seen_B_V: Tensor, penalty_B: Tensor) -> Tensor:
    """Repetition penalty as transformers defines it: divide a seen token's logit if it is positive, else multiply it.

    Source: Keskar et al. 2019 (arXiv 1909.05858), as changed by transformers for negative logits.
    """
    penalty = penalty_B[:, None]
    changed = torch.where(logits_B_V < 0, logits_B_V * penalty, logits_B_V / penalty)
    return torch.where(seen_B_V, changed, logits_B_V)


def sample(logits_B_V: Tensor, temperature: Tensor, top_p: Tensor, top_k: Tensor, uniform: Tensor) -> Tensor:
    """Draw one token a row.

    Args:
        logits_B_V: Any float dtype.
        temperature: (B,) above 0.
        top_p: (B,) the smallest set of tokens with at least this mass is kept; 1 keeps all.
        top_k: (B,) tokens kept before top_p; 0 keeps all.
        uniform: (B,) in [0, 1), float64.

    Returns:
        (B,) token ids.
    """
    scaled = logits_B_V.float() / temperature[:, None]
    vocabulary = scaled.shape[1]
    weights = (scaled - scaled.amax(-1, keepdim=True)).exp_()
    limit = torch.where(top_k > 0, top_k.clamp(max=vocabulary), vocabulary)
    chosen = torch.empty_like(limit)
    whole = (limit == vocabulary) & (top_p >= 1)
    if whole.any():
        cdf = weights[whole].cumsum(-1, dtype=torch.float64)
        chosen[whole] = torch.searchsorted(cdf, uniform[whole, None] * cdf[:, -1:], right=True)[:, 0]
        chosen[whole] = chosen[whole].clamp(max=vocabulary - 1)
    some = torch.nonzero(~whole)[:, 0]
    if len(some):
        part = weights if len(some) == len(weights) else weights[some]
        value, index = part.topk(min(CANDIDATES, vocabulary), -1)
        mass, kept, settled = _nucleus(value, part, limit[some], top_p[some])
        aim = uniform[some, None] * mass.gather(1, kept - 1)
        place = torch.minimum(torch.searchsorted(mass, aim, right=True), kept - 1)
        chosen[some] = index.gather(1, place)[:, 0]
        flat = torch.nonzero(~settled)[:, 0]
        if len(flat):
            chosen[some[flat]] = _flat(part[flat], limit[some][flat], top_p[some][flat], uniform[some][flat])
    return chosen


def _nucleus(value: Tensor, weights: Tensor, limit: Tensor, top_p: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Running mass of the largest weights, how many are kept (B, 1), and whether the edge lies among them (B,)."""
    count = value.shape[1]
    inside = torch.arange(count, device=value.device) < limit[:, None]
    mass = torch.where(inside, value, 0).cumsum(-1, dtype=torch.float64)
    total = torch.where(limit <= count, mass[:, -1], weights.sum(-1, dtype=torch.float64))
    target = (top_p * total)[:, None]
    kept = (inside & (mass - value < target)).sum(-1, keepdim=True).clamp(min=1)
    settled = (limit <= count) | ((mass[:, -1] >= target[:, 0]) & (limit >= weights.shape[1]))
    return mass, kept, settled


def _flat(weights: Tensor, limit: Tensor, top_p: Tensor, uniform: Tensor) -> Tensor:
    """Draw where many tokens are kept: find the smallest kept weight, then the inverse CDF in order of ids."""
    # On CPUs numpy sorts float32 about ten times faster than torch does.
    ordered = torch.from_numpy(np.sort(weights.cpu().numpy(), -1)).to(weights.device).flip(-1)
    end = limit[:, None]
    total = torch.where(torch.arange(ordered.shape[1], device=ordered.device) < end, ordered, 0)
    _, kept, _ = _nucleus(ordered, total, limit, top_p)
    edge = ordered.gather(1, kept - 1)
    cdf = torch.where(weights >= edge, weights, 0).cumsum(-1, dtype=torch.float64)
    last = (cdf < cdf[:, -1:]).sum(-1, keepdim=True)
    return torch.minimum(torch.searchsorted(cdf, uniform[:, None] * cdf[:, -1:], right=True), last)[:, 0]


def pick(
    logits_B_V: Tensor, temperature: Sequence[float], top_p: Sequence[float], top_k: Sequence[int], uniform: list[float]
) -> Tensor:
    """Next token of each row: the first maximum at temperature 0, else a sample."""
    drawn = [row for row, t in enumerate(temperature) if t > 0]
    if not drawn:
        return first_largest(logits_B_V)
    device = logits_B_V.device

    def column(values: Sequence[float], dtype: torch.dtype) -> Tensor:
        return torch.tensor([values[row] for row in drawn], dtype=dtype, device=device)

    full = len(drawn) == len(logits_B_V)
    tokens = sample(
        logits_B_V if full else logits_B_V[drawn],
        column(temperature, torch.float32),
        column(top_p, torch.float64),
        column(top_k, torch.long),
        column(uniform, torch.float64),
    )
    if full:
        return tokens
    chosen = first_largest(logits_B_V)
    chosen[drawn] = tokens
    return chosen
