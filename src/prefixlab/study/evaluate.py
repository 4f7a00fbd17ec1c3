"""What the steps `generate` and `eval` do: a suite's completions into a log, and a log into scores."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inspect_ai.log import read_eval_log

from prefixlab.config import JudgeConfig, SuiteConfig
from prefixlab.data.chat import ChatFormat, prompt_ids
from prefixlab.data.parts import CLOSE
from prefixlab.errors import StepError
from prefixlab.evals.conditions import Prompt, Prompting, own_reasoning, prompt_of
from prefixlab.evals.diagnostics import Reading
from prefixlab.evals.foreign import foreign_rows, run_foreign
from prefixlab.evals.harness import EvalJob, Scoring, generate_log, own_completions, score_log
from prefixlab.evals.judges import make_judge
from prefixlab.evals.judging import Judge
from prefixlab.evals.planning import BatchPlan, Kept, PlannedRequest, plan_batches
from prefixlab.evals.protocols import Decoding
from prefixlab.evals.provider import PlannedProvider
from prefixlab.evals.safety import Judging
from prefixlab.evals.scorers import options
from prefixlab.evals.scores import MEASURES, write_scores
from prefixlab.evals.suites import find_suite, is_foreign, load_items
from prefixlab.model.generate import Completion, Request, generate
from prefixlab.model.loglik import log_likelihoods
from prefixlab.records import EvalItem, Resolved
from prefixlab.study.loaded import Loaded
from prefixlab.study.steps import content_hash

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Tick = Callable[[float], None]
METADATA = ("capability", "arm", "seed", "condition", "protocol", "suite", "decoding", "prompting")
"""What a log says about itself."""


def log_in(folder: Path) -> Path:
    """The one log of a generate step."""
    return next(iter(sorted(folder.glob("*.eval"))))


def discard_unfinished(folder: Path) -> None:
    """Remove logs that a killed call left; Inspect makes them when it starts."""
    for path in folder.glob("*.eval"):
        try:
            whole = read_eval_log(str(path), header_only=True).status == "success"
        except Exception:  # cut short in the middle
            whole = False
        if not whole:
            path.unlink()


def planned_items(config: Mapping[str, Any]) -> list[EvalItem]:
    """The prompts of a generate step.

    Raises:
        StepError: The suite's source changed since the plan was made.
    """
    suite = SuiteConfig.model_validate(config["suite"])
    items = load_items(suite)
    if content_hash([i.model_dump() for i in items]) != config["items"]:
        raise StepError(f"the prompts of suite {suite.suite!r} changed since the plan was made; run again")
    return items


def decoder(tokenizer: "PreTrainedTokenizerBase") -> Callable[[Sequence[int]], str]:
    """From the ids of a completion to its text."""

    def decode(ids: Sequence[int]) -> str:
        text = tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text

    return decode


def prompts_of(
    items: Sequence[EvalItem],
    config: Mapping[str, Any],
    tokenizer: "PreTrainedTokenizerBase",
    chat: ChatFormat,
    bare: Path | None,
) -> dict[tuple[str, int], Prompt]:
    """What is sent for every item and epoch."""
    asked = config["prompting"]
    prompting = Prompting.model_validate(asked) if asked else None
    written = own_completions(log_in(bare)) if bare is not None else {}
    found: dict[tuple[str, int], Prompt] = {}
    for item in items:
        for epoch in range(1, config["decoding"]["epochs"] + 1):
            if epoch > 1 and not written:
                found[item.id, epoch] = found[item.id, 1]
                continue
            found[item.id, epoch] = prompt_of(
                item.messages,
                config["condition"],
                tokenizer,
                chat,
                prompting=prompting,
                opening=item.opening,
                reasoning=own_reasoning(written[item.id, epoch]) if written else None,
            )
    return found


def _options(items: Sequence[EvalItem], loaded: Loaded) -> dict[str, tuple[tuple[int, ...], ...]]:
    """Ids of the given answers, tokenised alone as training does, behind an empty reasoning where one is open."""
    before = f"\n{CLOSE}\n\n" if loaded.chat.preopened else ""

    def ids(answer: str) -> tuple[int, ...]:
        return tuple(loaded.tokenizer(before + answer, add_special_tokens=False)["input_ids"])

    return {i.id: tuple(ids(a) for a in options(i)) for i in items}


def generate_suite(
    config: Mapping[str, Any],
    loaded: Loaded,
    adapter: Path | None,
    out: Path,
    *,
    bare: Path | None = None,
    keep: Path | None = None,
    tick: Tick = lambda share: None,
) -> BatchPlan | None:
    """Sample a suite into one .eval log; its batches are stored beside it.

    Args:
        config: Of a generate step.
        loaded: The base model.
        adapter: PEFT folder; None for the base.
        out: Gets the log and batches.json.
        bare: Folder of the bare log whose reasoning is needed, if it is.
        keep: File for finished batches, read again after a kill.
        tick: Finished share.

    Raises:
        StepError: The suite's source changed since the plan was made, or Inspect did not finish.
    """
    suite_config, how = SuiteConfig.model_validate(config["suite"]), Decoding(**config["decoding"])
    metadata = {name: config[name] for name in METADATA}
    metadata |= {
        "model": loaded.ref.name,
        "model_note": loaded.ref.note,
        "adapter": adapter is not None,
        "merged": loaded.merge and adapter is not None,
        "planned": not is_foreign(suite_config.suite),
        "preopened": bool(loaded.chat.preopened),
    }
    model = loaded.use(adapter)
    stops = frozenset({loaded.chat.end_id, int(loaded.tokenizer.eos_token_id)})

    def engine(requests: Sequence[Request]) -> list[Completion]:
        return generate(model, requests, stop_ids=stops, pad=loaded.pad)

    decode = decoder(loaded.tokenizer)
    if is_foreign(suite_config.suite):
        run_foreign(suite_config, how, engine, decode, lambda m: prompt_ids(loaded.tokenizer, m), out, metadata)
        return None
    items = planned_items(config)
    choices = find_suite(suite_config.suite).choices
    plan = plan_batches(
        prompts_of(items, config, loaded.tokenizer, loaded.chat, bare),
        how,
        suite_config.suite,
        suite_config.batch_size,
        _options(items, loaded) if choices else None,
    )
    (out / "batches.json").write_text(plan.model_dump_json() + "\n", encoding="utf-8")
    done, total = 0, sum(map(len, plan.batches))

    def count(n: int) -> None:
        nonlocal done
        done += n
        tick(done / total)

    def choose(batch: Sequence[PlannedRequest]) -> list[tuple[float, ...]]:
        pairs = [(r.ids, option) for r in batch for option in r.options]
        totals = iter(log_likelihoods(model, pairs, pad=loaded.pad))
        return [tuple(next(totals).total for _ in r.options) for r in batch]

    kept = Kept(keep, plan, loaded.identity(adapter))
    provider = PlannedProvider(loaded.ref.name, plan, engine, decode, count, kept, choose)
    generate_log(EvalJob(suite_config.suite, items, how.epochs, metadata), provider, out, total)
    return plan


def judge_of(config: Mapping[str, Any], how: JudgeConfig, verdicts: Path | None) -> Judge:
    """The judge an eval step names, asked as patiently as the study says."""
    settings = config["judge_settings"]
    named = {"name": settings["name"], "model": settings["model"] or None, "threshold": float(settings["threshold"])}
    judge = how.model_copy(update=named)
    return make_judge(judge, Resolved.model_validate({**config["hardware"], "why": ""}), verdicts)


def score_suite(
    config: Mapping[str, Any],
    logs: Path,
    out: Path,
    judge: Judge | None,
    tick: Tick = lambda share: None,
) -> None:
    """Score a log into scores.jsonl, measures.jsonl and a scored copy of the log.

    Args:
        config: Of an eval step.
        logs: Folder with the log.
        out: Gets the files.
        judge: Who decides, for judged suites.
        tick: Finished share.

    Raises:
        StepError: The log is not whole, or the judge is down.
    """
    name, path = config["suite"]["suite"], log_in(logs)
    if is_foreign(name):
        main, more, metrics = foreign_rows(path, name, out)
        (out / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n", encoding="utf-8")
    else:
        suite, reading = find_suite(name), Reading.model_validate(config["reading"])
        judging = Judging(judge, config["judged_part"], reading) if judge is not None else None
        about = {name: config[name] for name in ("capability", "arm", "seed")}
        main, more = score_log(path, Scoring(suite, reading, judging, tick, about), out)
    write_scores(out / "scores.jsonl", main)
    write_scores(out / MEASURES, more)
