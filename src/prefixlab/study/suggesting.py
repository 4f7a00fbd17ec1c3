"""`prefixlab suggest`: candidate prefixes ranked on a data set by the base model, before anything is trained."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars
from rich.console import Console

from prefixlab.analysis.suggest import NONE, Candidate, Rests, SuggestRow, shared_rests, suggest_rows
from prefixlab.config import DataConfig, HardwareConfig
from prefixlab.data.arms import eligible
from prefixlab.data.chat import ChatFormat, NoReasoning, chat_format, padding_id, render
from prefixlab.data.prefixes import PrefixSet, builtin_sets, control_set, load_set, sentence_file
from prefixlab.data.sources import chosen, read_samples
from prefixlab.data.strip import strip_all
from prefixlab.data.writing import write_rows
from prefixlab.errors import UserError
from prefixlab.model.load import load_model, load_tokenizer, resolve_model
from prefixlab.model.machine import resolve
from prefixlab.records import ArmSample, Position, Record, Rendered, Sample
from prefixlab.study.progress import row_progress

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

KEY = "suggest"
"""Data key of the hash that picks samples."""
ALPHA = 0.05
UNLIMITED = 2**31


@dataclass(frozen=True)
class SuggestOptions:
    """What `prefixlab suggest` was asked for, beside data and model."""

    prefixes: Sequence[str] = ()
    """Prefix sets; with neither these nor `sentences` all built-in ones but `neutral`."""
    sentences: Path | None = None
    """Text file, one candidate a line."""
    position: Position = "opening"
    samples: int = 64
    max_length: int = 1024
    no_reasoning: NoReasoning = "refuse"
    columns: Mapping[str, str] | None = None
    split: str | None = None
    revision: str | None = None


class Suggestion(Record):
    """What `prefixlab suggest --json` prints."""

    data: str
    model: str
    note: str
    """What a reader must know of the model."""
    dtype: str
    position: Position
    n: int
    """Samples read."""
    n_too_long: int
    """Samples left out because some rendering of theirs is longer than `max_length`."""
    max_length: int
    n_without: int
    """Samples left out because no token of their rest is the same behind every prefix."""
    n_border: int
    """Tokens left out at the start of rests, where some prefix merges with them."""
    n_skipped: int
    """Rows of the data that could not be used."""
    skipped: tuple[str, ...]
    """The first of them, and why."""
    alpha: float
    rows: tuple[SuggestRow, ...]


def suggest_prefixes(source: str, model: str, options: SuggestOptions, *, console: Console, quiet: bool) -> Suggestion:
    """Read a data set, render its responses behind every candidate, and rank the candidates.

    Raises:
        UserError: A mistake in the request or the data, or no sample that fits.
    """
    sets = _sets(options)
    data = DataConfig(
        source=source,
        held_out=0,
        columns=dict(options.columns or {}),
        revision=options.revision,
        **({"split": options.split} if options.split else {}),
    )
    skipped: list[tuple[int, str]] = []
    rationale = options.no_reasoning == "rationale"
    everything, _ = read_samples(data, KEY, rationale=rationale, skipped=skipped)
    stripped, _ = strip_all(_picked(everything, options))
    ref = resolve_model(model)
    tokenizer, hardware = load_tokenizer(ref), resolve(HardwareConfig())
    chat = chat_format(tokenizer)
    candidates = _candidates(sets, options.position, lambda t: len(tokenizer(t, add_special_tokens=False)["input_ids"]))
    rests, too_long = _rendered(stripped, candidates, tokenizer, chat, options)
    loaded = load_model(ref, hardware)
    with row_progress("reading", console, quiet, unit="responses") as progress:
        rows = suggest_rows(
            loaded,
            candidates,
            rests.samples,
            pad=padding_id(tokenizer, chat),
            alpha=ALPHA,
            tick=lambda done, total: progress(done / total, done),
        )
    return Suggestion(
        data=source,
        model=ref.name,
        note=ref.note,
        dtype=hardware.dtype,
        position=options.position,
        n=rows[0].n,
        n_too_long=too_long,
        max_length=options.max_length,
        n_without=rests.n_without,
        n_border=rests.n_border,
        n_skipped=len(skipped),
        skipped=tuple(f"row {row + 1}: {why}" for row, why in skipped[:5]),
        alpha=ALPHA,
        rows=tuple(rows),
    )


def write_suggestion(found: Suggestion, path: Path) -> None:
    """Write the ranking as a table, in the format of the file's name."""
    kinds: dict[object, Any] = {int: polars.Int64, str: polars.String}
    schema = {name: kinds.get(field.annotation, polars.Float64) for name, field in SuggestRow.model_fields.items()}
    write_rows(path, [row.model_dump() for row in found.rows], schema)


def _sets(options: SuggestOptions) -> list[PrefixSet]:
    """The sets whose templates are candidates.

    Raises:
        UserError: Unknown or unreadable ones, or a set that is none to choose from.
    """
    sets = [load_set(name) for name in options.prefixes]
    if options.sentences is not None:
        sets.append(sentence_file(options.sentences))
    for chosen_set in sets:
        if chosen_set.own:
            raise UserError("--prefixes original: it has no templates of its own; name another set")
        if chosen_set == load_set("neutral"):
            raise UserError("--prefixes neutral: its sentences are what candidates are measured against")
    return sets or [load_set(name) for name in builtin_sets() if name != "neutral"]


def _picked(samples: Sequence[Sample], options: SuggestOptions) -> list[Sample]:
    """Samples that can carry the prefix, as many as were asked for, by a hash of their id.

    Raises:
        UserError: There are none.
    """
    can = [s for s in samples if eligible(s, options.position)]
    if not can:
        raise UserError(f"none of {len(samples)} samples can carry a prefix at {options.position!r}: they are empty")
    return chosen(can, lambda s: s.id, KEY, options.samples)


def _candidates(sets: Sequence[PrefixSet], position: Position, count_tokens: Callable[[str], int]) -> list[Candidate]:
    """Every template once, with the neutral sentence that is nearest to it in length, whatever the others take.

    Raises:
        UserError: No neutral sentence has about its length.
    """
    found: dict[str, Candidate] = {}
    for prefixes in sets:
        for i, template in enumerate(prefixes.templates):
            alone = prefixes.model_copy(update={"templates": (template,)})
            try:
                neutral = control_set(alone, "neutral", key=lambda text: 0, count_tokens=count_tokens)
            except UserError as error:
                raise UserError(f"candidate {template!r} of {prefixes.name!r} has no neutral match: {error}") from error
            text = prefixes.text(i, position)
            found.setdefault(text, Candidate(prefixes.name, i, text, neutral.text(0, position)))
    return list(found.values())


def _rendered(
    samples: Sequence[Sample],
    candidates: Sequence[Candidate],
    tokenizer: "PreTrainedTokenizerBase",
    chat: ChatFormat,
    options: SuggestOptions,
) -> tuple[Rests, int]:
    """All samples behind all prefixes, and how many did not fit and are left out everywhere.

    Raises:
        UserError: None fits.
    """
    texts = dict.fromkeys([NONE, *(t for c in candidates for t in (c.text, c.neutral))])

    def made(sample: Sample, text: str) -> Rendered:
        row = ArmSample(
            sample=sample, position=options.position if text else None, prefix=text, template=None, eligible=True
        )
        return render(row, tokenizer, chat, max_length=UNLIMITED, no_reasoning=options.no_reasoning)

    groups = [[made(sample, text) for text in texts] for sample in samples]
    longest = [max(len(r.ids) for r in group) for group in groups]
    fits = [group for group, n in zip(groups, longest, strict=True) if n <= options.max_length]
    if not fits:
        raise UserError(
            f"none of {len(samples)} samples fits --max-length {options.max_length}: with its prefix the shortest has "
            f"{min(longest)} tokens; raise it"
        )
    rests = shared_rests({text: [group[i] for group in fits] for i, text in enumerate(texts)}, options.position)
    if not rests.samples[NONE]:
        raise UserError(
            f"in none of {len(fits)} samples is a token of the rest the same behind every prefix; give the prefixes a "
            "separator that ends in a line break"
        )
    return rests, len(groups) - len(fits)
