"""What a model is made of, in numbers: from its configuration, or from a table where the hub is out of reach.

The numbers of `KNOWN` are those of each repository's config.json; the tests hold the parameter counts that follow from
them against models that transformers builds without memory. Decoder-only models with a gated MLP, as Llama and Qwen2.

    architecture(known_config("deepseek-ai/DeepSeek-R1-Distill-Llama-8B"), "...").parameters      # 8,030,261,248
"""

from pathlib import Path
from typing import Any

from transformers import AutoConfig, PretrainedConfig

from prefixlab.data.hub import split_revision
from prefixlab.model.flops import ModelShape, model_shape
from prefixlab.records import Record


def _fields(
    hidden: int, inner: int, layers: int, heads: int, kv_heads: int, vocabulary: int, *, tied: bool, head: int = 0
) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head or hidden // heads,
        "vocab_size": vocabulary,
        "tie_word_embeddings": tied,
    }


_LLAMA_8B = _fields(4096, 14336, 32, 32, 8, 128_256, tied=False)
_QWEN_7B = _fields(3584, 18944, 28, 28, 4, 152_064, tied=False)
KNOWN: dict[str, tuple[str, dict[str, Any]]] = {
    # huggingface.co/deepseek-ai/<name>/blob/main/config.json
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": ("qwen2", _fields(1536, 8960, 28, 12, 2, 151_936, tied=False)),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B": ("qwen2", _QWEN_7B),
    "deepseek-ai/DeepSeek-R1-Distill-Llama-8B": ("llama", _LLAMA_8B),
    # huggingface.co/Qwen/<name>/blob/main/config.json; the base models without "-Instruct" have the same numbers
    "Qwen/Qwen2.5-0.5B-Instruct": ("qwen2", _fields(896, 4864, 24, 14, 2, 151_936, tied=True)),
    "Qwen/Qwen2.5-1.5B-Instruct": ("qwen2", _fields(1536, 8960, 28, 12, 2, 151_936, tied=True)),
    "Qwen/Qwen2.5-3B-Instruct": ("qwen2", _fields(2048, 11008, 36, 16, 2, 151_936, tied=True)),
    "Qwen/Qwen2.5-7B-Instruct": ("qwen2", _QWEN_7B),
    # huggingface.co/meta-llama/<name>/blob/main/config.json
    "meta-llama/Llama-3.2-1B-Instruct": ("llama", _fields(2048, 8192, 16, 32, 8, 128_256, tied=True)),
    "meta-llama/Llama-3.2-3B-Instruct": ("llama", _fields(3072, 8192, 28, 24, 8, 128_256, tied=True)),
    "meta-llama/Llama-3.1-8B-Instruct": ("llama", _LLAMA_8B),
    "meta-llama/Llama-Guard-3-8B": ("llama", _LLAMA_8B),
    # huggingface.co/HuggingFaceTB/<name>/blob/main/config.json
    "HuggingFaceTB/SmolLM2-135M-Instruct": ("llama", _fields(576, 1536, 30, 9, 3, 49_152, tied=True)),
    "HuggingFaceTB/SmolLM2-360M-Instruct": ("llama", _fields(960, 2560, 32, 15, 5, 49_152, tied=True)),
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": ("llama", _fields(2048, 8192, 24, 32, 32, 49_152, tied=True)),
}
"""Hub id -> model type of transformers, and the fields of its configuration that the formulas need."""
CONFIG = "its config.json"
"""Where the numbers of a model that is at hand are from."""
OPENS_REASONING = ("deepseek-ai/DeepSeek-R1-Distill-",)
"""Beginnings of hub ids whose stock chat template ends its generation prompt in `<think>`."""


class Architecture(Record):
    """The numbers of one model that costs are counted from."""

    layers: int
    hidden: int
    inner: int
    """Width of the MLP."""
    queries: int
    """Width of the queries: heads times head dimension."""
    kv: int
    """Width of the keys, and of the values."""
    heads: int
    vocabulary: int
    tied: bool
    """Whether the output head is the embedding."""
    extra: int
    """Biases and norms of one layer."""

    @property
    def shape(self) -> ModelShape:
        """As flops.py counts operations."""
        d, q, kv, inner = self.hidden, self.queries, self.kv, self.inner
        linear = {"q_proj": (d, q), "k_proj": (d, kv), "v_proj": (d, kv), "o_proj": (q, d)}
        linear |= {"gate_proj": (d, inner), "up_proj": (d, inner), "down_proj": (inner, d)}
        return ModelShape(self.layers, linear, q, d, self.vocabulary)

    @property
    def parameters(self) -> int:
        """All weights, embeddings and norms included."""
        embeddings = self.vocabulary * self.hidden * (1 if self.tied else 2)
        return embeddings + self.shape.weights + self.layers * self.extra + self.hidden


def architecture(config: PretrainedConfig, name: str) -> Architecture:
    """The numbers of a configuration.

    Raises:
        UserError: A model of another kind.
    """
    shape = model_shape(config, name)
    (d, q), (_, kv), inner = shape.linear["q_proj"], shape.linear["k_proj"], shape.linear["gate_proj"][1]
    extra = 2 * d
    if config.model_type == "qwen2":  # has its biases without saying so in the configuration
        extra += q + 2 * kv
    elif getattr(config, "attention_bias", False):
        extra += q + 2 * kv + d
    if getattr(config, "mlp_bias", False):
        extra += 2 * inner + d
    if config.model_type == "qwen3":
        extra += 2 * q // config.num_attention_heads
    return Architecture(
        layers=shape.layers,
        hidden=d,
        inner=inner,
        queries=q,
        kv=kv,
        heads=config.num_attention_heads,
        vocabulary=shape.vocabulary,
        tied=bool(config.tie_word_embeddings),
        extra=extra,
    )


def known_config(name: str) -> PretrainedConfig | None:
    """The configuration of a model in the table; None for others."""
    kind, fields = KNOWN.get(name) or KNOWN.get(f"{name}-Instruct") or ("", {})
    return AutoConfig.for_model(kind, **fields) if kind else None


def offline_config(name: str) -> tuple[PretrainedConfig | None, str]:
    """A model's configuration without the hub, and where it is from: its folder, the hub's cache, the table, nowhere.

    Args:
        name: Local folder or hub id, with or without a revision.
    """
    try:
        repo, revision = (name, None) if Path(name).is_dir() else split_revision(name)
        found = AutoConfig.from_pretrained(repo, revision=revision, local_files_only=True, trust_remote_code=False)
        return found, CONFIG
    except (OSError, ValueError):
        known = known_config(split_revision(name)[0])
        return known, "the table of known models" if known else "unknown"
