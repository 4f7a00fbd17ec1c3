"""From workloads to what a study costs on a device: operations, hours, memory, disk, judge, detectable effects.

None stands for "unknown" and goes on into every sum that needs it. Formulas: costs.py and docs/methods.md, section 12.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from prefixlab.analysis.power import assumed, detectable, mde
from prefixlab.config import Study
from prefixlab.evals.judges import REMOTE
from prefixlab.evals.nouns import Metric
from prefixlab.evals.suites import find_suite
from prefixlab.model.architectures import Architecture, architecture, offline_config
from prefixlab.model.flops import generate_flops, train_flops
from prefixlab.model.recipes import Recipe, recipe
from prefixlab.study import costs
from prefixlab.study.cost_records import CapabilityCost, Effect, Forecast, JudgeCost, Memory, ModelCost, Price
from prefixlab.study.devices import SERVER_STEP, TRAIN_LAUNCHES, USABLE, Device
from prefixlab.study.workload import SuiteLoad, Workload

GUARD_WORDS, GUARD_REPLY = 330, 6
"""Tokens that a guard's template adds to a conversation, and of its verdict."""
RUBRIC_WORDS, RUBRIC_REPLY = 330, 20
"""The same of the rubric's questions and their answer; a judge that reasons first writes hundreds more."""
DISCORDANT, SEED_SD = 0.2, 0.02
"""What the detectable effect of several seeds assumes: prompts on which two arms differ, spread over seeds."""


def judged_texts(condition: str, *, parts: bool) -> tuple[int, int]:
    """Texts that a judge is shown of one completion, and how many whole responses their length adds up to.

    Of a response with reasoning (`parts`) it sees all of it, the reasoning, and the answer; where something was
    prefilled, the response once more without it (evals/safety.py). A prefix that an arm writes by itself is taken off,
    too: how often one does, nobody knows beforehand.
    """
    prefilled = not condition.startswith(("bare", "user_prefix"))
    return (3 if parts else 1) + prefilled, (2 if parts else 1) + prefilled


def _sum(values: Iterable[float | None]) -> float | None:
    """The sum, or None where a part of it is not known."""
    found = list(values)
    return None if any(v is None for v in found) else float(sum(v for v in found if v is not None))


def _times(*values: float | None) -> float | None:
    """The product, or None where a factor is not known."""
    result = 1.0
    for value in values:
        if value is None:
            return None
        result *= value
    return result


def _hours(seconds: float | None) -> float | None:
    return None if seconds is None else seconds / 3600


@dataclass(frozen=True)
class _Evaluated:
    """One suite over all adapters of a capability."""

    completions: float | None
    written: float | None
    flops: float | None
    seconds: float | None
    at_most: float | None
    calls: float | None
    judge_read: float | None


class _Forecaster:
    def __init__(self, study: Study, device: Device) -> None:
        self.study, self.device = study, device
        self.recipe: Recipe = recipe(study.training)
        self.explicit = device.bandwidth is None
        self.base_done: set[tuple[str, str, str, int | None]] = set()
        """The bare base is asked once for all capabilities."""
        self.detectable: dict[str, tuple[Effect, ...]] = {}

    def runs(self, load: Workload, suite: SuiteLoad) -> int:
        """How often the suite is sampled: every condition of every adapter and of the base."""
        base = len(suite.generated)
        key = (load.model, suite.suite, suite.protocol, suite.n)
        if "bare" in suite.generated and key in self.base_done:
            base -= 1
        self.base_done.add(key)
        return load.cells * len(suite.generated) + base

    def suite(self, load: Workload, suite: SuiteLoad) -> _Evaluated:
        arch, device, n = load.architecture, self.device, suite.n
        runs = self.runs(load, suite)
        completions = _times(n, suite.epochs, runs)
        judged, judge_read = self.judging(load, suite)
        written = _times(completions, suite.output_tokens)
        if suite.prompt_tokens is None or suite.given_tokens is None:
            return _Evaluated(completions, written, None, None, None, judged, judge_read)
        prompt, given = _times(completions, suite.prompt_tokens), _times(completions, suite.given_tokens)
        if arch is None or prompt is None or given is None or written is None or completions is None:
            return _Evaluated(completions, written, None, None, None, judged, judge_read)
        flops = generate_flops(arch.shape, prompt, 0) + generate_flops(arch.shape, given + written, given + written)
        before = _sum(
            (costs.prefill_seconds(arch, device, prompt, 0), costs.prefill_seconds(arch, device, given, given))
        )

        def seconds(mean: float) -> float | None:
            """With completions of so many tokens on average."""
            if not suite.output_tokens:
                return before
            job = self.decoding(arch, suite, completions or 0.0, mean)
            return _sum((before, costs.decode_seconds(arch, device, job)))

        return _Evaluated(
            completions,
            written,
            flops,
            seconds(suite.output_tokens),
            seconds(float(suite.max_tokens)),
            judged,
            judge_read,
        )

    def judging(self, load: Workload, suite: SuiteLoad) -> tuple[float | None, float | None]:
        """Texts that the judge is shown, and their tokens; word rules grade what harmless prompts are answered."""
        if not suite.judged:
            return 0.0, 0.0
        harmful = None if suite.prompts is None else suite.prompts.get("harmful", 0)
        asked = _times(harmful, suite.epochs, load.cells + 1)
        parts = suite.opens_reasoning and self.study.judge.name != "rules"
        shown = [judged_texts(c, parts=parts) for c in suite.evaluated]
        texts, responses = sum(n for n, _ in shown), sum(n for _, n in shown)
        around = None if suite.prompt_tokens is None else suite.prompt_tokens + self.judge_words
        each = None if around is None else texts * around + responses * suite.output_tokens
        return _times(asked, texts), _times(asked, each)

    def rows(self, suite: SuiteLoad) -> int:
        """Completions that are asked for at once, here or of the study's server."""
        return self.study.serving.connections if self.study.serving else suite.batch_size

    def decoding(self, arch: Architecture, suite: SuiteLoad, completions: float, mean: float) -> costs.Decoding:
        """How the completions of a suite are written, `mean` tokens each on average."""
        prompt, device, asked = suite.prompt_tokens or 0.0, self.device, self.rows(suite)
        fit = costs.rows_that_fit(arch, device.dtype_bytes, prompt + suite.max_tokens, device.memory, asked)
        rows, limit = asked if fit is None else fit, float(suite.max_tokens)
        return costs.Decoding(rows, prompt, completions, mean, limit, served=self.study.serving is not None)

    @property
    def judge_words(self) -> int:
        """Tokens around what is judged."""
        return {"rules": 0, "llama-guard": GUARD_WORDS, "rubric": RUBRIC_WORDS}[self.study.judge.name]

    def training(self, load: Workload) -> tuple[float | None, float | None, float | None]:
        """Tokens, operations and seconds of all trainings of a capability on a model."""
        plan, arch, n = self.recipe, load.architecture, load.samples
        if n is None or load.tokens is None or load.squares is None or load.supervised is None:
            return None, None, None
        tokens = sum(n * (load.tokens + arm.extra) for arm in load.arms) * load.seeds * plan.epochs
        if arch is None:
            return tokens, None, None
        width = arch.shape.adapter_width(plan.target_modules)
        flops = 0.0
        for arm in load.arms:
            # All samples at their root mean square length have the same number of pairs; the tokens are put right.
            length, supervised = load.tokens + arm.extra, n * (load.supervised + arm.extra)
            pairs = n * (load.squares + 2 * load.tokens * arm.extra + arm.extra**2)
            whole = train_flops(arch.shape, [1], 0, plan.r, width) - 6 * arch.layers * arch.queries
            head = 4 * supervised * arch.vocabulary * arch.hidden
            flops += n * length * whole + 6 * arch.layers * arch.queries * pairs + head
        flops *= load.seeds * plan.epochs
        batches = math.ceil(n / plan.batch_size) * load.cells * plan.epochs
        return tokens, flops, costs.train_seconds(arch, self.device, flops, batches)

    def reading(self, load: Workload) -> float | None:
        """Seconds to read held-out samples by every adapter, with the base under it, and by the base alone."""
        if not load.readings:
            return 0.0
        if load.architecture is None or load.tokens is None:
            return None
        tokens = self.study.analysis.tokens
        each = {"logit": 0.0, "positions": 3.0, "tokens": 6.0 + 2.0 * (load.supervised or 0.0)}
        passes = 2.0 + each[tokens.gradients]
        texts = load.readings * (load.cells + 1) * load.tokens
        return _times(passes, costs.prefill_seconds(load.architecture, self.device, texts, texts))

    def training_memory(self, load: Workload) -> Memory:
        arch, plan, longest = load.architecture, self.recipe, load.longest
        if arch is None or longest is None:
            return Memory(asked=None, asked_fits=None, setting=None, bytes=None)
        length = int(min(longest + max(a.extra for a in load.arms), plan.max_length))
        tried = [
            (s, costs.training_memory(arch, plan, self.device.dtype_bytes, length, s, explicit=self.explicit).total)
            for s in costs.settings(plan)
        ]
        asked = tried[0][1]
        if self.device.memory is None:
            return Memory(asked=asked, asked_fits=None, setting=None, bytes=asked)
        for setting, total in tried:
            if costs.fits(total, self.device.memory):
                return Memory(
                    asked=asked,
                    asked_fits=setting is tried[0][0],
                    setting=setting.words(),
                    bytes=total,
                )
        return Memory(asked=asked, asked_fits=False, setting=None, bytes=min(total for _, total in tried))

    def evaluation_memory(self, load: Workload) -> Memory:
        """Of the suite with the longest rows, all of which fill their limit."""
        arch, width, memory = load.architecture, self.device.dtype_bytes, self.device.memory
        sizes = [(self.rows(s), (s.prompt_tokens or 0.0) + s.max_tokens) for s in load.suites if s.output_tokens]
        if arch is None or not sizes:
            return Memory(asked=None, asked_fits=None, setting=None, bytes=None)
        asked, wanted, length = max((costs.evaluation_memory(arch, width, n, most), n, most) for n, most in sizes)
        if memory is None:
            return Memory(asked=asked, asked_fits=None, setting=None, bytes=asked)
        rows = costs.rows_that_fit(arch, width, length, memory, wanted) or 0
        total = costs.evaluation_memory(arch, width, max(1, rows), length)
        setting = f"serving: {{connections: {rows}}}" if self.study.serving else f"batch_size: {rows} in every suite"
        return Memory(asked=asked, asked_fits=rows == wanted, setting=setting if rows else None, bytes=total)

    def disk(self, load: Workload, evaluated: Sequence[_Evaluated]) -> float | None:
        """Adapters, logs and tables; the models themselves are counted once, beside it."""
        if load.architecture is None or load.samples is None or load.tokens is None:
            return None
        adapters = load.cells * costs.adapter_file(load.architecture, self.recipe) * (1 + self.recipe.snapshots)
        data = load.samples * load.tokens * 5 * (len(load.arms) + 2)
        logs = _sum(
            _sum((_times(e.completions, costs.LOG_BYTES), _times(e.written, costs.LOG_TOKEN))) for e in evaluated
        )
        tables = load.readings * (load.cells + 1) * load.tokens * costs.TABLE_ROW
        return _sum((adapters, data, logs, tables))

    def capability(self, load: Workload) -> CapabilityCost:
        tokens, flops, seconds = self.training(load)
        evaluated = [self.suite(load, s) for s in load.suites]

        def total(what: Callable[[_Evaluated], float | None]) -> float | None:
            return _sum(what(e) for e in evaluated)

        return CapabilityCost(
            model=load.model,
            capability=load.capability,
            cells=load.cells,
            trained_tokens=tokens,
            train_flops=flops,
            train_hours=_hours(seconds),
            completions=total(lambda e: e.completions),
            written_tokens=total(lambda e: e.written),
            evaluate_flops=total(lambda e: e.flops),
            evaluate_hours=_hours(total(lambda e: e.seconds)),
            evaluate_hours_at_most=_hours(total(lambda e: e.at_most)),
            read_hours=_hours(self.reading(load)),
            training_memory=self.training_memory(load),
            evaluation_memory=self.evaluation_memory(load),
            disk=self.disk(load, evaluated),
            judge_calls=total(lambda e: e.calls),
            judge_read=total(lambda e: e.judge_read if e.calls else 0.0),
            effects=self.effects(load),
            sources=load.sources,
        )

    def effects(self, load: Workload) -> tuple[Effect, ...]:
        """What the suites of a capability can detect; the same for every model."""
        if load.capability not in self.detectable:
            self.detectable[load.capability] = tuple(
                self.effect(load, suite.suite, metric, suite.prompts[metric.kind])
                for suite in load.suites
                for metric in find_suite(suite.suite).metrics
                if suite.prompts is not None and metric.kind in suite.prompts
            )
        return self.detectable[load.capability]

    def effect(self, load: Workload, suite: str, metric: Metric, n: int) -> Effect:
        alpha, one, several = self.study.analysis.alpha, None, None
        if metric.shares:  # of others nobody knows beforehand how they differ from prompt to prompt
            one = detectable(n, DISCORDANT, alpha)
            if load.seeds > 1 and n > 1:
                several = mde(assumed(DISCORDANT, SEED_SD), n, load.seeds, alpha)
        return Effect(suite=suite, metric=metric.name, prompts=n, shares=metric.shares, one_seed=one, all_seeds=several)

    def judge(self, found: Sequence[CapabilityCost], price: Price | None) -> tuple[JudgeCost, Architecture | None]:
        config = self.study.judge
        calls, read = _sum(c.judge_calls for c in found), _sum(c.judge_read for c in found)
        reply = {"rules": 0, "llama-guard": GUARD_REPLY, "rubric": RUBRIC_REPLY}[config.name]
        served = config.name == "rubric" or (config.model or "").startswith(REMOTE)
        written = _times(calls, reply)
        guard: Architecture | None = None
        hours: float | None = 0.0
        if config.name == "llama-guard" and not served and config.model is not None:
            settings, _ = offline_config(config.model)
            guard = architecture(settings, config.model) if settings else None
            hours = None
            if guard is not None and read is not None and calls is not None:
                hours = _hours(costs.prefill_seconds(guard, self.device, read, calls))
        cost: float | None = 0.0
        if served:
            cost = _sum((_times(read, price.read / 1e6), _times(written, price.written / 1e6))) if price else None
        about = JudgeCost(
            name=config.name,
            model=config.model,
            served=served,
            calls=calls if config.name != "rules" else 0.0,
            read_tokens=read if config.name != "rules" else 0.0,
            written_tokens=written,
            hours=hours,
            price=cost,
        )
        return about, guard


def _model_cost(name: str, arch: Architecture | None, found: Sequence[CapabilityCost]) -> ModelCost:
    train, evaluate, read = (
        _sum(getattr(c, field) for c in found) for field in ("train_hours", "evaluate_hours", "read_hours")
    )
    return ModelCost(
        model=name,
        parameters=arch.parameters if arch else None,
        cells=sum(c.cells for c in found),
        trained_tokens=_sum(c.trained_tokens for c in found),
        flops=_sum(v for c in found for v in (c.train_flops, c.evaluate_flops)),
        train_hours=train,
        evaluate_hours=evaluate,
        evaluate_hours_at_most=_sum(c.evaluate_hours_at_most for c in found),
        read_hours=read,
        hours=_sum((train, evaluate, read)),
        judge_calls=_sum(c.judge_calls for c in found),
        disk=_sum(c.disk for c in found),
    )


def forecast(study: Study, loads: Sequence[Workload], device: Device, price: Price | None = None) -> Forecast:
    """What a study costs on a device.

    Args:
        study: Validated study.
        loads: One for each capability and model.
        device: Where it is to run.
        price: Of a judge on a server.
    """
    maker = _Forecaster(study, device)
    found = [maker.capability(load) for load in loads]
    archs = {load.model: load.architecture for load in loads}
    models = [_model_cost(m, a, [c for c in found if c.model == m]) for m, a in archs.items()]
    judge, guard = maker.judge(found, price)
    total = _model_cost("total", None, found)
    weights = [2.0 * a.parameters if a else None for a in archs.values()]
    local_guard = study.judge.name == "llama-guard" and not (study.judge.model or "").startswith(REMOTE)
    download = _sum([*weights, *([2.0 * guard.parameters if guard else None] if local_guard else [])])
    total = total.model_copy(update={"hours": _sum((total.hours, judge.hours))})
    return Forecast(
        device=device.name,
        device_memory=device.memory,
        assumptions=_assumptions(study, device),
        capabilities=tuple(found),
        models=tuple(models),
        judge=judge,
        download=download,
        total=total,
    )


def _assumptions(study: Study, device: Device) -> tuple[str, ...]:
    ends = "lengths of completions spread exponentially, and a batch ends with its longest one"
    said = [
        f"{device.name}: {device.about}",
        "a completion is taken to fill 60% of a short limit, and to have 1,500 tokens under a long one; 'at most' "
        "fills every limit",
        f"a server puts another completion in the place of a finished one, and adds {1e3 * SERVER_STEP:g} ms to a step"
        if study.serving
        else ends,
    ]
    if device.launch:
        said.append(
            f"a layer takes at least {1e3 * device.launch:g} ms in a step of decoding, and "
            f"{1e3 * TRAIN_LAUNCHES * device.launch:g} ms in a micro-batch of training"
        )
    said += [
        f"memory fits if it is at most {100 * USABLE:.0f}% of the device's; in evaluation, if all rows of a batch fill "
        "their limit",
        f"effects: 80% power at {study.analysis.alpha:g}, {100 * DISCORDANT:.0f}% of the prompts differ. For one "
        "seed, an effect of that training; over training seeds, of training at large, where the effect spreads by "
        f"{100 * SEED_SD:.0f} points",
    ]
    return tuple(said)
