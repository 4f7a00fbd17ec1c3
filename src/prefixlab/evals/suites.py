"""Evaluation suites by name: where the prompts come from, how they are asked, how they are scored.

A suite is data: one entry in suites_math.py, suites_code.py, suites_safety.py or suites_facts.py. Its protocol
(protocols.py) is part of a result's name. `inspect:NAME` names any task that Inspect can load (foreign.py).
"""

from prefixlab.config import SuiteConfig
from prefixlab.data.rows import iter_rows
from prefixlab.data.sources import chosen
from prefixlab.errors import UserError, unknown
from prefixlab.evals import suites_code, suites_facts, suites_math, suites_safety
from prefixlab.evals.nouns import Suite, WrongRow
from prefixlab.records import EvalItem

SUITES: dict[str, Suite] = {
    suite.name: suite for module in (suites_math, suites_code, suites_safety, suites_facts) for suite in module.SUITES
}
FOREIGN = "inspect:"


def is_foreign(name: str) -> bool:
    """Whether a suite is an Inspect task of somebody else's."""
    return name.startswith(FOREIGN)


def find_suite(name: str, where: str = "") -> Suite:
    """A suite by name; for an Inspect task, one without rows and metrics of ours.

    Raises:
        UserError: There is none of that name.
    """
    if is_foreign(name):
        return Suite(name, about="an Inspect task", link="", hub=None, score=lambda item, parsed: [], foreign=True)
    if name not in SUITES:
        raise unknown("suite", name, [*SUITES, f"{FOREIGN}TASK"], where=where)
    return SUITES[name]


def _read(suite: Suite, config: SuiteConfig) -> list[EvalItem]:
    """Items of every row of the suite's source.

    Raises:
        UserError: No source, one that cannot be read, or a row of another form.
    """
    if suite.rows is not None:
        if config.source is not None:
            raise UserError(f"suite {suite.name!r} ships with the package and takes no source (got {config.source!r})")
        return suite.rows()
    assert suite.items is not None
    hub = suite.hub
    source = config.source or (hub.name if hub else None)
    if source is None:
        raise UserError(
            f"suite {suite.name!r} is on no hub: name its file, with {suite.form}, as source ({suite.link})"
        )
    split = config.split or (hub.split if hub else None)
    part = hub.config if hub is not None and config.source is None else None
    items: list[EvalItem] = []
    for n, raw in enumerate(iter_rows(source, split=split, revision=config.revision, config=part), 1):
        if raw.value is None:
            raise UserError(f"{source}, row {n}: {raw.error}")
        try:
            items += suite.items(raw.value)
        except WrongRow as error:
            raise UserError(f"{source}, row {n}: {error}; suite {suite.name!r} needs {suite.form}") from error
    if not items:
        raise UserError(f"{source} holds no prompt of suite {suite.name!r}")
    return items


def load_items(config: SuiteConfig) -> list[EvalItem]:
    """Test prompts of a suite, ids unique, limited by a keyed hash within each kind of prompt.

    Raises:
        UserError: The source cannot be read, or is not of the suite's form.
    """
    if is_foreign(config.suite):
        return []
    unique = list({i.id: i for i in _read(find_suite(config.suite), config)}.values())
    if config.limit is None:
        return unique
    kinds = sorted({i.kind for i in unique})
    share = {k: sum(i.kind == k for i in unique) / len(unique) for k in kinds}
    counts = {k: int(share[k] * config.limit) for k in kinds}
    for k in kinds[: config.limit - sum(counts.values())]:
        counts[k] += 1
    keep: set[str] = set()
    for kind in kinds:
        group = [i for i in unique if i.kind == kind]
        if counts[kind]:
            keep |= {i.id for i in chosen(group, lambda i: i.id, config.suite, counts[kind])}
    return [i for i in unique if i.id in keep]
