"""Sizes of public sets, for a plan without the hub: rows by split, and mean tokens.

Rows of GSM8K, STAR-1, StrongREJECT, XSTest, HumanEval, SimpleQA and MATH-500 were counted in their files, those of the
others are as published. Tokens were counted with SmolLM2's tokenizer on at most 1,000 rows of the files, without a chat
template; spreads follow from the 95th percentiles. R1's and Llama's tokenizers differ by a tenth or so.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class KnownData:
    """A training set: rows of its splits, mean tokens of prompts and responses."""

    rows: dict[str, int]
    prompt: float
    response: float
    spread: float
    """Standard deviation of their sum."""
    longest: int


TRAINING: dict[str, KnownData] = {
    "openai/gsm8k": KnownData({"train": 7_473, "test": 1_319}, 60, 122, 73, 537),
    "google-research-datasets/mbpp": KnownData(
        {"train": 374, "test": 500, "validation": 90, "prompt": 10}, 16, 66, 60, 445
    ),
    "UCSC-VLAA/STAR-1": KnownData({"train": 1_000}, 21, 366, 180, 1_185),
    "truthfulqa/truthful_qa": KnownData({"validation": 817}, 13, 11, 12, 63),
}
"""By hub id, of the part (config) that this project's studies name."""


@dataclass(frozen=True)
class KnownSuite:
    """A suite: prompts by kind, mean tokens of a prompt, and of all given answers where they are compared."""

    prompts: dict[str, int]
    prompt: float | None
    given: float = 0.0


SUITES: dict[str, KnownSuite] = {
    "gsm8k": KnownSuite({"problem": 1_319}, 61),
    "gsm8k_gold": KnownSuite({"problem": 1_319}, 61, 93),
    "svamp": KnownSuite({"problem": 300}, 42),
    "math500": KnownSuite({"problem": 500}, 94),
    "aime24": KnownSuite({"problem": 30}, 100),
    "humaneval": KnownSuite({"problem": 164}, 159),
    "mbpp": KnownSuite({"problem": 500}, 140),
    "mbpp_sanitized": KnownSuite({"problem": 257}, 140),
    "strongreject": KnownSuite({"harmful": 313}, 30),
    "strongreject_small": KnownSuite({"harmful": 60}, 33),
    "wildjailbreak": KnownSuite({"harmful": 2_000, "harmless": 210}, 150),
    "jailbreakbench": KnownSuite({"harmful": 100}, 20),
    "harmbench": KnownSuite({"harmful": 200}, 25),
    "xstest": KnownSuite({"harmful": 200, "harmless": 250}, 10),
    "truthfulqa_mc": KnownSuite({"problem": 817}, 13, 83),
    "truthfulqa": KnownSuite({"problem": 817}, 13),
    "simpleqa": KnownSuite({"problem": 4_326}, 25),
    "popqa": KnownSuite({"problem": 14_267}, 10),
}
"""As the hub has them; prompt lengths of aime24, wildjailbreak, jailbreakbench, harmbench, popqa are guesses."""
