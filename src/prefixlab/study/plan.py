"""Turn a study into a plan: every step, before anything runs.

What the machine decides (dtype, attention, threads) is resolved here, once, and obeyed on resume.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from prefixlab.analysis import stats
from prefixlab.analysis.rows import BASE
from prefixlab.config import CapabilityConfig, HardwareConfig, Study, SuiteConfig
from prefixlab.data.arms import ArmSpec, arm_specs
from prefixlab.data.chat import ChatFormat, chat_format
from prefixlab.data.overlap import Overlap, find_overlaps
from prefixlab.data.sources import read_samples
from prefixlab.data.strip import strip_all
from prefixlab.errors import UserError
from prefixlab.evals.conditions import Prompting
from prefixlab.evals.judges import judge_identity
from prefixlab.evals.protocols import decoding
from prefixlab.evals.suites import find_suite, is_foreign, load_items
from prefixlab.model.batches import check_count, count_steps
from prefixlab.model.load import BUILTIN, is_cached, load_tokenizer, resolve_model
from prefixlab.model.machine import resolve
from prefixlab.model.recipes import Recipe, recipe
from prefixlab.records import EvalItem, ModelRef, Resolved, Sample
from prefixlab.study.checks import check_study
from prefixlab.study.evaluations import EvalPlanner, arm_info, asked_of, slug_of
from prefixlab.study.predict import Lengths, Speed, item_sizes, sample_lengths, token_counts, with_compiling
from prefixlab.study.reading import Reading, reading_specs
from prefixlab.study.steps import Plan, Step, content_hash, make_step, signature
from prefixlab.study.workload import Sizes, Workload, arm_loads, suite_load


class _Planner:
    """Collects the steps of one study."""

    def __init__(self, study: Study, hardware: Resolved) -> None:
        self.study, self.hardware = study, hardware
        self.recipe: Recipe = recipe(study.training)
        self.steps: dict[str, Step] = {}
        self.refs = tuple(resolve_model(name) for name in study.models)
        self.tokenizers = {ref.name: load_tokenizer(ref) for ref in self.refs}
        self.speeds = {ref.name: Speed(ref, hardware, self.recipe) for ref in self.refs}
        self.items: dict[SuiteConfig, list[EvalItem]] = {}
        self.measured: dict[tuple[str, SuiteConfig], Sizes] = {}
        self.workloads: list[Workload] = []
        self.readings: dict[tuple[str, bool], dict[str, Any]] = {}
        """(capability, whether an adapter is made for it) -> what a tokens step reads, which all cells share."""
        self.summary: dict[str, Any] = {}
        self.absent: list[dict[str, Any]] = []
        self.lengths: dict[tuple[str, str], Lengths] = {}
        """(model, capability) -> tokens of its samples."""
        suites = [s.suite for c in study.capabilities.values() for s in c.suites]
        self.judge_settings = judge_identity(study.judge) if any(find_suite(s).judged for s in suites) else {}

    def add(self, step: Step) -> Step:
        """Put a step into the plan, once: the bare base model is shared by all capabilities."""
        return self.steps.setdefault(step.slug, step)

    def suite_items(self, config: SuiteConfig) -> list[EvalItem]:
        if config not in self.items:
            self.items[config] = load_items(config)
        return self.items[config]

    def sizes(self, model: str, config: SuiteConfig) -> Sizes:
        """Tokens of a suite's prompts by a model's tokenizer."""
        if (model, config) not in self.measured:
            self.measured[model, config] = item_sizes(self.suite_items(config), self.tokenizers[model])
        return self.measured[model, config]

    def overlaps(self, data: Sequence[Sample]) -> list[Overlap]:
        """What a training set shares with every suite of the study."""
        items: dict[str, dict[str, EvalItem]] = {}
        for capability in self.study.capabilities.values():
            for config in capability.suites:
                if not is_foreign(config.suite):
                    items.setdefault(config.suite, {}).update({i.id: i for i in self.suite_items(config)})
        tests = {name: list(found.values()) for name, found in items.items()}
        return find_overlaps(data, tests, {name: find_suite(name).sources for name in tests})

    def capability(self, name: str, config: CapabilityConfig) -> None:
        """All steps of one capability."""
        skipped: list[tuple[int, str]] = []
        rationale = config.no_reasoning == "rationale"
        data, held = read_samples(config.data, name, rationale=rationale, skipped=skipped)
        overlaps = self.overlaps(data)
        hits = list(dict.fromkeys(ident for o in overlaps for ident in o.exact))
        kept = [s for s in data if s.id not in set(hits)]
        if not kept:
            raise UserError(
                f"capability {name!r}: all {len(data)} training samples are test prompts; none is left to train on"
            )
        first = self.tokenizers[self.study.models[0]]
        same = self.study.native and not strip_all(kept)[1]
        self.places_differ(name, kept)
        specs = arm_specs(
            [a for a in self.study.arms if a.capabilities is None or name in a.capabilities],
            name,
            native=self.study.native and not same,
            count_tokens=lambda text: len(first(text, add_special_tokens=False)["input_ids"]),
        )
        source = self.add(
            make_step(
                "data",
                name,
                {
                    "capability": name,
                    "data": config.data.model_dump(mode="json"),
                    "content": content_hash([s.model_dump() for s in data + held]),
                    "overlap": hits,
                    "no_reasoning": config.no_reasoning,
                },
                {},
            )
        )
        arms = {
            spec.name: self.add(
                make_step(
                    "arms",
                    f"{name}-{spec.name}",
                    {
                        "capability": name,
                        "spec": spec.model_dump(mode="json"),
                        "assignment": self.study.assignment,
                        "tokenizer": self.refs[0].model_dump(mode="json"),
                    },
                    {"data": source},
                )
            )
            for spec in specs
        }
        self.summary[name] = {
            "samples": len(kept),
            "removed_as_overlap": len(hits),
            "overlap": [
                {
                    "suite": o.suite,
                    "exact": len(o.exact),
                    "near": len(o.near),
                    "same_source": list(o.same_source),
                    "n_same_source": o.n_same_source,
                    "pairs": [list(p) for p in o.pairs],
                }
                for o in overlaps
            ],
            "skipped_rows": len(skipped),
            "native_is_r000": same,
            "first_skipped": [f"row {row + 1}: {why}" for row, why in skipped[:5]],
            "held_out": len(held),
            "arms": [s.name for s in specs],
            "tests": {s.suite: len(self.suite_items(s)) for s in config.suites},
            "detectable_at_20_percent_discordant": {
                f"{s.suite} {m.name}": {"prompts": n, "difference": stats.detectable(n, 0.2, self.study.analysis.alpha)}
                for s in config.suites
                for m in find_suite(s.suite).metrics
                for n in [sum(i.kind == m.kind for i in self.suite_items(s))]
            },
        }
        for ref in self.refs:
            self.cells(name, config, ref, source, specs, arms, kept)

    def places_differ(self, name: str, kept: Sequence[Sample]) -> None:
        """Refuse `opening` and `answer` side by side where they are one place."""
        entries = [a for a in self.study.arms if a.capabilities is None or name in a.capabilities]
        if not {"opening", "answer"} <= {a.position for a in entries} or any(s.reasoning is not None for s in kept):
            return
        if not any(chat_format(t).preopened for t in self.tokenizers.values()):
            raise UserError(
                f"capability {name!r}: positions 'opening' and 'answer' are the same place, since no sample has a "
                "reasoning; ask for one of them"
            )

    def cells(
        self,
        name: str,
        config: CapabilityConfig,
        ref: ModelRef,
        source: Step,
        specs: Sequence[ArmSpec],
        arms: Mapping[str, Step],
        kept: Sequence[Sample],
    ) -> None:
        """Check, training, evaluation and token loss of one capability on one model."""
        shared: dict[str, Any] = {
            "capability": name,
            "model": ref.model_dump(mode="json"),
            "hardware": self.hardware.model_dump(mode="json", exclude={"why", "compile", "processes"}),
        }
        rendering = {
            "max_length": self.recipe.max_length,
            "over_long": self.recipe.over_long,
            "no_reasoning": config.no_reasoning,
        }
        check = self.add(make_step("check", f"{slug_of(ref.name)}-{name}", {**shared, **rendering}, arms))
        treatment = next(s.treatment for s in specs if s.treatment is not None)
        asked = [c for c in self.study.conditions if c != "bare"]
        if treatment.own and asked:
            raise UserError(
                f"conditions {', '.join(asked)}: the prefix set 'original' has no templates to prompt with; leave them "
                "out, or list another entry of arms first"
            )
        position = next(s.position for s in specs if s.position is not None)
        chat = chat_format(self.tokenizers[ref.name])
        training, seconds = self.training(name, ref, kept)
        evaluations = EvalPlanner(
            capability=name,
            asked=asked_of(config, self.study.conditions, chat, self.suite_items, self.study.serving),
            ref=ref,
            hardware=self.hardware,
            chat=chat,
            prompting=Prompting(treatment=treatment, position=position, capability=name),
            judge=self.study.judge,
            judge_settings=self.judge_settings,
            items=self.suite_items,
            sizes=partial(self.sizes, ref.name),
            add=self.add,
            speed=self.speeds[ref.name],
            check=check,
            serving=self.study.serving,
            absent=self.absent,
        )
        self.workloads.append(self.workload(name, config, ref, specs, chat, position))
        evaluations.cell(None, None, None)
        self.tokens(shared, name, ref, source, None, None, None, specs, rendering, check)
        settings = {
            **shared,
            "hardware": training.model_dump(mode="json", exclude={"why"}),
            **rendering,
            "recipe": self.recipe.model_dump(mode="json"),
            "key": name,
        }
        for seed in self.study.seeds:
            for spec in specs:
                train = self.add(
                    make_step(
                        "train",
                        f"{slug_of(ref.name)}-{name}-{spec.name}-s{seed}",
                        {**settings, "seed": seed},
                        {"arm": arms[spec.name]},
                        (check,),
                        seconds,
                    )
                )
                evaluations.cell(train, spec, seed)
                self.tokens(shared, name, ref, source, train, spec, seed, specs, rendering, check)

    def held(self, name: str) -> int:
        """Held-out samples of a capability that are read."""
        tokens, held = self.study.analysis.tokens, self.study.capabilities[name].data.held_out
        return held if tokens.samples is None else min(tokens.samples, held)

    def workload(
        self,
        name: str,
        config: CapabilityConfig,
        ref: ModelRef,
        specs: Sequence[ArmSpec],
        chat: ChatFormat,
        position: str,
    ) -> Workload:
        """What the capability asks of the model, counted."""
        found = self.lengths[ref.name, name]
        suites = []
        for asked in config.suites:
            suite, items = find_suite(asked.suite), self.suite_items(asked)
            counts = {k: sum(i.kind == k for i in items) for k in dict.fromkeys(i.kind for i in items)}
            prompts = None if suite.foreign else counts
            how, sizes = decoding(asked, suite.max_tokens), self.sizes(ref.name, asked)
            suites.append(suite_load(asked, suite, how, self.study.conditions, position, chat, prompts, sizes))
        texts = len(reading_specs(specs, controls=self.study.analysis.tokens.controls))
        return Workload(
            capability=name,
            model=ref.name,
            architecture=self.speeds[ref.name].architecture,
            samples=found.n,
            tokens=found.mean,
            squares=found.squares,
            supervised=found.supervised,
            longest=found.longest,
            arms=arm_loads(specs),
            seeds=len(self.study.seeds),
            readings=self.held(name) * texts,
            suites=tuple(suites),
            sources={},
        )

    def training(self, name: str, ref: ModelRef, kept: Sequence[Sample]) -> tuple[Resolved, float]:
        """How cells of one capability and model are trained, and the seconds one takes; counted, and summed up."""
        check_count(len(kept), self.recipe)
        lengths, supervised = token_counts(kept, self.tokenizers[ref.name])
        self.lengths[ref.name, name] = sample_lengths(kept, lengths, supervised)
        flops = self.speeds[ref.name].train_flops(lengths, supervised)
        how = with_compiling(self.hardware, self.study.hardware, flops)
        self.summary[name]["training"] = {
            "steps": count_steps(len(kept), self.recipe),
            "samples_per_step": self.recipe.batch_size * self.recipe.accumulation,
            "compile": how.compile,
            "processes": how.processes,
            "supervised_share": supervised / sum(lengths),
        }
        return how, self.speeds[ref.name].train(flops)

    def tokens(
        self,
        shared: dict[str, Any],
        name: str,
        ref: ModelRef,
        source: Step,
        train: Step | None,
        spec: ArmSpec | None,
        seed: int | None,
        specs: Sequence[ArmSpec],
        rendering: dict[str, Any],
        check: Step,
    ) -> None:
        """Held-out samples without prefix, with the treatment's and with its controls', read token by token."""
        tokens = self.study.analysis.tokens
        if tokens.samples == 0 or self.study.capabilities[name].data.held_out == 0:
            return
        fresh = train is None and tokens.gradients != "logit"
        if (name, fresh) not in self.readings:
            made = Reading(
                capability=name,
                renderings=tuple(reading_specs(specs, controls=tokens.controls)),
                tokens=tokens,
                **rendering,
                recipe=self.recipe if fresh else None,
                seed=self.study.seeds[0],
            )
            self.readings[name, fresh] = made.model_dump(mode="json")
        reading = self.readings[name, fresh]
        where = f"{slug_of(ref.name)}-{name}-" + (f"{spec.name}-s{seed}" if spec else BASE)
        config = {
            **shared,
            "arm": arm_info(spec).model_dump(mode="json"),
            "seed": seed,
            "reading": reading,
        }
        inputs = {"data": source, "adapter": train} if train else {"data": source}
        found = self.lengths[ref.name, name]
        texts = len(reading["renderings"]) + (self.recipe.snapshots if train else 0)
        read = texts * self.held(name) * (found.mean or 0.0)
        seconds = self.speeds[ref.name].read(read, tokens.gradients, found.supervised or 0.0)
        self.add(make_step("tokens", where, config, inputs, (check,), seconds))


def make_plan(study: Study, stored: Plan | None, progress: Callable[[str], None] = lambda text: None) -> Plan:
    """Plan a study.

    Args:
        study: Validated study.
        stored: The run folder's earlier plan: its hardware choices are obeyed unless the study asks for others.
        progress: Told what is being done.

    Raises:
        UserError: A model, data set, suite or prefix set that cannot be had.
    """
    check_study(study)
    asked = study.hardware.model_dump(mode="json")
    hardware = stored.hardware if stored and stored.hardware_asked == asked else resolve(HardwareConfig(**asked))
    for name in study.models:
        if name in BUILTIN and not is_cached(name):
            progress(f"making model {name} ({BUILTIN[name].note}); once, about a minute")
    progress("loading tokenizers and data")
    planner = _Planner(study, hardware)
    for name in study.capabilities:
        chat_format(planner.tokenizers[study.models[0]])
        planner.capability(name, study.capabilities[name])
    return Plan(
        study=study.name,
        signature=signature(study),
        hardware=hardware,
        hardware_asked=asked,
        models=planner.refs,
        steps=tuple(
            _ordered(list(planner.steps.values()), study.serving is not None and study.serving.command is not None)
        ),
        absent=tuple(planner.absent),
        workloads=tuple(load.model_dump(mode="json") for load in planner.workloads),
        summary=planner.summary,
    )


def _ordered(steps: Sequence[Step], one_server: bool) -> list[Step]:
    """Data, arms and checks of every capability first, so that a mistake shows before hours of training.

    Args:
        steps: As they were planned, each behind what it needs.
        one_server: Whether the run starts a server itself. It then shares the machine with training and judges, and
            serves one model at a time: it comes between them, and once a model.
    """
    early = {"data": 0, "arms": 1, "check": 2}
    late = {"generate": 4, "eval": 5} if one_server else {}
    order = list(dict.fromkeys(s.config["model"]["name"] for s in steps if s.kind == "generate"))

    def place(step: Step) -> tuple[int, int]:
        kind = early.get(step.kind, late.get(step.kind, 3))
        return kind, order.index(step.config["model"]["name"]) if kind == 4 else 0

    return sorted(steps, key=place)
