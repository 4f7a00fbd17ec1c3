"""Any Inspect task as a suite: `inspect:inspect_evals/gsm8k`, `inspect:tasks.py@mine`.

The task brings its own samples, solvers and scorers. Its requests are served in waves, since what it asks next is not
known beforehand: such results are marked "not planned", and a killed run of one starts again. Every scorer becomes a
metric; a score that is no number, or is missing, is not measured.
"""

import hashlib
import re
from collections.abc import Callable, Sequence
from importlib import metadata as metadata_of
from pathlib import Path
from typing import Any

from inspect_ai.log import EvalSample, read_eval_log
from inspect_ai.scorer import CORRECT, INCORRECT, NOANSWER, PARTIAL, Score, value_to_float

from prefixlab.config import SuiteConfig
from prefixlab.errors import StepError, UserError
from prefixlab.evals.harness import check_finished, run_task
from prefixlab.evals.protocols import Decoding
from prefixlab.evals.provider import Decode, Engine, WaveProvider
from prefixlab.evals.suites import FOREIGN
from prefixlab.records import Measure, Message, SampleScore


def task_name(suite: str) -> str:
    """What Inspect is asked to load.

    Raises:
        UserError: A file that is not there.
    """
    name = suite.removeprefix(FOREIGN)
    file = name.partition("@")[0]
    if file.endswith(".py") and not Path(file).is_file():
        raise UserError(f"suite {suite!r}: there is no file {file!r}")
    return name


def task_fingerprint(suite: str) -> str:
    """What a task is: the hash of its file, or the version of the package that it comes from.

    Raises:
        UserError: A file that is not there.
    """
    name = task_name(suite)
    file = Path(name.partition("@")[0])
    if file.suffix == ".py":
        return hashlib.sha256(file.read_bytes()).hexdigest()
    package = name.partition("/")[0]
    try:
        return f"{package} {metadata_of.version(package)}"
    except metadata_of.PackageNotFoundError:
        return name


def run_foreign(
    config: SuiteConfig,
    how: Decoding,
    engine: Engine,
    decode: Decode,
    encode: Callable[[Sequence[Message]], Sequence[int]],
    folder: Path,
    metadata: dict[str, Any],
) -> Path:
    """Run somebody else's task on our engine; its own scorers run too.

    Raises:
        StepError: It did not finish, or cannot be loaded.
    """
    provider = WaveProvider(metadata["model"], engine, decode, encode, how, wave=config.batch_size)
    more: dict[str, Any] = {"limit": config.limit, "max_tokens": how.max_tokens, "temperature": how.temperature}
    more |= {"top_p": how.top_p} if how.top_p < 1 else {}
    more |= {"epochs": config.epochs} if config.epochs is not None else {}
    name = task_name(config.suite)
    try:
        return run_task(name, config.suite, provider, folder, config.batch_size, metadata, **more)
    except (StepError, UserError):
        raise
    except Exception as error:  # whatever the task's own file does
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise StepError(f"{config.suite!r} cannot be loaded or run by Inspect: {reason}") from error


WORDS = {CORRECT, INCORRECT, PARTIAL, NOANSWER, "yes", "no", "true", "false"}
"""Scores in words that Inspect turns into numbers; every other word would silently become 0."""


def _readable(value: object) -> bool:
    if isinstance(value, str):
        return (
            value in WORDS or value.lower() in WORDS or re.fullmatch(r"[-+]?\d*\.?\d+(e[-+]?\d+)?", value) is not None
        )
    return isinstance(value, int | float)


def _values(name: str, score: Score) -> dict[str, float | None]:
    """Numbers of one scorer, by metric name; None for what is no number."""
    to_float = value_to_float()
    given = score.value if isinstance(score.value, dict) else {"": score.value}
    found: dict[str, float | None] = {}
    for key, value in given.items():
        number = to_float(value) if _readable(value) else float("nan")
        found[f"{name}/{key}" if key else name] = None if number != number else float(number)
    return found


def foreign_rows(path: Path, suite: str, folder: Path) -> tuple[list[SampleScore], list[Measure], dict[str, bool]]:
    """Rows of a log that its own scorers scored, and the metrics' names (higher is taken to be better).

    Raises:
        StepError: The log is not whole, or has no scores.
    """
    log = read_eval_log(str(path))
    check_finished(log, suite)
    main: list[SampleScore] = []
    more: list[Measure] = []
    metrics: dict[str, bool] = {}
    for sample in log.samples or ():
        values = {k: v for name, score in (sample.scores or {}).items() for k, v in _values(name, score).items()}
        if not values:
            raise StepError(f"evaluation on {suite!r}: sample {sample.id!r} has no score")
        metrics |= dict.fromkeys(values, True)
        for i, (name, value) in enumerate(values.items()):
            row = _measure(sample, name, value)
            more.append(row) if i else main.append(_with_texts(sample, row))
    (folder / path.name).write_bytes(path.read_bytes())
    return main, more, metrics


def _measure(sample: EvalSample, name: str, value: float | None) -> Measure:
    truncated = sample.output.stop_reason in ("max_tokens", "model_length")
    return Measure(
        item=str(sample.id),
        epoch=sample.epoch,
        metric=name,
        value=value,
        status="invalid" if value is None else "truncated" if truncated else "ok",
        kind="problem",
    )


def _with_texts(sample: EvalSample, row: Measure) -> SampleScore:
    prompt = sample.input if isinstance(sample.input, str) else sample.input[-1].text
    target = sample.target if isinstance(sample.target, str) else "; ".join(sample.target)
    usage = sample.output.usage
    return SampleScore(
        **row.model_dump(),
        prompt=prompt,
        completion=sample.output.completion,
        prefill="",
        answer=str(next(iter((sample.scores or {}).values())).answer or ""),
        target=target,
        n_tokens=usage.output_tokens if usage else 0,
    )
