"""Commands on data files: audit, strip, arms, check."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from prefixlab.cli_shared import JsonOption, QuietOption, err_console, help_text, out_console, print_json
from prefixlab.config import CONTROLS
from prefixlab.errors import UserError

app = typer.Typer()

ColumnOption = Annotated[
    list[str] | None,
    typer.Option("--column", metavar="ROLE=NAME", help="Name a column: prompt, response, reasoning, id or source."),
]
TurnsOption = Annotated[str, typer.Option("--turns", help="all: every assistant turn; last: the last one.")]
SplitOption = Annotated[str | None, typer.Option("--split", help="Split of a hub data set or saved DatasetDict.")]
RevisionOption = Annotated[str | None, typer.Option("--revision", help="Commit, tag or branch of a hub data set.")]
DataArgument = Annotated[
    str,
    typer.Argument(
        metavar="DATA",
        help="JSONL, JSON, CSV or Parquet file (also .gz, .bz2, .xz, .zst), folder saved by datasets, or hub id.",
    ),
]


@app.command(
    help=help_text(
        "What openings a data set has: families, mined templates, words spent on them.",
        "prefixlab audit data.jsonl --json audit.json --labels labels.parquet --out audit.html",
        "prefixlab audit org/name --split train --column prompt=question --column response=reply",
    )
)
def audit(
    data: DataArgument,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="F", help="Write everything as JSON; - for standard output.")
    ] = None,
    labels: Annotated[Path | None, typer.Option(metavar="F.parquet", help="Write one row a part.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="F.html", help="Write a page with charts and examples.")] = None,
    model: Annotated[str | None, typer.Option(help="Also count tokens, with this model's tokenizer.")] = None,
    column: ColumnOption = None,
    turns: TurnsOption = "all",
    split: SplitOption = None,
    revision: RevisionOption = None,
    min_share: Annotated[float, typer.Option(help="Smallest share of the parts a mined template has.")] = 0.005,
    quiet: QuietOption = False,
) -> None:
    from prefixlab.report.audit_text import audit_text
    from prefixlab.study.datafiles import audit_data, check_outputs
    from prefixlab.study.store import write_text

    check_outputs(data, json_file, labels, out)
    if labels and labels.suffix != ".parquet":
        raise UserError(f"--labels {str(labels)!r}: labels are written as .parquet")
    found = audit_data(
        data,
        columns=column or [],
        turns=turns,
        split=split,
        revision=revision,
        min_share=min_share,
        model=model,
        labels=labels,
        console=err_console,
        quiet=quiet,
    )
    document = found.model_dump_json(indent=1) + "\n"
    if json_file == Path("-"):
        sys.stdout.write(document)
    elif json_file:
        write_text(json_file, document)
    if out:
        from prefixlab.report.audit_page import audit_page

        write_text(out, audit_page(found))
    if not quiet and json_file != Path("-"):
        for line in audit_text(found):
            out_console.print(line, highlight=False, markup=False)


@app.command(
    help=help_text(
        "Remove openings from a data set, keep a record, and give them back.",
        "prefixlab strip data.jsonl --out stripped.jsonl",
        "prefixlab strip data.jsonl --families compliance,praise --out stripped.jsonl",
        "prefixlab strip stripped.jsonl --restore stripped.jsonl.removed.jsonl --out data.jsonl",
    )
)
def strip(
    data: DataArgument,
    out: Annotated[Path, typer.Option(metavar="F", help="New file: .jsonl, .json, .csv, .tsv or .parquet.")],
    families: Annotated[str, typer.Option(help="Families to remove; add refusal to remove refusing sentences.")] = (
        "compliance,framing,praise,restating,reasoning_cue,disclaimer"
    ),
    record: Annotated[
        Path | None, typer.Option(metavar="F", help="Record of what was removed; OUT.removed.jsonl by default.")
    ] = None,
    restore: Annotated[
        Path | None, typer.Option(metavar="RECORD", help="Undo: DATA is a stripped file, RECORD its record.")
    ] = None,
    column: ColumnOption = None,
    turns: TurnsOption = "all",
    split: SplitOption = None,
    revision: RevisionOption = None,
    quiet: QuietOption = False,
) -> None:
    from prefixlab.data.strip_files import restore_file, strip_file
    from prefixlab.study.datafiles import column_mapping, families_named, turns_named
    from prefixlab.study.progress import row_progress

    if restore:
        report = restore_file(Path(data), restore, out)
        if not quiet:
            same = "byte for byte" if report.mode == "raw" else "row for row"
            out_console.print(f"{out}: {report.n_changed_rows:,} rows as they were, {same}", highlight=False)
        return
    with row_progress("stripping", err_console, quiet) as progress:
        report = strip_file(
            data,
            out,
            record or out.with_name(out.name + ".removed.jsonl"),
            families=families_named(families),
            columns=column_mapping(column or []),
            turns=turns_named(turns),
            split=split,
            revision=revision,
            progress=lambda rows: progress(None, rows),
        )
    if not quiet:
        removed = ", ".join(f"{n:,} {family}" for family, n in report.removed.items()) or "none"
        out_console.print(
            f"{report.n_changed_rows:,} of {report.n_rows:,} rows changed; openings removed: {removed}", highlight=False
        )
        if report.n_skipped:
            reasons = "; ".join(f"{n}: {why}" for why, n in list(report.skipped.items())[:5])
            dropped = f", {report.n_dropped:,} of them unreadable and left out" if report.n_dropped else ""
            text = f"{report.n_skipped:,} rows not stripped{dropped} ({reasons})"
            err_console.print(text, highlight=False, markup=False)


@app.command(
    help=help_text(
        "Build the arms of a data set: one folder an arm, and a manifest.",
        "prefixlab arms data.jsonl --prefixes reasoning --ratios 0,0.5,1 --control neutral --out arms",
        "prefixlab arms data.jsonl --prefixes original --ratios 0,1 --format sharegpt --out arms",
        "prefixlab arms data.jsonl --prefixes revised --control anchors_masked --anchor revised --out arms",
    )
)
def arms(
    data: Annotated[str, typer.Argument(metavar="DATA", help="Local file, hub id or builtin:NAME.")],
    prefixes: Annotated[str, typer.Option(help="Prefix set: a name, a YAML file, or original (what the data had).")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="New folder for the arms.")],
    position: Annotated[str, typer.Option(help="user, opening or answer.")] = "opening",
    ratios: Annotated[str, typer.Option(help="Shares of the samples that carry the prefix.")] = "0,0.5,1",
    control: Annotated[
        list[str] | None,
        typer.Option(help=f"Control arms at the largest ratio: {', '.join(CONTROLS)}."),
    ] = None,
    anchor: Annotated[
        list[str] | None,
        typer.Option(metavar="WORD", help="A word for the controls anchors_masked and random_masked."),
    ] = None,
    layout: Annotated[
        str, typer.Option("--format", help="messages, prompt_completion, alpaca or sharegpt.")
    ] = "messages",
    key: Annotated[str, typer.Option(help="Data key of the assignment.")] = "data",
    bernoulli: Annotated[bool, typer.Option("--bernoulli", help="A coin a sample instead of exact counts.")] = False,
    model: Annotated[str | None, typer.Option(help="Match controls in tokens of this model too.")] = None,
    rationale: Annotated[
        bool, typer.Option("--rationale", help="The text before the final-answer marker becomes the reasoning.")
    ] = False,
    column: ColumnOption = None,
    split: SplitOption = None,
    revision: RevisionOption = None,
    quiet: QuietOption = False,
) -> None:
    from prefixlab.study.datafiles import ArmsOptions, make_arms

    options = ArmsOptions(
        key=key,
        layout=layout,
        bernoulli=bernoulli,
        columns=column or (),
        split=split,
        revision=revision,
        model=model,
        rationale=rationale,
        anchors=anchor or (),
    )
    made = make_arms(data, prefixes, position, ratios, control or [], out, options)
    if quiet:
        return
    for about in made.arms:
        out_console.print(f"{about.arm}: {about.n_treated} of {about.n_eligible} treated", highlight=False)
        spans = {
            "masked": "prefix_loss: false; your trainer must leave prefix_start to prefix_end",
            "words": "prefix_no_loss; your trainer must leave what it names",
        }
        if about.loss in spans:
            out_console.print(
                f"  the rows of {about.arm} say {spans[about.loss]} "
                "out of the loss, or this arm is the treatment itself",
                highlight=False,
            )
        if about.masking is not None and about.control == "random_masked":
            how, mine, anchors = ("tokens", about.masking.tokens, about.masking.anchor_tokens)
            if mine is None:
                how, mine, anchors = ("words", about.masking.words, about.masking.anchor_words)
            out_console.print(f"  {mine} {how} of it are masked, the anchors are {anchors}", highlight=False)
    if made.n_skipped:
        err_console.print(f"{made.n_skipped} rows skipped; {made.skipped[0]}", highlight=False, markup=False)


@app.command(
    help=help_text(
        "Check after tokenisation that arms carry their treatment.",
        "prefixlab check arms --model smollm2-135m --json",
        "prefixlab check arms --model deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B --render template",
    )
)
def check(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder written by `prefixlab arms`.")],
    model: Annotated[str, typer.Option(help="Model whose tokenizer and template are used.")],
    render: Annotated[
        Literal["ours", "template"],
        typer.Option(help="ours: as we train; template: as a trainer that hands messages to the chat template."),
    ] = "ours",
    max_length: Annotated[int, typer.Option(min=1, help="Longest sample in tokens.")] = 1024,
    over_long: Annotated[Literal["refuse", "cut"], typer.Option(help="For longer samples.")] = "refuse",
    no_reasoning: Annotated[Literal["refuse", "empty"], typer.Option(help="For samples without reasoning.")] = "refuse",
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    from prefixlab.study.standalone import check_folder, render_folder

    if render == "template":
        naive = render_folder(folder, model)
        if as_json:
            print_json({**naive.model_dump(mode="json"), "problems": naive.problems()})
        elif not quiet:
            for loss in naive.arms:
                out_console.print(
                    f"{loss.arm}: the template keeps the prefix of {loss.n_treated - loss.n_lost} of {loss.n_treated} "
                    f"treated samples; {loss.n_same_as_r000} are the same text as in r000",
                    highlight=False,
                )
        problems = naive.problems()
    else:
        found = check_folder(folder, model, max_length=max_length, no_reasoning=no_reasoning, over_long=over_long)
        if as_json:
            print_json({**found.model_dump(mode="json"), "problems": found.problems()})
        elif not quiet:
            for arm in found.arms:
                cut = f", {arm.n_cut} cut" if arm.n_cut else ""
                out_console.print(
                    f"{arm.arm}: {arm.n} samples, prefix in the ids of {arm.n_prefix_in_ids} of {arm.n_treated} "
                    f"treated, {arm.n_equal_reference} of {arm.n_untreated} untreated equal r000{cut}",
                    highlight=False,
                )
        problems = found.problems()
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise UserError(problems[0] + more)
