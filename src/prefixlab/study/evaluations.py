"""The evaluation steps of a plan: what is generated once, how it is scored, and what does not apply.

A `generate` step writes a log and depends on prompts and decoding alone; an `eval` step scores it. Another judge,
another metric or a mended grader therefore never samples again.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache, cached_property
from typing import Any

from prefixlab.analysis.rows import BASE, ArmInfo
from prefixlab.config import CapabilityConfig, JudgeConfig, SuiteConfig
from prefixlab.config_serving import ServingConfig
from prefixlab.data.arms import ArmSpec
from prefixlab.data.chat import ChatFormat
from prefixlab.data.prefixes import PrefixSet
from prefixlab.errors import UserError
from prefixlab.evals.aggregate import metrics_of
from prefixlab.evals.conditions import Prompting, needs_reasoning, not_applicable
from prefixlab.evals.diagnostics import NAMES, Reading
from prefixlab.evals.foreign import task_fingerprint
from prefixlab.evals.judges import judges_of, proxies
from prefixlab.evals.nouns import Suite
from prefixlab.evals.protocols import PRESETS, Decoding, decoding, label
from prefixlab.evals.safety import REFUSALS, SECONDARY
from prefixlab.evals.suites import find_suite
from prefixlab.records import EvalItem, ModelRef, Resolved
from prefixlab.study.predict import Speed
from prefixlab.study.steps import SERVED_CODE, Step, code_hash, content_hash, make_step
from prefixlab.study.workload import Sizes, expected_tokens


@cache
def slug_of(name: str) -> str:
    """A model's or suite's name as part of a step's."""
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in name).strip("-.")[-40:]


def arm_info(spec: ArmSpec | None) -> ArmInfo:
    """What results say of an arm; the base model for None."""
    if spec is None:
        return ArmInfo(arm=BASE, ratio=None, position=None, prefix_set=None, control=None, loss_scope=None)
    return ArmInfo(
        arm=spec.name,
        ratio=spec.ratio,
        position=spec.position,
        prefix_set=spec.treatment.name if spec.treatment else None,
        control=spec.control,
        loss_scope=spec.loss,
    )


@dataclass(frozen=True)
class Asked:
    """One suite under one condition, with nothing left to decide."""

    config: SuiteConfig
    suite: Suite
    condition: str
    how: Decoding
    why_not: str
    """Why it does not apply to the model, or cannot be had of the server; empty where it is asked."""
    state: str
    """Then `not_applicable` or `not_supported`."""
    content: str
    """Hash of the prompts, or of somebody else's task."""

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The suite as the study asks for it, for a step's configuration."""
        return self.config.model_dump(mode="json")

    @cached_property
    def name(self) -> str:
        """Of the suite and condition, as part of a step's name."""
        protocol = "" if self.config.protocol == "prefixlab" else f"-{self.config.protocol}"
        return f"{slug_of(self.config.suite)}{protocol}-{self.condition.replace('@', '')}"


def check_decoding(suite: Suite, config: SuiteConfig, how: Decoding) -> None:
    """Refuse decoding that means nothing to a suite.

    Raises:
        UserError: Several samples of given answers, or a protocol of ours for somebody else's task.
    """
    if suite.choices and how.epochs > 1:
        raise UserError(f"suite {suite.name!r} compares given answers: epochs {how.epochs} would repeat them")
    if suite.foreign and config.protocol != "prefixlab":
        raise UserError(
            f"suite {suite.name!r}: protocol {config.protocol!r} is for our suites; an Inspect task has its own"
        )


def asked_of(
    capability: CapabilityConfig,
    conditions: Sequence[str],
    chat: ChatFormat,
    items: Callable[[SuiteConfig], list[EvalItem]],
    serving: ServingConfig | None = None,
) -> list[Asked]:
    """Every suite of a capability under every condition.

    Raises:
        UserError: There is no such suite, or the server cannot do the primary comparison.
    """
    found = []
    for config in capability.suites:
        suite = find_suite(config.suite)
        how = decoding(config, suite.max_tokens)
        check_decoding(suite, config, how)
        what = task_fingerprint(config.suite) if suite.foreign else [i.model_dump() for i in items(config)]
        content = content_hash(what)
        for condition in conditions:
            why, state = not_applicable(condition, suite, chat), "not_applicable"
            if not why and serving is not None:
                why, state = unsupported(condition, suite, serving), "not_supported"
                if why and config == capability.primary_suite() and condition == capability.primary.condition:
                    raise UserError(f"primary comparison {suite.name!r} under {condition!r}: not on a server: {why}")
            found.append(Asked(config, suite, condition, how, why, state, content))
    return found


def unsupported(condition: str, suite: Suite, serving: ServingConfig) -> str:
    """Why a server cannot do an evaluation; empty where it can."""
    if suite.choices:
        return "log-likelihoods of given answers need the local engine; leave serving out to have them"
    if suite.foreign:
        return "an Inspect task is not planned; ask it of the server by inspect eval, or leave serving out"
    if serving.prompts == "chat" and condition not in ("bare", "user_prefix"):
        return "under serving.prompts: chat the server's template writes the prompt, and nothing can be prefilled"
    return ""


@dataclass
class EvalPlanner:
    """Adds the evaluations of one capability on one model to a plan."""

    capability: str
    asked: Sequence[Asked]
    ref: ModelRef
    hardware: Resolved
    chat: ChatFormat
    prompting: Prompting
    judge: JudgeConfig
    judge_settings: dict[str, str]
    """`judge_identity` of it, which reads all weights of a local guard."""
    items: Callable[[SuiteConfig], list[EvalItem]]
    sizes: Callable[[SuiteConfig], Sizes]
    """Tokens of its prompts, for the predicted time."""
    add: Callable[[Step], Step]
    speed: Speed
    check: Step
    serving: ServingConfig | None = None
    absent: list[dict[str, Any]] = field(default_factory=list)

    @cached_property
    def _machine(self) -> dict[str, Any]:
        """Model and hardware, which every step of this planner shares."""
        settings = self.hardware.model_dump(mode="json", exclude={"why", "compile", "processes"})
        return {"model": self.ref.model_dump(mode="json"), "hardware": settings}

    @cached_property
    def _prompting(self) -> dict[str, Any]:
        return self.prompting.model_dump(mode="json")

    def cell(self, train: Step | None, spec: ArmSpec | None, seed: int | None) -> None:
        """Every evaluation of one adapter, or of the base model."""
        for asked in self.asked:
            if asked.why_not:
                config = self._scoring(asked, spec, seed)
                self.absent.append({**config, "status": asked.state, "why": asked.why_not})
                continue
            before: dict[str, Step] = {}
            if needs_reasoning(asked.condition, self.prompting.position, self.chat):
                bare = replace(asked, condition="bare")
                before["bare"] = self._generate(bare, train, spec, seed, {})
            log = self._generate(asked, train, spec, seed, before)
            where = self._where(asked, spec, seed, self.capability)
            seconds = 0.5 + 0.01 * len(self.items(asked.config)) * asked.how.epochs
            self.add(make_step("eval", where, self._scoring(asked, spec, seed), {"log": log}, (), seconds))

    def _where(self, asked: Asked, spec: ArmSpec | None, seed: int | None, capability: str | None) -> str:
        parts = [slug_of(self.ref.name), *([capability] if capability else [])]
        return "-".join([*parts, f"{spec.name}-s{seed}" if spec else BASE, asked.name])

    def _common(self, asked: Asked, spec: ArmSpec | None, seed: int | None) -> dict[str, Any]:
        return {
            **self._machine,
            "arm": arm_info(spec).model_dump(mode="json"),
            "seed": seed,
            "suite": asked.settings,
            "protocol": label(asked.config),
            "items": asked.content,
            "condition": asked.condition,
        }

    def _generate(
        self, asked: Asked, train: Step | None, spec: ArmSpec | None, seed: int | None, before: dict[str, Step]
    ) -> Step:
        """What is sampled; the bare base model is asked once for all capabilities."""
        shared = spec is None and asked.condition == "bare"
        config = {
            **self._common(asked, spec, seed),
            "capability": None if shared else self.capability,
            "decoding": asdict(asked.how),
            "prompting": None if asked.condition == "bare" else self._prompting,
        }
        if self.serving is not None:  # the server's machine and dtype decide, not ours
            del config["hardware"]
            config["serving"] = self.serving.identity() | {"code": code_hash(SERVED_CODE)}
        n = len(self.items(asked.config)) * asked.how.epochs
        inputs = {**({"adapter": train} if train else {}), **before}
        where = self._where(asked, spec, seed, config["capability"])
        sizes = self.sizes(asked.config)
        given = sizes.given or 0.0
        written = given if asked.suite.choices else expected_tokens(asked.how.max_tokens)
        seconds = self.speed.generate(n * (sizes.prompt or 0.0), n * written)
        return self.add(make_step("generate", where, config, inputs, (self.check,), seconds))

    def _scoring(self, asked: Asked, spec: ArmSpec | None, seed: int | None) -> dict[str, Any]:
        """An eval step's configuration: everything that results say of it."""
        suite, metrics = asked.suite, metrics_of(asked.suite, asked.how.epochs)
        sets: list[PrefixSet] = [
            s for s in (spec.prefixes if spec else None, self.prompting.treatment) if s is not None
        ]
        reading = Reading(
            preopened=bool(self.chat.preopened),
            position=self.prompting.position,
            templates=tuple(dict.fromkeys(t for s in sets for t in s.templates)),
        )
        return {
            **self._common(asked, spec, seed),
            "capability": self.capability,
            "k": asked.how.epochs,
            "metrics": {m.name: m.higher_is_better for m in metrics},
            "diagnostics": [*NAMES, *(SECONDARY if suite.judged else ()), *(REFUSALS.values() if suite.judged else ())],
            "proxies": proxies(suite, self.judge, metrics),
            "judges": judges_of(suite, self.judge.name, metrics),
            "judge": self.judge.name if suite.judged else None,
            "judge_settings": self.judge_settings if suite.judged else None,
            "judged_part": PRESETS[asked.config.protocol].judged,
            "reading": reading.model_dump(mode="json"),
        }
