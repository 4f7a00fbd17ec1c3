"""What the step `tokens` does: held-out samples under every rendering, read by the base or by one cell's adapters."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import polars
from peft import PeftModel, get_peft_model
from transformers import set_seed

from prefixlab.analysis.contributions import lora_targets, weight_targets
from prefixlab.analysis.tokens import Reader, Rendering, Tables, read_tokens
from prefixlab.config import TokensConfig
from prefixlab.data.arms import ArmSpec, build_arm, originals
from prefixlab.data.chat import ChatFormat, NoReasoning, OverLong
from prefixlab.data.check import render_arm
from prefixlab.errors import StepError, UserError
from prefixlab.model.recipes import Recipe, lora_config
from prefixlab.model.train import SNAPSHOTS
from prefixlab.records import Record, Sample, StripRecord
from prefixlab.study.loaded import Loaded, fitting

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Tick = Callable[[float], None]


class Reading(Record):
    """What a tokens step reads, and how."""

    capability: str
    renderings: tuple[ArmSpec, ...]
    """r000 first, then the treatment, then its controls; each with every sample treated."""
    tokens: TokensConfig
    max_length: int
    no_reasoning: NoReasoning
    over_long: OverLong
    recipe: Recipe | None
    """For gradients of the base: the adapter that training would start from; None where no gradient needs it."""
    seed: int
    """Of that adapter's initialisation."""


def reading_specs(specs: Sequence[ArmSpec], *, controls: bool) -> list[ArmSpec]:
    """The texts under which held-out samples are read: none, the first treatment's, its controls'.

    Controls that change the loss alone have the treatment's text and are left out.
    """
    treatment = next(s for s in specs if s.treatment is not None and s.control is None)
    found = [s for s in specs if s.name == "r000"]
    found.append(treatment.model_copy(update={"name": _set_name(treatment), "ratio": 1.0, "loss": "all"}))
    for spec in specs if controls else ():
        same = (spec.treatment, spec.position) == (treatment.treatment, treatment.position)
        new = spec.control not in {s.control for s in found}
        if spec.control is not None and same and new and spec.prefixes != treatment.prefixes:
            found.append(spec.model_copy(update={"name": spec.control, "ratio": 1.0, "loss": "all"}))
    return found


def _set_name(spec: ArmSpec) -> str:
    assert spec.treatment is not None
    return spec.treatment.name


def render_all(
    reading: Reading,
    samples: Sequence[Sample],
    removed: Sequence[StripRecord],
    tokenizer: "PreTrainedTokenizerBase",
    chat: ChatFormat,
) -> list[Rendering]:
    """Stripped samples under every text of a reading.

    Raises:
        UserError: A sample that cannot be rendered.
    """

    def count_tokens(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    found = []
    for spec in reading.renderings:
        own = originals(samples, removed, spec.position)
        arm = build_arm(samples, spec, reading.capability, "exact", own, count_tokens)
        if spec.prefixes is not None:  # what has no opening of its own, or no place for one, is not read as if it had
            arm = [row for row in arm if row.treated]
        rendered = render_arm(
            arm,
            tokenizer,
            chat,
            max_length=reading.max_length,
            no_reasoning=reading.no_reasoning,
            over_long=reading.over_long,
        )
        templates = {row.sample.id: row.template for row in arm}
        found.append(Rendering(spec.name, spec.control, rendered, templates))
    return found


@contextmanager
def _wrapped(loaded: Loaded, adapter: Path | None, reading: Reading) -> Iterator[PeftModel | None]:
    """The base with an adapter that is applied but not merged, so that it can be switched off and has gradients.

    For the base: the adapter that training would start from where gradients are asked for, else none.
    """
    model = loaded.use(None)
    if adapter is not None:
        with fitting(adapter, loaded.ref.name):
            wrapped = PeftModel.from_pretrained(model, str(adapter), is_trainable=True)
    elif reading.recipe is not None:
        set_seed(reading.seed)
        made = get_peft_model(model, lora_config(reading.recipe, model))
        assert isinstance(made, PeftModel)
        wrapped = made
    else:
        yield None
        return
    wrapped.eval()
    try:
        yield wrapped
    finally:
        wrapped.unload()


def read_tables(
    loaded: Loaded,
    adapter: Path | None,
    reading: Reading,
    renderings: Sequence[Rendering],
    step: int | None,
    tick: Tick = lambda share: None,
) -> Tables:
    """Read renderings by the base (no adapter) or by one adapter, of a training step where it is a snapshot."""
    tokens = reading.tokens
    with _wrapped(loaded, adapter, reading) as wrapped:
        targets = None
        if tokens.gradients != "logit":
            assert wrapped is not None
            targets = weight_targets(loaded.model, tokens.weights) if tokens.weights else lora_targets(wrapped)
        reader = Reader(
            model=loaded.model,
            tokenizer=loaded.tokenizer,
            pad=loaded.pad,
            base=wrapped.disable_adapter if wrapped is not None and adapter is not None else None,
            targets=targets,
            token_losses=tokens.gradients == "tokens",
            modules=tokens.modules,
            step=step,
        )
        return read_tokens(reader, renderings, tick)


def read_step(
    reading: Reading,
    loaded: Loaded,
    samples: Sequence[Sample],
    removed: Sequence[StripRecord],
    cell: Path | None,
    out: Path,
    tick: Tick,
) -> None:
    """Write token_loss.parquet and, where asked for, spans.parquet and modules.parquet.

    Args:
        reading: What to read.
        loaded: The base model.
        samples: Held-out samples, stripped.
        removed: What was stripped from them.
        cell: Folder of the train step, whose snapshots are read with the treatment's text only; None for the base.
        out: Folder to write into.
        tick: Finished share.

    Raises:
        StepError: A held-out sample that cannot be rendered, or an adapter that does not fit.
    """
    try:
        renderings = render_all(reading, samples, removed, loaded.tokenizer, loaded.chat)
    except UserError as error:
        raise StepError(f"held-out {error}") from error
    tables = []
    try:
        tables.append(read_tables(loaded, cell / "adapter" if cell else None, reading, renderings, None, tick))
        for folder in sorted((cell / SNAPSHOTS).glob("step-*")) if cell else ():
            step = int(folder.name.removeprefix("step-"))
            tables.append(read_tables(loaded, folder, reading, renderings[1:2], step))
    except UserError as error:
        raise StepError(f"held-out samples cannot be read: {error}") from error
    for file, table in table_files(tables).items():
        table.write_parquet(out / file)


def table_files(tables: Sequence[Tables]) -> dict[str, polars.DataFrame]:
    """File name -> table of one or more readings; spans and modules only where they were asked for."""
    files = {
        "token_loss.parquet": polars.concat([t.tokens for t in tables]),
        "spans.parquet": polars.concat([t.spans for t in tables]),
        "modules.parquet": polars.concat([t.modules for t in tables]),
    }
    return {name: table for name, table in files.items() if name == "token_loss.parquet" or len(table)}
