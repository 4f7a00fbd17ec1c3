"""`prefixlab tokens`: the token tables of a data set under one model and its adapters, without a study."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars
from rich.console import Console

from prefixlab.config import ArmsConfig, DataConfig, HardwareConfig, TokensConfig
from prefixlab.data.arms import specs
from prefixlab.data.chat import NoReasoning, chat_format
from prefixlab.data.check import token_frequencies
from prefixlab.data.sources import read_samples
from prefixlab.data.strip import strip_all
from prefixlab.errors import UserError
from prefixlab.model.load import load_model, load_tokenizer, resolve_model
from prefixlab.model.machine import resolve
from prefixlab.model.recipes import MODERN
from prefixlab.study.datafiles import asked_adapter
from prefixlab.study.loaded import Loaded
from prefixlab.study.progress import row_progress
from prefixlab.study.reading import Reading, read_tables, reading_specs, render_all, table_files
from prefixlab.study.steps import FREQUENCY
from prefixlab.study.store import disk_may_be_full, write_text

KEY = "tokens"
"""Data key of templates where no study gives one."""


@dataclass(frozen=True)
class AskedTokens:
    """What `prefixlab tokens` was asked for."""

    data: DataConfig
    arms: ArmsConfig
    tokens: TokensConfig
    max_length: int
    no_reasoning: NoReasoning


def read_alone(
    asked: AskedTokens, model: str, adapters: Sequence[Path], out: Path, *, console: Console, quiet: bool
) -> list[Path]:
    """Write token_loss.parquet and the tables that go with it; column `arm` names base and adapters.

    Raises:
        UserError: A mistake in data, model or adapters; two adapters of one name.
        StepError: An adapter does not fit.
    """
    same = [c for c in asked.arms.controls if c in ("masked", "anchors_masked", "random_masked")]
    if same:
        raise UserError(f"--control {same[0]}: it has the treatment's text and changes the loss alone; leave it out")
    names = ["base", *(_name(a) for a in adapters)]
    adapters = [asked_adapter(a) for a in adapters]
    if len(set(names)) < len(names):
        raise UserError(f"adapters of one name: {', '.join(names[1:])}; rename a folder, or read them in two calls")
    ref = resolve_model(model)
    tokenizer, hardware = load_tokenizer(ref), resolve(HardwareConfig())
    chat = chat_format(tokenizer)
    skipped: list[tuple[int, str]] = []
    samples, _ = read_samples(asked.data, KEY, rationale=asked.no_reasoning == "rationale", skipped=skipped)
    stripped, removed = strip_all(samples)

    def count_tokens(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    reading = Reading(
        capability=KEY,
        renderings=tuple(reading_specs(specs(asked.arms, KEY, count_tokens), controls=asked.tokens.controls)),
        tokens=asked.tokens,
        max_length=asked.max_length,
        no_reasoning=asked.no_reasoning,
        over_long="refuse",
        recipe=MODERN if asked.tokens.gradients != "logit" else None,
        seed=0,
    )
    renderings = render_all(reading, stripped, removed, tokenizer, chat)
    loaded = Loaded(ref, load_model(ref, hardware), tokenizer, chat, hardware.merge_adapters)
    out.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[polars.DataFrame]] = {}
    with row_progress("reading", console, quiet, unit="samples") as progress, disk_may_be_full(out):
        places: list[Path | None] = [None, *adapters]
        for i, (name, place) in enumerate(zip(names, places, strict=True)):

            def tick(share: float, before: int = i) -> None:
                whole = (before + share) / len(names)
                progress(whole, round(whole * len(names) * len(stripped)))

            tables = read_tables(loaded, place, reading, renderings, None, tick)
            for file, table in table_files([tables]).items():
                found.setdefault(file, []).append(table.insert_column(0, polars.lit(name).alias("arm")))
        for file, parts in found.items():
            polars.concat(parts).write_parquet(out / file)
        write_text(out / FREQUENCY, json.dumps(token_frequencies(stripped, tokenizer)) + "\n")
        about = {"model": ref.model_dump(mode="json"), "reading": reading.model_dump(mode="json"), "skipped": skipped}
        write_text(out / "tokens.json", json.dumps(about, indent=1, ensure_ascii=False) + "\n")
    return [out / file for file in found]


def _name(adapter: Path) -> str:
    """A study's adapters all stand in folders called `adapter`: the name is then the folder's above."""
    path = adapter.resolve()
    return path.parent.name if path.name == "adapter" else path.name
