"""What a page that watches a run says of it: the nouns of /status.json."""

from typing import Literal

from prefixlab.records import Record

State = Literal["running", "finished", "failed", "stopped"]


class Counts(Record):
    """Steps, or cells, by state; they add up to the total."""

    total: int
    done: int
    running: int
    failed: int
    pending: int


class Failure(Record):
    """A step that failed."""

    step: str
    reason: str


class Now(Record):
    """The step in progress."""

    step: str
    since: float
    """Seconds since 1970."""
    seconds: float
    """How long it has run."""
    predicted_seconds: float


class RunStatus(Record):
    """State of a run."""

    study: str
    state: State
    sentence: str
    steps: Counts
    cells: Counts
    """A cell is a training step with the evaluations and token tables of its adapter."""
    now: Now | None
    predicted_seconds_left: float | None
    """As the plan predicted it; null where nothing runs."""
    seconds_left: float | None
    """At the pace of what has been done so far; null where nothing runs."""
    failures: tuple[Failure, ...]
