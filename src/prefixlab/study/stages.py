"""What each kind of step does: reads its inputs' folders, calls the stage's function, writes its own folder."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefixlab.analysis.rows import REFERENCE
from prefixlab.config import DataConfig, JudgeConfig
from prefixlab.config_serving import ServingConfig
from prefixlab.data.arms import ArmSpec, build_arm, manifest, originals, read_arm, read_manifest, write_arm
from prefixlab.data.chat import chat_format
from prefixlab.data.check import ArmCheck, TreatmentCheck, check_arms, token_frequencies
from prefixlab.data.sources import chosen, read_samples
from prefixlab.data.strip import strip_all
from prefixlab.errors import StepError
from prefixlab.evals.judging import Judge, JudgeDown
from prefixlab.model.load import load_model, load_tokenizer
from prefixlab.model.machine import return_device_memory
from prefixlab.model.recipes import Recipe
from prefixlab.model.trainer import StopRequest
from prefixlab.records import ArmSample, ModelRef, Record, Resolved, Sample, StripRecord, jsonl_lines
from prefixlab.study.cell import TrainJob, train_cell
from prefixlab.study.evaluate import generate_suite, judge_of, score_suite
from prefixlab.study.launch import train_in_processes
from prefixlab.study.loaded import Loaded, Proof, prove_adapter
from prefixlab.study.reading import Reading, read_step
from prefixlab.study.serving import Ask, Servers, generate_served
from prefixlab.study.steps import FREQUENCY, Step, content_hash

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Tick = Callable[[float], None]
"""Called with the finished share of a step, 0 to 1."""


@dataclass
class Conditions:
    """What of a study decides how its steps run, but not what comes out."""

    study: str = "unnamed"
    checkpoints: Callable[[str], Path | None] = lambda slug: None
    """Where a step keeps what must outlive a kill."""
    minutes: float = 5.0
    report_to: tuple[str, ...] = ()
    tracking: Callable[[str], Path | None] = lambda slug: None
    """Where a step's events for TensorBoard go."""
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    """How patiently a judge on a server is asked."""
    serving: ServingConfig | None = None
    """The model server that answers the evaluations, if one does."""
    server_logs: Path = Path("serving")
    """Folder for the logs of servers that are started here."""
    verdicts: Path | None = None
    """File that remembers the verdicts of a judge that is a model."""
    stop: StopRequest = field(default_factory=StopRequest)


class Bench:
    """Runs steps in one process; models are loaded once."""

    def __init__(self, folder: Callable[[str], Path], conditions: Conditions | None = None) -> None:
        self._folder = folder
        self._conditions = conditions or Conditions()
        self._loaded: dict[str, Loaded] = {}
        self._tokenizers: dict[str, PreTrainedTokenizerBase] = {}
        self._proofs: dict[Path, Proof] = {}
        serving, logs = self._conditions.serving, self._conditions.server_logs
        self._servers = Servers(serving, logs) if serving else None
        self._judges: dict[str, Judge] = {}
        self._down: dict[str, str] = {}
        """Judges that gave up, and why: the steps that follow do not wait for them again."""

    def run(self, step: Step, out: Path, tick: Tick) -> None:
        """Do one step.

        Args:
            step: From the plan; its inputs are done.
            out: Empty folder to write into.
            tick: Progress.
        """
        work = {
            "data": self._data,
            "arms": self._arms,
            "check": self._check,
            "train": self._train,
            "generate": self._generate,
            "eval": self._eval,
            "tokens": self._tokens,
        }
        if step.kind != "generate" and self._servers is not None:  # a judge may need its memory
            self._servers.close()
        work[step.kind](step, out, tick)

    def close(self) -> None:
        """Take adapters off the loaded models, and stop the server that was started, if one was."""
        if self._servers is not None:
            self._servers.close()
        for loaded in self._loaded.values():
            loaded.use(None)

    def _input(self, step: Step, role: str) -> Path:
        return self._folder(step.inputs[role])

    def _tokenizer(self, ref: ModelRef) -> "PreTrainedTokenizerBase":
        if ref.fingerprint not in self._tokenizers:
            self._tokenizers[ref.fingerprint] = load_tokenizer(ref)
        return self._tokenizers[ref.fingerprint]

    def _load(self, config: dict[str, Any]) -> Loaded:
        ref = ModelRef.model_validate(config["model"])
        hardware = Resolved.model_validate({**config["hardware"], "why": ""})
        if ref.fingerprint not in self._loaded:
            tokenizer = self._tokenizer(ref)
            self._loaded[ref.fingerprint] = Loaded(
                ref, load_model(ref, hardware), tokenizer, chat_format(tokenizer), hardware.merge_adapters
            )
        return self._loaded[ref.fingerprint]

    def _data(self, step: Step, out: Path, tick: Tick) -> None:
        config = step.config
        skipped: list[tuple[int, str]] = []
        data = DataConfig.model_validate(config["data"])
        rationale = config["no_reasoning"] == "rationale"
        samples, held = read_samples(data, config["capability"], rationale=rationale, skipped=skipped)
        if content_hash([s.model_dump() for s in samples + held]) != config["content"]:
            raise StepError(f"the rows of {data.source!r} changed since the plan was made; run again")
        hits = set(config["overlap"])
        samples = [s for s in samples if s.id not in hits]
        stripped, records = strip_all(samples)
        held_stripped, held_records = strip_all(held)
        _dump(out / "native.jsonl", samples)
        _dump(out / "stripped.jsonl", stripped)
        _dump(out / "held_out.jsonl", held_stripped)
        _dump(out / "strip.jsonl", records)
        _dump(out / "held_out_strip.jsonl", held_records)
        about = {
            "n": len(samples),
            "held_out": len(held),
            "stripped_parts": len(records),
            "overlap": config["overlap"],
            "skipped": skipped,
        }
        (out / "data.json").write_text(json.dumps(about, indent=1) + "\n")

    def _arms(self, step: Step, out: Path, tick: Tick) -> None:
        config, data = step.config, self._input(step, "data")
        spec = ArmSpec.model_validate(config["spec"])
        name = "stripped" if spec.stripped else "native"
        samples = [Sample.model_validate_json(line) for line in jsonl_lines(data / f"{name}.jsonl")]
        records = [json.loads(line) for line in jsonl_lines(data / "strip.jsonl")]
        tokenizer = self._tokenizer(ModelRef.model_validate(config["tokenizer"]))
        key = config["capability"]
        own = originals(samples, map(StripRecord.model_validate, records), spec.position)

        def count_tokens(text: str) -> int:
            return len(tokenizer(text, add_special_tokens=False)["input_ids"])

        rows = build_arm(samples, spec, key, config["assignment"], own, count_tokens)
        about = manifest(rows, spec, key, key, config["assignment"], len({r["id"] for r in records}), count_tokens)
        write_arm(out, rows, about)

    def _check(self, step: Step, out: Path, tick: Tick) -> None:
        config = step.config
        ref = ModelRef.model_validate(config["model"])
        tokenizer = self._tokenizer(ref)
        arms: dict[str, Sequence[ArmSample]] = {}
        for name in step.inputs:
            arms[name] = read_arm(self._input(step, name))[0]
        found = check_arms(
            arms,
            tokenizer,
            chat_format(tokenizer),
            model=ref.name,
            capability=config["capability"],
            **_rendering(config),
        )
        problems = found.problems()
        if problems:
            more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
            raise StepError(
                f"treatment check of {config['capability']} failed, training does not start: {problems[0]}{more}"
            )
        (out / "check.json").write_text(found.model_dump_json(indent=1) + "\n", encoding="utf-8")
        counts = token_frequencies([row.sample for row in arms[REFERENCE]], tokenizer)
        (out / FREQUENCY).write_text(json.dumps(counts) + "\n", encoding="utf-8")

    def _train(self, step: Step, out: Path, tick: Tick) -> None:
        config, how = step.config, self._conditions
        arm = self._input(step, "arm")
        hardware = Resolved.model_validate({**config["hardware"], "why": ""})
        job = TrainJob(
            study=how.study,
            capability=config["capability"],
            model=ModelRef.model_validate(config["model"]),
            hardware=hardware,
            arm=arm,
            **_rendering(config),
            recipe=Recipe.model_validate(config["recipe"]),
            seed=config["seed"],
            key=config["key"],
            out=out,
            checkpoints=how.checkpoints(step.slug),
            minutes=how.minutes,
            report_to=how.report_to,
            tracking=how.tracking(step.slug),
            check=self._checked(step, arm),
        )

        def share(done: int, steps: int) -> None:
            tick(done / steps)

        if hardware.processes > 1:
            train_in_processes(job, tick=share, stop=how.stop)
            return
        loaded = self._load(config)
        train_cell(job, loaded.use(None), loaded.tokenizer, loaded.chat, loaded.pad, tick=share, stop=how.stop)

    def _checked(self, step: Step, arm: Path) -> ArmCheck | None:
        """What the treatment check, done before, found in an arm."""
        name = read_manifest(arm).arm
        file = self._folder(step.after[0]) / "check.json"
        found = TreatmentCheck.model_validate_json(file.read_text(encoding="utf-8"))
        return next((c for c in found.arms if c.arm == name), None)

    def _generate(self, step: Step, out: Path, tick: Tick) -> None:
        config = step.config
        adapter = self._input(step, "adapter") / "adapter" if "adapter" in step.inputs else None
        keep = self._conditions.checkpoints(step.slug)
        keep = keep and keep / "batches.jsonl"
        bare = self._input(step, "bare") if "bare" in step.inputs else None
        if "serving" in config:
            assert self._servers is not None
            self._make_room()
            tokenizer = self._tokenizer(ModelRef.model_validate(config["model"]))
            ask = Ask(config, tokenizer, chat_format(tokenizer), adapter, bare, keep)
            generate_served(ask, self._servers, out, tick)
            return
        loaded = self._load(config)
        if adapter is not None:
            if adapter not in self._proofs:
                self._proofs[adapter] = prove_adapter(loaded, adapter)
            (out / "adapter_check.json").write_text(self._proofs[adapter].model_dump_json(indent=1) + "\n")
        generate_suite(config, loaded, adapter, out, bare=bare, keep=keep, tick=tick)

    def _make_room(self) -> None:
        """Let go of the models of trainings: a server that starts on this machine needs the device's memory."""
        serving = self._conditions.serving
        if serving is not None and serving.command is not None and self._loaded:
            self._loaded.clear()
            return_device_memory()

    def _eval(self, step: Step, out: Path, tick: Tick) -> None:
        config = step.config
        judge = None
        if config["judge"] is not None:
            key = json.dumps(config["judge_settings"], sort_keys=True)
            if key not in self._judges:
                self._judges[key] = judge_of(config, self._conditions.judge, self._conditions.verdicts)
            judge = self._judges[key]
            if key in self._down:
                raise StepError(f"not judged, since {self._down[key]}")
        try:
            score_suite(config, self._input(step, "log"), out, judge, tick)
        except JudgeDown as error:
            self._down[json.dumps(config["judge_settings"], sort_keys=True)] = str(error)
            raise

    def _tokens(self, step: Step, out: Path, tick: Tick) -> None:
        config, loaded, data = step.config, self._load(step.config), self._input(step, "data")
        held = [Sample.model_validate_json(line) for line in jsonl_lines(data / "held_out.jsonl")]
        removed = [StripRecord.model_validate_json(line) for line in jsonl_lines(data / "held_out_strip.jsonl")]
        reading = Reading.model_validate(config["reading"])
        cell = self._input(step, "adapter") if "adapter" in step.inputs else None
        held = chosen(held, lambda s: s.id, reading.capability, reading.tokens.samples)
        read_step(reading, loaded, held, removed, cell, out, tick)


def _rendering(config: Mapping[str, Any]) -> dict[str, Any]:
    """How a step's configuration has samples rendered, as arguments of `render_arm`."""
    return {name: config[name] for name in ("max_length", "no_reasoning", "over_long")}


def _dump(path: Path, rows: Sequence[Record]) -> None:
    path.write_text("".join(r.model_dump_json() + "\n" for r in rows), encoding="utf-8")
