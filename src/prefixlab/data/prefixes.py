"""Prefix sets: named lists of templates with a separator, and the controls matched to them.

A set is a YAML file with `name`, `description`, `separator` and `templates`. The built-in ones are written by us:
five templates each, of 10, 11, 12, 13 and 14 words, so that template i of every set has the same length.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

import yaml
from pydantic import Field, ValidationError

from prefixlab.config import LOSS_CONTROLS
from prefixlab.errors import UserError, unknown
from prefixlab.records import Position, Record, word_ranges

SEPARATOR = "\n\n"
USER_SEPARATOR = " "
FOLDER = files("prefixlab.data") / "prefix_sets"
ORIGINAL = "original"
"""The set of what the data had: every sample's own opening, with its white space."""
KEYWORD_CONTROLS = ("synonym", "unrevised")
"""Controls that take the sentences which `revised` takes, with the keyword replaced or left out."""
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
        except UnicodeDecodeError as error:
            raise UserError(f"prefix set file {name!r} is not UTF-8 ({error.reason} at byte {error.start})") from error
    else:
        raise unknown("prefix set", name, [*builtin_sets(), ORIGINAL, "<file>.yaml"])
    return _parsed(text, name)


def _parsed(text: str, name: str) -> PrefixSet:
    """The set in a YAML text; `name` is what the user called it."""
    try:
        loaded = PrefixSet.model_validate(yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise UserError(f"prefix set {name!r}: not valid YAML ({' '.join(str(error).split())})") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        got = "" if first["type"] == "missing" else f" (got {first['input']!r:.80})"
        raise UserError(
            f"prefix set {name!r}: {where}: {first['msg']}{got}; keys: name, description, templates, separator, bank"
        ) from error
    if loaded.name == ORIGINAL:
        raise UserError(f"prefix set {name!r}: the name 'original' is taken by the data's own openings")
    return _sound(loaded, name)


_SLOT = re.compile(r"\{\{|\{[A-Za-z_]\w*\}")


def _sound(loaded: PrefixSet, name: str) -> PrefixSet:
    """Refuse a set without templates, or with one that is empty, not filled in or there twice."""
    twice = [t for i, t in enumerate(loaded.templates) if t in loaded.templates[:i]]
    slot = [t for t in loaded.templates if _SLOT.search(t)]
    if twice or slot:
        what = "stands there twice" if twice else "holds an unfilled slot"
        raise UserError(f"prefix set {name!r}: the template {(twice or slot)[0]!r} {what}")
    if not loaded.templates or any(not t.strip() for t in loaded.templates):
        raise UserError(f"prefix set {name!r}: every template needs text")
    return loaded


def sentence_file(path: Path) -> PrefixSet:
    """A text file as a prefix set: one sentence a line, blank lines left out.

    Raises:
        UserError: The file cannot be read, is empty, or holds a line twice.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except OSError as error:
        raise UserError(f"file of prefixes {str(path)!r} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"file of prefixes {str(path)!r} is not UTF-8 text: one sentence a line") from error
    kept = tuple(line for line in lines if line)
    if not kept:
        raise UserError(f"file of prefixes {str(path)!r} is empty: one sentence a line")
    name = re.sub(r"[^A-Za-z0-9_-]+", "_", path.stem)
    return _sound(PrefixSet(name=name, templates=kept), str(path))


def words(text: str) -> int:
    """Number of words, split at white space."""
    return len(text.split())


def plain_word(word: str) -> str:
    """A word as anchors are compared: in lower case, without punctuation at its ends; empty if it is nothing else."""
    return "".join(word[start:end].lower() for start, end in word_ranges(word))


@cache
def _reworded(control: str) -> tuple[str, ...]:
    """The sentences of the set `revised`, in its order (templates, then bank), as a keyword control words them."""
    found = _parsed((FOLDER / "keyword" / f"{control}.yaml").read_text(encoding="utf-8"), control)
    return found.templates + found.bank


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


@dataclass(frozen=True)
class Wording:
    """A prefix word by word, for arms that take the loss off single words."""

    text: str
    costs: tuple[int, ...]
    """Tokens of every word; 1 each where no tokenizer is known."""
    anchors: tuple[int, ...]
    """Indices of the words that are anchors."""
    others: tuple[int, ...]
    """Indices of the others that are more than punctuation."""

    def cost(self, indices: Iterable[int]) -> int:
        """Tokens of some words."""
        return sum(self.costs[i] for i in indices)

    def others_like_anchors(self, key: Callable[[int], int]) -> tuple[int, ...]:
        """Other words of as many tokens as the anchors have, or as near as they come (rather fewer than more).

        Of all such choices the one that takes the words of smallest key first: with one token a word, the first ones.

        Raises:
            UserError: The other words have fewer tokens than the anchors.
        """
        need = self.cost(self.anchors)
        if self.cost(self.others) < need:
            raise UserError(
                f"the anchors have {need} tokens of {self.text.strip()!r}, its other words only "
                f"{self.cost(self.others)}; name fewer anchors"
            )
        order = sorted(self.others, key=lambda i: (key(i), i))
        # reach[j]: the sums that words j, j + 1, ... of that order can make.
        reach = [{0}]
        for i in reversed(order):
            reach.insert(0, reach[0] | {total + self.costs[i] for total in reach[0]})
        left = min(reach[0], key=lambda total: (abs(total - need), total))
        chosen = []
        for j, i in enumerate(order):
            if left and left - self.costs[i] in reach[j + 1]:
                chosen.append(i)
                left -= self.costs[i]
        return tuple(sorted(chosen))


def wordings(anchors: Iterable[str], count_tokens: Callable[[str], int] | None) -> Callable[[str], Wording]:
    """A function that takes prefixes apart, each once.

    A word's tokens are those it adds to the text before it, less those of the white space between them where that has
    tokens of its own.
    """
    wanted = {plain_word(a) for a in anchors}

    def cost(text: str, start: int, end: int) -> int:
        if count_tokens is None:
            return 1
        before = text[:start].rstrip()
        added, alone = count_tokens(text[:end]) - count_tokens(before), count_tokens(text[start:end])
        return alone if added == count_tokens(text[len(before) : start]) + alone else added

    @cache
    def wording(text: str) -> Wording:
        ranges = word_ranges(text)
        plain = [text[start:end].lower() for start, end in ranges]
        return Wording(
            text=text,
            costs=tuple(cost(text, start, end) for start, end in ranges),
            anchors=tuple(i for i, word in enumerate(plain) if word in wanted),
            others=tuple(i for i, word in enumerate(plain) if word and word not in wanted),
        )

    return wording


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
        control: One of config.CONTROLS. Those of LOSS_CONTROLS keep the texts: only the loss changes.
        key: Keyed hash that fixes the shuffled order.
        count_tokens: Length of a text in tokens of the study's first tokenizer; without it only words are matched.
    """
    if control in LOSS_CONTROLS:
        return treatment
    if treatment.own and control not in ("shuffled", "random"):
        raise UserError(
            f"control {control!r} needs templates of known length; with the prefix set 'original' use shuffled, "
            f"random, {', '.join(LOSS_CONTROLS[:-1])} or {LOSS_CONTROLS[-1]}"
        )
    if control in ("shuffled", "random"):
        texts = tuple(controlled(t, control, key, count_tokens) for t in treatment.templates)
    else:
        source = load_set("revised" if control in KEYWORD_CONTROLS else control)
        bank = source.templates + source.bank
        chosen: list[str] = []
        for i, template in enumerate(treatment.templates):
            chosen.append(_match_length(template, bank, chosen, i, count_tokens))
        said = _reworded(control) if control in KEYWORD_CONTROLS else bank
        texts = tuple(said[bank.index(sentence)] for sentence in chosen)
    return PrefixSet(
        name=control,
        description=f"{control} control of {treatment.name}",
        separator=treatment.separator,
        templates=texts,
    )
