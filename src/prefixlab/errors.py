"""Errors a user can act on, and the words they are told in.

The command line turns `UserError` into one line and exit code 2, and `Stopped` into one line and 128 plus the signal's
number. Everything else is a defect of ours and keeps its traceback.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """A mistake in what the user asked for or gave: one line naming the value, what is allowed and the fix."""


class StepError(UserError):
    """A step of a study that cannot finish; names the step, so that the others can go on."""


class Stopped(Exception):
    """A signal asked for an end, and what was in progress is saved."""

    def __init__(self, signal: int, message: str) -> None:
        super().__init__(message)
        self.signal = signal


def innermost(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first error in a group, whose own words are the ones to tell."""
    first: BaseException = group
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    return first


def unknown(kind: str, value: object, allowed: Iterable[str], *, where: str = "") -> UserError:
    """Build the error for a name that is not in a closed set.

    Args:
        kind: What the value was meant to be, e.g. "prefix set".
        value: What the user wrote.
        allowed: Every accepted name.
        where: The place in the user's file, e.g. "arms[0].prefixes".
    """
    names = sorted(allowed)
    near = get_close_matches(str(value), names, n=1, cutoff=0.6)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    place = f"{where}: " if where else ""
    return UserError(f"{place}unknown {kind} {str(value)!r}; allowed: {', '.join(names)}.{hint}")
