"""`prefixlab generate`: one suite on one model or server, without a study; `score` is in scoring.py."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console

from prefixlab.config import CONDITION, CONDITIONS, HardwareConfig, SuiteConfig
from prefixlab.data.chat import chat_format
from prefixlab.data.prefixes import PrefixSet, load_set
from prefixlab.errors import UserError, unknown
from prefixlab.evals.conditions import Prompting, needs_reasoning, not_applicable
from prefixlab.evals.harness import EvalJob
from prefixlab.evals.protocols import decoding, label
from prefixlab.evals.remote import generate_remote, place, supported
from prefixlab.evals.suites import find_suite, is_foreign, load_items
from prefixlab.model.load import load_model, load_tokenizer, resolve_model
from prefixlab.model.machine import resolve
from prefixlab.records import EvalItem
from prefixlab.study.datafiles import asked_adapter
from prefixlab.study.evaluate import discard_unfinished, generate_suite, log_in
from prefixlab.study.evaluations import check_decoding
from prefixlab.study.loaded import Loaded, prove_adapter
from prefixlab.study.progress import row_progress
from prefixlab.study.steps import content_hash
from prefixlab.study.store import disk_may_be_full, held

CONNECTIONS = 16
"""Requests at once to a server."""


@dataclass(frozen=True)
class Asked:
    """What `prefixlab generate` was asked for."""

    suite: dict[str, Any]
    """Fields of SuiteConfig."""
    condition: str = "bare"
    prefixes: str | None = None
    position: str = "opening"

    def config(self) -> SuiteConfig:
        """The suite's configuration.

        Raises:
            UserError: A value that is not allowed, or no prefix set where the condition needs one.
        """
        if not CONDITION.fullmatch(self.condition):
            raise unknown("condition", self.condition, CONDITIONS, where="--condition")
        if self.condition in ("user_prefix", "prefill") and self.prefixes is None:
            raise UserError(f"--condition {self.condition} needs --prefixes, the set whose templates are used")
        if self.prefixes is not None and load_set(self.prefixes).own:
            raise UserError(f"--prefixes {self.prefixes!r} has no templates to prompt with; name another set")
        find_suite(self.suite["suite"], "SUITE")
        try:
            return SuiteConfig.model_validate(self.suite)
        except ValidationError as error:
            first = error.errors()[0]
            raise UserError(f"--{'-'.join(map(str, first['loc']))}: {first['msg']}") from error

    def treatment(self) -> PrefixSet | None:
        """The prefix set, if one is named."""
        return load_set(self.prefixes) if self.prefixes else None


def _step(asked: Asked, config: SuiteConfig, items: str, condition: str) -> dict[str, Any]:
    """As the configuration of a generate step."""
    how = decoding(config, find_suite(config.suite).max_tokens)
    treatment = asked.treatment()
    prompting = Prompting(treatment=treatment, position=asked.position, capability=config.suite) if treatment else None
    return {
        "capability": None,
        "arm": None,
        "seed": None,
        "suite": config.model_dump(mode="json"),
        "protocol": label(config),
        "items": items,
        "condition": condition,
        "decoding": how.__dict__,
        "prompting": prompting.model_dump(mode="json") if prompting and condition != "bare" else None,
    }


def generate_alone(
    asked: Asked,
    out: Path,
    *,
    model: str | None,
    adapter: Path | None,
    provider: str | None,
    tokenizer: str | None,
    console: Console,
    quiet: bool,
) -> Path:
    """Sample one suite into an .eval log below `out`; a killed call goes on behind what is finished.

    Raises:
        UserError: A mistake in the request, a condition that does not apply or is not supported.
        StepError: The evaluation did not finish, or the adapter is not what answers.
    """
    if (model is None) == (provider is None):
        raise UserError("give --model (a built-in name, folder or hub id) or --provider (an Inspect model), not both")
    adapter = asked_adapter(adapter) if adapter is not None else None
    if adapter is not None and model is None:
        raise UserError("--adapter needs --model; a server names its adapters itself: put that name into --provider")
    config = asked.config()
    suite = find_suite(config.suite)
    check_decoding(suite, config, decoding(config, suite.max_tokens))
    items = load_items(config)
    out.mkdir(parents=True, exist_ok=True)
    with (out / ".lock").open("w") as lock, held(lock, out), disk_may_be_full(out):
        discard_unfinished(out)
        if list(out.glob("*.eval")):
            raise UserError(f"{str(out)!r} already holds a log; choose another --out")
        if provider is not None:
            return _on_server(asked, config, items, provider, tokenizer, out, console, quiet)
        assert model is not None
        return _here(asked, config, content_hash([i.model_dump() for i in items]), model, adapter, out, console, quiet)


def _on_server(
    asked: Asked,
    config: SuiteConfig,
    items: list[EvalItem],
    provider: str,
    tokenizer: str | None,
    out: Path,
    console: Console,
    quiet: bool,
) -> Path:
    suite = find_suite(config.suite)
    if is_foreign(config.suite):
        raise UserError(
            f"{config.suite!r} on a server: use inspect eval itself, e.g. inspect eval TASK --model {provider}"
        )
    words = load_tokenizer(resolve_model(tokenizer)) if tokenizer else None
    chat = chat_format(words) if words else None
    why = supported(asked.condition, suite, asked.position, chat) or not_applicable(asked.condition, suite, chat)
    if why:
        raise UserError(f"condition {asked.condition!r} of {suite.name!r} is not supported by {provider!r}: {why}")
    how = decoding(config, suite.max_tokens)
    step = _step(asked, config, "", asked.condition)
    prompting = Prompting.model_validate(step["prompting"]) if step["prompting"] else None
    placed = {i.id: place(i, asked.condition, prompting, words) for i in items}
    metadata = {k: v for k, v in step.items() if k != "items"}
    metadata |= {"model": provider, "planned": False, "preopened": False, "adapter": None, "merged": None}
    metadata |= {"template_opens": bool(chat and chat.preopened)}
    job = EvalJob(config.suite, items, how.epochs, metadata)
    with row_progress("generating", console, quiet, unit="completions") as progress:

        def tick(share: float) -> None:
            progress(share, round(share * len(items) * how.epochs))

        keep = out / "answers.jsonl"
        return generate_remote(job, provider, how, placed, out, connections=CONNECTIONS, keep=keep, tick=tick)


def _here(
    asked: Asked,
    config: SuiteConfig,
    items: str,
    model: str,
    adapter: Path | None,
    out: Path,
    console: Console,
    quiet: bool,
) -> Path:
    ref = resolve_model(model)
    tokenizer, hardware = load_tokenizer(ref), resolve(HardwareConfig())
    chat, suite = chat_format(tokenizer), find_suite(config.suite)
    if why := not_applicable(asked.condition, suite, chat):
        raise UserError(f"condition {asked.condition!r} does not apply to {suite.name!r} on {model!r}: {why}")
    loaded = Loaded(ref, load_model(ref, hardware), tokenizer, chat, hardware.merge_adapters)
    if adapter is not None:
        prove_adapter(loaded, adapter)
    bare = None
    with row_progress("generating", console, quiet, unit="completions") as progress:

        def tick(share: float) -> None:
            progress(share, round(share * 100))

        if needs_reasoning(asked.condition, asked.position, chat):
            bare = out / "bare"
            shutil.rmtree(bare, ignore_errors=True)
            bare.mkdir()
            step = _step(asked, config, items, "bare")
            generate_suite(step, loaded, adapter, bare, keep=out / "bare.batches.jsonl", tick=tick)
        step = _step(asked, config, items, asked.condition)
        generate_suite(step, loaded, adapter, out, bare=bare, keep=out / "batches.jsonl", tick=tick)
    for kept in out.glob("*batches.jsonl"):
        kept.unlink()
    return log_in(out)
