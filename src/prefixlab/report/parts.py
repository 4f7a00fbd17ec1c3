"""Data beside the page, loaded by need: also from the file system, where a page may not fetch but may run a script.

Each part is a small script that hands one value to the page. Its name holds a hash of its content, so that a page that
is open keeps fitting its parts while the next report is written.
"""

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from markupsafe import Markup

SURROGATE = re.compile("[\ud800-\udfff]")
FOLDER = "data"


def to_json(value: Any) -> str:
    """JSON of a value; half a surrogate pair becomes the replacement character."""
    return SURROGATE.sub("\ufffd", json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False))


def embed(value: Any) -> Markup:
    """JSON that is safe inside a script element."""
    return Markup(to_json(value).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


class Parts:
    """The parts of one report."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / FOLDER
        self.folder.mkdir(parents=True, exist_ok=True)
        self.kept: set[str] = set()

    def add(self, stem: str, text: str) -> str:
        """Write one part and return its path, relative to the page.

        Args:
            stem: Beginning of the file's name: letters, digits, "-" and "_".
            text: JSON, of `to_json`.
        """
        name = f"{stem}-{hashlib.sha256(text.encode()).hexdigest()[:10]}.js"
        path = self.folder / name
        if not path.exists():
            scratch = self.folder / f".{name}.new"
            scratch.write_text(f'prefixlabPart("{FOLDER}/{name}",{text});\n', encoding="utf-8")
            scratch.replace(path)
        self.kept.add(name)
        return f"{FOLDER}/{name}"

    def add_lists(self, stem: str, items: Iterable[Any], size: int) -> list[tuple[str, int]]:
        """Cut a list into parts of about `size` characters, at least one item each: (path, number of items)."""
        found: list[tuple[str, int]] = []
        held: list[str] = []
        length = 0
        for item in items:
            text = to_json(item)
            if held and length + len(text) > size:
                found.append((self.add(f"{stem}-{len(found)}", f"[{','.join(held)}]"), len(held)))
                held, length = [], 0
            held.append(text)
            length += len(text)
        if held:
            found.append((self.add(f"{stem}-{len(found)}", f"[{','.join(held)}]"), len(held)))
        return found

    def sweep(self) -> None:
        """Delete the parts of earlier reports; call it once the new page stands."""
        for path in self.folder.iterdir():
            if path.name not in self.kept:
                path.unlink()
