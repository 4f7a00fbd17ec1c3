"""The frozen-head loss equals the textbook one, in value and gradient; attention equals the stock one."""

import pytest
import torch

from prefixlab.model.attention import bmm_attention, causal_mask
from prefixlab.model.loss import token_loss


@pytest.mark.parametrize("seed", range(3))
def test_loss_and_gradient(seed):
    torch.manual_seed(seed)
    hidden = torch.randn(3, 150, 16, requires_grad=True)
    weight = torch.randn(40, 16)
    labels = torch.randint(0, 40, (3, 150))
    labels[:, ::3] = -100
    loss, norm = token_loss(hidden, weight, labels)
    logits = hidden[:, :-1] @ weight.T
    expected = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels[:, 1:], reduction="none")[
        labels[:, 1:] != -100
    ]
    torch.testing.assert_close(loss, expected)
    gradient = logits.softmax(-1) - torch.nn.functional.one_hot(labels[:, 1:].clamp_min(0), 40)
    torch.testing.assert_close(norm, gradient.norm(dim=-1)[labels[:, 1:] != -100])
    weights = torch.rand_like(loss)
    (mine,) = torch.autograd.grad((loss * weights).sum(), hidden)
    (theirs,) = torch.autograd.grad((expected * weights).sum(), hidden)
    torch.testing.assert_close(mine, theirs)


def test_attention_equals_sdpa():
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 6, 9, 8), torch.randn(2, 2, 9, 8), torch.randn(2, 2, 9, 8)
    valid = torch.ones(2, 9, dtype=torch.bool)
    valid[1, 6:] = False
    mask = causal_mask(valid, torch.float32)
    out, _ = bmm_attention(torch.nn.Identity(), q, k, v, mask)
    stock = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True).transpose(1, 2)
    torch.testing.assert_close(out[0], stock[0])
    torch.testing.assert_close(out[1, :6], stock[1, :6])


def test_mask_hides_the_future_and_padding():
    valid = torch.tensor([[True, True, False]])
    assert (causal_mask(valid, torch.float32)[0, 0] == 0).tolist() == [
        [True, False, False],
        [True, True, False],
        [True, True, True],
    ]


def test_attention_dropout_is_refused():
    with pytest.raises(ValueError, match="dropout"):
        bmm_attention(torch.nn.Identity(), *torch.zeros(3, 1, 1, 2, 4), None, dropout=0.1)
