"""Run a study: plan it, do what is missing, then write results, contrasts and the report.

A rerun of a finished study imports neither torch nor transformers.
"""

import fcntl
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from prefixlab.analysis.advice import advise, pareto
from prefixlab.analysis.contrasts import contrasts
from prefixlab.analysis.results import results
from prefixlab.analysis.rows import BASE, ArmInfo, CellScores, ContrastRow, ResultRow, Rules
from prefixlab.analysis.verdicts import verdicts
from prefixlab.config import Study
from prefixlab.errors import UserError
from prefixlab.evals.protocols import label
from prefixlab.evals.scores import MEASURES, read_measures, read_scores
from prefixlab.records import Measure, Record
from prefixlab.report.page import build_report
from prefixlab.report.tables import RunData, write_table
from prefixlab.study.execute import Executor, Journal, Outcome, Work, in_this_process
from prefixlab.study.findings import FILES, find, write_findings
from prefixlab.study.steps import Plan, signature
from prefixlab.study.store import Store, disk_may_be_full, write_text
from prefixlab.study_file import parse_study

MADE_FROM = "outputs.json"
OUTPUTS = (
    "results.parquet",
    "results.csv",
    "contrasts.parquet",
    "contrasts.csv",
    "verdicts.json",
    "advice.json",
    *(f"{name}{suffix}" for name in FILES for suffix in (".parquet", ".csv")),
    "report/index.html",
)


class Outputs(Record):
    """What results and report were made from; they are made again when it changes."""

    signature: str
    steps: dict[str, str]
    """Slug -> id of the finished steps."""


def load_plan(store: Store) -> Plan | None:
    """The stored plan; None if there is none or it was written by other code and cannot be read."""
    try:
        return Plan.model_validate_json((store.root / "plan.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def current_plan(study: Study, store: Store, say: Callable[[str], None]) -> Plan:
    """The stored plan where study, inputs and code are unchanged, else a new one (not yet stored)."""
    stored = load_plan(store)
    if stored is not None and stored.signature == signature(study):
        return stored
    from prefixlab.study.plan import make_plan  # noqa: PLC0415  (torch; not needed to reuse a plan)

    return make_plan(study, stored, say)


def run_study(
    study: Study, out: Path, *, console: Console, quiet: bool = False, executor: Executor = in_this_process
) -> tuple[RunData, Outcome]:
    """Do everything of a study that is not done yet.

    Args:
        study: Validated study.
        out: Run folder; made if missing, resumed if it holds this study.
        console: For messages and progress.
        quiet: No messages and no progress bar.
        executor: What does the steps.

    Raises:
        UserError: A mistake in study, data, folder or machine; finished steps are kept.
    """
    started, outcome, store = time.perf_counter(), Outcome(), Store(out)

    def say(text: str) -> None:
        if not quiet:
            console.print(text, highlight=False, markup=False)

    with disk_may_be_full(out), store.locked():
        changed = store.adopt(study)
        if changed:
            say(f"the study changed since its last run ({', '.join(changed)}); steps that still hold are reused")
        store.sweep()
        stored = load_plan(store)
        plan = current_plan(study, store, say)
        if changed:
            store.keep(study)
        if stored is None or plan.signature != stored.signature:
            write_text(out / "plan.json", plan.model_dump_json(indent=1) + "\n")
        store.sweep_checkpoints({s.slug for s in plan.steps})
        pending = []
        for step in plan.steps:
            state = store.state(step.slug)
            if state == "done":
                outcome.reused += 1
                continue
            if state == "broken":
                say(f"step {step.slug} is half-written or damaged; doing it again")
            pending.append(step)
        if pending:
            say(f"{len(pending)} of {len(plan.steps)} steps to do, {outcome.reused} done already")
            work = Work(study, plan, tuple(pending), store)
            executor(work, Journal(out, work.pending, outcome, console, quiet))
        data = _finish(study, plan, store, outcome)
    outcome.seconds = time.perf_counter() - started
    return data, outcome


def rules_of(study: Study) -> Rules:
    """Declared main comparison of each capability, level and margins."""
    declared = {n: c.primary for n, c in study.capabilities.items()}
    return Rules(
        primary={
            n: (p.suite, label(study.capabilities[n].primary_suite()), p.metric, p.condition)
            for n, p in declared.items()
        },
        alpha=study.analysis.alpha,
        margin=study.analysis.margin,
        margins={n: p.margin for n, p in declared.items() if p.margin is not None},
    )


def cell_scores(study: Study, plan: Plan, store: Store) -> list[CellScores]:
    """Scores of every planned evaluation; unfinished ones, and those that do not apply, have no rows and say so."""
    steps = [s for s in plan.steps if s.kind == "eval"]
    told = {s.slug: _metrics_told(store.folder(s.slug)) for s in steps}
    known = {_task(s.config): told[s.slug] for s in steps if told[s.slug]}
    primaries = {(p.suite, p.condition): {p.metric: True} for p in (c.primary for c in study.capabilities.values())}
    cells = []
    for step in steps:
        folder, config = store.folder(step.slug), step.config
        done = store.marker(step.slug) is not None
        rows = [*read_scores(folder / "scores.jsonl"), *read_measures(folder / MEASURES)] if done else None
        # What an Inspect task measures is known once one arm has run; until then, that it was declared.
        declared = primaries.get((config["suite"]["suite"], config["condition"]), {})
        metrics = told[step.slug] or config["metrics"] or known.get(_task(config)) or declared
        if metrics:
            cells.append(_cell(config, metrics, rows, "measured" if done else "missing"))
    cells += [_cell(c, c["metrics"], None, c["status"], c["why"]) for c in plan.absent]
    return cells


def _task(config: dict[str, Any]) -> tuple[str, str]:
    return config["suite"]["suite"], config["protocol"]


def _metrics_told(folder: Path) -> dict[str, bool]:
    """What an Inspect task has said it measures; empty for our suites, and before it has run."""
    file = folder / "metrics.json"
    told: dict[str, bool] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return told


def _cell(
    config: dict[str, Any], metrics: dict[str, bool], rows: list[Measure] | None, status: str, why: str = ""
) -> CellScores:
    return CellScores(
        model=config["model"]["name"],
        capability=config["capability"],
        info=ArmInfo.model_validate(config["arm"]),
        seed=None if config["arm"]["arm"] == BASE else config["seed"],
        suite=config["suite"]["suite"],
        protocol=config["protocol"],
        condition=config["condition"],
        metrics=metrics,
        judges=config["judges"],
        k=config["k"],
        rows=rows,
        status=status,
        why=why,
        diagnostics=config["diagnostics"],
        proxies=config["proxies"],
    )


def gather(study: Study, plan: Plan, store: Store) -> RunData:
    """Results, contrasts, verdicts and advice of what is finished, with what the report needs beside them."""
    cells, rules = cell_scores(study, plan, store), rules_of(study)
    declared = contrasts(cells, rules)
    rows = results(cells, declared, rules.alpha)
    found = verdicts(rows, declared, rules)
    return RunData(
        root=store.root,
        study=study,
        plan=plan.model_dump(mode="json"),
        cells=cells,
        results=rows,
        contrasts=declared,
        verdicts=found,
        advice=advise(found, pareto(cells, rows, rules)),
        folders={s.slug: store.folder(s.slug) for s in plan.steps if store.marker(s.slug) is not None},
        seconds={s.slug: m.seconds for s in plan.steps if (m := store.marker(s.slug)) is not None},
    )


def _finish(study: Study, plan: Plan, store: Store, outcome: Outcome) -> RunData:
    """Write tables and report unless they stand already for exactly these steps."""
    data = gather(study, plan, store)
    if are_current(plan, data):
        return data
    write_table(store.root / "results", data.results, ResultRow)
    write_table(store.root / "contrasts", data.contrasts, ContrastRow)
    write_text(store.root / "verdicts.json", _json([v.model_dump() for v in data.verdicts]))
    write_text(store.root / "advice.json", _json([a.model_dump() for a in data.advice]))
    write_report(data)
    write_text(store.root / MADE_FROM, _made_from(plan, data))
    return data


def are_current(plan: Plan, data: RunData) -> bool:
    """Whether tables and report were made from exactly these steps."""
    marker = data.root / MADE_FROM
    stands = marker.exists() and marker.read_text() == _made_from(plan, data)
    return stands and all((data.root / o).exists() for o in OUTPUTS)


def _made_from(plan: Plan, data: RunData) -> str:
    steps = {s.slug: s.id for s in plan.steps if s.slug in data.folders}
    return Outputs(signature=plan.signature, steps=steps).model_dump_json()


def write_report(data: RunData) -> None:
    """Write the tables of the token-level analysis, then the report; waits while another process does."""
    folder = data.root / "report"
    folder.mkdir(exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        write_findings(find(data.plan, data.folders, data.cells, data.study.analysis.alpha), data.root)
        build_report(data, folder)


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def no_run(root: Path) -> UserError:
    """The error for a folder that is no run folder."""
    return UserError(
        f"{str(root)!r} is no run folder (study.yaml or plan.json is missing); make one with prefixlab run"
    )


def read_study(root: Path) -> tuple[Study, Plan]:
    """Study and plan of a run folder.

    Raises:
        UserError: There is no run there.
    """
    plan, study_file = load_plan(Store(root)), root / "study.yaml"
    if plan is None or not study_file.exists():
        raise no_run(root)
    try:
        tree = yaml.safe_load(study_file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{study_file} is damaged; the prefixlab run command that made it writes it again") from error
    return parse_study(tree, str(study_file)), plan


def open_run(root: Path) -> RunData:
    """Read a run folder without running anything.

    Raises:
        UserError: There is no run there.
    """
    study, plan = read_study(root)
    return gather(study, plan, Store(root))
