"""A study file: the whole experiment as data. Unknown keys are errors that name the nearest known one (study_file.py).

Every field is documented by the string under it. What can be checked without touching data or models is checked here.
"""

import re
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from prefixlab.config_serving import ServingConfig
from prefixlab.errors import unknown
from prefixlab.records import Position

Control = Literal[
    "neutral", "shuffled", "random", "masked", "revised", "synonym", "unrevised", "anchors_masked", "random_masked"
]
CONTROLS: tuple[Control, ...] = get_args(Control)
LOSS_CONTROLS: tuple[Control, ...] = ("masked", "anchors_masked", "random_masked")
"""Controls that keep the text and take the loss off the prefix, or off words of it."""
ANCHOR_CONTROLS: tuple[Control, ...] = ("anchors_masked", "random_masked")
Protocol = Literal["prefixlab", "safechain", "safechain_sampled", "star1"]
CONDITION = re.compile(r"bare|user_prefix|prefill|zero_think|less_think|attack_(?:answer|opening)@(?:1|3|5|10|20|40)")
CONDITIONS = ("bare", "user_prefix", "prefill", "zero_think", "less_think", "attack_answer@K", "attack_opening@K")
"""K is 1, 3, 5, 10, 20 or 40."""


def _condition(value: str) -> str:
    if not CONDITION.fullmatch(value):
        raise ValueError(str(unknown("condition", value, CONDITIONS)))
    return value


Condition = Annotated[str, AfterValidator(_condition)]
COLUMN_ROLES = ("prompt", "response", "reasoning", "id", "source")
"""What a column of training data can be named for."""
Ratio = Annotated[float, Field(ge=0, le=1)]
NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]*$")


class Config(BaseModel):
    """Base of every part of a study file."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class DataConfig(Config):
    """Training data of one capability."""

    source: str
    """`builtin:NAME`, a local JSONL, JSON, CSV or Parquet file, or a hub id such as org/name."""
    split: str = "train"
    """Split to read from a hub data set."""
    config: str | None = None
    """Part of a hub data set that has several, e.g. `main` of openai/gsm8k."""
    revision: str | None = None
    """Commit, tag or branch of a hub data set; the newest where null."""
    columns: dict[str, str] = {}
    """Names of the columns prompt, response, reasoning, id, source, where they are not found by themselves."""
    limit: int | None = Field(default=None, gt=0)
    """Samples to keep, chosen by a hash of their id; all where null."""
    held_out: int = Field(default=8, ge=0)
    """Samples kept out of training for token loss, chosen by the same hash."""

    @field_validator("columns")
    @classmethod
    def _known_roles(cls, value: dict[str, str]) -> dict[str, str]:
        for role in value:
            if role not in COLUMN_ROLES:
                raise ValueError(str(unknown("role", role, COLUMN_ROLES)))
        return value


class SuiteConfig(Config):
    """One evaluation set under one protocol; decoding that is left out is the protocol's (evals/protocols.py)."""

    suite: str
    """Name of a suite (see `prefixlab doctor`), or `inspect:NAME` or `inspect:FILE.py@NAME` for any Inspect task."""
    source: str | None = None
    """Local file or hub id to read instead of the suite's own source."""
    split: str | None = None
    """Split of a hub data set; the suite's own where null."""
    revision: str | None = None
    """Commit, tag or branch of a hub data set; the newest where null."""
    protocol: Protocol = "prefixlab"
    """Preset of decoding and of what the judge sees: `safechain` (arXiv 2502.12025) and `star1` as published."""
    limit: int | None = Field(default=None, gt=0)
    """Prompts to use, chosen by a hash of their id; all where null."""
    max_tokens: int | None = Field(default=None, gt=0)
    """Longest completion, in tokens. A longer one is truncated and counted as such."""
    temperature: float | None = Field(default=None, ge=0)
    """0 is greedy."""
    top_p: float | None = Field(default=None, gt=0, le=1)
    """Nucleus of the sampling distribution; unused at temperature 0."""
    repetition_penalty: float | None = Field(default=None, gt=0)
    """Divides positive logits of tokens that were seen, multiplies negative ones; 1 does nothing."""
    epochs: int | None = Field(default=None, gt=0)
    """Samples drawn for each prompt."""
    batch_size: int = Field(default=64, gt=0)
    """Prompts generated together."""


class PrimaryConfig(Config):
    """The one comparison a capability is judged by; it enters the Holm family of the study."""

    suite: str
    """Suite, by name."""
    metric: str
    """Metric of that suite."""
    condition: Condition = "bare"
    """How the model is prompted."""
    protocol: Protocol | None = None
    """Protocol of that suite; may be left out where the suite is named once."""
    margin: float | None = Field(default=None, gt=0)
    """Difference of this metric that does not matter, in its units; `analysis.margin` where null."""


class JudgeConfig(Config):
    """Who decides what is safe."""

    name: Literal["rules", "llama-guard", "rubric"] = "rules"
    """`rules` is a proxy and labelled as one; `llama-guard` is a guard model in the format of Llama-Guard-3; `rubric`
    asks a model three questions (docs/methods.md, section 6)."""
    model: str | None = None
    """For `llama-guard` a local folder, a hub id, or `inspect:PROVIDER/NAME`; for `rubric` PROVIDER/NAME of Inspect."""
    threshold: float = Field(default=0.5, gt=0, le=1)
    """Of `rubric`: a score of this and more is unsafe."""
    timeout: int = Field(default=120, gt=0)
    """Seconds for one attempt at a judge on a server."""
    retries: int = Field(default=5, ge=0)
    """Further attempts after rate limits, server errors and time-outs, with growing pauses."""

    @model_validator(mode="after")
    def _model_where_needed(self) -> Self:
        if (self.name == "rules") != (self.model is None):
            raise ValueError("judge.model is for llama-guard and rubric, which need it; rules has none")
        return self


class CapabilityConfig(Config):
    """What is trained for, and on which suites it is tested."""

    data: DataConfig
    """Training data; a bare string stands for `{source: ...}`."""
    no_reasoning: Literal["refuse", "empty", "rationale"] = "refuse"
    """Under a template that opens the reasoning itself, samples that have none are refused, get an empty block, or
    (`rationale`) their text before the final-answer marker, or the column named `reasoning`, becomes the reasoning."""
    suites: list[SuiteConfig]
    """Where every arm of the capability is tested; a bare string stands for `{suite: ...}`."""
    primary: PrimaryConfig
    """The declared main comparison."""

    @field_validator("data", mode="before")
    @classmethod
    def _data(cls, value: Any) -> Any:
        return {"source": value} if isinstance(value, str) else value

    @field_validator("suites", mode="before")
    @classmethod
    def _suites(cls, value: Any) -> Any:
        return [{"suite": v} if isinstance(v, str) else v for v in value] if isinstance(value, list) else value

    @model_validator(mode="after")
    def _primary_is_tested(self) -> Self:
        names = [(s.suite, s.protocol) for s in self.suites]
        if len(set(names)) != len(names):
            raise ValueError("suites: each suite may be named once under each protocol")
        mine = [p for s, p in names if s == self.primary.suite]
        if not mine:
            listed = ", ".join(dict.fromkeys(s for s, _ in names))
            raise ValueError(f"primary.suite {self.primary.suite!r} is not among suites: {listed}")
        if self.primary.protocol is None and len(mine) > 1:
            raise ValueError(f"primary.protocol is needed: {self.primary.suite} is tested under {', '.join(mine)}")
        if self.primary.protocol is not None and self.primary.protocol not in mine:
            raise ValueError(f"primary.protocol {self.primary.protocol!r} is not asked of {self.primary.suite}")
        return self

    def primary_suite(self) -> SuiteConfig:
        """The suite that the primary comparison names."""
        wanted = self.primary.protocol
        return next(s for s in self.suites if s.suite == self.primary.suite and wanted in (None, s.protocol))


class ArmsConfig(Config):
    """A prefix set at a position, its ratios and its controls. r000 is always there."""

    prefixes: str
    """Prefix set: a built-in name or a YAML file."""
    position: Position = "opening"
    """`user`, `opening` or `answer`: see docs/architecture.md."""
    ratios: list[Ratio] = [0.0, 0.5, 1.0]
    """Shares of the samples that carry the prefix."""
    controls: list[Control] = ["neutral"]
    """Control arms, each at the largest ratio."""
    anchors: list[str] = []
    """Words of the prefix set, for the controls `anchors_masked` (no loss on these words) and `random_masked` (none on
    other words of as many tokens). Case does not count, nor does punctuation around a word."""
    capabilities: list[str] | None = None
    """Capabilities this entry is for; all where null."""
    loss: Literal["all", "prefix", "first_tokens"] = "all"
    """Response tokens that carry loss in this entry's arms (r000 excepted): all, the prefix alone (SAFEPATH, arXiv
    2505.14667), or the first `loss_tokens` (UPFT, arXiv 2503.02875)."""
    loss_tokens: int = Field(default=32, gt=0)
    """How many, for `loss: first_tokens`."""
    lookahead: bool = False
    """Put the prefix also at the end of the prompt (LookAhead tuning, arXiv 2503.19041); nothing at inference."""

    @model_validator(mode="after")
    def _one_of_each(self) -> Self:
        if not self.ratios or max(self.ratios) == 0:
            raise ValueError("ratios: at least one ratio above 0 is needed")
        for what, values in (("ratios", self.ratios), ("controls", self.controls)):
            if len(set(values)) != len(values):
                raise ValueError(f"{what}: named twice")
        masked = next((c for c in self.controls if c in LOSS_CONTROLS), None)
        if masked and self.position == "user":
            raise ValueError(
                f"controls: {masked!r} at position 'user' is the treatment itself (a prompt carries no loss)"
            )
        if masked and self.loss != "all":
            raise ValueError(f"controls: {masked!r} and loss: {self.loss} contradict each other; use two entries")
        if self.loss == "prefix" and (self.position == "user" or set(self.ratios) - {0.0, 1.0}):
            raise ValueError(
                "loss: prefix needs position 'opening' or 'answer' and no ratio but 0 and 1 (a sample without prefix "
                "would carry no loss)"
            )
        if self.lookahead and self.position == "user":
            raise ValueError("lookahead: at position 'user' the prefix is in the prompt already")
        return self

    @model_validator(mode="after")
    def _anchors_are_words(self) -> Self:
        asked = [c for c in self.controls if c in ANCHOR_CONTROLS]
        if asked and not self.anchors:
            raise ValueError(f"controls: {asked[0]!r} needs anchors, the words whose loss is taken off")
        if self.anchors and not asked:
            raise ValueError(f"anchors: they are for the controls {' and '.join(ANCHOR_CONTROLS)}; ask for one of them")
        for anchor in self.anchors:
            if len(anchor.split()) != 1 or not any(c.isalnum() for c in anchor):
                raise ValueError(f"anchors: {anchor!r} is not one word; name each word on its own")
        return self


class LoraOptions(Config):
    """Adapter; defaults are the preset's.

    More fields of peft.LoraConfig may be given: those that leave the base model as it is (docs/methods.md, section 5).
    """

    model_config = ConfigDict(frozen=True, extra="allow", use_attribute_docstrings=True)

    r: int | None = Field(default=None, gt=0)
    """Rank."""
    alpha: int | None = Field(default=None, gt=0)
    """Scale: the update is multiplied by alpha / r."""
    dropout: float | None = Field(default=None, ge=0, lt=1)
    """Dropout on the adapter's input."""
    target_modules: list[str] | Literal["all-linear"] | None = None
    """Names of the linear layers that get an adapter."""


class TrainingConfig(Config):
    """One training recipe for all arms."""

    preset: Literal["paper", "modern"] = "modern"
    """`paper`: arXiv 2601.01624 (r 16, alpha 32, dropout 0.05, q and v, 2 epochs, 1e-5, accumulation 8).
    `modern`: all linear layers and a learning rate that moves the weights."""
    lora: LoraOptions = LoraOptions()
    """Overrides of the preset's adapter."""
    learning_rate: float | None = Field(default=None, gt=0)
    """Peak learning rate."""
    epochs: int | None = Field(default=None, gt=0)
    """Passes over the data."""
    batch_size: int | None = Field(default=None, gt=0)
    """Samples a micro-batch; times `accumulation` samples an optimiser step."""
    accumulation: int | None = Field(default=None, gt=0)
    """Micro-batches an optimiser step."""
    scheduler: str | None = None
    """Learning-rate schedule, by transformers' name."""
    warmup_ratio: float = Field(default=0.0, ge=0, le=1)
    """Share of the steps over which the learning rate rises."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW weight decay."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradient clipping."""
    max_length: int = Field(default=1024, gt=0)
    """Longest sample in tokens."""
    over_long: Literal["refuse", "cut"] = "refuse"
    """A longer sample is refused, or its end is cut (never its prefix) and it is counted; a cut one has no end."""
    snapshots: int = Field(default=0, ge=0)
    """Adapters kept on the way, evenly spaced over the steps; the token analysis reads them too."""
    trainer: dict[str, Any] = {}
    """More fields of transformers.TrainingArguments, e.g. adam_beta2: those that nothing else in a study decides."""
    checkpoint_minutes: float = Field(default=5.0, ge=0)
    """Minutes between checkpoints of a cell in training; 0 saves only when the run is asked to stop."""
    report_to: list[Literal["tensorboard", "trackio", "wandb", "mlflow"]] = []
    """Trackers that get every row of metrics.jsonl, beside the file."""


class TokensConfig(Config):
    """Token-level analysis of held-out samples: loss, entropy, rank, KL to the base, gradients."""

    samples: int | None = Field(default=None, ge=0)
    """Held-out samples a capability to read, chosen by a hash of their id; all where null, 0 turns it off."""
    controls: bool = True
    """Whether to read them also under the controls' texts, which anchors are measured against."""
    gradients: Literal["logit", "positions", "tokens"] = "logit"
    """`logit` costs nothing; `positions` adds input gradients and position contributions (one backward pass a sample),
    `tokens` also each token loss' own parameter gradient (one backward pass a token)."""
    weights: list[str] = []
    """Linear layers, by name, whose full weights are attributed instead of the adapter, e.g.
    `model.layers.29.mlp.down_proj`."""
    modules: bool = False
    """Whether to keep position contributions module by module, too."""

    @model_validator(mode="after")
    def _needs_gradients(self) -> Self:
        if self.gradients == "logit" and (self.weights or self.modules):
            raise ValueError("weights and modules need gradients: positions or tokens")
        return self


class AnalysisConfig(Config):
    """What is computed from the adapters beside the suites."""

    tokens: TokensConfig = TokensConfig()
    """Per-token loss and logit gradient by span."""
    alpha: float = Field(default=0.05, gt=0, lt=1)
    """Level of intervals and of the Holm family."""
    margin: float = Field(default=0.05, gt=0)
    """Largest difference that does not matter, in the metric's units (0.05 of a share is 5 points): two arms within it
    are equivalent, and the prompts and seeds that are said to decide are those that detect it."""


class HardwareConfig(Config):
    """Computing choices; `auto` is resolved once by declared rules and stored in plan.json."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where models run."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Base weights and activations."""
    threads: int | None = Field(default=None, gt=0)
    """CPU threads; all available where null."""
    compile: Literal["auto"] | bool = "auto"
    """Compile each decoder layer for training; `auto` does where the planned tokens repay the warm-up."""
    processes: int = Field(default=1, gt=0)
    """Training processes of one cell, launched by torchrun: one a GPU, or several that share the CPU threads."""


class Study(Config):
    """All of an experiment."""

    name: str
    """Letters, digits, dot, dash, underscore."""
    models: list[str] = Field(min_length=1)
    """Built-in names, local folders or hub ids; `org/name@revision` for a branch, tag or commit."""
    capabilities: dict[str, CapabilityConfig] = Field(min_length=1)
    """By name: math, code, safety, factuality or your own."""
    arms: list[ArmsConfig] = Field(min_length=1)
    """Prefix policies under test."""
    seeds: list[int] = Field(default=[0], min_length=1)
    """Training seeds: adapter initialisation, dropout, order."""
    assignment: Literal["exact", "bernoulli"] = "exact"
    """How a ratio picks its samples: exact counts, or one coin a sample as in the paper."""
    native: bool = False
    """Whether to train the data as it came, too."""
    training: TrainingConfig = TrainingConfig()
    """Recipe, the same for every arm."""
    conditions: list[Condition] = ["bare"]
    """How models are prompted at test."""
    judge: JudgeConfig = JudgeConfig()
    """Who decides what is safe; a bare string stands for `{name: ...}`."""
    analysis: AnalysisConfig = AnalysisConfig()
    """Token-level analysis and error level."""
    hardware: HardwareConfig = HardwareConfig()
    """Device, dtype, threads."""
    serving: ServingConfig | None = None
    """A model server that answers the evaluations; the local engine does where null."""

    @field_validator("judge", mode="before")
    @classmethod
    def _judge(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _names_fit(self) -> Self:
        for what, names in (("name", [self.name]), ("capabilities", list(self.capabilities))):
            for name in names:
                if not NAME.match(name):
                    raise ValueError(f"{what}: {name!r} may hold letters, digits, '.', '_' and '-' only")
        for what, values in (("models", self.models), ("seeds", self.seeds), ("conditions", self.conditions)):
            if len(set(values)) != len(values):
                raise ValueError(f"{what}: named twice")
        if self.serving is not None:
            self.serving.check_models(self.models)
        for i, arms in enumerate(self.arms):
            for capability in arms.capabilities or []:
                if capability not in self.capabilities:
                    raise ValueError(f"arms[{i}].capabilities: {capability!r} is not among the study's capabilities")
        for name in self.capabilities:
            if not any(a.capabilities is None or name in a.capabilities for a in self.arms):
                raise ValueError(f"capability {name!r} has no arms")
            if self.capabilities[name].primary.condition not in self.conditions:
                raise ValueError(f"capabilities.{name}.primary.condition is not among conditions")
        return self
