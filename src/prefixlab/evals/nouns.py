"""The nouns of evaluation: a suite, its source and its metrics. No Inspect, no torch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from prefixlab.data.sources import content_id
from prefixlab.evals.outputs import Parsed
from prefixlab.records import EvalItem, Message, Record, SampleStatus

Row = Mapping[str, Any]


class Metric(Record):
    """A number a suite reports."""

    name: str
    kind: str
    """Items it is measured on."""
    higher_is_better: bool
    shares: bool = True
    """Whether its values are 0 and 1."""


@dataclass(frozen=True)
class Scored:
    """One metric of one completion; `value` is None where it could not be measured."""

    metric: str
    value: float | None
    status: SampleStatus
    answer: str
    """What was scored: the extracted answer or the verdict."""


@dataclass(frozen=True)
class Hub:
    """A data set on the hub, and the data sets file that holds the rows."""

    name: str
    split: str
    config: str | None = None


class WrongRow(Exception):
    """A row is not of the suite's form; the text says what is wrong."""


def column(row: Row, *names: str) -> Any:
    """The first of the named columns that a row has, whatever the case and with spaces as underscores.

    Raises:
        WrongRow: It has none of them.
    """
    known = {key.strip().lower().replace(" ", "_"): value for key, value in row.items()}
    for name in names:
        if known.get(name) is not None:
            return known[name]
    raise WrongRow(f"no column {' or '.join(names)} (columns: {', '.join(map(str, row))})")


def text_column(row: Row, *names: str) -> str:
    """As `column`, for text that is not empty.

    Raises:
        WrongRow: It has none of them, or holds no text.
    """
    value = column(row, *names)
    if not isinstance(value, str | int | float) or not str(value).strip():
        raise WrongRow(f"column {names[0]} holds no text")
    return str(value)


def asked(prompt: str, **more: Any) -> EvalItem:
    """An item with one user turn; its id is the hash of the prompt unless one is given."""
    ident = more.pop("id", None) or content_id(prompt, "")
    more.setdefault("target", "")
    more.setdefault("kind", "problem")
    return EvalItem(id=str(ident), messages=(Message(role="user", content=prompt),), **more)


Scorer = Callable[[EvalItem, Parsed], list[Scored]]
"""From one completion to numbers; pure, and safe to call from several threads."""


@dataclass(frozen=True)
class Suite:
    """One evaluation set: where its rows are, what a row asks, how a completion is scored."""

    name: str
    about: str
    link: str
    """Paper or repository of the set."""
    hub: Hub | None
    """Where the rows are unless the study names a source; None for sets that ship with the package or have no hub
    id."""
    rows: Callable[[], list[EvalItem]] | None = None
    """Items of a set that ships with the package."""
    items: Callable[[Row], list[EvalItem]] | None = None
    """Items of a row, none where the row is not part of the set; raises WrongRow."""
    score: Scorer | None = None
    """None where a judge decides."""
    metrics: tuple[Metric, ...] = ()
    max_tokens: int = 2048
    """Longest completion under the protocol `prefixlab`."""
    choices: bool = False
    """Whether the model chooses by log-likelihood instead of writing."""
    foreign: bool = False
    """Whether it is an Inspect task of somebody else's, with prompts and scorers of its own."""
    proxy: bool = False
    """Whether its scores stand in for a human's or a model's grade."""
    sources: tuple[str, ...] = ()
    """Names by which training sets mention this one."""
    form: str = ""
    """What a row holds, for the error message."""

    @property
    def judged(self) -> bool:
        """Whether a judge decides, so that results carry its name and its proxy label."""
        return self.score is None


ACCURACY = Metric(name="accuracy", kind="problem", higher_is_better=True)
