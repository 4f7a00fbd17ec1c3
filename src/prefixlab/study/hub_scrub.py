"""What must not leave this machine with a push: its paths, and secrets.

Paths are found where they are written down: in the study, the plan and env.json, in an adapter's configuration, in an
arms manifest. Every absolute path in these is replaced by its last name in all texts that are pushed, rows of training
data excepted: those go as they are. Host names and addresses of servers in a study stay.
"""

import json
import mmap
import os
import re
from collections.abc import Iterable, Iterator
from html import escape
from pathlib import Path
from typing import Any

from huggingface_hub import get_token

from prefixlab.errors import UserError
from prefixlab.report.charts.base import stem
from prefixlab.report.latex import escape as latex_escape
from prefixlab.study.evaluations import slug_of

_PATH = re.compile(r"(?<![\w.~/:-])/[^\s\"'`,;:=()<>\[\]{}|*?$\\]+|(?<=[=:])/(?!/)[^\s\"'`,;:=()<>\[\]{}|*?$\\]+")
_SECRET = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD)$")
SHORTEST_SECRET = 8
WEIGHTS = (".safetensors",)
"""Files that hold numbers only and are not searched for secrets."""


def strings(value: Any) -> Iterator[str]:
    """All strings in a JSON-like value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from strings(key)
            yield from strings(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from strings(inner)


def paths_in(value: Any) -> set[str]:
    """Absolute paths of at least two parts in a JSON-like value, as whole strings or as words of one."""
    found = set()
    for text in strings(value):
        if text.startswith("/") and "\n" not in text and " /" not in text:
            found.add(text)
        found |= set(_PATH.findall(text))
    return {p.rstrip("/.") for p in found if len(Path(p).parts) > 2}


class Scrubber:
    """Replaces paths of this machine by their last name.

    Args:
        known: JSON-like values in which the paths are found.
        folders: Further paths: folders that are pushed from.
        named: Models and suites as the study names them: a path among them stands, flattened, in names of steps and
            figures.
    """

    def __init__(self, known: Iterable[Any], folders: Iterable[Path] = (), named: Iterable[str] = ()) -> None:
        self.names: dict[str, str] = {}
        for path in sorted(paths_in(list(known))):
            same = sum(name == Path(path).name for name in self.names.values())
            self.names[path] = Path(path).name + (f"-{same + 1}" if same else "")
        for folder in folders:
            self.names |= {str(p): folder.resolve().name for p in (folder.absolute(), folder.resolve())}
        home = Path.home()
        if len(home.parts) > 2:  # "/root" is everyone's, and stands in code that models write
            self.names.setdefault(str(home), "~")
        spelt = {
            form(path): form(name)
            for path, name in self.names.items()
            for form in (str, escape, latex_escape, lambda p: json.dumps(p)[1:-1])
        }
        held = [(name, path) for name in named if (path := own_path(name)) in self.names]
        flat = {
            form(whole): form(whole.replace(path, self.names[path]))
            for name, path in held
            for whole in (name, path)
            for form in (slug_of, stem)
        }
        self._spelt = spelt | flat
        parts = [rf"(?<![\w.])(?:{_any(spelt)})(?![\w-]|\.\w)"] if spelt else []
        parts += [_any(flat)] if flat else []
        self._found = re.compile("|".join(parts)) if parts else None

    def text(self, text: str) -> str:
        """The text without the known paths."""
        if self._found is None:
            return text
        return self._found.sub(lambda match: self._spelt[match.group()], text)


def _any(forms: Iterable[str]) -> str:
    return "|".join(map(re.escape, sorted(forms, key=len, reverse=True)))


def own_path(name: str) -> str:
    """The path that a model's or suite's name is, or holds; empty where it is a name."""
    path = name.removeprefix("inspect:").rstrip("/.")
    return path if Path(path).is_absolute() else ""


def secrets() -> dict[str, str]:
    """Values that must never be sent, by what they are called here: the hub's token, and keys in the environment."""
    found = {
        name: value
        for name, value in os.environ.items()
        if _SECRET.search(name.upper()) and len(value) >= SHORTEST_SECRET
    }
    token = get_token()
    return found | ({"the hub's token": token} if token else {})


def refuse_secrets(folder: Path) -> None:
    """Search every file that would be sent.

    Raises:
        UserError: One holds a secret of this machine; the secret is not repeated.
    """
    wanted = {name: value.encode() for name, value in secrets().items()}
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or path.suffix in WEIGHTS or not path.stat().st_size:
            continue
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            for name, value in wanted.items():
                if content.find(value) >= 0:
                    raise UserError(
                        f"{str(path.relative_to(folder))!r} holds the value of {name}; nothing was sent. Take it out "
                        "of the data or the study, and change that secret"
                    )
