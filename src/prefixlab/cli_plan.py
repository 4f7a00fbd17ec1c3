"""`prefixlab plan`: what a study would do and cost, before anything runs, also without its models and data."""

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from prefixlab.cli_shared import JsonOption, help_text, say
from prefixlab.errors import UserError

if TYPE_CHECKING:
    from prefixlab.study.cost_records import CapabilityCost, Forecast, JudgeCost, Memory
    from prefixlab.study.steps import Plan

app = typer.Typer()
WIDEST = 1_000
"""Columns of text; tables take what they need of it."""
LISTED = 100
"""Steps that are shown one by one."""


def _price(text: str) -> tuple[float, float] | None:
    """The two numbers of `--judge-price`.

    Raises:
        UserError: Other than two numbers, or a negative one.
    """
    if not text:
        return None
    try:
        read, written = (float(part) for part in text.split(","))
    except ValueError as error:
        raise UserError(
            f"--judge-price {text!r}: give two numbers with a comma between them, the price of a million tokens "
            "that the judge reads and of a million that it writes, e.g. 2.5,10"
        ) from error
    if not (0 <= read < math.inf and 0 <= written < math.inf):
        raise UserError(f"--judge-price {text!r}: a price is a finite number, 0 or more")
    return read, written


@app.command(
    help=help_text(
        "Show what a study would do and cost: cells, predicted time, memory, disk, judge calls, detectable effects.",
        "prefixlab plan studies/quickstart.yaml --json",
        "prefixlab plan studies/r1_prefix.yaml --device h100",
    )
)
def plan(
    study_file: Annotated[Path, typer.Argument(metavar="STUDY", help="Study file (YAML).")],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Run folder; runs/<name of the study> by default.")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the study, e.g. training.epochs=3."),
    ] = None,
    device: Annotated[
        str, typer.Option(help="h200, h100, a100-80, a100-40, l40s, l4 or rtx4090; this machine where left out.")
    ] = "",
    judge_price: Annotated[
        str, typer.Option(metavar="READ,WRITTEN", help="Price of a million tokens of a judge on a server.")
    ] = "",
    as_json: JsonOption = False,
) -> None:
    from pydantic_core import to_json

    from prefixlab.study.cost_records import Price
    from prefixlab.study.planning import planned
    from prefixlab.study.store import Store
    from prefixlab.study_file import load_study

    study, price = load_study(study_file, overrides or []), _price(judge_price)
    store = Store(out or Path("runs") / study.name)
    made, why, costs = planned(study, store, device, Price(read=price[0], written=price[1]) if price else None)
    states = {s.slug: store.state(s.slug) for s in made.steps} if made else {}
    left = sum(s.predicted_seconds for s in made.steps if states[s.slug] != "done") if made else None
    if as_json:
        document: dict[str, Any] = made.model_dump(mode="json") if made else {"study": study.name, "steps": None}
        for step in document["steps"] or ():
            step["state"] = states[step["slug"]]
        estimated = {"estimated_because": why or None, "costs": costs.model_dump(mode="json")}
        # Not print_json: a large plan has 10^8 bytes, for which the standard library takes half a minute.
        whole = to_json({**document, "predicted_seconds_left": left, **estimated}, indent=1)
        sys.stdout.write(whole.decode() + "\n")
        return
    if made is not None:
        _steps(made, states)
    else:
        say(
            f"an estimate, since {why}\nIt lists no steps: their ids hang on content. Where models and data "
            "are at hand, the same command counts."
        )
    _costs(costs)
    if made is not None and left is not None:
        hardware = made.hardware
        # The seconds of steps order the queue; on a GPU they know neither its rates nor how it decodes.
        minutes = f", about {left / 60:.0f} min" if hardware.device == "cpu" else ""
        say(
            f"{hardware.dtype} on {hardware.device} ({hardware.why}), {hardware.threads} threads; "
            f"{sum(s != 'done' for s in states.values())} of {len(states)} steps to do{minutes}"
        )


def _steps(made: "Plan", states: Mapping[str, str]) -> None:
    """Steps with their state, and what each capability is made of."""
    if len(made.steps) <= LISTED:
        rows = [(s.slug, states[s.slug], f"{s.predicted_seconds:.0f}") for s in made.steps]
        _table(("step", "state", "predicted s"), rows, left=2)
    else:
        found: dict[str, list[float]] = {}
        for step in made.steps:
            found.setdefault(step.kind, []).append(step.predicted_seconds)
        rows = [(kind, str(len(s)), f"{sum(s):,.0f}") for kind, s in found.items()]
        _table(("kind of step", "steps", "predicted s"), rows)
        say(f"more than {LISTED} steps are counted, not listed; --json lists them")
    for name, about in made.summary.items():
        say(
            f"{name}: {about['samples']} samples ({about['removed_as_overlap']} removed as overlap), "
            f"{len(about['arms'])} arms"
        )
        if about["native_is_r000"]:
            say(f"{name}: native equals r000 (no opening was found) and is not trained twice")
        if about["skipped_rows"]:
            say(f"{name}: {about['skipped_rows']} rows skipped; {about['first_skipped'][0]}")
        how = about["training"]
        compiled = "compiled layers" if how["compile"] else "layers not compiled"
        say(
            f"{name}: {how['steps']} optimiser steps of {how['samples_per_step']} samples a cell, "
            f"{100 * how['supervised_share']:.0f}% of the tokens supervised, {compiled}, "
            f"{how['processes']} {'process' if how['processes'] == 1 else 'processes'}"
        )


def _number(value: float | None, unit: float = 1.0, digits: int = 0, end: str = "") -> str:
    return "unknown" if value is None else f"{value / unit:,.{digits}f}{end}"


def _hours(value: float | None) -> str:
    return "unknown" if value is None else f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _memory(found: "Memory") -> str:
    """What training or evaluation needs, and with which setting it fits."""
    if found.asked is None:
        return "unknown"
    said = f"{found.asked / 1e9:.1f} GB"
    if found.asked_fits is None:
        return f"{said}; the device's memory is not known"
    if found.asked_fits:
        return f"{said}, fits"
    if found.setting is None:
        return f"{said}, no setting fits: {_number(found.bytes, 1e9, 1)} GB at least"
    return f"{said}, too much; fits with {found.setting} ({_number(found.bytes, 1e9, 1)} GB)"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> None:
    """A table of texts, the first columns to the left; never cut at the window's edge."""
    table = Table(box=None, pad_edge=False)
    for i, name in enumerate(heads):
        table.add_column(name, justify="left" if i < left else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    Console(width=WIDEST, soft_wrap=True).print(table, highlight=False)


def _paid(judge: "JudgeCost") -> str:
    if not judge.served:
        return "no server is paid"
    return "price unknown: give --judge-price" if judge.price is None else f"price {judge.price:,.2f}"


def _costs(costs: "Forecast") -> None:
    """Hours, memory, disk, judge and effects."""
    _table(
        ("model", "cells", "M tokens trained", "PFLOP", "train h", "evaluate h", "at most", "read h", "disk GB"),
        (
            (
                row.model,
                str(row.cells),
                _number(row.trained_tokens, 1e6, 2),
                _number(row.flops, 1e15, 1),
                _hours(row.train_hours),
                _hours(row.evaluate_hours),
                _hours(row.evaluate_hours_at_most),
                _hours(row.read_hours),
                _number(row.disk, 1e9, 1),
            )
            for row in [*costs.models, *([costs.total] if len(costs.models) > 1 else [])]
        ),
    )
    _table(
        ("model", "capability", "training memory", "evaluation memory", "cells", "completions"),
        (
            (
                c.model,
                c.capability,
                _memory(c.training_memory),
                _memory(c.evaluation_memory),
                str(c.cells),
                _number(c.completions),
            )
            for c in costs.capabilities
        ),
        left=4,
    )
    for name in dict.fromkeys(c.capability for c in costs.capabilities):
        _capability(name, [c for c in costs.capabilities if c.capability == name])
    judge = costs.judge
    asked = f"{judge.name} ({judge.model})" if judge.model else judge.name
    say(
        f"judge {asked}: {_number(judge.calls)} calls, {_number(judge.read_tokens, 1e6, 1)} million tokens read, "
        f"{_number(judge.written_tokens, 1e6, 1)} written, {_hours(judge.hours)} h on the device; " + _paid(judge)
    )
    memory = "" if costs.device_memory is None else f" ({costs.device_memory / 1e9:.0f} GB)"
    say(
        f"in all {_hours(costs.total.hours)} h on {costs.device}{memory}; model weights of "
        f"{_number(costs.download, 1e9, 1)} GB (bfloat16) are fetched once"
    )
    for text in costs.assumptions:
        say(f"assumed: {text}")


def _capability(name: str, found: Sequence["CapabilityCost"]) -> None:
    """Effects and sources, which models share."""
    effects = []
    for e in found[0].effects:
        if not e.shares:
            effects.append(f"{e.suite} {e.metric}: {e.prompts} prompts, no shares: what they detect shows in the data")
            continue
        one = f"{100 * e.one_seed:.1f}" if e.one_seed else "no"
        several = f" ({100 * e.all_seeds:.1f} over training seeds)" if e.all_seeds else ""
        effects.append(f"{e.suite} {e.metric}: {e.prompts} prompts detect {one} points{several}")
    if effects:
        say(f"{name}: {'; '.join(effects)}")
    kept: dict[str, list[str]] = {}
    for cost in found:
        for what, source in cost.sources.items():
            if source != "counted" and what not in kept.setdefault(source, []):
                kept[source].append(what)
    if kept:
        say(f"{name}, not counted: " + "; ".join(f"{', '.join(what)} from {source}" for source, what in kept.items()))
