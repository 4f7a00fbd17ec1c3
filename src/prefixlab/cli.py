"""The command line. A user's mistake ends with one line on standard error and exit code 2, without a traceback."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from prefixlab import __version__, cli_analysis, cli_data, cli_eval, cli_hub, cli_plan, cli_report, cli_rewrite
from prefixlab.cli_shared import JsonOption, QuietOption, err_console, help_text, out_console, print_json
from prefixlab.errors import Stopped, UserError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Do the opening sentences of SFT responses help or hurt? Build arms, train, evaluate, decide.\n\n"
    "Example: prefixlab run studies/quickstart.yaml --out runs/quickstart",
)
StudyFile = Annotated[Path, typer.Argument(metavar="STUDY", help="Study file (YAML).")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the study, e.g. training.epochs=3."),
]
OutOption = Annotated[
    Path | None, typer.Option("--out", metavar="DIR", help="Run folder; runs/<name of the study> by default.")
]


def _result_table(data: Any) -> Table:
    from prefixlab.report.tables import HEADER, main_rows, same_source, text_rows

    table = Table(box=None, pad_edge=False)
    for i, name in enumerate(HEADER):
        table.add_column(name, justify="left" if i < 4 else "right", no_wrap=True)
    last = ""
    for line in text_rows(main_rows(data.cells, data.results), same_source(data.plan)):
        if line[0] != last and last:
            table.add_section()
        last = line[0]
        table.add_row(*line)
    return table


def _print_answer(data: Any) -> None:
    """Verdicts and advice, a paragraph each."""
    said = [(v.model, v.sentence) for v in data.verdicts] + [(a.model, " ".join(a.sentences)) for a in data.advice]
    for model, text in said:
        name = f"{model}, " if len(data.study.models) > 1 else ""
        out_console.print(f"{name}{text}", highlight=False, markup=False)


@app.command(
    help=help_text(
        "Run a study, or what is missing of it.",
        "prefixlab run studies/quickstart.yaml --out runs/quickstart --set seeds=[0,1]",
        "prefixlab run studies/quickstart.yaml --out /shared/quickstart --executor ray --address head:6379",
    )
)
def run(
    study_file: StudyFile,
    out: OutOption = None,
    overrides: SetOption = None,
    executor: Annotated[
        Literal["local", "ray"], typer.Option(help="Steps in this process, or on a Ray cluster (docs/cluster.md).")
    ] = "local",
    address: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Head of the Ray cluster; $RAY_ADDRESS or this machine's by default."),
    ] = None,
    quiet: QuietOption = False,
) -> None:
    from prefixlab.study.execute import in_this_process
    from prefixlab.study.run import run_study
    from prefixlab.study_file import load_study

    study = load_study(study_file, overrides or [])
    folder = out or Path("runs") / study.name
    if address is not None and executor != "ray":
        raise UserError(f"--address {address!r} is for --executor ray; add that or leave it out")
    if executor == "ray":
        from prefixlab.study.cluster import joined
        from prefixlab.study.ray_executor import RayExecutor

        with joined(address):
            data, outcome = run_study(study, folder, console=err_console, quiet=quiet, executor=RayExecutor())
    else:
        data, outcome = run_study(study, folder, console=err_console, quiet=quiet, executor=in_this_process)
    if not quiet:
        wide = Console(width=max(out_console.width, 170), soft_wrap=True)
        wide.print(_result_table(data))
        _print_answer(data)
        done = f"{len(outcome.ran)} steps done now, {outcome.reused} before; {outcome.seconds:.0f} s"
        out_console.print(f"{done}\nreport: {folder / 'report' / 'index.html'}", highlight=False, markup=False)
    if outcome.failed:
        first = next(iter(outcome.failed.items()))
        raise UserError(
            f"{len(outcome.failed)} steps failed, first {first[0]}: {first[1]}; the others are finished and kept"
        )


@app.command(
    help=help_text(
        "Train one adapter on one arm of a folder made by arms. Started again, it goes on from its last checkpoint.",
        "prefixlab train arms --arm reasoning-opening-r050 --model smollm2-135m --out adapter",
        "prefixlab train arms --arm r000 --model org/name --out a --set training.lora.r=8 --processes 2",
    )
)
def train(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder written by prefixlab arms.")],
    arm: Annotated[str, typer.Option(help="Name of the arm.")],
    model: Annotated[str, typer.Option(help="Built-in name, local folder or hub id (org/name@revision).")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Gets adapter/, metrics.jsonl, train.json.")],
    preset: Annotated[Literal["paper", "modern"], typer.Option(help="Recipe to start from.")] = "modern",
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A key below training or hardware, as in a study file."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Adapter initialisation, dropout and order.")] = 0,
    processes: Annotated[int, typer.Option(min=1, help="Training processes, launched by torchrun.")] = 1,
    no_reasoning: Annotated[
        Literal["refuse", "empty", "rationale"],
        typer.Option(help="For samples without reasoning under a template that opens it."),
    ] = "refuse",
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    from prefixlab.study.single import train_folder

    adapter = train_folder(
        folder,
        arm,
        model,
        out,
        preset=preset,
        overrides=overrides or [],
        seed=seed,
        processes=processes,
        no_reasoning=no_reasoning,
        console=err_console,
        quiet=quiet or as_json,
    )
    totals = json.loads((out / "train.json").read_text(encoding="utf-8"))
    if as_json:
        print_json({"adapter": str(adapter), **totals})
    elif not quiet:
        out_console.print(
            f"{adapter}: {totals['steps']:.0f} steps, {totals['tokens']:,.0f} tokens in {totals['seconds']:.0f} s, "
            f"loss {totals['first_loss']:.3f} to {totals['last_loss']:.3f}",
            highlight=False,
            markup=False,
        )


@app.command(help=help_text("Print the results of a run.", "prefixlab results runs/quickstart --json"))
def results(
    run_folder: RunFolder,
    as_json: JsonOption = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="As a Markdown table.")] = False,
) -> None:
    from prefixlab.report.tables import main_rows, same_source
    from prefixlab.report.tables import markdown as to_markdown
    from prefixlab.study.run import open_run

    data = open_run(run_folder)
    if as_json:
        print_json(
            {
                "results": [r.model_dump() for r in data.results],
                "contrasts": [c.model_dump() for c in data.contrasts],
                "verdicts": [v.model_dump() for v in data.verdicts],
                "advice": [a.model_dump() for a in data.advice],
            }
        )
    elif markdown:
        sys.stdout.write(to_markdown(main_rows(data.cells, data.results), same_source(data.plan)))
    else:
        Console(width=170, soft_wrap=True).print(_result_table(data))
        _print_answer(data)


app.add_typer(cli_plan.app)
app.add_typer(cli_report.app)
app.add_typer(cli_eval.app)
app.add_typer(cli_data.app)
app.add_typer(cli_rewrite.app)
app.add_typer(cli_analysis.app)
app.add_typer(cli_hub.app)


@app.command(
    help=help_text("Versions, CPU features, choices and caches, and what is missing.", "prefixlab doctor --json")
)
def doctor(as_json: JsonOption = False) -> None:
    from prefixlab.study.standalone import diagnose

    found = diagnose()
    if as_json:
        print_json(found)
        return
    for section, entries in found.items():
        out_console.print(section, style="bold")
        for name, value in entries.items():
            out_console.print(f"  {name}: {value}", highlight=False, markup=False)


@app.command(help="Print the version.")
def version() -> None:
    sys.stdout.write(f"prefixlab {__version__}\n")


_UsageError: type[Any] = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")
"""What typer raises for bad options; the class has no public name."""


def main() -> None:
    """Entry point: a user's mistake becomes one line and exit code 2."""
    try:
        code = app(standalone_mode=False)
    except UserError as error:
        _fail(str(error))
    except Stopped as stop:
        _fail(f"{stop}; run the same command again to go on", 128 + stop.signal)
    except KeyboardInterrupt:
        _fail("interrupted; what is finished is kept: run the same command again to go on", 130)
    except OSError as error:
        if error.filename is None or error.strerror is None:
            raise
        _fail(f"{str(error.filename)!r} cannot be read or written: {error.strerror}")
    except Exception as error:
        if not isinstance(error, _UsageError):
            raise
        if type(error).__name__ == "NoArgsIsHelpError":
            error.show()
            raise SystemExit(2) from None
        message = str(error.format_message()).replace("Value error, ", "")
        _fail(f"{message} See prefixlab --help.")
    raise SystemExit(code)


def _fail(message: str, code: int = 2) -> NoReturn:
    sys.stderr.write(f"prefixlab: {' '.join(message.split())}\n")
    raise SystemExit(code) from None
