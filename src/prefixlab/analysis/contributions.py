"""What every token position contributes to a sample's parameter gradient, in one backward pass.

The gradient of a linear layer is a sum over positions of outer products: with input x_t and output gradient delta_t,
dL/dW = sum_t delta_t x_t^T. For a LoRA layer y = W x + s B A x, with u_t = s A x_t and v_t = s B^T delta_t, dL/dA =
sum_t v_t x_t^T and dL/dB = sum_t delta_t u_t^T. C_t, the position contribution, is position t's term over all target
layers. Its norm, its inner product with the total gradient, and the inner products between the summed terms of spans
follow from x, u, delta and v when the layer's backward runs; no C_t is written out (docs/methods.md, "Gradients").
token_gradients.py asks what one token's loss pulls on; this asks what passes through one position, prompt included.

    found = contributions(model, collate(samples, pad), lora_targets(model))
    found.contribution_B_T, found.influence_B_T, span_norm(found.gram_B_S_S[0], ["prefix"])
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any, Literal, NamedTuple

import torch
from peft import PeftModel
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from prefixlab.errors import UserError, unknown
from prefixlab.model.batches import SPAN_ORDER, Microbatch
from prefixlab.model.lora import ADAPTER, fused_lora, is_plain
from prefixlab.model.loss import token_loss
from prefixlab.model.trainer import hidden_states
from prefixlab.records import SpanName

REST: tuple[SpanName, ...] = ("reasoning", "answer", "end")
"""The response without its prefix."""


@dataclass(frozen=True)
class Targets:
    """The parameters that gradients are taken of: all LoRA matrices, or the weights of some linear layers."""

    kind: Literal["lora", "weight"]
    layers: dict[str, nn.Module]
    """By name within the decoder, e.g. "layers.29.self_attn.q_proj"; where an adapter is on it, PEFT's wrapper."""

    @property
    def parameters(self) -> list[Tensor]:
        """The parameters themselves, A before B, layer by layer."""
        found: list[Tensor] = []
        for layer in self.layers.values():
            if self.kind == "lora":
                assert isinstance(layer, LoraLinear)
                found += [matrix.get_parameter(f"{ADAPTER}.weight") for matrix in (layer.lora_A, layer.lora_B)]
            else:
                found.append(_base_layer(layer).weight)
        return found


def causal_lm(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """The model itself, out of PEFT's wrapper."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    assert isinstance(base, PreTrainedModel)
    return base


def lora_targets(model: PreTrainedModel | PeftModel) -> Targets:
    """All LoRA matrices of a model.

    Raises:
        UserError: No adapter, one that is merged or switched off, or layers that are not LoRA as published (DoRA,
            embeddings, quantised layers, the output head).
    """
    causal = causal_lm(model)
    layers = {n: m for n, m in causal.get_decoder().named_modules() if isinstance(m, LoraLinear)}
    tuned = [(n, m) for n, m in causal.named_modules() if isinstance(m, BaseTunerLayer)]
    if not tuned:
        raise UserError("gradients of LoRA matrices: the model has no adapter; put one on it with PEFT")
    inside = {id(m) for m in layers.values()}
    for name, layer in tuned:
        if id(layer) not in inside or not isinstance(layer, LoraLinear) or not is_plain(layer):
            raise UserError(
                f"gradients of LoRA matrices: {name} is not plain LoRA on a linear layer of the decoder (one unmerged "
                f"adapter named {ADAPTER!r}, no DoRA or other variant, no bias of its own, not the output head)"
            )
        if layer.disable_adapters:
            raise UserError(f"gradients of LoRA matrices: the adapter is switched off at {name}; switch it on")
    return Targets("lora", dict(layers))


def _base_layer(layer: nn.Module) -> nn.Linear:
    base = layer.get_base_layer() if isinstance(layer, LoraLinear) else layer
    assert isinstance(base, nn.Linear)
    return base


def weight_targets(model: PreTrainedModel | PeftModel, names: Sequence[str]) -> Targets:
    """The full weights of named linear layers, an adapter on them or not.

    Args:
        model: The model; its weights may be frozen.
        names: Within the decoder or the model, e.g. "layers.29.self_attn.q_proj" or the same behind "model.".

    Raises:
        UserError: No name, one given twice, or one that is no linear layer of the decoder.
    """
    linear = {
        name: layer
        for name, layer in causal_lm(model).get_decoder().named_modules()
        if isinstance(layer, nn.Linear | LoraLinear) and not re.search(r"\.(base_layer|lora_\w+)(\.|$)", name)
    }
    names = [name.removeprefix("model.") for name in names]
    for name in names:
        if name not in linear:
            # The names of its layer, or else their pattern: all of them would fill a page.
            block = [n for n in linear if n.split(".")[:2] == name.split(".")[:2]]
            raise unknown("linear layer", name, block or {re.sub(r"\.\d+\.", ".N.", n) for n in linear})
    if not names or len(set(names)) < len(names):
        raise UserError(f"gradients of full weights: layers {list(names)}; name one or more, each once")
    return Targets("weight", {name: linear[name] for name in names})


@dataclass(frozen=True)
class ModuleContributions:
    """The part of one layer. Squares add up over layers to the square of the whole, shares to the whole share."""

    contribution_B_T: Tensor
    influence_B_T: Tensor
    """The layer's <C_t, G_b> as a share of the whole ||G_b||^2; its sum over t is the layer's share of ||G_b||^2."""


@dataclass(frozen=True)
class Contributions:
    """Of one micro-batch; gradients are those of each sample's own summed token loss.

    In fp32, fp64 where the model is, on the model's device; per-position values are 0 at padding.
    """

    losses: Tensor
    """(N,) of the supervised tokens in row-major order, nats."""
    logit_gradients: Tensor
    """(N,) ||p - y|| of the same."""
    contribution_B_T: Tensor
    """||C_t|| over all targets."""
    influence_B_T: Tensor
    """rho_t = <C_t, G_b> / ||G_b||^2; sums to 1 over t and may be negative. 0 without meaning where not defined."""
    defined_B: Tensor
    """False where a sample's G_b is 0 (no supervised token, or no gradient): it has no influence shares."""
    input_gradient_B_T: Tensor
    """||dL/d embedding_t||."""
    gram_B_S_S: Tensor
    """<G_span, G_span'> over SPAN_ORDER, where G_span sums C_t over the span; its sum is ||G_b||^2."""
    modules: dict[str, ModuleContributions]
    """By layer, where asked for; else empty."""


def span_norm(gram_S_S: Tensor, spans: Sequence[SpanName]) -> float:
    """Norm of the summed contribution of some spans of one sample; 0 where the sample has none of them."""
    mask = _mask(spans, gram_S_S)
    return float((mask @ gram_S_S.double() @ mask).clamp_min(0).sqrt())


def span_cosine(gram_S_S: Tensor, spans: Sequence[SpanName], rest: Sequence[SpanName] = REST) -> float | None:
    """Cosine between two summed contributions of one sample; None where one of them is 0."""
    a, b = span_norm(gram_S_S, spans), span_norm(gram_S_S, rest)
    if not a or not b:
        return None
    inner = float(_mask(spans, gram_S_S) @ gram_S_S.double() @ _mask(rest, gram_S_S))
    return max(-1.0, min(1.0, inner / a / b))


def _mask(spans: Sequence[SpanName], like: Tensor) -> Tensor:
    return torch.tensor([float(name in spans) for name in SPAN_ORDER], dtype=torch.float64, device=like.device)


def contributions(
    model: PreTrainedModel | PeftModel, batch: Microbatch, targets: Targets, *, by_module: bool = False
) -> Contributions:
    """One forward and one backward pass; the model is as it was afterwards, its parameters' .grad included.

    Related code: bergson's attribute_tokens, kronfluence's per-token scores, opacus' compute_linear_norm_sample.

    Args:
        model: Causal LM, adapter applied or not. In training mode dropout applies, and A's input is behind it.
        batch: Right-padded samples, on the model's device; at least one position.
        targets: Of this model.
        by_module: Whether to give each layer's part too.

    Raises:
        UserError: A target layer that does not see each position exactly once (experts, shared layers).
    """
    causal = causal_lm(model)
    tally = _Tally(batch, targets)
    with torch.enable_grad(), _frozen(causal), _embedding_leaf(causal) as leaves, tally.listening(causal):
        hidden = hidden_states(causal, batch)
        losses, norms = token_loss(hidden, causal.get_output_embeddings().weight, batch.labels)
        losses.sum().backward()
    wide = losses.dtype
    (leaf,) = leaves
    assert leaf.grad is not None
    whole = _sum(part for name in targets.layers for part in tally.parts(name))
    total_B = whole.gram_B_K_K.sum(dim=(1, 2))
    defined_B = total_B > 0
    over_B_1 = torch.where(defined_B, 1 / total_B.clamp_min(torch.finfo(wide).tiny), 0)[:, None]

    def shares(part: _Part) -> ModuleContributions:
        keep = batch.valid
        return ModuleContributions(
            part.square_B_T.sqrt().masked_fill(~keep, 0), (part.inner_B_T * over_B_1).masked_fill(~keep, 0)
        )

    found = shares(whole)
    gram_B_S_S = torch.zeros(len(batch.ids), len(SPAN_ORDER), len(SPAN_ORDER), dtype=wide, device=total_B.device)
    at = torch.tensor(tally.present, dtype=torch.long, device=total_B.device)
    gram_B_S_S[:, at[:, None], at] = whole.gram_B_K_K
    return Contributions(
        losses=losses.detach(),
        logit_gradients=norms,
        contribution_B_T=found.contribution_B_T,
        influence_B_T=found.influence_B_T,
        defined_B=defined_B,
        input_gradient_B_T=_norm(leaf.grad).masked_fill(~batch.valid, 0),
        gram_B_S_S=gram_B_S_S,
        modules={name: shares(_sum(tally.parts(name))) for name in targets.layers} if by_module else {},
    )


class _Part(NamedTuple):
    """What one matrix (or several) adds: ||C_t||^2, <C_t, G_b>, and <G_span, G_span'> over the spans there are."""

    square_B_T: Tensor
    inner_B_T: Tensor
    gram_B_K_K: Tensor


def _sum(parts: Iterable[_Part]) -> _Part:
    squares, inners, grams = zip(*parts, strict=True)
    return _Part(torch.stack(squares).sum(0), torch.stack(inners).sum(0), torch.stack(grams).sum(0))


class _Tally:
    """Takes what passes through each target layer in the backward pass, and keeps only numbers a position."""

    def __init__(self, batch: Microbatch, targets: Targets) -> None:
        self._shape = tuple(batch.ids.shape)
        self._targets = targets
        self._names = {id(layer): name for name, layer in targets.layers.items()}
        self._found: dict[str, list[_Part]] = {}
        rows = [torch.unique_consecutive(row, return_counts=True) for row in batch.spans.cpu()]
        runs = [(values.tolist(), counts.tolist()) for values, counts in rows]
        self.present = sorted({span for values, _ in runs for span in values} - {-1})
        """Indices into SPAN_ORDER of the spans that occur; the K of `gram_B_K_K`."""
        self._runs: list[tuple[int, int, int, int]] = []
        """(row, index into `present`, start, end) of every stretch of one span."""
        for row, (values, counts) in enumerate(runs):
            ends = [0, *accumulate(counts)]
            for span, start, end in zip(values, ends, ends[1:], strict=False):
                if span != -1:
                    self._runs.append((row, self.present.index(span), start, end))

    def parts(self, name: str) -> list[_Part]:
        """What a layer gave."""
        if name not in self._found:
            raise UserError(f"position contributions: the layer {name} did not take part in the forward pass")
        return self._found[name]

    @contextmanager
    def listening(self, causal: PreTrainedModel) -> Iterator[None]:
        """Record the target layers' backward passes inside the block."""
        decoder = causal.get_decoder()
        if self._targets.kind == "lora":
            with fused_lora(decoder, self._lora):
                yield
            return
        handles = [
            layer.register_forward_hook(partial(_tap, partial(self._weight, name)))
            for name, layer in self._targets.layers.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _rows(self, name: str, *tensors: Tensor) -> list[Tensor]:
        """Shape (B, T, ...), once only."""
        b, t = self._shape
        if name in self._found or any(x.numel() != b * t * x.shape[-1] for x in tensors):
            raise UserError(
                f"position contributions: the layer {name} does not see each of the {b} x {t} positions exactly once; "
                "layers that share weights, and experts, are not supported"
            )
        return [x.reshape(b, t, x.shape[-1]) for x in tensors]

    def _lora(self, layer: LoraLinear, x: Tensor, u: Tensor, delta: Tensor, v: Tensor) -> None:
        name = self._names.get(id(layer))
        if name is None:
            return
        x, u, delta, v = self._rows(name, x, u, delta, v)
        self._found[name] = [self._low_rank(v, x), self._low_rank(u, delta)]

    def _weight(self, name: str, x: Tensor, delta: Tensor) -> None:
        x, delta = self._rows(name, x, delta)
        self._found[name] = [self._kernel(x, delta)]

    def _low_rank(self, left_B_T_R: Tensor, right_B_T_I: Tensor) -> _Part:
        """C_t = left_t right_t^T with few columns on the left: through the summed contribution of every span.

        Matrix products run in the model's dtype, as training's do (bf16 is rounded once, behind a sum in fp32); what
        is made of them is in fp32. A copy of `right` in fp32 would cost a bf16 pass more than all the rest.
        """
        left, right = left_B_T_R, right_B_T_I
        square_B_T = (_norm(left) * _norm(right)).square()
        sums = left.new_zeros(self._shape[0], len(self.present), left.shape[-1], right.shape[-1])
        left_B_R_T = left.mT.contiguous()
        for row, span, start, end in self._runs:
            sums[row, span].addmm_(left_B_R_T[row, :, start:end], right[row, start:end])
        inner_B_T = (_wide(right @ sums.sum(1).mT) * _wide(left)).sum(-1)
        flat = _wide(sums).flatten(2)
        return _Part(square_B_T, inner_B_T, flat @ flat.mT)

    def _kernel(self, x_B_T_I: Tensor, delta_B_T_O: Tensor) -> _Part:
        """C_t = delta_t x_t^T at full rank: through <C_t, C_t'> = <delta_t, delta_t'> <x_t, x_t'>."""
        x, delta = _wide(x_B_T_I), _wide(delta_B_T_O)
        kernel = (x @ x.mT) * (delta @ delta.mT)
        member = kernel.new_zeros(self._shape[0], len(self.present), self._shape[1])
        for row, span, start, end in self._runs:
            member[row, span, start:end] = 1
        gram = member @ kernel @ member.mT
        return _Part(kernel.diagonal(dim1=1, dim2=2).clone(), kernel.sum(-1), gram)


def _wide(x: Tensor) -> Tensor:
    """In fp32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _norm(x: Tensor) -> Tensor:
    """Over the last axis, in fp32 at least."""
    norm: Tensor = torch.linalg.vector_norm(x, dim=-1, dtype=torch.promote_types(x.dtype, torch.float32))
    return norm


class _Tap(torch.autograd.Function):
    """The identity on y; tells x and dL/dy when the backward pass arrives, once even where the forward is repeated."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, record: Callable[[Tensor, Tensor], None]) -> Tensor:
        ctx.save_for_backward(x)
        ctx.record = record
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        ctx.record(ctx.saved_tensors[0], grads[0])
        return grads[0], None, None


def _tap(record: Callable[[Tensor, Tensor], None], _: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
    """A forward hook."""
    tapped: Tensor = _Tap.apply(out, args[0], record)  # type: ignore[no-untyped-call]
    return tapped


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """No parameter collects a gradient inside the block: the pass is for the activations' alone."""
    trained = [p for p in model.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


@contextmanager
def _embedding_leaf(model: PreTrainedModel) -> Iterator[list[Tensor]]:
    """Make the embeddings of the forward pass in the block a leaf that gradients arrive at; it is put in the list."""
    leaves: list[Tensor] = []

    def cut(_: nn.Module, __: tuple[Tensor, ...], out: Tensor) -> Tensor:
        leaves.append(out.detach().requires_grad_())
        return leaves[-1]

    handle = model.get_input_embeddings().register_forward_hook(cut)
    try:
        yield leaves
    finally:
        handle.remove()
