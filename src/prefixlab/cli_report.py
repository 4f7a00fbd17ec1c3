"""Commands on the report: report, view."""

import os
import subprocess
import sys
import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from prefixlab.cli_shared import help_text, out_console
from prefixlab.errors import UserError

app = typer.Typer()


@app.command(
    help=help_text(
        "Write RUN/report/index.html again; with a second run, a page that compares the two.",
        "prefixlab report runs/quickstart",
        "prefixlab report runs/before runs/after --out comparison",
    )
)
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder; A where two are compared.")],
    other: Annotated[Path | None, typer.Argument(metavar="B", help="Run folder to compare it with.")] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="For a comparison; RUN/report/compare-<name of B> by default.")
    ] = None,
) -> None:
    from prefixlab.study.run import open_run, write_report

    if other is None:
        if out is not None:
            raise UserError("--out is for a comparison of two runs; the report of one run is written into RUN/report")
        write_report(open_run(run))
        page = run / "report" / "index.html"
    else:
        from prefixlab.report.compare_page import build_comparison

        if run.resolve() == other.resolve():
            raise UserError(f"{str(run)!r} and {str(other)!r} are the same run folder; name two different ones")
        folder = out or run / "report" / f"compare-{other.resolve().name}"
        found = build_comparison(open_run(run), open_run(other), folder)
        out_console.print(found.sentence, highlight=False, markup=False)
        page = folder / "index.html"
    out_console.print(str(page), highlight=False, markup=False)


def _has_screen() -> bool:
    """Whether a browser would get a window: without one, the system's browser may be a text one in this terminal."""
    return sys.platform != "linux" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def _build_apart(run: Path) -> None:
    """Write the report in a process of its own: building it would keep the server from answering.

    Raises:
        UserError: It failed; says why in one line.
    """
    command = [sys.executable, "-m", "prefixlab", "report", str(run.resolve())]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise UserError(last.removeprefix("prefixlab: "))


@app.command(
    help=help_text(
        "Show the report in a browser and keep it up to date while a study runs. Served to this machine only.",
        "prefixlab view runs/quickstart",
        "prefixlab view runs/quickstart --port 9000 --no-browser",
    )
)
def view(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")],
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port; the first free one from 8765 on by default.")
    ] = None,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Whether to open the browser.")] = True,
) -> None:
    from prefixlab.report.live import Source, listen
    from prefixlab.study.progress_file import StatusReader
    from prefixlab.study.run import load_plan, no_run

    if not (run / "study.yaml").is_file():  # the plan may still be in the making
        raise no_run(run)
    reader = StatusReader(run, load_plan)
    source = Source(reader.status, reader.finished, lambda: _build_apart(run))
    server = listen(run / "report", source, port)
    try:
        out_console.print(f"{server.url} shows {run}; Ctrl-C ends it", highlight=False, markup=False)
        if browser and _has_screen():
            webbrowser.open(server.url)
        server.serve_forever(poll_interval=0.2)
    except KeyboardInterrupt:
        out_console.print("ended", highlight=False, markup=False)
    finally:
        server.close()
