"""Halves of surrogate pairs, which JSON can escape and neither UTF-8 nor a tokenizer takes. Light: imports nothing."""

import re

_HALF = re.compile(r"[\ud800-\udfff]")


def is_sound(text: str) -> bool:
    """Whether a text can be written as UTF-8."""
    return not _HALF.search(text)


def sound(text: str) -> str:
    """Text that can be written: half a surrogate pair becomes a question mark."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()
