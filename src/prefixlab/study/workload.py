"""What a study asks of a machine, in numbers: counted where models and data are at hand, else taken from tables.

A `Workload` is one capability on one model. `forecast.py` turns it into operations, hours, memory and money. None is
"not known", never 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from prefixlab.config import SuiteConfig
from prefixlab.data.arms import ArmSpec
from prefixlab.data.chat import ChatFormat
from prefixlab.evals.conditions import needs_reasoning, not_applicable
from prefixlab.evals.nouns import Suite
from prefixlab.evals.protocols import Decoding, label
from prefixlab.model.architectures import Architecture
from prefixlab.records import Record

REASONING_TOKENS = 1_500
"""Expected length of a completion with reasoning. Recorded answers of R1 distills to reasoning questions, cut at about
2,000 tokens, average about 1,100; those that were cut are longer."""
FILLED = 0.6
"""Share of a short limit that completions are expected to fill."""
WORD = 4 / 3
"""Tokens of a word of English."""


class SuiteLoad(Record):
    """One suite under one protocol, asked of one model."""

    suite: str
    protocol: str
    prompts: dict[str, int] | None
    """Kind of prompt -> how many."""
    judged: bool
    epochs: int
    batch_size: int
    prompt_tokens: float | None
    given_tokens: float | None
    """Of the answers that are compared, for each prompt; 0 where the model writes."""
    output_tokens: float
    """Expected length of a completion; 0 where answers are compared."""
    max_tokens: int
    evaluated: tuple[str, ...]
    """Conditions that are scored."""
    generated: tuple[str, ...]
    """Conditions that are sampled: also `bare`, where another needs its reasoning."""
    opens_reasoning: bool = False
    """Whether the model's template does, so that a judge reads the parts of a response as well as all of it."""

    @property
    def n(self) -> int | None:
        """Prompts of every kind."""
        return None if self.prompts is None else sum(self.prompts.values())


class ArmLoad(Record):
    """One arm: its name, and the tokens its prefixes add to a sample on average."""

    name: str
    extra: float


class Workload(Record):
    """One capability on one model."""

    capability: str
    model: str
    architecture: Architecture | None
    samples: int | None
    tokens: float | None
    """Mean length of a sample without prefix."""
    squares: float | None
    """Mean square of it, for the attention's operations."""
    supervised: float | None
    """Mean tokens that carry loss."""
    longest: int | None
    """Tokens of the longest sample that may occur."""
    arms: tuple[ArmLoad, ...]
    seeds: int
    readings: int
    """Held-out samples times texts, read for every adapter and the base; snapshots come on top."""
    suites: tuple[SuiteLoad, ...]
    sources: dict[str, str]
    """What -> where its numbers are from."""

    @property
    def cells(self) -> int:
        """Trainings."""
        return len(self.arms) * self.seeds


@dataclass(frozen=True)
class Sizes:
    """Mean tokens of a suite's prompts, and of the answers it compares."""

    prompt: float | None
    given: float | None


def expected_tokens(max_tokens: int) -> float:
    """Expected length of a completion: a share of a short limit, and of a long one what reasoning models write."""
    return min(FILLED * max_tokens, float(REASONING_TOKENS))


def suite_load(
    config: SuiteConfig,
    suite: Suite,
    how: Decoding,
    conditions: Sequence[str],
    position: str | None,
    chat: ChatFormat,
    prompts: dict[str, int] | None,
    sizes: Sizes,
) -> SuiteLoad:
    """A suite's part of a workload.

    Args:
        config: As the study asks for it.
        suite: What it is.
        how: Its decoding.
        conditions: Of the study.
        position: Where the treatment stands.
        chat: What the model's template does.
        prompts: Kind -> count.
        sizes: Of prompts and given answers.
    """
    applies = [c for c in conditions if not not_applicable(c, suite, chat)]
    behind = any(needs_reasoning(c, position, chat) for c in applies)
    return SuiteLoad(
        suite=config.suite,
        protocol=label(config),
        prompts=prompts,
        judged=suite.judged,
        epochs=how.epochs,
        batch_size=config.batch_size,
        prompt_tokens=sizes.prompt,
        given_tokens=sizes.given if suite.choices else 0.0,
        output_tokens=0.0 if suite.choices else expected_tokens(how.max_tokens),
        max_tokens=how.max_tokens,
        evaluated=tuple(applies),
        generated=tuple(dict.fromkeys([*applies, *(["bare"] if behind else [])])),
        opens_reasoning=bool(chat.preopened),
    )


def arm_loads(specs: Sequence[ArmSpec]) -> tuple[ArmLoad, ...]:
    """Arms with the tokens that their prefixes add, by words."""
    return tuple(ArmLoad(name=s.name, extra=(s.ratio or 0.0) * _words(s) * WORD) for s in specs)


def _words(spec: ArmSpec) -> float:
    texts = spec.prefixes.templates if spec.prefixes else ()
    return sum(len(t.split()) for t in texts) / len(texts) if texts else 0.0
