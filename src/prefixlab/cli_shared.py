"""What the command line's parts share: consoles, options, help with examples."""

import json
import sys
from typing import Annotated, Any, TypeVar

import typer
from pydantic import BaseModel, ValidationError
from rich.console import Console

from prefixlab.errors import UserError

Checked = TypeVar("Checked", bound=BaseModel)

out_console = Console(soft_wrap=True)
err_console = Console(stderr=True)

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="No messages, no progress bar.")]


def help_text(text: str, *examples: str) -> str:
    """Help text with its examples."""
    return text + "".join(f"\n\nExample: {e}" for e in examples)


def say(text: str) -> None:
    """A line of result, as it is: no colours, no markup."""
    out_console.print(text, highlight=False, markup=False)


def print_json(value: Any) -> None:
    """One JSON document on standard output."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False, indent=1) + "\n")


def checked(kind: type[Checked], **values: Any) -> Checked:
    """A record from options.

    Raises:
        UserError: Options that do not fit each other.
    """
    try:
        return kind(**values)
    except ValidationError as error:
        first = error.errors()[0]
        said, own = str(first["msg"]), "Value error, "
        if said.startswith(own):
            raise UserError(said.removeprefix(own)) from error
        raise UserError(f"{'.'.join(map(str, first['loc']))} {first['input']!r}: {said}") from error
