"""What a plan says of costs: the records of forecast.py, as `prefixlab plan --json` prints them.

None is "unknown" everywhere. Hours are of one device; bytes are bytes.
"""

from prefixlab.records import Record


class Price(Record):
    """Of a judge on a server: currency units for a million tokens."""

    read: float
    written: float


class Effect(Record):
    """The smallest difference that is found with 80% power."""

    suite: str
    metric: str
    prompts: int
    shares: bool
    """Whether its values are 0 and 1; nothing is predicted of others."""
    one_seed: float | None
    all_seeds: float | None
    """With the study's seeds, under DISCORDANT and SEED_SD; None for one seed, or where nothing is found."""


class Memory(Record):
    """Bytes at the peak of one device, and whether they fit."""

    asked: float | None
    """With the study's own setting."""
    asked_fits: bool | None
    setting: str | None
    """The first setting that fits, as keys of a study file; None where none does, or nothing is known."""
    bytes: float | None
    """With that setting; where none fits, with the one that needs least."""


class CapabilityCost(Record):
    """One capability on one model."""

    model: str
    capability: str
    cells: int
    trained_tokens: float | None
    train_flops: float | None
    train_hours: float | None
    completions: float | None
    written_tokens: float | None
    evaluate_flops: float | None
    evaluate_hours: float | None
    evaluate_hours_at_most: float | None
    """With every completion as long as it may be."""
    read_hours: float | None
    """Held-out samples read token by token."""
    training_memory: Memory
    evaluation_memory: Memory
    disk: float | None
    judge_calls: float | None
    judge_read: float | None
    """Tokens that the judge reads."""
    effects: tuple[Effect, ...]
    sources: dict[str, str]


class ModelCost(Record):
    """Sums over the capabilities of one model, or over all models."""

    model: str
    parameters: int | None
    cells: int
    trained_tokens: float | None
    flops: float | None
    train_hours: float | None
    evaluate_hours: float | None
    evaluate_hours_at_most: float | None
    read_hours: float | None
    hours: float | None
    judge_calls: float | None
    disk: float | None


class JudgeCost(Record):
    """What judging costs."""

    name: str
    model: str | None
    served: bool
    """Whether it is a model on a server."""
    calls: float | None
    read_tokens: float | None
    written_tokens: float | None
    hours: float | None
    """On the device, for a guard that runs there; 0 for rules and for a server."""
    price: float | None
    """0 where no server is asked; None where its price was not given."""


class Forecast(Record):
    """What a study is predicted to cost."""

    device: str
    device_memory: float | None
    assumptions: tuple[str, ...]
    capabilities: tuple[CapabilityCost, ...]
    models: tuple[ModelCost, ...]
    judge: JudgeCost
    download: float | None
    """Bytes of model weights in bfloat16, a guard's included, fetched once."""
    total: ModelCost
