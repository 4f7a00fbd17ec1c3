"""Prefix sets: named lists of templates with a separator, and the controls matched to them.

A set is a YAML file with `name`, `description`, `separator` and `templates`. The built-in ones are written by us:
five templates each, of 10, 11, 12, 13 and 14 words, so that template i of every set has the same length.
"""

from collections.abc import Callable
from functools import cache
from importlib.resources import files
from pathlib import Path

import yaml
from pydantic import Field, ValidationError

from prefixlab.errors import UserError, unknown
from prefixlab.records import Position, Record

SEPARATOR = "\n\n"
USER_SEPARATOR = " "
FOLDER = files("prefixlab.data") / "prefix_sets"
ORIGINAL = "original"
"""The set of what the data had: every sample's own opening, with its white space."""
DRAWS = 64
"""Tries of the random control to meet a template's length in tokens."""


class PrefixSet(Record):
    """Templates that a prefix is drawn from."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]+$")
    """Letters, digits, _ and -: it is part of the arms' names."""
    description: str = ""
    separator: str = SEPARATOR
    templates: tuple[str, ...]
    bank: tuple[str, ...] = ()
    """More sentences of other lengths, for matching a user's set; used by controls only."""

    @property
    def own(self) -> bool:
        """Whether this is the set of the samples' own openings, which has no templates."""
        return not self.templates

    def text(self, index: int, position: Position) -> str:
        """Template with its separator: a space in front of a user turn, else the set's own."""
        return self.templates[index] + (USER_SEPARATOR if position == "user" else self.separator)


def builtin_sets() -> list[str]:
    """Names of the sets that ship with the package."""
    return sorted(f.name.removesuffix(".yaml") for f in FOLDER.iterdir() if f.name.endswith(".yaml"))


@cache
def load_set(name: str) -> PrefixSet:
    """Read a built-in set by name or a user's YAML file by path.

    Raises:
        UserError: Unknown name, unreadable file, wrong keys, or an empty template.
    """
    if name == ORIGINAL:
        return PrefixSet(name=ORIGINAL, description="The sample's own opening, as the data had it.", templates=())
    if name in builtin_sets():
        text = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")
    elif name.endswith((".yaml", ".yml")):
        try:
            text = Path(name).read_text(encoding="utf-8")
        except OSError as error:
            raise UserError(f"prefix set file {name!r} cannot be read: {error.strerror}") from error
    else:
        raise unknown("prefix set", name, [*builtin_sets(), ORIGINAL, "<file>.yaml"])
    try:
        loaded = PrefixSet.model_validate(yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise UserError(f"prefix set {name!r}: not valid YAML ({' '.join(str(error).split())})") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise UserError(
            f"prefix set {name!r}: {where}: {first['msg']} (got {first['input']!r:.80}); keys: name, description, "
            "templates, separator, bank"
        ) from error
    if loaded.name == ORIGINAL:
        raise UserError(f"prefix set {name!r}: the name 'original' is taken by the data's own openings")
    twice = [t for i, t in enumerate(loaded.templates) if t in loaded.templates[:i]]
    slot = [t for t in loaded.templates if "{{" in t]
    if twice or slot:
        what = "stands there twice" if twice else "holds an unfilled slot"
        raise UserError(f"prefix set {name!r}: the template {(twice or slot)[0]!r} {what}")
    if not loaded.templates or any(not t.strip() for t in loaded.templates):
        raise UserError(f"prefix set {name!r}: every template needs text")
    return loaded


def words(text: str) -> int:
    """Number of words, split at white space."""
    return len(text.split())


def _shuffle(text: str, key: Callable[[str], int]) -> str:
    """The same words in another order, fixed by `key`; case and final punctuation are kept as they are."""
    parts = text.split()
    order = sorted(range(len(parts)), key=lambda i: key(f"{i}:{parts[i]}"))
    if order == list(range(len(parts))):
        order = order[1:] + order[:1]
    return " ".join(parts[i] for i in order)


@cache
def _nouns() -> tuple[str, ...]:
    return tuple((FOLDER / "random_words.txt").read_text(encoding="utf-8").split())


def _random_words(text: str, key: Callable[[str], int], count_tokens: Callable[[str], int] | None) -> str:
    """As many words as `text` has, drawn by `key`; of several draws the one nearest to it in tokens."""
    nouns, n = _nouns(), words(text)
    end = text.rstrip()[-1:] if text.rstrip()[-1:] in ".!:" else ""
    draws = [
        " ".join(nouns[key(f"random:{draw}:{i}:{text}") % len(nouns)] for i in range(n)).capitalize() + end
        for draw in range(DRAWS if count_tokens else 1)
    ]
    wanted = count_tokens(text) if count_tokens else 0
    return min(draws, key=lambda d: abs(count_tokens(d) - wanted)) if count_tokens else draws[0]


def controlled(text: str, control: str, key: Callable[[str], int], count_tokens: Callable[[str], int] | None) -> str:
    """One text under a control that needs no bank: masked, shuffled or random. White space at its end stays."""
    body = text.rstrip()
    if control == "shuffled":
        body = _shuffle(body, key)
    elif control == "random":
        body = _random_words(body, key, count_tokens)
    return body + text[len(text.rstrip()) :]


def _match_length(
    target: str, bank: tuple[str, ...], used: list[str], index: int, count_tokens: Callable[[str], int] | None
) -> str:
    """The sentence of the bank closest to `target`: within one word, unused if possible, then nearest in tokens."""
    near = [t for t in bank if abs(words(t) - words(target)) <= 1]
    if not near:
        raise UserError(
            f"no control sentence is within one word of template {index} ({words(target)} words); there are some of "
            f"{', '.join(str(n) for n in sorted({words(t) for t in bank}))} words"
        )

    def distance(candidate: str) -> tuple[bool, int, int, int]:
        tokens = abs(count_tokens(candidate) - count_tokens(target)) if count_tokens else 0
        return candidate in used, tokens, abs(words(candidate) - words(target)), bank.index(candidate)

    return min(near, key=distance)


def control_set(
    treatment: PrefixSet,
    control: str,
    *,
    key: Callable[[str], int],
    count_tokens: Callable[[str], int] | None = None,
) -> PrefixSet:
    """The set of a control arm: template i is matched to template i of the treatment.

    Args:
        treatment: The set under test.
        control: neutral, shuffled, random, masked or revised. `masked` keeps the texts: only the loss changes.
        key: Keyed hash that fixes the shuffled order.
        count_tokens: Length of a text in tokens of the study's first tokenizer; without it only words are matched.
    """
    if control == "masked":
        return treatment
    if treatment.own and control not in ("shuffled", "random"):
        raise UserError(
            f"control {control!r} needs templates of known length; with the prefix set 'original' use masked, shuffled "
            "or random"
        )
    if control in ("shuffled", "random"):
        texts = tuple(controlled(t, control, key, count_tokens) for t in treatment.templates)
    else:
        bank = load_set(control).templates + load_set(control).bank
        chosen: list[str] = []
        for i, template in enumerate(treatment.templates):
            chosen.append(_match_length(template, bank, chosen, i, count_tokens))
        texts = tuple(chosen)
    return PrefixSet(
        name=control,
        description=f"{control} control of {treatment.name}",
        separator=treatment.separator,
        templates=texts,
    )
