"""Batched decoding with a static KV buffer, for planned batches on one machine.

A batch is a fixed list of requests. Tokens that all prompts share at their start (a system turn, K samples of one
prompt) are prefilled once. Rows are left-padded; finished rows leave the batch when half of it is done. Each request
draws from its own seed, so its samples do not depend on its neighbours beyond rounding.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor
from transformers import Cache, PreTrainedModel


@dataclass(frozen=True)
class Request:
    """One completion to generate."""

    ids: tuple[int, ...]
    max_new_tokens: int
    temperature: float
    """0 is greedy."""
    top_p: float
    seed: int


@dataclass(frozen=True)
class Completion:
    """Generated ids without the stop token; `truncated` if the limit was reached first."""

    ids: tuple[int, ...]
    truncated: bool


class StaticKV(Cache):
    """Keys and values of every layer in one preallocated buffer a layer; `update` writes in place."""

    def __init__(self, model: PreTrainedModel, rows: int, slots: int) -> None:
        super().__init__(layers=[])
        config = model.config
        heads = config.num_key_value_heads
        dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        shape = (rows, heads, slots, dim)
        make = dict(dtype=model.dtype, device=model.device)
        self.keys = [torch.zeros(shape, **make) for _ in range(config.num_hidden_layers)]  # type: ignore[call-overload]
        self.values = [torch.zeros(shape, **make) for _ in range(config.num_hidden_layers)]  # type: ignore[call-overload]
        self.filled = 0

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Append (B, K, n, D) states behind the filled slots and return all visible ones."""
        end = self.filled + key_states.shape[2]
        self.keys[layer_idx][:, :, self.filled : end] = key_states
        self.values[layer_idx][:, :, self.filled : end] = value_states
        return self.keys[layer_idx][:, :, :end], self.values[layer_idx][:, :, :end]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Slots filled so far."""
        return self.filled

    def expand(self, other: "StaticKV") -> None:
        """Copy the filled slots of a one-row cache into every row of this one."""
        for mine, theirs in ((self.keys, other.keys), (self.values, other.values)):
            for a, b in zip(mine, theirs, strict=True):
                a[:, :, : other.filled] = b[:, :, : other.filled]
        self.filled = other.filled

    def keep(self, rows: Tensor) -> None:
        """Drop every row but the given ones."""
        self.keys = [k[rows] for k in self.keys]
        self.values = [v[rows] for v in self.values]


def shared_prefix(prompts: Sequence[Sequence[int]]) -> int:
    """Number of leading tokens all prompts share, at most one less than the shortest."""
    first, last = min(map(tuple, prompts)), max(map(tuple, prompts))
    limit = min(len(p) for p in prompts) - 1
    n = 0
    while n < limit and first[n] == last[n]:
        n += 1
    return n


def pick(logits_B_V: Tensor, requests: Sequence[Request], generators: Sequence[torch.Generator]) -> Tensor:
    """Next token of each row: argmax at temperature 0, else inverse-CDF sampling within the top-p nucleus."""
    chosen = logits_B_V.argmax(-1)
    for row, request in enumerate(requests):
        if request.temperature <= 0:
            continue
        p, order = torch.softmax(logits_B_V[row].float() / request.temperature, -1).sort(descending=True, stable=True)
        total = p.cumsum(0)
        kept = int((total - p < request.top_p).sum())
        u = torch.rand(1, generator=generators[row]).item() * float(total[kept - 1])
        chosen[row] = order[min(int((total[:kept] <= u).sum()), kept - 1)]
    return chosen


def _mask(valid: Tensor, queries: int, dtype: torch.dtype) -> Tensor:
    """Additive mask (B, 1, queries, S) for the last `queries` of S slots; `valid` is (B, S)."""
    slots = valid.shape[1]
    order = torch.arange(slots, device=valid.device)
    see = valid[:, None, :] & (order[None, :] <= order[-queries:, None])
    see = see | (order[None, :] == order[-queries:, None])
    return torch.zeros(see.shape, dtype=dtype, device=valid.device).masked_fill_(~see, torch.finfo(dtype).min)[:, None]


class _Batch:
    """State of one running batch: KV buffer, which slots are real, next positions."""

    def __init__(self, model: PreTrainedModel, requests: Sequence[Request], pad: int) -> None:
        self.model, self.body, self.head = model, model.get_decoder(), model.get_output_embeddings()
        prompts = [r.ids for r in requests]
        common = shared_prefix(prompts) if len(prompts) > 1 else 0
        rest = [p[common:] for p in prompts]
        width = max(len(r) for r in rest)
        slots = common + width + max(r.max_new_tokens for r in requests)
        rows, device = len(prompts), model.device
        self.cache = StaticKV(model, rows, slots)
        if common:
            first = StaticKV(model, 1, common)
            shared = torch.tensor([prompts[0][:common]], device=device)
            valid = torch.ones(1, common, dtype=torch.bool, device=device)
            self.body(
                input_ids=shared,
                attention_mask=_mask(valid, common, model.dtype),
                position_ids=torch.arange(common, device=device)[None],
                past_key_values=first,
                use_cache=True,
            )
            first.filled = common
            self.cache.expand(first)
        ids = torch.tensor([[pad] * (width - len(r)) + list(r) for r in rest], device=device)
        real = torch.tensor([[False] * (width - len(r)) + [True] * len(r) for r in rest], device=device)
        self.valid = torch.cat([torch.ones(rows, common, dtype=torch.bool, device=device), real], 1)
        positions = common + (real.long().cumsum(1) - 1).clamp_min(0)
        self.next_position = positions[:, -1] + 1
        self.logits = self._forward(ids, positions)

    def _forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        out = self.body(
            input_ids=ids,
            attention_mask=_mask(self.valid, ids.shape[1], self.model.dtype),
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
        )
        self.cache.filled += ids.shape[1]
        logits: Tensor = self.head(out.last_hidden_state[:, -1])
        return logits

    def step(self, tokens: Tensor) -> None:
        """Feed one token a row and compute the next logits."""
        self.valid = torch.cat([self.valid, torch.ones_like(self.valid[:, :1])], 1)
        self.logits = self._forward(tokens[:, None], self.next_position[:, None])
        self.next_position = self.next_position + 1

    def keep(self, rows: list[int]) -> None:
        index = torch.tensor(rows, device=self.valid.device)
        self.cache.keep(index)
        self.valid, self.next_position, self.logits = self.valid[index], self.next_position[index], self.logits[index]


@torch.inference_mode()
def first_logits(model: PreTrainedModel, prompts: Sequence[tuple[int, ...]], pad: int) -> Tensor:
    """Logits (B, V) of the token after each prompt, through the same path as `generate`."""
    requests = [Request(ids=p, max_new_tokens=1, temperature=0, top_p=1, seed=0) for p in prompts]
    return _Batch(model, requests, pad).logits


@torch.inference_mode()
def generate(
    model: PreTrainedModel, requests: Sequence[Request], *, stop_ids: frozenset[int], pad: int
) -> list[Completion]:
    """Complete one batch.

    Args:
        model: In evaluation mode; a merged or wrapped adapter is used as it is.
        requests: The batch; prompts need not have equal lengths.
        stop_ids: Any of these ends a completion and is not part of it.
        pad: Token id for padding; hidden by the mask.

    Returns:
        One completion a request, in the same order.
    """
    generators = [torch.Generator().manual_seed(r.seed) for r in requests]
    written: list[list[int]] = [[] for _ in requests]
    done: dict[int, Completion] = {}
    batch = _Batch(model, requests, pad)
    active = list(range(len(requests)))
    while True:
        tokens = pick(batch.logits, [requests[i] for i in active], [generators[i] for i in active])
        for row, i in enumerate(active):
            if i in done:
                continue
            token = int(tokens[row])
            if token in stop_ids:
                done[i] = Completion(tuple(written[i]), truncated=False)
                continue
            written[i].append(token)
            if len(written[i]) >= requests[i].max_new_tokens:
                done[i] = Completion(tuple(written[i]), truncated=True)
        if len(done) == len(requests):
            return [done[i] for i in range(len(requests))]
        rows = [row for row, i in enumerate(active) if i not in done]
        if len(rows) * 2 <= len(active):
            batch.keep(rows)
            active = [active[row] for row in rows]
            tokens = tokens[torch.tensor(rows, device=tokens.device)]
        batch.step(tokens)


@contextmanager
def with_adapter(model: PreTrainedModel, folder: Path | None, *, merge: bool) -> Iterator[PreTrainedModel]:
    """Use `model` with an adapter inside the block, and leave it exactly as it was.

    Args:
        model: The base; changed in place for the duration.
        folder: PEFT adapter folder; None leaves the base alone.
        merge: Add the update into copies of the weights (faster) instead of computing it beside them.
    """
    if folder is None:
        yield model
        return
    wrapped: Any = PeftModel.from_pretrained(model, str(folder)).eval()
    layers: list[Any] = [m for m in wrapped.modules() if isinstance(m, LoraLayer)]
    saved = [m.get_base_layer().weight.detach().clone() for m in layers] if merge else []
    try:
        if merge:
            wrapped.merge_adapter()
        yield model
    finally:
        if merge:
            with torch.no_grad():
                for layer, weight in zip(layers, saved, strict=True):
                    layer.get_base_layer().weight.copy_(weight)
                    layer.merged_adapters = []
        wrapped.unload()
