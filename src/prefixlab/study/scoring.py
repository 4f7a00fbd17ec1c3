"""`prefixlab score`: logs into numbers, without a study. Nothing is sampled again."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from inspect_ai.log import read_eval_log
from rich.console import Console

from prefixlab.analysis.results import results
from prefixlab.analysis.rows import ArmInfo, CellScores, ResultRow
from prefixlab.config import HardwareConfig, JudgeConfig, SuiteConfig
from prefixlab.errors import UserError
from prefixlab.evals.aggregate import metrics_of
from prefixlab.evals.conditions import Prompting
from prefixlab.evals.diagnostics import NAMES, Reading
from prefixlab.evals.foreign import foreign_rows
from prefixlab.evals.harness import Scoring, score_log
from prefixlab.evals.judges import judges_of, make_judge, proxies
from prefixlab.evals.judging import Judge
from prefixlab.evals.protocols import PRESETS
from prefixlab.evals.safety import REFUSALS, SECONDARY, Judging
from prefixlab.evals.scores import MEASURES, write_scores
from prefixlab.evals.suites import find_suite
from prefixlab.model.machine import resolve
from prefixlab.report.tables import write_table
from prefixlab.study.progress import row_progress

ALPHA = 0.05
ALONE = ArmInfo(arm="alone", ratio=None, position=None, prefix_set=None, control=None, loss_scope=None)
"""Of logs that no study made."""


def _metadata(path: Path) -> tuple[str, dict[str, Any]]:
    """Id of an evaluation and what its log says about itself.

    Raises:
        UserError: No log, or none of ours.
    """
    try:
        log = read_eval_log(str(path), header_only=True)
    except Exception as error:  # zip and JSON errors of many kinds
        raise UserError(f"{str(path)!r} is no Inspect log that can be read ({error})") from error
    about = {"model": log.eval.model, **(log.eval.metadata or {})}
    if "suite" not in about or "condition" not in about:
        raise UserError(f"{str(path)!r} was not written by prefixlab; score it with inspect score")
    return log.eval.eval_id, about


def find_logs(logs: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Every evaluation below a folder once: of one that was scored before, the scored copies, which know their arm.

    Raises:
        UserError: There are none.
    """
    paths = [logs] if logs.is_file() else sorted(logs.rglob("*.eval"))
    if not paths:
        raise UserError(f"{str(logs)!r} holds no .eval log; make one with prefixlab generate")
    known = [(path, *_metadata(path)) for path in paths]
    scored = {ident for _, ident, about in known if "reading" in about}
    yield from ((path, about) for path, ident, about in known if "reading" in about or ident not in scored)


def _reading(about: dict[str, Any]) -> Reading:
    if "reading" in about:
        return Reading.model_validate(about["reading"])
    known = Prompting.model_validate(about["prompting"]) if about.get("prompting") else None
    return Reading(
        preopened=bool(about["preopened"]),
        template_opens=bool(about.get("template_opens")),
        position=known.position if known else None,
        templates=known.treatment.templates if known else (),
    )


def _cell(path: Path, about: dict[str, Any], judge: Judge | None, asked: JudgeConfig, folder: Path) -> CellScores:
    """Score one log into a folder."""
    config = SuiteConfig.model_validate(about["suite"])
    suite, epochs = find_suite(config.suite), about["decoding"]["epochs"]
    if suite.foreign:
        main, more, metrics = foreign_rows(path, config.suite, folder)
        named = metrics_of(suite, 1)
    else:
        reading = _reading(about)
        judging = Judging(judge, PRESETS[config.protocol].judged, reading) if judge is not None else None
        main, more = score_log(path, Scoring(suite, reading, judging), folder)
        named = metrics_of(suite, epochs)
        metrics = {m.name: m.higher_is_better for m in named}
    write_scores(folder / "scores.jsonl", main)
    write_scores(folder / MEASURES, more)
    return CellScores(
        model=about["model"],
        capability=about.get("capability") or "none",
        info=ArmInfo.model_validate(about["arm"]) if about.get("arm") else ALONE,
        seed=None,
        suite=config.suite,
        protocol=about["protocol"],
        condition=about["condition"],
        metrics=metrics,
        k=epochs,
        rows=[*main, *more],
        judges=judges_of(suite, asked.name, named),
        diagnostics=[*NAMES, *((*SECONDARY, *REFUSALS.values()) if suite.judged else ())],
        proxies=proxies(suite, asked, named),
    )


def score_logs(logs: Path, judge: JudgeConfig, out: Path, *, console: Console, quiet: bool) -> list[ResultRow]:
    """Score every log of a folder, or one file; writes scored logs, scores and a table of results.

    Args:
        logs: An .eval log, or a folder with some.
        judge: Who decides, for judged suites.
        out: Gets a folder a log, results.parquet and results.csv.
        console: For the progress bar.
        quiet: No progress bar.

    Raises:
        UserError: No logs there, a log that is not ours, or a judge that cannot be had.
        StepError: A log is not whole, or the judge is down.
    """
    found = list(find_logs(logs))
    judged = any(find_suite(about["suite"]["suite"]).judged for _, about in found)
    out.mkdir(parents=True, exist_ok=True)
    chosen = make_judge(judge, resolve(HardwareConfig()), out / "verdicts.sqlite") if judged else None
    rows: list[ResultRow] = []
    with row_progress("scoring", console, quiet, unit="logs") as progress:
        for n, (path, about) in enumerate(found, 1):
            folder = out / f"{n:03d}-{path.stem}"
            folder.mkdir(exist_ok=True)
            cell = _cell(path, about, chosen if find_suite(about["suite"]["suite"]).judged else None, judge, folder)
            seed = about.get("seed")
            rows += [r.model_copy(update={"seed": seed}) for r in results([cell], [], ALPHA)]
            progress(n / len(found), n)
    write_table(out / "results", rows, ResultRow)
    return rows
