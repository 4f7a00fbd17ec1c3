"""Next-token loss with a frozen output head, at supervised positions only.

The head's weights do not train, so the gradient that must reach the network is the one of the hidden state alone.
One autograd function computes, chunk by chunk and without keeping the logits, the loss l_t, the logit-gradient norm
||p_t - y_t||, and dl_t/dh_t = (p_t - y_t) W (docs/methods.md, "Frozen head").
"""

from typing import Any

import torch
from torch import Tensor

IGNORE = -100
CHUNK = 128


class _FrozenHead(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_N_D: Tensor, weight_V_D: Tensor, target_N: Tensor) -> tuple[Tensor, Tensor]:
        n = hidden_N_D.shape[0]
        wide = torch.promote_types(hidden_N_D.dtype, torch.float32)
        loss_N = torch.empty(n, dtype=wide, device=hidden_N_D.device)
        norm_N = torch.empty_like(loss_N)
        grad_N_D = torch.empty_like(hidden_N_D)
        for i in range(0, n, CHUNK):
            y = target_N[i : i + CHUNK, None]
            z = (hidden_N_D[i : i + CHUNK] @ weight_V_D.T).to(wide)
            lse = torch.logsumexp(z, dim=-1, keepdim=True)
            loss_N[i : i + CHUNK] = (lse - z.gather(1, y))[:, 0]
            p = z.sub_(lse).exp_()
            p.scatter_(1, y, p.gather(1, y) - 1)
            # Of p - y itself: the closed form sum p^2 - 2 p_y + 1 loses all digits where p_y is near 1.
            norm_N[i : i + CHUNK] = p.norm(dim=-1)
            # (W^T p^T)^T is p W in the order that CPU matrix libraries do faster: 62 ms against 74 ms at 128 rows.
            grad_N_D[i : i + CHUNK] = (weight_V_D.T @ p.to(hidden_N_D.dtype).T).T
        ctx.save_for_backward(grad_N_D)
        ctx.mark_non_differentiable(norm_N)
        return loss_N, norm_N

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (grad_N_D,) = ctx.saved_tensors
        return grad_N_D * grads[0][:, None].to(grad_N_D.dtype), None, None


def token_loss(hidden_B_T_D: Tensor, weight_V_D: Tensor, labels_B_T: Tensor) -> tuple[Tensor, Tensor]:
    """Loss and logit-gradient norm of every supervised token.

    Args:
        hidden_B_T_D: Last hidden states (after the final norm).
        weight_V_D: The output head's weight, frozen.
        labels_B_T: Token ids, -100 where no loss is taken. Position t is predicted from position t - 1.

    Returns:
        Two vectors over the supervised tokens in row-major order, in fp32 (fp64 where the hidden states are): loss in
        nats (differentiable with respect to the hidden states) and ||p - y|| (not differentiable).
    """
    keep = labels_B_T[:, 1:] != IGNORE
    loss, norm = _FrozenHead.apply(hidden_B_T_D[:, :-1][keep], weight_V_D, labels_B_T[:, 1:][keep])  # type: ignore[no-untyped-call]
    return loss, norm
