"""What a rewriting has paid for: an append-only file of JSON lines beside its output.

A request is written down before it is sent, and its reply before anything is made of it, each flushed to the disk. So a
reply that was received is never asked for again, and a request whose reply never came, because the machine went down,
is known and counted at the most it can have cost. A torn last line, the trace of a kill, is cut off by the next run.

It holds tokens and no money: what was paid is worked out with the prices of the run that reads it, so that prices that
were left out or mistyped at first hide nothing from the budget.

The file is also the lock: one process at a time may add to it, and the lock goes with that process.
"""

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from prefixlab.errors import UserError
from prefixlab.records import Record

LOOK = 0.2
"""Seconds between two tries to get the lock."""
PATIENCE = 3.0
"""Seconds that a process whose parent was killed may take to notice."""


Tokens = tuple[int, int]
"""Read and written."""
Cost = Callable[[int, int], float | None]
"""US dollars of tokens read and written; None without prices."""


class Header(Record):
    """First line: what decides every reply."""

    kind: Literal["rewriting"] = "rewriting"
    settings: dict[str, Any]


class Asked(Record):
    """A request that is about to be sent."""

    kind: Literal["asked"] = "asked"
    key: str
    call: int
    """1-based number of the request in this file."""
    most: Tokens
    """What it can take at most."""


class Got(Record):
    """A reply."""

    kind: Literal["got"] = "got"
    key: str
    call: int
    text: str
    stop: str
    tokens_in: int | None
    """None where the service does not say what it took; it then counts at its most."""
    tokens_out: int | None


class Lost(Record):
    """A request without a reply."""

    kind: Literal["lost"] = "lost"
    key: str
    call: int
    why: str
    free: bool
    """Whether it surely cost nothing; else it counts at its most."""


class Leaving(Record):
    """The process sends nothing more, and waits for the replies that are on their way."""

    kind: Literal["leaving"] = "leaving"


class Started(Record):
    """A process begins."""

    kind: Literal["started"] = "started"


Line = Annotated[Header | Asked | Got | Lost | Leaving | Started, Field(discriminator="kind")]
_LINE: TypeAdapter[Line] = TypeAdapter(Line)


def content_key(settings: dict[str, Any], asked: str, attempt: int) -> str:
    """sha256 over everything that decides a reply.

    Args:
        settings: Teacher, instructions, decoding.
        asked: What the teacher reads at the first attempt.
        attempt: 1-based.
    """
    text = json.dumps([settings, asked, attempt], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


class RewriteLog:
    """The file, open and locked. Close it by leaving the `with` block.

    Args:
        path: OUT.answers.jsonl.
        settings: Of this run; those of an earlier one on the same file must be equal.
        cost: Prices of this run.
        wait: Longest time for a process that is leaving, in seconds.
        tell: Called once if there is such a process.

    Raises:
        UserError: Another run writes to it, it was made with other settings, it is damaged, or cannot be written.
    """

    def __init__(
        self,
        path: Path,
        settings: dict[str, Any],
        *,
        cost: Cost,
        wait: float,
        tell: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.path = path
        self.cost = cost
        self.got: dict[str, Got] = {}
        self.open: dict[int, Asked] = {}
        """Requests without any word of what became of them, by number."""
        self.n_lost = 0
        """Failed requests that may have cost something."""
        self.calls = 0
        self._took: dict[int, Tokens] = {}
        """By number of the request, what it took, or can have taken."""
        self._all_read, self._all_written = 0, 0
        self._broken = ""
        try:
            self._file: IO[bytes] = path.open("a+b")
        except OSError as error:
            raise UserError(f"cannot write {str(path)!r}: {error.strerror}; choose another --out") from error
        try:
            _lock(self._file, path, wait, tell)
            self._read(settings)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "RewriteLog":
        return self

    def __exit__(self, *error: object) -> None:
        with suppress(*([OSError] if self._broken else [])):
            self._file.close()

    def _read(self, settings: dict[str, Any]) -> None:
        self._file.seek(0)
        data = self._file.read()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            self._file.truncate(whole)
        lines = data[:whole].split(b"\n")[:-1]
        for n, line in enumerate(lines, 1):
            try:
                found = _LINE.validate_json(line)
            except ValidationError as error:
                raise UserError(
                    f"{str(self.path)!r}, line {n} is damaged; restore the file, or choose another --out (its replies "
                    "are then paid for again)"
                ) from error
            if isinstance(found, Header) != (n == 1):
                raise UserError(f"{str(self.path)!r} is no record of replies; choose another --out")
            if isinstance(found, Header):
                self._same(found.settings, settings)
            self._note(found)
        self._add(*([] if lines else [Header(settings=settings)]), Started())

    def _same(self, before: dict[str, Any], now: dict[str, Any]) -> None:
        changed = sorted(k for k in {*before, *now} if before.get(k) != now.get(k))
        if changed:
            name = changed[0]
            raise UserError(
                f"{str(self.path)!r} was made with another {name.replace('_', ' ')} ({_short(before.get(name))}, now "
                f"{_short(now.get(name))}); choose another --out, or the same settings to go on"
            )

    def _note(self, line: Line) -> None:
        if isinstance(line, Asked):
            self.open[line.call] = line
            self._count(line.call, line.most)
            self.calls = max(self.calls, line.call)
        elif isinstance(line, Got):
            self.open.pop(line.call, None)
            if line.tokens_in is not None and line.tokens_out is not None:
                self._count(line.call, (line.tokens_in, line.tokens_out))
            self.got.setdefault(line.key, line)
        elif isinstance(line, Lost):
            self.open.pop(line.call, None)
            if line.free:
                self._count(line.call, (0, 0))
            self.n_lost += not line.free

    def _count(self, call: int, tokens: Tokens) -> None:
        """What a request took, in the place of what was counted of it before."""
        read, written = self._took.get(call, (0, 0))
        self._all_read += tokens[0] - read
        self._all_written += tokens[1] - written
        self._took[call] = tokens

    def _add(self, *lines: Line) -> None:
        if self._broken:
            # Half a line may stand at the end, which only the next run can cut off.
            raise UserError(self._broken)
        try:
            for line in lines:
                self._file.write(line.model_dump_json().encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            self._broken = f"cannot write {str(self.path)!r}: {error.strerror}; make room, and run again to go on"
            raise UserError(self._broken) from error

    def add(self, line: Asked | Got | Lost | Leaving) -> None:
        """Write a line down for good."""
        self._add(line)
        self._note(line)

    def notes(self) -> list[str]:
        """What earlier runs have left, in words."""
        money = "" if self.cost(0, 0) is None else f"; ${self.spent:,.4f} are spent"
        found = [f"{len(self.got):,} replies of earlier runs are kept and used{money}"] if self.got else []
        if self.open:
            found.append(
                f"{len(self.open)} requests of earlier runs have no reply, and count at the most they can cost"
            )
        return found

    @property
    def spent(self) -> float:
        """US dollars: what replies cost, and the most that lost and unanswered requests can cost; 0 without prices."""
        return self.cost(self._all_read, self._all_written) or 0.0

    def cost_of(self, reply: Got) -> float | None:
        """US dollars of a reply; None without prices."""
        return self.cost(*self._took.get(reply.call, (0, 0)))


def _short(value: object) -> str:
    return repr(value)[:40]


def _leaving(path: Path) -> bool:
    """Whether the process that holds the file sends nothing more."""
    marks = (b'{"kind":"leaving"', b'{"kind":"started"')
    words = [line for line in path.read_bytes().split(b"\n") if line.startswith(marks)]
    return bool(words) and words[-1].startswith(marks[0])


def _lock(file: IO[bytes], path: Path, wait: float, tell: Callable[[str], None]) -> None:
    began, told = time.monotonic(), False
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError as error:
            leaving, waited = _leaving(path), time.monotonic() - began
            if waited > (wait if leaving else PATIENCE):
                raise UserError(
                    f"{str(path)!r} is in use by another run of prefixlab rewrite; wait for it or choose another --out"
                ) from error
            if leaving and not told:
                tell("waiting for the last replies of the run before")
                told = True
            time.sleep(LOOK)
