"""Keys and values of a batch in one buffer a layer, and the windows through which a forward pass sees them.

Rows are aligned at their right end: the last token of every prompt stands in the same slot, and a row's first token in
slot `start`. So a row's tokens are contiguous, every row writes its next token to the same slot, and what a row must
not see are the slots before its own start.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel


class KV:
    """One (rows, heads, slots, dim) buffer of keys and one of values for every layer; new slots hold anything."""

    def __init__(self, model: PreTrainedModel, rows: int, slots: int) -> None:
        config = model.config
        heads = config.num_key_value_heads
        dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.keys, self.values = (
            [
                torch.empty(rows, heads, slots, dim, dtype=model.dtype, device=model.device)
                for _ in range(config.num_hidden_layers)
            ]
            for _ in range(2)
        )

    @property
    def slots(self) -> int:
        """Slots a row has."""
        return self.keys[0].shape[2]

    def fill(self, rows: Tensor | slice, end: int, source: "KV", of: Tensor | slice, width: int) -> None:
        """Copy the first `width` slots of rows `of` of `source` into the slots before `end` of `rows`."""
        for mine, theirs in ((self.keys, source.keys), (self.values, source.values)):
            for a, b in zip(mine, theirs, strict=True):
                a[rows, :, end - width : end] = b[of, :, :width]

    def hide(self, starts: Sequence[int]) -> None:
        """Zero the slots before each row's first one: they get no weight, but what they hold is multiplied by it."""
        for row, start in enumerate(starts):
            for buffer in (*self.keys, *self.values):
                buffer[row, :, :start] = 0

    def move(self, source: int, target: int, end: int) -> None:
        """Copy the slots before `end` of one row over another row."""
        for buffer in (*self.keys, *self.values):
            buffer[target, :, :end] = buffer[source, :, :end]

    def grow(self, rows: int, slots: int) -> None:
        """Make room for `slots` slots and keep the first `rows` rows only."""
        for buffers in (self.keys, self.values):
            for i, old in enumerate(buffers):
                buffers[i] = old.new_empty(rows, old.shape[1], slots, old.shape[3])
                buffers[i][:, :, : old.shape[2]] = old[:rows]


class Window(Cache):
    """A KV buffer as a transformers cache: the first `rows` rows, slots `lo` to `end`; the last ones are written."""

    def __init__(self, kv: KV, rows: int, lo: int, end: int, new: int) -> None:
        super().__init__(layers=[])
        self.kv, self.rows, self.lo, self.end, self.new = kv, rows, lo, end, new

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Write (B, K, n, D) states into the last slots of the window and return all of it."""
        keys, values = self.kv.keys[layer_idx][: self.rows], self.kv.values[layer_idx][: self.rows]
        keys[:, :, self.end - self.new : self.end] = key_states
        values[:, :, self.end - self.new : self.end] = value_states
        return keys[:, :, self.lo : self.end], values[:, :, self.lo : self.end]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Slots filled before this pass."""
        return self.end - self.new - self.lo


def visible(starts: Sequence[int], lo: int, end: int, queries: int, like: Tensor) -> Tensor | None:
    """Additive mask for the last `queries` slots before `end` over the slots from `lo`.

    Args:
        starts: First real slot of each row.
        lo: First slot of the window.
        end: Slot behind the last one.
        queries: Number of query positions.
        like: A tensor with the model's dtype and device.

    Returns:
        (B or 1, 1, queries, end - lo), or None where every query sees everything.
    """
    padded = any(s > lo for s in starts)
    if queries == 1 and not padded:
        return None
    slot = torch.arange(lo, end, device=like.device)
    see = (slot[None, :] <= slot[-queries:, None])[None]
    if padded:
        see = see & (slot[None, None, :] >= torch.tensor(starts, device=like.device)[:, None, None])
    # Half of the minimum: a score added to it must not overflow to -inf, or a padding query would become NaN.
    hidden = torch.finfo(like.dtype).min / 2
    return torch.zeros(see.shape, dtype=like.dtype, device=like.device).masked_fill_(~see, hidden)[:, None]
