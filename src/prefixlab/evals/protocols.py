"""Protocols: decoding, and what the judge sees. Part of a result's name.

`safechain` is github.com/uw-nsl/safechain at d9c0d79 (greedy, 16,000 tokens, Llama-Guard reads the whole response),
`safechain_sampled` its sampled setting (five samples, temperature 0.6, top-p 0.95), `star1` is
github.com/UCSC-VLAA/STAR-1 at b493335 (greedy, 8,000 tokens, repetition penalty 1.2). Neither sends a system turn. Two
protocols on one untuned model differ by 12 points on StrongREJECT, more than the effects under study.
"""

from dataclasses import dataclass
from typing import Literal

from prefixlab.config import Protocol, SuiteConfig

Part = Literal["answer", "whole"]
"""What of a response is judged: the final answer, or all of it with its reasoning."""
DECODING = ("max_tokens", "temperature", "top_p", "repetition_penalty", "epochs")


@dataclass(frozen=True)
class Preset:
    """A published way of decoding and judging."""

    max_tokens: int | None
    """None: the suite's own."""
    judged: Part
    temperature: float = 0.0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    epochs: int = 1


PRESETS: dict[Protocol, Preset] = {
    "prefixlab": Preset(max_tokens=None, judged="answer"),
    "safechain": Preset(max_tokens=16000, judged="whole"),
    "safechain_sampled": Preset(max_tokens=16000, judged="whole", temperature=0.6, top_p=0.95, epochs=5),
    "star1": Preset(max_tokens=8000, judged="whole", repetition_penalty=1.2),
}


@dataclass(frozen=True)
class Decoding:
    """How completions are drawn, with nothing left to decide."""

    max_tokens: int
    temperature: float
    top_p: float
    repetition_penalty: float
    epochs: int


def decoding(config: SuiteConfig, suite_max_tokens: int) -> Decoding:
    """The study's values, else the preset's, else the suite's."""
    preset = PRESETS[config.protocol]
    values = {n: getattr(preset, n) if getattr(config, n) is None else getattr(config, n) for n in DECODING}
    values["max_tokens"] = values["max_tokens"] or suite_max_tokens
    return Decoding(**values)


def label(config: SuiteConfig) -> str:
    """The protocol's name in results; a published one that the study changed says what was changed."""
    if config.protocol == "prefixlab":
        return config.protocol
    preset = PRESETS[config.protocol]
    changed = [(n, getattr(config, n)) for n in DECODING if getattr(config, n) not in (None, getattr(preset, n))]
    return ", ".join([config.protocol, *(f"{name}={value:g}" for name, value in changed)])
