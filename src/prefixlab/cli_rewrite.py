"""The command rewrite: targets written anew by a stronger model."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from prefixlab.cli_data import ColumnOption, RevisionOption, SplitOption
from prefixlab.cli_shared import JsonOption, QuietOption, checked, err_console, help_text, out_console, print_json
from prefixlab.errors import StepError, UserError

if TYPE_CHECKING:
    from prefixlab.study.rewrite_job import RewriteJob, RewriteReport

app = typer.Typer()
BUDGET_REACHED = 3
"""Exit code of a run that the budget stopped: nothing is wrong, and a larger budget goes on."""
EXAMPLES = 3


@app.command(
    help=help_text(
        "Have a stronger model write a data set's responses anew: one form, no opening sentences, the same final "
        "answers. What it wrote is checked, asked for again with the reason, and listed if no reply can be used. "
        "Every reply is kept as it comes: the same command goes on where it was stopped, and pays for nothing twice. "
        "Exit code 3: the budget is reached.",
        "prefixlab rewrite data.jsonl --teacher openai/gpt-4.1 --out new.jsonl --price-in 2 --price-out 8 --dry-run",
        "prefixlab rewrite gsm8k.jsonl --teacher openai-api/vllm/NAME --form think --out new.jsonl",
        "prefixlab rewrite data.jsonl --mode correct --judge llama-guard --judge-model org/guard --teacher openai/NAME "
        "--out safe.jsonl",
        "prefixlab rewrite runs/r1/steps --mode correct --teacher anthropic/NAME --out safe.jsonl",
    )
)
def rewrite(
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            help="Local file, folder saved by datasets, hub id or builtin:NAME; with --mode correct also a folder with "
            "scores.jsonl (a run, or the output of score).",
        ),
    ],
    teacher: Annotated[str, typer.Option(metavar="PROVIDER/MODEL", help="As Inspect names it.")],
    out: Annotated[
        Path,
        typer.Option(
            metavar="F",
            help="New file: .jsonl, .json, .csv, .tsv or .parquet. F.answers.jsonl and F.record.jsonl stand beside it.",
        ),
    ],
    mode: Annotated[
        Literal["rewrite", "correct"],
        typer.Option(help="correct: responses that a judge calls unsafe get a safe one, checked by the same judge."),
    ] = "rewrite",
    form: Annotated[
        Literal["row", "think", "plain"],
        typer.Option(help="Reasoning in <think>: where the row has some, everywhere, or nowhere."),
    ] = "row",
    instructions: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Text with {prompt}, {response} and {form}, instead of ours.")
    ] = None,
    attempts: Annotated[int, typer.Option(min=1, help="Replies to ask for, at most, for one response.")] = 3,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy.")] = 0.0,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest reply.")] = 4096,
    budget: Annotated[
        float | None,
        typer.Option(
            help="US dollars, over all runs on the same output; never passed. A judge on a server is paid beside it."
        ),
    ] = None,
    price_in: Annotated[float | None, typer.Option(min=0, help="US dollars per million tokens read.")] = None,
    price_out: Annotated[float | None, typer.Option(min=0, help="US dollars per million tokens written.")] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests at once.")] = 8,
    retries: Annotated[int, typer.Option(min=0, help="Further tries of a request without a reply.")] = 5,
    timeout: Annotated[int, typer.Option(min=1, help="Seconds for one request.")] = 120,
    limit: Annotated[int | None, typer.Option(min=1, help="Responses to use, chosen by a hash.")] = None,
    judge: Annotated[
        Literal["rules", "llama-guard", "rubric"] | None,
        typer.Option(
            help="Of --mode correct: who decides what is safe. For rules only a refusal is; the default on scored runs."
        ),
    ] = None,
    judge_model: Annotated[str | None, typer.Option(help="Local folder, hub id, or inspect:PROVIDER/NAME.")] = None,
    column: ColumnOption = None,
    split: SplitOption = None,
    revision: RevisionOption = None,
    config: Annotated[str | None, typer.Option(help="Part of a hub data set that has several, e.g. main.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what it will take, with examples; ask nothing.")
    ] = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    from prefixlab.config import JudgeConfig
    from prefixlab.data.rewrite import load_instructions
    from prefixlab.study.datafiles import check_outputs, column_mapping
    from prefixlab.study.rewrite_job import RewriteJob
    from prefixlab.study.rewrite_launch import rewrite as do

    check_outputs(data, out)
    if mode == "rewrite" and (judge or judge_model):
        raise UserError("--judge and --judge-model are for --mode correct; rewritten responses are not judged")
    if mode == "correct" and judge is None:
        _needs_no_judge(data)
    job = checked(
        RewriteJob,
        source=data,
        out=out,
        teacher=teacher,
        instructions=load_instructions(instructions, mode),
        mode=mode,
        form=form,
        columns=column_mapping(column or []),
        split=split,
        revision=revision,
        config=config,
        limit=limit,
        temperature=temperature,
        max_tokens=max_tokens,
        attempts=attempts,
        concurrency=concurrency,
        retries=retries,
        timeout=timeout,
        budget=budget,
        price_in=price_in,
        price_out=price_out,
        judge=checked(JudgeConfig, name=judge or "rules", model=judge_model),
    )
    if dry_run:
        _dry_run(job, as_json)
        return
    report = do(job, err_console, quiet or as_json)
    if as_json:
        print_json(report.model_dump(mode="json"))
    elif not quiet:
        _print_report(report)
    _end(report)


def _dry_run(job: "RewriteJob", as_json: bool) -> None:
    from prefixlab.data.rewrite import fill
    from prefixlab.study.rewriting import check_out, estimate, estimate_text, grouped, read_work

    check_out(job)
    work = read_work(job)
    groups = grouped(job, work.targets)
    found = estimate(job, groups)
    examples = [fill(job.instructions, same[0], job.form) for same in groups[:EXAMPLES]]
    if as_json:
        print_json({"estimate": found.model_dump(), "skipped": len(work.skipped), "examples": examples})
        return
    for n, text in enumerate(examples, 1):
        out_console.print(f"--- example {n}\n{text}\n", highlight=False, markup=False)
    skipped = [f"{len(work.skipped)} rows skipped; row {n + 1}: {why}" for n, why in work.skipped[:1]]
    for line in (*work.notes, *skipped, estimate_text(found, job)):
        out_console.print(line, highlight=False, markup=False)


def _needs_no_judge(data: str) -> None:
    """Refuse data that somebody has to judge first.

    Raises:
        UserError: There are no scores in it.
    """
    from prefixlab.study.rewriting import scored_files

    if not scored_files(data):
        raise UserError(
            "--mode correct needs --judge: llama-guard or rubric (with --judge-model), or rules, for which every "
            "answer that is no refusal is unsafe: only where all prompts are harmful"
        )


def _print_report(report: "RewriteReport") -> None:
    counts = ", ".join(f"{n:,} {state}" for state, n in report.states.items() if n)
    out_console.print(f"{report.n_rows:,} rows: {counts}", highlight=False)
    answers = ", ".join(f"{n:,} {found}" for found, n in report.final_answers.items())
    if answers:
        out_console.print(f"final answers: {answers}", highlight=False)
    for reason, n in list(report.reasons.items())[:5]:
        out_console.print(f"  {n:,}: {reason}", highlight=False, markup=False)
    money = "" if report.cost is None else f", ${report.cost:,.4f}"
    unknown = f"; {report.unknown} requests without a reply may have cost something" if report.unknown else ""
    silent = f" ({report.without_usage} replies did not say what they took)" if report.without_usage else ""
    out_console.print(
        f"{report.replies:,} replies, {report.tokens_in:,} tokens read and {report.tokens_out:,} written{silent}{money}"
        f"{unknown}",
        highlight=False,
    )
    if report.states["rewritten"] and not (report.states["open"] or report.stopped):
        out_console.print(
            f"written: {report.out}; row by row: {report.out}.record.jsonl", highlight=False, markup=False
        )


def _end(report: "RewriteReport") -> None:
    """Exit as the run ended.

    Raises:
        StepError: Some rows have no outcome, or no row has a usable one.
        typer.Exit: The budget is reached.
    """
    again = "what is finished is kept"
    if Path(report.out).exists():
        again += f", and {report.out} is still what an earlier run wrote"
    if report.stopped == "budget":
        err_console.print(
            f"prefixlab: {report.message}; {report.states['open']} of {report.n_rows} rows are left, {again}: "
            "run again with a larger --budget to go on",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
        raise typer.Exit(BUDGET_REACHED)
    if report.stopped:
        raise StepError(
            f"{report.message}; {report.states['open']} of {report.n_rows} rows are left, {again}: run again"
        )
    if report.states["open"]:
        raise StepError(
            f"{report.states['open']} of {report.n_rows} rows have no reply ({report.message}); {again}: run again"
        )
    if not report.states["rewritten"]:
        first = next(iter(report.reasons), "all rows are safe already")
        raise StepError(f"no row of {report.n_rows} could be rewritten ({first}); see {report.out}.record.jsonl")
