"""Changing texts inside the raw bytes of a JSON row, and nothing else of it."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from prefixlab.data.surrogates import is_sound

_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
Path = tuple[str | int, ...]


def _strings(value: Any, path: Path = ()) -> Iterator[tuple[Path | None, str]]:
    """All strings of a value in the order of its JSON text, keys (without a path) included."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield None, key
            yield from _strings(inner, (*path, key))
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from _strings(inner, (*path, i))


def edit_row(raw: bytes, value: Any, changes: Mapping[Path, str]) -> bytes:
    """The raw JSON text of `value` with some of its strings replaced.

    Escapes follow the row: text that had only ASCII characters stays so. A row whose strings cannot be matched to its
    text one by one (a key given twice) is written anew.

    Args:
        raw: UTF-8 JSON.
        value: What it parses to.
        changes: New string by path.
    """
    text = raw.decode("utf-8")
    literals = list(_STRING.finditer(text))
    strings = list(_strings(value))
    if len(literals) == len(strings) and all(
        path not in changes or json.loads(found.group(), strict=False) == old
        for (path, old), found in zip(strings, literals, strict=True)
    ):
        ascii_only = text.isascii()
        pieces, at = [], 0
        for (path, _), found in zip(strings, literals, strict=True):
            if path is not None and path in changes:
                pieces += [
                    text[at : found.start()],
                    json.dumps(changes[path], ensure_ascii=ascii_only or not is_sound(changes[path])),
                ]
                at = found.end()
        return ("".join(pieces) + text[at:]).encode()
    made = json.dumps(_replaced(value, changes), ensure_ascii=False)
    return (made if is_sound(made) and not text.isascii() else json.dumps(_replaced(value, changes))).encode()


def _replaced(value: Any, changes: Mapping[Path, str], path: Path = ()) -> Any:
    if path in changes:
        return changes[path]
    if isinstance(value, dict):
        return {key: _replaced(inner, changes, (*path, key)) for key, inner in value.items()}
    if isinstance(value, list):
        return [_replaced(inner, changes, (*path, i)) for i, inner in enumerate(value)]
    return value
