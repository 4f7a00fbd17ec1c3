"""Commands that look into models and data without a study: suggest, tokens."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from prefixlab.cli_data import ColumnOption, RevisionOption, SplitOption
from prefixlab.cli_shared import JsonOption, QuietOption, err_console, help_text, out_console, print_json

if TYPE_CHECKING:
    from prefixlab.study.suggesting import Suggestion

app = typer.Typer()


@app.command(
    help=help_text(
        "Rank candidate prefixes before any training: by how much each lowers the base model's loss on the rest of the "
        "response beyond a neutral sentence of its length.",
        "prefixlab suggest data.jsonl --model smollm2-135m --prefixes reasoning --prefixes safety",
        "prefixlab suggest builtin:safety --model smollm2-135m --candidates sentences.txt --out ranking.csv",
    )
)
def suggest(
    data: Annotated[str, typer.Argument(metavar="DATA", help="Local file, hub id or builtin:NAME.")],
    model: Annotated[str, typer.Option(help="Built-in name, local folder or hub id.")],
    prefixes: Annotated[
        list[str] | None, typer.Option(help="Prefix set or YAML file; all built-in sets but neutral by default.")
    ] = None,
    candidates: Annotated[
        Path | None, typer.Option(metavar="F.txt", help="Text file with one candidate a line.")
    ] = None,
    position: Annotated[Literal["user", "opening", "answer"], typer.Option(help="Where the prefix stands.")] = (
        "opening"
    ),
    samples: Annotated[int, typer.Option(min=2, help="Samples to read, chosen by a hash of their id.")] = 64,
    max_length: Annotated[int, typer.Option(min=1, help="Longer samples are left out and counted.")] = 1024,
    no_reasoning: Annotated[
        Literal["refuse", "empty", "rationale"],
        typer.Option(help="For samples without reasoning under a template that opens it."),
    ] = "refuse",
    out: Annotated[Path | None, typer.Option(metavar="F", help="Write the table: .parquet, .csv, .jsonl, ...")] = None,
    column: ColumnOption = None,
    split: SplitOption = None,
    revision: RevisionOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    from prefixlab.data.writing import check_writable
    from prefixlab.study.datafiles import check_outputs, column_mapping
    from prefixlab.study.suggesting import SuggestOptions, suggest_prefixes, write_suggestion

    if out is not None:
        check_writable(out)
        check_outputs(data, out)
    options = SuggestOptions(
        prefixes=prefixes or (),
        sentences=candidates,
        position=position,
        samples=samples,
        max_length=max_length,
        no_reasoning=no_reasoning,
        columns=column_mapping(column or []),
        split=split,
        revision=revision,
    )
    found = suggest_prefixes(data, model, options, console=err_console, quiet=quiet or as_json)
    if out is not None:
        write_suggestion(found, out)
    if as_json:
        print_json(found.model_dump(mode="json"))
    elif not quiet:
        _show(found)


def _show(found: "Suggestion") -> None:
    """The ranking as a table, and what a reader must know of it."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    def number(value: float | None) -> str:
        return "unknown" if value is None else f"{value:+.4f}"

    table = Table(box=None, pad_edge=False)
    for name in ("rank", "gain", f"{100 - 100 * found.alpha:.0f}% interval", "p (Holm)", "against none", "prefix"):
        table.add_column(name, justify="left" if name == "prefix" else "right", no_wrap=True)
    for row in found.rows:
        interval = "unknown" if row.ci_low is None else f"{number(row.ci_low)} to {number(row.ci_high)}"
        p = "unknown" if row.p_holm is None else f"{row.p_holm:.2g}"
        text = Text(f"{row.prefix_set} {row.template}: {row.text}")
        table.add_row(str(row.rank), number(row.gain), interval, p, number(row.gain_none), text)
    Console(width=max(out_console.width, 240), soft_wrap=True).print(table)
    out_console.print(
        "gain: nats a token by which the loss of the rest of the response is lower than behind a neutral sentence of "
        f"the same length; {found.n} samples, position {found.position}, {found.model} in {found.dtype}"
        + (f" ({found.note})" if found.note else ""),
        highlight=False,
        markup=False,
    )
    left_out = (
        (found.n_too_long, f"samples longer than --max-length {found.max_length} left out"),
        (found.n_without, "samples left out: no token of the rest is the same behind every prefix"),
        (found.n_border, "first tokens of rests left out: some prefix merges with them"),
        (found.n_skipped, f"rows skipped; {found.skipped[0] if found.skipped else ''}"),
    )
    for count, what in left_out:
        if count:
            err_console.print(f"{count} {what}", highlight=False, markup=False)


@app.command(
    help=help_text(
        "Read a data set's responses token by token, by a model and its adapters: loss, entropy, rank, KL to the base, "
        "gradients; without prefix, with a set's, and with its controls.",
        "prefixlab tokens data.jsonl --model smollm2-135m --prefixes safety --out tokens",
        "prefixlab tokens builtin:safety --model smollm2-135m --adapter runs/quickstart/steps/train-X/adapter "
        "--prefixes safety --gradients positions --out tokens",
    )
)
def tokens(
    data: Annotated[str, typer.Argument(metavar="DATA", help="Local file, hub id or builtin:NAME.")],
    model: Annotated[str, typer.Option(help="Built-in name, local folder or hub id.")],
    prefixes: Annotated[str, typer.Option(help="Prefix set or YAML file.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Gets token_loss.parquet and what goes with it.")],
    adapter: Annotated[list[Path] | None, typer.Option(metavar="DIR", help="PEFT adapter folders.")] = None,
    position: Annotated[Literal["opening", "answer"], typer.Option(help="Where the prefix stands.")] = "opening",
    control: Annotated[list[str] | None, typer.Option(help="Controls to read, too; neutral by default.")] = None,
    gradients: Annotated[
        Literal["logit", "positions", "tokens"],
        typer.Option(help="positions: one backward pass a sample; tokens: one a token as well."),
    ] = "logit",
    weights: Annotated[
        list[str] | None, typer.Option(metavar="LAYER", help="Linear layers to attribute instead of the adapter.")
    ] = None,
    modules: Annotated[bool, typer.Option("--modules", help="Keep contributions module by module, too.")] = False,
    samples: Annotated[int, typer.Option(min=1, help="Samples to read, chosen by a hash of their id.")] = 32,
    max_length: Annotated[int, typer.Option(min=1, help="Longest sample in tokens.")] = 1024,
    no_reasoning: Annotated[
        Literal["refuse", "empty", "rationale"],
        typer.Option(help="For samples without reasoning under a template that opens it."),
    ] = "refuse",
    column: ColumnOption = None,
    split: SplitOption = None,
    revision: RevisionOption = None,
    quiet: QuietOption = False,
) -> None:
    from prefixlab.cli_shared import checked
    from prefixlab.config import ArmsConfig, DataConfig, TokensConfig
    from prefixlab.study.datafiles import column_mapping
    from prefixlab.study.tokens_alone import AskedTokens, read_alone

    source = {"source": data, "columns": column_mapping(column or []), "limit": samples, "held_out": 0}
    more = {name: value for name, value in (("split", split), ("revision", revision)) if value}
    asked = AskedTokens(
        data=checked(DataConfig, **source, **more),
        arms=checked(ArmsConfig, prefixes=prefixes, position=position, ratios=[0, 1], controls=control or ["neutral"]),
        tokens=checked(TokensConfig, samples=samples, gradients=gradients, weights=weights or [], modules=modules),
        max_length=max_length,
        no_reasoning=no_reasoning,
    )
    for path in read_alone(asked, model, adapter or [], out, console=err_console, quiet=quiet):
        if not quiet:
            out_console.print(str(path), highlight=False, markup=False)
