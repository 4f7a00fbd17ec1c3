"""A LoRA layer on a frozen linear layer as one function: fewer passes over the activations than PEFT's own.

y = x W^T + b + s (d(x) A^T) B^T with dropout d. PEFT computes the update at full width, scales it and adds it, and
autograd adds the two gradients of x; here the scale is applied at rank width and both additions happen inside the
matrix products. Base and adapter products run in the dtype of the activations, whatever the dtype of the adapter's
own (master) weights; their gradients come back in the masters' dtype.

Whoever wants to see what goes through the layers backwards (analysis/contributions) hands `fused_lora` a recorder.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn

ADAPTER = "default"
Recorder = Callable[[LoraLinear, Tensor, Tensor, Tensor, Tensor], None]
"""Called in the backward pass of each layer with the layer, x (N, I) after dropout, u = s x A^T (N, r),
delta = dL/dy (N, O) and v = s delta B (N, r), over all N rows of the batch: dL/dA = v^T x and dL/dB = delta^T u."""


class _LoraFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        dropped: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        s: float,
        record: Callable[[Tensor, Tensor, Tensor, Tensor], None] | None,
    ) -> Tensor:
        """X: (..., I). dropped: the adapter's input where it is not x. W: (O, I), A: (r, I), B: (O, r)."""
        rows = x.reshape(-1, x.shape[-1])
        inside = rows if dropped is None else dropped.reshape(rows.shape)
        a_low, b_low = a.to(x.dtype), b.to(x.dtype)
        u = (inside @ a_low.T).mul_(s)
        y = nn.functional.linear(rows, weight, bias).addmm_(u, b_low.T)
        ctx.save_for_backward(inside, u, weight, a_low, b_low)
        ctx.scale, ctx.split, ctx.masters = s, dropped is not None, (a.dtype, b.dtype)
        ctx.record = record
        return y.view(*x.shape[:-1], weight.shape[0])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        inside, u, weight, a, b = ctx.saved_tensors
        dy = grads[0].reshape(-1, weight.shape[0])
        shape = (*grads[0].shape[:-1], weight.shape[1])
        du = (dy @ b).mul_(ctx.scale)
        if ctx.record is not None:
            ctx.record(inside, u, dy, du)
        dx = dropped = da = db = None
        if ctx.needs_input_grad[4]:
            da, db = (du.T @ inside).to(ctx.masters[0]), (dy.T @ u).to(ctx.masters[1])
        if ctx.needs_input_grad[0]:
            dx = dy @ weight
            if not ctx.split:
                dx.addmm_(du, a)
            dx = dx.view(shape)
        if ctx.split and ctx.needs_input_grad[1]:
            dropped = (du @ a).view(shape)
        return dx, dropped, None, None, da, db, None, None


def is_plain(layer: LoraLinear) -> bool:
    """Whether a layer is LoRA as published: one adapter, no variant, not merged, no bias of its own."""
    return (
        type(layer.get_base_layer()) is nn.Linear
        and list(layer.lora_A) == [ADAPTER]
        and ADAPTER not in layer.lora_variant
        and not layer.merged
        and layer.lora_B[ADAPTER].bias is None
    )


def _forward(layer: LoraLinear, record: Recorder | None) -> Any:
    base, a, b = layer.get_base_layer(), layer.lora_A[ADAPTER], layer.lora_B[ADAPTER]
    dropout, scale = layer.lora_dropout[ADAPTER], float(layer.scaling[ADAPTER])
    drops = not isinstance(dropout, nn.Identity)
    told = None if record is None else partial(record, layer)

    def forward(x: Tensor, *_: object, **__: object) -> Tensor:
        dropped = dropout(x) if drops and layer.training else None
        out: Tensor = _LoraFunction.apply(  # type: ignore[no-untyped-call]
            x, dropped, base.weight, base.bias, a.weight, b.weight, scale, told
        )
        return out

    return forward


@contextmanager
def fused_lora(model: nn.Module, record: Recorder | None = None) -> Iterator[int]:
    """Run plain LoRA layers through the fused function inside the block; gives how many there are.

    Variants (DoRA and others) keep PEFT's forward. The wrapper must not be unloaded before the block ends.
    """
    layers = [m for m in model.modules() if isinstance(m, LoraLinear) and is_plain(m)]
    for layer in layers:
        layer.forward = _forward(layer, record)  # type: ignore[method-assign]
    try:
        yield len(layers)
    finally:
        for layer in layers:
            del layer.forward
