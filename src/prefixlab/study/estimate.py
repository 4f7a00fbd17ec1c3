"""A plan without the hub: workloads from tables, where models or data sets cannot be had here.

Local files, built-in sets and local models are still counted. The hub is not asked again: every try may take its
time-out. What is from a table, or not known, is said in `Workload.sources`. An estimate has no steps: their ids
hang on content.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

from prefixlab.config import CapabilityConfig, Study, SuiteConfig
from prefixlab.data.arms import ArmSpec, arm_specs
from prefixlab.data.chat import ChatFormat, chat_format
from prefixlab.data.hub import UNREACHED
from prefixlab.data.parts import OPEN
from prefixlab.data.rows import is_hub_id
from prefixlab.data.sources import read_samples
from prefixlab.errors import UserError
from prefixlab.evals.protocols import decoding
from prefixlab.evals.suites import find_suite, is_foreign, load_items
from prefixlab.model.architectures import CONFIG, OPENS_REASONING, Architecture, architecture, offline_config
from prefixlab.model.load import BUILTIN, load_tokenizer, resolve_model
from prefixlab.model.recipes import check_adapter, recipe
from prefixlab.records import EvalItem, Sample
from prefixlab.study.known_sets import SUITES, TRAINING
from prefixlab.study.predict import Lengths, item_sizes, sample_lengths, token_counts
from prefixlab.study.reading import reading_specs
from prefixlab.study.workload import Sizes, SuiteLoad, Workload, arm_loads, suite_load

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEMPLATE = 10
"""Tokens that a chat template is taken to add where the tokenizer is not at hand."""
HERE = "counted"
UNKNOWN = "unknown"


@dataclass(frozen=True)
class _Model:
    """What is known of one model."""

    name: str
    architecture: Architecture | None
    chat: ChatFormat
    tokenizer: "PreTrainedTokenizerBase | None"
    sources: dict[str, str]


def out_of_reach(error: UserError) -> bool:
    """Whether it says that the hub, or something on it, cannot be had here; a name that the hub lacks is a mistake."""
    cause = error.__cause__
    lacking = isinstance(cause, RepositoryNotFoundError) and not isinstance(cause, GatedRepoError)
    return isinstance(cause, (*UNREACHED, ImportError)) and not lacking


def _find_model(name: str, study: Study) -> _Model:
    """A model that is here, or what the tables say of it.

    Raises:
        UserError: A name that is none, or an adapter that does not fit the model.
    """
    if name in BUILTIN or not is_hub_id(name):
        ref = resolve_model(name)
        config, where = offline_config(ref.path)
        tokenizer = load_tokenizer(ref)
        chat, source = chat_format(tokenizer), HERE
    else:
        config, where = offline_config(name)
        tokenizer = None
        opens = name.startswith(OPENS_REASONING)
        chat = ChatFormat(end_id=0, preopened=f"{OPEN}\n" if opens else "")
        source = "R1's stock template" if opens else "taken to open no reasoning"
    if config is not None:
        check_adapter(recipe(study.training), config)
    arch = architecture(config, name) if config is not None else None
    return _Model(name, arch, chat, tokenizer, {"model": HERE if where == CONFIG else where, "template": source})


@dataclass(frozen=True)
class _Data:
    """Lengths of a capability's training set; `source` says where they are from."""

    lengths: Lengths | None
    source: str


class _Estimator:
    def __init__(self, study: Study) -> None:
        self.study = study
        self.items: dict[SuiteConfig, list[EvalItem] | None] = {}
        self.read: dict[str, list[Sample] | None] = {}

    @cached_property
    def models(self) -> list[_Model]:
        return [_find_model(name, self.study) for name in self.study.models]

    @property
    def count_tokens(self) -> Callable[[str], int] | None:
        """Tokens of a text by the first model's tokenizer, as controls are matched; None where it is not at hand."""
        first = self.models[0].tokenizer
        return None if first is None else lambda text: len(first(text, add_special_tokens=False)["input_ids"])

    def samples(self, name: str, config: CapabilityConfig) -> list[Sample] | None:
        """A capability's training samples; None for a set on the hub."""
        if name not in self.read:
            found = None
            if not is_hub_id(config.data.source):
                rationale = config.no_reasoning == "rationale"
                found = read_samples(config.data, name, rationale=rationale, skipped=[])[0]
            self.read[name] = found
        return self.read[name]

    def suite_items(self, config: SuiteConfig) -> list[EvalItem] | None:
        """Prompts of a suite; None for a set on the hub."""
        if config not in self.items:
            suite = find_suite(config.suite)
            source = config.source or (suite.hub.name if suite.hub else "")
            self.items[config] = None if source and is_hub_id(source) else load_items(config)
        return self.items[config]

    def suite(self, config: SuiteConfig, model: _Model, position: str | None) -> tuple[SuiteLoad, str]:
        suite = find_suite(config.suite)
        how = decoding(config, suite.max_tokens)
        items, known = self.suite_items(config), SUITES.get(config.suite)
        prompts: dict[str, int] | None
        if is_foreign(config.suite):
            prompts, sizes, source = None, Sizes(None, None), UNKNOWN
        elif items is not None:
            prompts = {k: sum(i.kind == k for i in items) for k in dict.fromkeys(i.kind for i in items)}
            if model.tokenizer is not None:
                sizes, source = item_sizes(items, model.tokenizer), HERE
            else:
                sizes, source = _plain_sizes(items), "prompts counted, four characters taken for a token"
        elif known is not None and config.source is None:
            prompts, source = _limited(known.prompts, config.limit), "the table of known sets"
            sizes = Sizes(None if known.prompt is None else known.prompt + TEMPLATE, known.given)
        else:
            prompts, sizes, source = None, Sizes(None, None), UNKNOWN
        return suite_load(config, suite, how, self.study.conditions, position, model.chat, prompts, sizes), source

    def data(self, name: str, config: CapabilityConfig, model: _Model) -> _Data:
        """Training samples: counted, or by the table, or unknown."""
        data, source = config.data, config.data.source
        samples = self.samples(name, config)
        if samples is not None and model.tokenizer is not None:
            return _Data(sample_lengths(samples, *token_counts(samples, model.tokenizer)), HERE)
        if samples is not None:
            texts = [(sum(len(m.content) for m in s.messages), len((s.reasoning or "") + s.answer)) for s in samples]
            pairs = [(p / 4 + TEMPLATE + r / 4, r / 4) for p, r in texts]
            return _Data(Lengths.of(pairs), "samples counted, four characters taken for a token")
        known = TRAINING.get(source)
        rows = known.rows.get(data.split) if known else None
        left = None if rows is None else max(0, rows - data.held_out - self.tested(config))
        n = data.limit if left is None else min(left, data.limit or left)
        if n == 0:
            raise UserError(f"capability {name!r}: no sample of {source!r} is left to train on")
        if known is None:
            size = None if n is None else Lengths(n, None, None, None, None)
            return _Data(size, UNKNOWN if n is None else "the study's limit; lengths are unknown")
        mean = known.prompt + known.response + TEMPLATE
        lengths = Lengths(n, mean, mean**2 + known.spread**2, known.response + 1, known.longest + TEMPLATE)
        return _Data(lengths, "the table of known sets" + ("" if rows else "; rows: the study's limit"))

    def tested(self, config: CapabilityConfig) -> int:
        """Rows of the training split that are test prompts of the same split, and so leave."""
        found = 0
        for suite in config.suites:
            hub = find_suite(suite.suite).hub
            known = SUITES.get(suite.suite)
            same = hub and (hub.name, hub.split) == (config.data.source, config.data.split) and suite.source is None
            if same and known:
                found = max(found, sum((_limited(known.prompts, suite.limit)).values()))
        return found

    def workload(self, name: str, config: CapabilityConfig, model: _Model, specs: Sequence[ArmSpec]) -> Workload:
        position = next(s.position for s in specs if s.position is not None)
        data = self.data(name, config, model)
        suites = [self.suite(s, model, position) for s in config.suites]
        lengths = data.lengths or Lengths(None, None, None, None, None)
        tokens = self.study.analysis.tokens
        held = config.data.held_out
        read = held if tokens.samples is None else min(tokens.samples, held)
        return Workload(
            capability=name,
            model=model.name,
            architecture=model.architecture,
            samples=lengths.n,
            tokens=lengths.mean,
            squares=lengths.squares,
            supervised=lengths.supervised,
            longest=lengths.longest,
            arms=arm_loads(specs),
            seeds=len(self.study.seeds),
            readings=read * len(reading_specs(specs, controls=tokens.controls)),
            suites=tuple(s for s, _ in suites),
            sources={**model.sources, "data": data.source, **{s.suite: where for s, where in suites}},
        )


def _limited(prompts: dict[str, int], limit: int | None) -> dict[str, int]:
    """What `limit` leaves of each kind, as evals.suites.load_items does."""
    total = sum(prompts.values())
    if limit is None or limit >= total:
        return dict(prompts)
    kinds = sorted(prompts)
    counts = {k: int(prompts[k] / total * limit) for k in kinds}
    for k in kinds[: limit - sum(counts.values())]:
        counts[k] += 1
    return counts


def _plain_sizes(items: Sequence[EvalItem]) -> Sizes:
    """Mean tokens by characters."""
    prompts = sum(len(m.content) for i in items for m in i.messages) / 4
    given = sum(len(a) for i in items for k in ("correct", "incorrect") for a in i.data.get(k, ())) / 4
    return Sizes(prompts / len(items) + TEMPLATE, given / len(items))


def estimate(study: Study) -> list[Workload]:
    """Workloads of a study without what is on the hub; `checks.check_study` has passed.

    Raises:
        UserError: A mistake that shows without the hub.
    """
    maker = _Estimator(study)
    loads = []
    for name, config in study.capabilities.items():
        entries = [a for a in study.arms if a.capabilities is None or name in a.capabilities]
        specs = arm_specs(entries, name, native=study.native, count_tokens=maker.count_tokens)
        loads += [maker.workload(name, config, model, specs) for model in maker.models]
    return loads
