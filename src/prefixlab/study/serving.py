"""The model servers of a run: started and stopped here where the study says how, and asked instead of the engine."""

import asyncio
import hashlib
import json
import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
from transformers import AutoConfig, GenerationConfig

from prefixlab.config import SuiteConfig
from prefixlab.config_serving import HASH, ServingConfig
from prefixlab.data.chat import ChatFormat
from prefixlab.errors import StepError, UserError
from prefixlab.evals.conditions import Prompting, user_turns
from prefixlab.evals.harness import EvalJob, generate_log
from prefixlab.evals.planning import Answer, BatchPlan, Kept, plan_batches
from prefixlab.evals.protocols import Decoding
from prefixlab.evals.provider import PlannedProvider
from prefixlab.evals.served import Form, Job, Rendering, Served, ask_all, check_form
from prefixlab.evals.served_adapters import ServedProof, ensure_adapter, ensure_base, prove
from prefixlab.evals.server import Client, Endpoint, ServerDown
from prefixlab.records import EvalItem, ModelRef, Record
from prefixlab.study.evaluate import METADATA, Tick, decoder, planned_items, prompts_of
from prefixlab.study.evaluations import slug_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LOOK = 0.5
"""Seconds between looks at a server that is starting."""
RUNTIME_ADAPTERS = "VLLM_ALLOW_RUNTIME_LORA_UPDATING"
SERVED = "served.json"


def adapter_hash(folder: Path) -> str:
    """First 12 digits of the sha256 over an adapter's weights and configuration."""
    found = hashlib.sha256()
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        found.update((folder / name).read_bytes())
    return found.hexdigest()[:12]


def rendering_of(ref: ModelRef, tokenizer: "PreTrainedTokenizerBase", chat: ChatFormat) -> Rendering:
    """A model's rendering, with what a server takes from the model's own generation configuration."""
    where: dict[str, Any] = {"revision": ref.revision}
    try:
        own = GenerationConfig.from_pretrained(ref.path, **where)
    except OSError:
        own = GenerationConfig()
    end = own.eos_token_id
    if end is None:
        end = AutoConfig.from_pretrained(ref.path, trust_remote_code=False, **where).eos_token_id
    ends = [end] if isinstance(end, int) else end or []
    return Rendering(
        tokenizer, chat, frozenset(ends), 1.0 if own.repetition_penalty is None else own.repetition_penalty
    )


class ServedBy(Record):
    """served.json of a generate step: what answered."""

    model: str
    """Name on the server."""
    form: Form
    engine: str
    proof: ServedProof | None
    """That the adapter answers; None for the base."""


@dataclass
class _Process:
    """A server that this run has started."""

    attendant: "subprocess.Popen[bytes]"
    ref: ModelRef
    endpoint: Endpoint
    log: Path


def _answers(endpoint: Endpoint) -> bool:
    """Whether a server lists its models."""
    try:
        told = httpx.get(f"{endpoint.url}/models", headers=endpoint.headers, timeout=5, trust_env=endpoint.by_proxy)
    except httpx.HTTPError:
        return False
    return told.is_success


@dataclass
class Servers:
    """The servers of one run."""

    config: ServingConfig
    logs: Path
    """Folder for the logs of those that are started here."""
    _running: _Process | None = None
    _down: dict[str, str] = field(default_factory=dict)
    """Servers, by model, that did not start or answer, and why: the steps that follow do not wait for them again."""
    _forms: dict[str, Form] = field(default_factory=dict)
    _proofs: dict[tuple[str, str], ServedProof] = field(default_factory=dict)

    def endpoint(self, ref: ModelRef) -> Endpoint:
        """Where a model is served; its server is started if that is ours to do.

        Raises:
            UserError: The key's variable is not set, or another server stands at the address of ours.
            ServerDown: The server did not start, now or earlier.
        """
        if ref.name in self._down:
            raise ServerDown(f"not sampled, since {self._down[ref.name]}")
        if self.config.command is None:
            url = self.config.base_url
            return self._at(url[ref.name] if isinstance(url, Mapping) else str(url))
        running = self._running
        if running is not None and running.ref.fingerprint == ref.fingerprint:
            code = running.attendant.poll()
            if code is None:
                return running.endpoint
            raise self._failed(running, f"ended with exit code {code}")
        self.close()
        return self._start(ref).endpoint

    def gone(self, ref: ModelRef, why: str) -> None:
        """Remember that a model's server does not answer."""
        self._down[ref.name] = why

    def close(self) -> None:
        """Stop the server that was started here, if one was."""
        if self._running is None:
            return
        running, self._running = self._running, None
        assert running.attendant.stdin is not None
        running.attendant.stdin.close()
        try:
            running.attendant.wait(60)
        except subprocess.TimeoutExpired:
            running.attendant.kill()

    def _at(self, url: str) -> Endpoint:
        """A server by its address, with the key and the patience that the study gives."""
        name = self.config.api_key_env
        key = os.environ.get(name) if name else None
        if name and not key:
            raise UserError(f"serving.api_key_env {name!r}: this environment variable is not set; export it")
        return Endpoint(url.rstrip("/"), key, self.config.timeout, self.config.retries)

    def _start(self, ref: ModelRef) -> _Process:
        """Start the command and wait until the server lists its models."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        assert self.config.command is not None
        words = [w.replace("{model}", ref.path).replace("{port}", str(port)) for w in shlex.split(self.config.command)]
        endpoint = self._at(str(self.config.base_url or f"http://127.0.0.1:{port}/v1"))
        if _answers(endpoint):
            raise UserError(
                f"serving.base_url {endpoint.url}: a server answers there already; leave serving.command out to use "
                "it, or stop it"
            )
        self.logs.mkdir(parents=True, exist_ok=True)
        log = self.logs / f"{slug_of(ref.name)}.log"
        extra = {RUNTIME_ADAPTERS: "True"} if self.config.adapters == "load" else {}
        with log.open("ab") as file:
            attendant = subprocess.Popen(
                [sys.executable, "-m", "prefixlab.study.attend", *words],
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, **extra},
                start_new_session=True,
            )
        self._running = _Process(attendant, ref, endpoint, log)
        self._wait(self._running)
        return self._running

    def _wait(self, process: _Process) -> None:
        """Until the server answers.

        Raises:
            ServerDown: It ended, or takes too long.
        """
        until = time.monotonic() + 60 * self.config.start_minutes
        while time.monotonic() < until:
            code = process.attendant.poll()
            if code is not None:
                raise self._failed(process, f"ended with exit code {code}")
            if _answers(process.endpoint):
                return
            time.sleep(LOOK)
        limit = f"{self.config.start_minutes:g} minutes (serving.start_minutes)"
        raise self._failed(process, f"did not answer at {process.endpoint.url} within {limit}")

    def _failed(self, process: _Process, how: str) -> ServerDown:
        """Stop what is left of a server, and remember why."""
        self.close()
        lines = process.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        last = f", whose last line is {lines[-1][:200]!r}" if lines else ""
        why = f"serving.command for model {process.ref.name!r} {how}; its log is {process.log}{last}"
        self._down[process.ref.name] = why
        return ServerDown(why)

    async def ready(
        self, client: Client, ref: ModelRef, adapter: Path | None, rendering: Rendering
    ) -> tuple[Served, Form, ServedProof | None]:
        """The server's model or adapter, seen to be there, and how it takes prompts.

        Raises:
            StepError: It is not there, is not what answers, or takes no prompt that would do.
        """
        base = Served(client, self.config.names.get(ref.name, ref.path), rendering)
        url = client.endpoint.url
        if f"{url} {base.name}" not in self._forms:
            await ensure_base(base, ref.name)
            self._forms[f"{url} {base.name}"] = await base.find_form(self.config.prompts)
        form = self._forms[f"{url} {base.name}"]
        if adapter is None:
            return base, form, None
        name = self.config.adapter_name.replace(HASH, adapter_hash(adapter))
        mine = Served(client, name, rendering)
        if (url, name) not in self._proofs:
            listed = await ensure_adapter(mine, adapter.resolve(), load=self.config.adapters == "load")
            self._proofs[url, name] = await prove(mine, base.name, form, listed=listed)
        return mine, form, self._proofs[url, name]


@dataclass(frozen=True)
class Ask:
    """What a generate step wants of a server."""

    config: Mapping[str, Any]
    tokenizer: "PreTrainedTokenizerBase"
    chat: ChatFormat
    adapter: Path | None
    bare: Path | None
    """Folder of the bare log whose reasoning is needed, if it is."""
    keep: Path | None
    """File for finished completions, read again after a kill."""

    @property
    def ref(self) -> ModelRef:
        """The base model."""
        return ModelRef.model_validate(self.config["model"])

    @property
    def how(self) -> Decoding:
        """Decoding."""
        return Decoding(**self.config["decoding"])

    def plan(self, items: list[EvalItem]) -> BatchPlan:
        """Every completion as a batch of its own, with the prompts and seeds of the local engine."""
        prompts = prompts_of(items, self.config, self.tokenizer, self.chat, self.bare)
        return plan_batches(prompts, self.how, SuiteConfig.model_validate(self.config["suite"]).suite, 1)

    def identity(self) -> str:
        """Whose answers may be kept: those of one model, adapter and way of asking."""
        adapter = adapter_hash(self.adapter) if self.adapter else "base"
        return " ".join([self.ref.fingerprint, adapter, json.dumps(self.config["serving"], sort_keys=True)])


def generate_served(ask: Ask, servers: Servers, out: Path, tick: Tick) -> None:
    """Sample a suite through a server into one .eval log, as `generate_suite` does here.

    Raises:
        UserError: The key's variable is not set.
        ServerDown: The server does not answer; finished completions are kept.
        StepError: Completions are missing, or the server lacks what is needed.
    """
    items = planned_items(ask.config)
    plan = ask.plan(items)
    (out / "batches.json").write_text(plan.model_dump_json() + "\n", encoding="utf-8")
    kept = Kept(ask.keep, plan, ask.identity())
    prompting = Prompting.model_validate(ask.config["prompting"]) if ask.config["prompting"] else None
    turns = {i.id: user_turns(i.messages, ask.config["condition"], prompting) for i in items}
    jobs = [Job(n, b[0], turns[b[0].item]) for n, b in enumerate(plan.batches) if n not in kept.batches]

    def keep(number: int, answer: Answer) -> None:
        kept.add(number, [answer])
        tick(len(kept.batches) / len(plan.batches))

    by = _sample(ask, servers, jobs, keep, out)
    decode = decoder(ask.tokenizer)
    provider = PlannedProvider(ask.ref.name, plan, _no_engine, decode, lambda n: None, kept)
    metadata = {name: ask.config[name] for name in METADATA}
    metadata |= {
        "model": ask.ref.name,
        "model_note": ask.ref.note,
        "adapter": ask.adapter is not None,
        "merged": False,
        "planned": True,
        "preopened": bool(ask.chat.preopened),
        "server": by.model_dump(mode="json"),
    }
    suite = SuiteConfig.model_validate(ask.config["suite"]).suite
    generate_log(EvalJob(suite, items, ask.how.epochs, metadata), provider, out, len(plan.batches))


def _no_engine(requests: Any) -> Any:
    raise AssertionError("every completion is kept before the log is written")


def _sample(ask: Ask, servers: Servers, jobs: list[Job], keep: Callable[[int, Answer], None], out: Path) -> ServedBy:
    """Ask for what is missing; leaves served.json in the step's folder, and beside what is kept."""
    ref, config = ask.ref, servers.config
    stored = ask.keep.with_name(SERVED) if ask.keep else None
    if not jobs and stored and stored.exists():
        by = ServedBy.model_validate_json(stored.read_text(encoding="utf-8"))
        (out / SERVED).write_text(by.model_dump_json(indent=1) + "\n", encoding="utf-8")
        return by
    endpoint = servers.endpoint(ref)

    async def sample() -> tuple[ServedBy, dict[int, str], str]:
        async with Client(endpoint) as client:
            rendering = rendering_of(ref, ask.tokenizer, ask.chat)
            served, form, proof = await servers.ready(client, ref, ask.adapter, rendering)
            check_form(form, ask.how, rendering, endpoint.url)
            by = ServedBy(model=served.name, form=form, engine=config.engine, proof=proof)
            for path in (out / SERVED, *([stored] if stored else [])):
                path.write_text(by.model_dump_json(indent=1) + "\n", encoding="utf-8")
            return by, *await ask_all(served, form, ask.how, jobs, keep, config.connections)

    try:
        by, missing, gone = asyncio.run(sample())
    except ServerDown as error:
        servers.gone(ref, str(error))
        raise
    if missing:
        why = next(iter(missing.values()))
        told = (
            f"{len(missing)} of {len(jobs)} completions from server {endpoint.url} are missing ({why}); the others are "
            "kept, and a rerun asks for the missing ones only"
        )
        if gone:
            servers.gone(ref, f"server {endpoint.url} stopped answering ({gone})")
        raise StepError(told)
    return by
