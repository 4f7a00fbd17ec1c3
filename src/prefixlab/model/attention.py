"""Batched-matmul attention for CPUs, registered with transformers under the name `prefixlab`.

On CPUs with bfloat16 instructions torch's scaled_dot_product_attention is slow for the short, grouped-query sequences
of fine-tuning and for single-token decoding; softmax(Q K^T) V as two batched matmuls over the key/value heads is faster
there, and no slower in float32 (docs/lab-notes.md). The same function in another order of summation.
"""

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, eager_mask

NAME = "prefixlab"


def bmm_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """Attend with grouped queries folded into the rows of one matmul per key/value head.

    Args:
        module: The attention layer (unused; part of transformers' interface).
        query: (B, H, T, D).
        key: (B, K, S, D) with K dividing H.
        value: (B, K, S, D).
        attention_mask: Additive mask (B or 1, 1, T, S'), S' >= S; None means every position is visible.
        dropout: Attention dropout; only 0 is supported.
        scaling: Factor on the scores; 1/sqrt(D) where None.

    Returns:
        (B, T, H, D) and None for the weights, which are not kept.
    """
    if dropout:
        raise ValueError("attention dropout is not supported by the 'prefixlab' attention")
    b, h, t, d = query.shape
    k, s = key.shape[1], key.shape[2]
    g = h // k
    scale = d**-0.5 if scaling is None else scaling
    q = (query * scale).reshape(b * k, g * t, d)
    scores = torch.bmm(q, key.reshape(b * k, s, d).transpose(1, 2))
    if attention_mask is not None:
        scores = (scores.view(b, h, t, s) + attention_mask[..., :s]).view(b * k, g * t, s)
    weights = torch.softmax(scores, dim=-1)
    out = torch.bmm(weights, value.reshape(b * k, s, value.shape[-1]))
    return out.view(b, h, t, -1).transpose(1, 2), None


def causal_mask(valid: Tensor, dtype: torch.dtype) -> Tensor:
    """Additive causal mask that also hides padding.

    Args:
        valid: (B, S) bool, True at real tokens.
        dtype: Of the model's activations.

    Returns:
        (B, 1, S, S): 0 where query t may see key s, the dtype's minimum elsewhere. A padding query sees itself, so
        that no row is empty.
    """
    s = valid.shape[1]
    see = torch.ones(s, s, dtype=torch.bool, device=valid.device).tril() & valid[:, None, :]
    see |= torch.eye(s, dtype=torch.bool, device=valid.device)
    return torch.zeros(see.shape, dtype=dtype, device=valid.device).masked_fill_(~see, torch.finfo(dtype).min)[:, None]


def register() -> None:
    """Make `attn_implementation="prefixlab"` known to transformers; safe to call again."""
    AttentionInterface.register(NAME, bmm_attention)
    AttentionMaskInterface.register(NAME, eager_mask)
