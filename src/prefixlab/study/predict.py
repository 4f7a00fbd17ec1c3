"""What a cell will cost before anything runs: operations by formula, seconds by a nominal rate, compiling by counts."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from transformers import AutoConfig

from prefixlab.config import HardwareConfig
from prefixlab.data.chat import prompt_ids
from prefixlab.model.flops import generate_flops, model_shape, train_flops
from prefixlab.model.machine import compile_pays
from prefixlab.model.recipes import Recipe, check_adapter
from prefixlab.records import ModelRef, Resolved, Sample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SAMPLED = 200
"""Samples whose tokens are counted; the others are taken to be like them."""


class Speed:
    """Predicted operations and seconds (docs/methods.md, "Predicted time"); seconds are for people, never a setting.

    Raises:
        UserError: A model of another kind, or an adapter that does not fit it.
    """

    def __init__(self, ref: ModelRef, hardware: Resolved, plan: Recipe) -> None:
        config = AutoConfig.from_pretrained(ref.path, revision=ref.revision, trust_remote_code=False)
        self.shape = model_shape(config, ref.name)
        check_adapter(plan, config)
        self.plan = plan
        per_thread = 50e9 if hardware.dtype == "float32" else 200e9
        self.rate: float = per_thread * hardware.threads if hardware.device == "cpu" else 1e14 * hardware.processes

    def train_flops(self, lengths: Sequence[int], supervised: int) -> float:
        """Operations of one cell over all its epochs."""
        width = self.shape.adapter_width(self.plan.target_modules)
        return self.plan.epochs * train_flops(self.shape, lengths, supervised, self.plan.r, width)

    def train(self, flops: float) -> float:
        """Seconds of one cell."""
        return flops / self.rate + 1

    def generate(self, prefill: float, decoded: float) -> float:
        """Prefill and decoding; decoding reads all weights for few tokens and runs at half the rate."""
        flops = generate_flops(self.shape, prefill, 0) + 2 * generate_flops(self.shape, decoded, decoded)
        return flops / self.rate + 2

    def read(self, tokens: float, gradients: Literal["logit", "positions", "tokens"], supervised: float) -> float:
        """Seconds to read so many tokens by an adapter and by the base under it, with what the gradients cost.

        Args:
            tokens: Of all texts that are read.
            gradients: As in `analysis.tokens`; a forward and a backward pass count as three forward ones.
            supervised: Supervised tokens of one sample: as many backward passes, where each token has its own.
        """
        passes = 2.0 + {"logit": 0.0, "positions": 3.0, "tokens": 6.0 + 2.0 * supervised}[gradients]
        return passes * generate_flops(self.shape, tokens, tokens) / self.rate + 3


def token_counts(samples: Sequence[Sample], tokenizer: "PreTrainedTokenizerBase") -> tuple[list[int], int]:
    """Lengths and supervised tokens of a data set without prefix, those of the first samples repeated."""
    some = samples[:SAMPLED]
    texts = [(s.reasoning or "") + s.answer for s in some]
    responses = [len(tokenizer(t, add_special_tokens=False)["input_ids"]) + 1 for t in texts]
    lengths = [len(prompt_ids(tokenizer, s.messages)) + n for s, n in zip(some, responses, strict=True)]
    times = len(samples) / len(some)
    return [lengths[i % len(some)] for i in range(len(samples))], int(sum(responses) * times)


def with_compiling(hardware: Resolved, asked: HardwareConfig, flops: float) -> Resolved:
    """The machine's settings for cells of `flops` each: how many cells there are must not change how one is trained."""
    compiled = compile_pays(hardware, flops) if asked.compile == "auto" else asked.compile
    return hardware.model_copy(update={"compile": compiled})
