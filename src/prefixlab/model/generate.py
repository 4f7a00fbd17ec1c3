"""Batched decoding with a static KV buffer, for planned batches on one machine.

A batch is a fixed list of requests. Tokens that all prompts share at their start are prefilled once, and so is every
distinct prompt (K samples of one prompt). A finished row leaves the batch at once. Each request draws from its own
seed, so its samples do not depend on its neighbours beyond rounding.
"""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor
from transformers import PreTrainedModel

from prefixlab.model.decode import Forward, Group, Pass, open_forward
from prefixlab.model.kv import KV
from prefixlab.model.prefill import prefill
from prefixlab.model.sampling import penalise, pick

ROOM = 256
"""New tokens a buffer has room for before it grows."""


@dataclass(frozen=True)
class Request:
    """One completion to generate."""

    ids: tuple[int, ...]
    max_new_tokens: int
    temperature: float
    """0 is greedy."""
    top_p: float
    seed: int
    repetition_penalty: float = 1.0
    """As transformers defines it, over prompt and generated tokens; 1 changes nothing."""
    top_k: int = 0
    """Tokens kept before top_p; 0 keeps all."""


@dataclass(frozen=True)
class Completion:
    """Generated ids without the stop token; `truncated` if the limit was reached first."""

    ids: tuple[int, ...]
    truncated: bool


class _Batch:
    """State of one running batch. Row r belongs to request `order[r]`; rows are sorted by adapter."""

    def __init__(
        self, forward: Forward, requests: Sequence[Request], pad: int, adapters: Sequence[tuple[int, ...]]
    ) -> None:
        self.forward, self.requests, self.adapters = forward, requests, adapters
        self.order = sorted(range(len(requests)), key=lambda i: adapters[i])
        self.end = max(len(r.ids) for r in requests)
        self.limit = self.end + max(r.max_new_tokens for r in requests) - 1
        self.kv = KV(forward.model, len(requests), min(self.limit, self.end + ROOM))
        self.starts = [self.end - len(requests[i].ids) for i in self.order]
        self.kv.hide(self.starts)
        self.positions = [len(requests[i].ids) for i in self.order]
        self.logits = forward.logits(self._prefill(pad))
        self.seen: Tensor | None = None
        if any(r.repetition_penalty != 1 for r in requests):
            self.seen = torch.zeros_like(self.logits, dtype=torch.bool)
            for row, i in enumerate(self.order):
                self.seen[row, list(requests[i].ids)] = True

    def _prefill(self, pad: int) -> Tensor:
        """Fill the buffer; last hidden states (B, C)."""
        device = self.forward.model.device
        hidden: Tensor | None = None
        for adapter in sorted(set(self.adapters)):
            rows: dict[tuple[int, ...], list[int]] = {}
            for row, i in enumerate(self.order):
                if self.adapters[i] == adapter:
                    rows.setdefault(self.requests[i].ids, []).append(row)
            prompts = list(rows)
            for done in prefill(self.forward, prompts, pad, adapter):
                for place, number in enumerate(done.indices):
                    same = torch.tensor(rows[prompts[number]], device=device)
                    one = slice(place, place + 1)
                    self.kv.fill(same, self.end, done.kv, one, len(prompts[number]))
                    if hidden is None:
                        hidden = done.hidden.new_empty(len(self.order), done.hidden.shape[1])
                    hidden[same] = done.hidden[one]
        assert hidden is not None
        return hidden

    def choose(self, randoms: Sequence[random.Random]) -> list[int]:
        """The next token of each row."""
        rows = [self.requests[i] for i in self.order]
        logits = self.logits
        if self.seen is not None:
            penalty = torch.tensor([r.repetition_penalty for r in rows], device=logits.device)
            logits = penalise(logits.float(), self.seen, penalty)
        uniform = [randoms[i].random() for i in self.order]
        tokens = pick(logits, [r.temperature for r in rows], [r.top_p for r in rows], [r.top_k for r in rows], uniform)
        if self.seen is not None:
            self.seen.scatter_(1, tokens[:, None], True)
        chosen: list[int] = tokens.tolist()
        return chosen

    def step(self, tokens: Sequence[int]) -> None:
        """Feed one token a row and compute the next logits."""
        if self.end == self.kv.slots:
            self.kv.grow(len(self.order), min(self.limit, self.end + (self.end - min(self.starts))))
        self.end += 1
        device = self.forward.model.device
        ids = torch.tensor(tokens, device=device)[:, None]
        positions = torch.tensor(self.positions, device=device)[:, None]
        job = Pass(ids, positions, self.kv, self.starts, self.end, None, self._groups())
        self.logits = self.forward.logits(self.forward.hidden(job)[:, 0])
        self.positions = [p + 1 for p in self.positions]

    def _groups(self) -> list[Group]:
        """Runs of rows with the same adapter."""
        groups: list[Group] = []
        for row, i in enumerate(self.order):
            for a in self.adapters[i]:
                if groups and groups[-1][0] == a and groups[-1][2] == row:
                    groups[-1] = (a, groups[-1][1], row + 1)
                else:
                    groups.append((a, row, row + 1))
        return groups

    def leave(self, row: int, tokens: list[int]) -> None:
        """Drop a row; the last row of its adapter takes its place, the last of the next adapter that one's."""
        of = [self.adapters[i] for i in self.order]
        hole = row
        for adapter in sorted(a for a in set(of) if a >= of[row]):
            last = len(of) - 1 - of[::-1].index(adapter)
            if last != hole:
                self.kv.move(last, hole, self.end)
                if self.seen is not None:
                    self.seen[hole] = self.seen[last]
                for values in (self.order, self.starts, self.positions, tokens):
                    values[hole] = values[last]
            hole = last
        for values in (self.order, self.starts, self.positions, tokens):
            values.pop()
        if self.seen is not None:
            self.seen = self.seen[:-1]


@torch.inference_mode()
def complete(
    forward: Forward,
    requests: Sequence[Request],
    *,
    stop_ids: frozenset[int],
    pad: int,
    adapters: Sequence[tuple[int, ...]],
) -> list[Completion]:
    """Complete one batch; `adapters` names each request's unmerged adapter by its number in `forward`, or none."""
    randoms = [random.Random(r.seed) for r in requests]
    written: list[list[int]] = [[] for _ in requests]
    done: dict[int, Completion] = {}
    batch = _Batch(forward, requests, pad, adapters)
    while True:
        tokens = batch.choose(randoms)
        finished = []
        for row, i in enumerate(batch.order):
            if tokens[row] in stop_ids:
                done[i] = Completion(tuple(written[i]), truncated=False)
            else:
                written[i].append(tokens[row])
                if len(written[i]) >= requests[i].max_new_tokens:
                    done[i] = Completion(tuple(written[i]), truncated=True)
            if i in done:
                finished.append(row)
        if len(done) == len(requests):
            return [done[i] for i in range(len(requests))]
        for i in [batch.order[row] for row in finished]:
            batch.leave(batch.order.index(i), tokens)
        batch.step(tokens)


@torch.inference_mode()
def first_logits(model: PreTrainedModel, prompts: Sequence[tuple[int, ...]], pad: int) -> Tensor:
    """Logits (B, V) of the token after each prompt, through the same path as `generate`."""
    requests = [Request(ids=p, max_new_tokens=1, temperature=0, top_p=1, seed=0) for p in prompts]
    forward = open_forward(model)
    return _Batch(forward, requests, pad, [forward.default] * len(requests)).logits


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
    forward = open_forward(model)
    return complete(forward, requests, stop_ids=stop_ids, pad=pad, adapters=[forward.default] * len(requests))


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
