"""The parameter gradient of single tokens' losses: what a sample would change if only this token counted.

The norm ||grad l_j|| has no one-pass formula, since earlier positions carry l_j too: it costs a backward pass a token,
here several tokens at a time. The inner products with the sample's total gradient G = sum_j grad l_j are the
derivatives of all l_j along G, and come from one forward-mode pass (docs/methods.md, "Gradients"). Only in the last
layer, and there not for k and v, is grad l_j the contribution of one position (contributions.py).

    batch = collate([sample], pad)
    norms_J = token_gradient_norms(model, batch, lora_targets(model), chunk=8)
    inner_J = token_influence(model, batch, lora_targets(model))
    shares_J = inner_J / inner_J.sum()
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.func import functional_call, jvp
from transformers import PreTrainedModel

from prefixlab.analysis.contributions import Targets, causal_lm
from prefixlab.model.attention import NAME as FAST_ATTENTION
from prefixlab.model.attention import register
from prefixlab.model.batches import Microbatch
from prefixlab.model.loss import IGNORE
from prefixlab.model.trainer import hidden_states


class _Losses(nn.Module):
    """Token losses of one sample, of operations that have batched and forward-mode derivatives."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Microbatch) -> Tensor:
        """Of the J supervised tokens, in order."""
        at = (batch.labels[0, 1:] != IGNORE).nonzero()[:, 0]
        hidden = hidden_states(self.model, batch)[0].index_select(0, at)
        logits = hidden @ self.model.get_output_embeddings().weight.T
        wide = torch.promote_types(logits.dtype, torch.float32)
        target = batch.labels[0, 1:].index_select(0, at)
        loss: Tensor = nn.functional.cross_entropy(logits.to(wide), target, reduction="none")
        return loss


@contextmanager
def _differentiable(model: PreTrainedModel | PeftModel, batch: Microbatch, targets: Targets) -> Iterator[_Losses]:
    """The targets, and nothing else, require gradients; attention is plain matrix products; undone afterwards."""
    causal = causal_lm(model)
    if len(batch.ids) != 1 or causal.training:
        raise ValueError("gradients of single tokens take one sample at a time, and a model in evaluation mode")
    attention = causal.config._attn_implementation
    before = [(p, p.requires_grad) for p in causal.parameters()]
    for parameter, _ in before:
        parameter.requires_grad_(False)
    for target in targets.parameters:
        target.requires_grad_(True)
    try:
        if attention not in (FAST_ATTENTION, "eager"):  # fused kernels have no forward-mode derivative
            register()
            causal.set_attn_implementation(FAST_ATTENTION)
        with torch.enable_grad():
            yield _Losses(causal)
    finally:
        for parameter, required in before:
            parameter.requires_grad_(required)
        causal.set_attn_implementation(attention)


def token_gradient_norms(
    model: PreTrainedModel | PeftModel, batch: Microbatch, targets: Targets, *, chunk: int
) -> Tensor:
    """||grad l_j|| of every supervised token, by one backward pass over `chunk` tokens at a time.

    Args:
        model: Causal LM in evaluation mode, adapter applied or not.
        batch: One sample, padded or not.
        targets: Parameters to differentiate by.
        chunk: Tokens a backward pass; memory grows by that many copies of the gradient and of one layer's activations.
            Larger ones are for GPUs: on a CPU 1 was faster than 8 (26 against 41 s for 41 tokens of SmolLM2-135M).

    Returns:
        (J,) in fp32, fp64 where the model is.
    """
    parameters = targets.parameters
    with _differentiable(model, batch, targets) as losses_of:
        losses_J = losses_of(batch)
        square_J = torch.zeros_like(losses_J)
        pick_J_J = torch.eye(len(losses_J), dtype=losses_J.dtype, device=losses_J.device)
        for start in range(0, len(losses_J), chunk):
            pick = pick_J_J[start : start + chunk]
            grads = torch.autograd.grad(losses_J, parameters, pick, retain_graph=True, is_grads_batched=True)
            square_J[start : start + chunk] = _square(grads, losses_J.dtype)
    return square_J.detach().sqrt()


def _square(grads: tuple[Tensor, ...], wide: torch.dtype) -> Tensor:
    """Squared norms over the leading axis."""
    return torch.stack([g.flatten(1).to(wide).square().sum(1) for g in grads]).sum(0)


def token_influence(model: PreTrainedModel | PeftModel, batch: Microbatch, targets: Targets) -> Tensor:
    """<grad l_j, G> of every supervised token, G the gradient of the sample's summed loss.

    One backward pass for G and one forward-mode pass along it, whatever the number of tokens.

    Args:
        model: Causal LM in evaluation mode, adapter applied or not.
        batch: One sample, padded or not.
        targets: Parameters to differentiate by.

    Returns:
        (J,) in fp32, fp64 where the model is; sums to ||G||^2, and a value may be negative.
    """
    with _differentiable(model, batch, targets) as losses_of:
        names = {id(p): name for name, p in losses_of.named_parameters()}
        at = {names[id(p)]: p for p in targets.parameters}
        total = torch.autograd.grad(losses_of(batch).sum(), tuple(at.values()))
        along = dict(zip(at, total, strict=True))

        def losses(changed: dict[str, Tensor]) -> Tensor:
            values: Tensor = functional_call(losses_of, changed, (batch,))
            return values

        with torch.no_grad():
            found: tuple[Tensor, ...] = jvp(losses, ({name: p.detach() for name, p in at.items()},), (along,))
    return found[1].detach()
