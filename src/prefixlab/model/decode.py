"""One forward pass over a static KV buffer, for generation and for likelihoods.

Llama-like models (`FUSED`) run with weights fused for the session: query, key and value in one matrix, gate and up in
another, buffers that are used again, attention as batched matmuls, the last layer only where it is wanted. A
session reads the weights as they are, so a merged adapter is in them; unmerged LoRA adapters are added row by row, each
row with its own. Every other model runs through its own modules. Both write the same KV buffer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor, nn
from transformers import (
    LlamaForCausalLM,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2ForCausalLM,
    Qwen3ForCausalLM,
)

from prefixlab.model.kv import KV, Window, visible

FUSED = (LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM)
"""Models whose layers are pre-norm attention and a gated MLP; Qwen3 also normalises queries and keys."""
COLUMNS = 1024
"""Output columns of one matmul on a CPU, so that its weights stay in the cache; not measured by itself."""

PROJECTIONS = (
    *(f"self_attn.{name}_proj" for name in "qkvo"),
    *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
)
"""Linear layers of a decoder layer of these models."""

Updates = dict[str, list[tuple[Tensor, Tensor]]]
"""LoRA updates by the path of their module: A, and B times its scaling."""
Group = tuple[int, int, int]
"""Adapter, first row, row behind the last one."""


@dataclass(frozen=True)
class Pass:
    """What one forward pass reads and where it writes: the first rows of `kv`, slots `lo` to `end`."""

    ids: Tensor
    """(B, T) token ids; they are written to the last T slots."""
    positions: Tensor
    """(B, T) positions within the text."""
    kv: KV
    starts: Sequence[int]
    """First real slot of each row."""
    end: int
    last: Tensor | None = None
    """(B,) the one position of each row, of T, whose hidden state is wanted; None for all."""
    groups: Sequence[Group] = ()
    """Rows that use an unmerged adapter, in order."""

    @property
    def lo(self) -> int:
        """First slot that any row sees."""
        return min(self.starts)

    def mask(self, like: Tensor) -> Tensor | None:
        """Additive mask of the pass."""
        return visible(self.starts, self.lo, self.end, self.ids.shape[1], like)


class Forward(Protocol):
    """A way to run a model."""

    model: PreTrainedModel
    default: tuple[int, ...]
    """The adapter of a row that names none: empty, or its number."""

    def hidden(self, job: Pass) -> Tensor:
        """Final hidden states (B, T or 1, C)."""

    def logits(self, hidden_N_C: Tensor) -> Tensor:
        """Logits (N, V); overwritten by the next call."""


class ModuleForward:
    """The model's own modules, whatever they are."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model, self.body, self.head = model, model.get_decoder(), model.get_output_embeddings()
        self.default: tuple[int, ...] = ()

    def hidden(self, job: Pass) -> Tensor:
        """Final hidden states (B, T or 1, C)."""
        rows, width = job.ids.shape
        mask = job.mask(self.head.weight)
        if mask is None:
            mask = torch.zeros(1, 1, width, job.end - job.lo, dtype=self.model.dtype, device=self.model.device)
        out = self.body(
            input_ids=job.ids,
            attention_mask=mask.expand(rows, -1, -1, -1),
            position_ids=job.positions,
            past_key_values=Window(job.kv, rows, job.lo, job.end, width),
            use_cache=True,
        )
        states: Tensor = out.last_hidden_state
        return states if job.last is None else states[torch.arange(rows, device=states.device), job.last][:, None]

    def logits(self, hidden_N_C: Tensor) -> Tensor:
        """Logits (N, V)."""
        out: Tensor = self.head(hidden_N_C)
        return out


@dataclass(frozen=True)
class LowRank:
    """The LoRA updates of one or more fused projections: y += B A x, the scaling within B."""

    a: Tensor
    b: Tensor


@dataclass
class Projection:
    """Linear layers on one input as one matrix, and per adapter what it adds."""

    weight: Tensor
    bias: Tensor | None
    low: list[LowRank | None]


@dataclass
class _Layer:
    qkv: Projection
    out: Projection
    gate_up: Projection
    down: Projection
    norm_in: nn.Module
    norm_out: nn.Module
    head_norms: tuple[nn.Module, nn.Module] | None


def _base(module: nn.Module) -> nn.Linear:
    found = module.get_base_layer() if isinstance(module, LoraLayer) else module
    assert isinstance(found, nn.Linear)
    return found


def _low_rank(modules: Sequence[nn.Module], names: Sequence[str], updates: Updates) -> LowRank | None:
    """What these updates add to the fused outputs of `modules`."""
    downs: list[Tensor] = []
    ups: list[tuple[int, Tensor]] = []
    row, total = 0, sum(_base(m).out_features for m in modules)
    for module, name in zip(modules, names, strict=True):
        for down, up in updates.get(name, ()):
            downs.append(down)
            ups.append((row, up))
        row += _base(module).out_features
    if not downs:
        return None
    a = torch.cat(downs)
    b = torch.zeros(total, a.shape[0], dtype=a.dtype, device=a.device)
    column = 0
    for row, up in ups:
        b[row : row + up.shape[0], column : column + up.shape[1]] = up
        column += up.shape[1]
    return LowRank(a, b)


def _projection(layer: Any, at: int, names: Sequence[str], adapters: Sequence[Updates]) -> Projection:
    """The projections `names` of decoder layer number `at` in one."""
    modules = [layer.get_submodule(name) for name in names]
    linears = [_base(m) for m in modules]
    weight = linears[0].weight.detach() if len(linears) == 1 else torch.cat([x.weight.detach() for x in linears])
    biases = [x.bias for x in linears]
    bias = None
    if any(b is not None for b in biases):
        zero = [weight.new_zeros(x.out_features) for x in linears]
        bias = torch.cat([z if b is None else b.detach() for z, b in zip(zero, biases, strict=True)])
    paths = [f"model.layers.{at}.{name}" for name in names]
    return Projection(weight, bias, [_low_rank(modules, paths, updates) for updates in adapters])


def _simple(module: nn.Module) -> bool:
    """Whether a projection is a plain linear layer, or one with LoRA updates of the plain kind."""
    if type(module) is nn.Linear:
        return True
    return (
        type(module) is LoraLinear
        and type(module.get_base_layer()) is nn.Linear
        and not module.fan_in_fan_out
        and not module.lora_variant
        and not any(module.lora_bias.values())
    )


def fusable(model: PreTrainedModel) -> bool:
    """Whether `FusedForward` computes what this model computes."""
    if type(model) not in FUSED or model.config.hidden_act != "silu":
        return False
    body: Any = model.model
    ends = type(body.embed_tokens) is nn.Embedding and type(model.lm_head) is nn.Linear
    return ends and all(_simple(layer.get_submodule(name)) for layer in body.layers for name in PROJECTIONS)


def _active(model: PreTrainedModel) -> Updates:
    """The unmerged updates that the model's modules would apply now."""
    found: Updates = {}
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer) and not module.disable_adapters and not module.merged:
            layer: Any = module
            found[name] = [
                (layer.lora_A[a].weight.detach(), layer.lora_B[a].weight.detach() * layer.scaling[a])
                for a in layer.active_adapters
                if a in layer.lora_A
            ]
    return found


class FusedForward:
    """A Llama-like model with fused weights.

    Args:
        model: One that `fusable` accepts.
        adapters: Unmerged updates that rows may name by their place; None for those that are active in the model now.
    """

    def __init__(self, model: PreTrainedModel, adapters: Sequence[Updates] | None = None) -> None:
        self.model = model
        body: Any = model.model
        active = _active(model) if adapters is None else {}
        sets: Sequence[Updates] = [active] if active else adapters or ()
        self.default: tuple[int, ...] = (0,) if active else ()
        self.embed, self.rotary, self.norm, self.head = body.embed_tokens, body.rotary_emb, body.norm, model.lm_head
        first = body.layers[0].self_attn
        self.dim, self.scale = first.head_dim, first.scaling
        self.heads, self.kv_heads = model.config.num_attention_heads, model.config.num_key_value_heads
        self.layers = []
        for number, layer in enumerate(body.layers):
            at = layer.self_attn
            self.layers.append(
                _Layer(
                    qkv=_projection(layer, number, PROJECTIONS[:3], sets),
                    out=_projection(layer, number, PROJECTIONS[3:4], sets),
                    gate_up=_projection(layer, number, PROJECTIONS[4:6], sets),
                    down=_projection(layer, number, PROJECTIONS[6:], sets),
                    norm_in=layer.input_layernorm,
                    norm_out=layer.post_attention_layernorm,
                    head_norms=(at.q_norm, at.k_norm) if isinstance(model, Qwen3ForCausalLM) else None,
                )
            )
        self.room: dict[str, Tensor] = {}

    def _space(self, name: str, rows: int, columns: int) -> Tensor:
        """A (rows, columns) buffer, the same memory for the same name: its last content is lost."""
        if name not in self.room or self.room[name].numel() < rows * columns:
            self.room[name] = torch.empty(rows * columns, dtype=self.model.dtype, device=self.model.device)
        return self.room[name][: rows * columns].view(rows, columns)

    def _normed(self, x: Tensor, norm: Any) -> Tensor:
        if x.dtype is not torch.float32:
            out: Tensor = norm(x)
            return out
        power = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1])
        factor = power.add_(norm.variance_epsilon).rsqrt_()
        return torch.mul(x, factor, out=self._space("normed", *x.shape)).mul_(norm.weight)

    def _linear(self, x: Tensor, p: Projection, out: Tensor, groups: Sequence[Group], *, add: bool = False) -> Tensor:
        """Write p(x), or add it, to `out`; `groups` in rows of x."""
        step = COLUMNS if x.device.type == "cpu" else out.shape[1]
        for c in range(0, out.shape[1], step):
            part, weight = out[:, c : c + step], p.weight[c : c + step].t()
            if add:
                part.addmm_(x, weight)
            else:
                torch.mm(x, weight, out=part)
        if p.bias is not None:
            out += p.bias
        for adapter, first, last in groups:
            low = p.low[adapter]
            if low is None:
                continue
            u = x[first:last].to(low.a.dtype) @ low.a.t()
            if low.b.dtype is out.dtype:
                out[first:last].addmm_(u, low.b.t())
            else:
                out[first:last] += (u @ low.b.t()).to(out.dtype)
        return out

    def _rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> None:
        """Rotate (B, T, heads, D) in place."""
        half = self.dim // 2
        a, b = x[..., :half], x[..., half:]
        turned = a * sin[..., half:]
        a.mul_(cos[..., :half]).addcmul_(b, sin[..., :half], value=-1)
        b.mul_(cos[..., half:]).add_(turned)

    def _attend(self, q: Tensor, keys: Tensor, values: Tensor, lo: int, end: int, mask: Tensor | None) -> Tensor:
        """Queries (B, t, H, D) over slots lo to end: (B * t, H * D)."""
        rows, t = q.shape[:2]
        n, g = rows * self.kv_heads, self.heads // self.kv_heads
        folded = q.reshape(rows, t, self.kv_heads, g, self.dim).permute(0, 2, 3, 1, 4).reshape(n, g * t, self.dim)
        k = keys.view(n, -1, self.dim)[:, lo:end]
        v = values.view(n, -1, self.dim)[:, lo:end]
        scores = self._space("scores", n * g * t, end - lo).view(n, g * t, end - lo)
        torch.baddbmm(scores, folded, k.transpose(1, 2), beta=0, alpha=self.scale, out=scores)
        if mask is not None:
            scores.view(rows, self.heads, t, -1).add_(mask)
        weights = torch.softmax(scores, -1, out=self._space("weights", n * g * t, end - lo).view_as(scores))
        out = torch.bmm(weights, v, out=self._space("mixed", n * g * t, self.dim).view(n, g * t, self.dim))
        return out.view(rows, self.kv_heads, g, t, self.dim).permute(0, 3, 1, 2, 4).reshape(rows * t, -1)

    def hidden(self, job: Pass) -> Tensor:
        """Final hidden states (B, T or 1, C)."""
        rows, width = job.ids.shape
        h: Tensor = self.embed(job.ids)
        cos, sin = (x[:, :, None] for x in self.rotary(h, job.positions))
        mask = job.mask(h)
        h = h.view(rows * width, -1)
        groups = [(a, first * width, last * width) for a, first, last in job.groups]
        for i, layer in enumerate(self.layers):
            x = self._normed(h, layer.norm_in)
            qkv = self._linear(x, layer.qkv, self._space("qkv", len(x), len(layer.qkv.weight)), groups)
            qkv = qkv.view(rows, width, self.heads + 2 * self.kv_heads, self.dim)
            q, k, v = qkv.split([self.heads, self.kv_heads, self.kv_heads], 2)
            if layer.head_norms is not None:
                q.copy_(layer.head_norms[0](q))
                k.copy_(layer.head_norms[1](k))
            self._rotate(qkv[:, :, : self.heads + self.kv_heads], cos, sin)
            keys, values = job.kv.keys[i][:rows], job.kv.values[i][:rows]
            keys[:, :, job.end - width : job.end] = k.transpose(1, 2)
            values[:, :, job.end - width : job.end] = v.transpose(1, 2)
            if i == len(self.layers) - 1 and job.last is not None:
                every = torch.arange(rows, device=h.device)
                q = q[every, job.last][:, None]
                h = h.view(rows, width, -1)[every, job.last]
                mask = None if mask is None else mask.expand(rows, -1, -1, -1)[every, :, job.last][:, :, None]
                groups = list(job.groups)
            mixed = self._attend(q, keys, values, job.lo, job.end, mask)
            self._linear(mixed, layer.out, h, groups, add=True)
            x = self._normed(h, layer.norm_out)
            both = self._linear(x, layer.gate_up, self._space("gate_up", len(x), len(layer.gate_up.weight)), groups)
            gate, up = both.chunk(2, -1)
            self._linear(F.silu(gate, inplace=True).mul_(up), layer.down, h, groups, add=True)
        return self._normed(h, self.norm).view(rows, -1, h.shape[-1])

    def logits(self, hidden_N_C: Tensor) -> Tensor:
        """Logits (N, V); overwritten by the next call."""
        head = Projection(self.head.weight.detach(), self.head.bias, [])
        return self._linear(hidden_N_C, head, self._space("logits", len(hidden_N_C), len(head.weight)), ())


def open_forward(model: PreTrainedModel) -> Forward:
    """The fastest way to run a model that gives its own results."""
    return FusedForward(model) if fusable(model) else ModuleForward(model)
