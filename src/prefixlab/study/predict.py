"""What a cell will cost before anything runs: operations by formula, seconds by a nominal rate, compiling by counts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Self

from prefixlab.config import HardwareConfig
from prefixlab.data.chat import prompt_ids
from prefixlab.model.architectures import architecture
from prefixlab.model.flops import generate_flops, model_shape, train_flops
from prefixlab.model.load import load_config
from prefixlab.model.machine import compile_pays
from prefixlab.model.recipes import Recipe, check_adapter
from prefixlab.records import EvalItem, ModelRef, Resolved, Sample
from prefixlab.study.devices import cpu_rates
from prefixlab.study.workload import Sizes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SAMPLED = 200
"""Samples, and prompts of a suite, whose tokens are counted; the others are taken to be like them."""
GPU = 1e14
"""FLOP/s of a GPU whose name the predicted seconds do not ask for."""


class Speed:
    """Predicted operations and seconds (docs/methods.md, section 12); seconds are for people, never a setting.

    Raises:
        UserError: A model of another kind, or an adapter that does not fit it.
    """

    def __init__(self, ref: ModelRef, hardware: Resolved, plan: Recipe) -> None:
        config = load_config(ref)
        self.shape = model_shape(config, ref.name)
        self.architecture = architecture(config, ref.name)
        check_adapter(plan, config)
        self.plan = plan
        self.rate: float = GPU * hardware.processes
        """FLOP/s in training."""
        self.forward: float = GPU
        """FLOP/s in forward passes."""
        if hardware.device == "cpu":
            train, forward = cpu_rates(hardware.dtype)
            self.rate, self.forward = train * hardware.threads, forward * hardware.threads

    def train_flops(self, lengths: Sequence[int], supervised: int) -> float:
        """Operations of one cell over all its epochs."""
        width = self.shape.adapter_width(self.plan.target_modules)
        return self.plan.epochs * train_flops(self.shape, lengths, supervised, self.plan.r, width)

    def train(self, flops: float) -> float:
        """Seconds of one cell."""
        return flops / self.rate + 1

    def generate(self, prefill: float, decoded: float) -> float:
        """Prompts, and tokens that are written or compared; many prompts are decoded together."""
        flops = generate_flops(self.shape, prefill, 0) + generate_flops(self.shape, decoded, decoded)
        return flops / self.forward + 2

    def read(self, tokens: float, gradients: Literal["logit", "positions", "tokens"], supervised: float) -> float:
        """Seconds to read so many tokens by an adapter and by the base under it, with what the gradients cost.

        Args:
            tokens: Of all texts that are read.
            gradients: As in `analysis.tokens`; a forward and a backward pass count as three forward ones.
            supervised: Supervised tokens of one sample: as many backward passes, where each token has its own.
        """
        passes = 2.0 + {"logit": 0.0, "positions": 3.0, "tokens": 6.0 + 2.0 * supervised}[gradients]
        return passes * generate_flops(self.shape, tokens, tokens) / self.forward + 3


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


@dataclass(frozen=True)
class Lengths:
    """Samples, and the mean length, mean square of it, mean supervised tokens and greatest length; None: unknown."""

    n: int | None
    mean: float | None
    squares: float | None
    supervised: float | None
    longest: int | None

    @classmethod
    def of(cls, pairs: Sequence[tuple[float, float]]) -> Self:
        """From (tokens, supervised tokens) of every sample."""
        n = len(pairs)
        return cls(
            n,
            sum(t for t, _ in pairs) / n,
            sum(t * t for t, _ in pairs) / n,
            sum(s for _, s in pairs) / n,
            int(max(t for t, _ in pairs)),
        )


def sample_lengths(samples: Sequence[Sample], lengths: Sequence[int], supervised: int) -> Lengths:
    """What `token_counts` found, in short; the longest sample is guessed by its characters where it was not counted."""

    def characters(sample: Sample) -> int:
        return sum(len(m.content) for m in sample.messages) + len(sample.reasoning or "") + len(sample.answer)

    counted = min(SAMPLED, len(samples))
    each = sum(lengths[:counted]) / max(1, sum(characters(s) for s in samples[:counted]))
    n = len(samples)
    longest = max(max(lengths), round(each * max(characters(s) for s in samples)))
    return Lengths(n, sum(lengths) / n, sum(t * t for t in lengths) / n, supervised / n, longest)


def item_sizes(items: Sequence[EvalItem], tokenizer: "PreTrainedTokenizerBase") -> Sizes:
    """Mean tokens of prompts as they are sent, and of the answers that they compare; unknown of an empty suite."""
    some = items[:SAMPLED]
    if not some:
        return Sizes(None, None)
    prompts = sum(len(prompt_ids(tokenizer, i.messages)) for i in some)
    texts = [text for i in some for kind in ("correct", "incorrect") for text in i.data.get(kind, ())]
    given = sum(len(tokenizer(t, add_special_tokens=False)["input_ids"]) for t in texts)
    return Sizes(prompts / len(some), given / len(some))
