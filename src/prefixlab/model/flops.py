"""Operations of training, counted by formula, for predictions and for model FLOP utilisation.

A frozen base needs 2N forward and 2N backward a token, not 6N: no gradient of its weights is ever taken
(docs/performance.md, "Counting operations"). Only non-padding tokens count.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from prefixlab.errors import UserError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

NEEDED = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")


@dataclass(frozen=True)
class ModelShape:
    """What of a decoder-only model the formulas need."""

    layers: int
    linear: dict[str, tuple[int, int]]
    """Linear layers of one decoder layer: name -> (in, out)."""
    attention: int
    """Width of the queries: heads times head dimension."""
    hidden: int
    vocabulary: int

    @property
    def weights(self) -> int:
        """N: weights of the linear layers, without embedding and head."""
        return self.layers * sum(a * b for a, b in self.linear.values())

    def adapter_width(self, targets: Sequence[str] | Literal["all-linear"]) -> int:
        """Sum of in + out over the adapted linear layers."""
        names = self.linear if targets == "all-linear" else [n for n in targets if n in self.linear]
        return self.layers * sum(sum(self.linear[n]) for n in names)


def model_shape(config: "PretrainedConfig", name: str) -> ModelShape:
    """Shape of a model with gated MLP, as Llama, Qwen2 and their kin have it.

    Raises:
        UserError: The configuration lacks what the formulas need: the model is of another kind.
    """
    if missing := [n for n in NEEDED if not hasattr(config, n)]:
        raise UserError(f"model {name!r} ({config.model_type}) is not supported: its config lacks {missing[0]}")
    d, inner, heads = config.hidden_size, config.intermediate_size, config.num_attention_heads
    head = getattr(config, "head_dim", None) or d // heads
    q, kv = heads * head, config.num_key_value_heads * head
    linear = {
        "q_proj": (d, q),
        "k_proj": (d, kv),
        "v_proj": (d, kv),
        "o_proj": (q, d),
        "gate_proj": (d, inner),
        "up_proj": (d, inner),
        "down_proj": (inner, d),
    }
    return ModelShape(config.num_hidden_layers, linear, q, d, config.vocab_size)


def train_flops(shape: ModelShape, lengths: Sequence[int], supervised: int, rank: int, adapter_width: int) -> float:
    """Operations of forward and backward passes with a frozen base and head.

    Per token: 4N + 6 L d_attn S + 6 r sum(d_in + d_out), and 4 V d for each supervised one.

    Args:
        shape: Of the model.
        lengths: Tokens of every sample, padding left out; S of a token is its sample's length.
        supervised: Tokens that carry loss.
        rank: Of the adapters.
        adapter_width: `shape.adapter_width(...)`.
    """
    tokens, pairs = sum(lengths), sum(n * n for n in lengths)
    linear = tokens * (4 * shape.weights + 6 * rank * adapter_width)
    return float(linear + 6 * shape.layers * shape.attention * pairs + 4 * supervised * shape.vocabulary * shape.hidden)


def generate_flops(shape: ModelShape, tokens: float, scored: float) -> float:
    """Operations of a forward pass over `tokens`, the head at `scored` of them; attention left out."""
    return 2 * shape.weights * tokens + 2 * shape.vocabulary * shape.hidden * scored
