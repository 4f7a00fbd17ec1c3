"""Mined templates: openings that many responses share, found in the data itself.

A prefix tree over normalised openings (lower case, straight quotes, digits as #), read forwards from the start of a
part and backwards from the end of its first sentence, so that a house style that begins with a slot is found too. Built
chunk by chunk; branches below a small share of a chunk are cut, so memory does not grow with the data: a template's
count is exact up to that share. What varies behind the common words becomes a slot.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from prefixlab.data.words import GENERIC, STEM, word_set

Direction = Literal["start", "end"]
Words = tuple[str, ...]
DEPTH = 8
"""Words of an opening that the tree looks at."""
CUT = 0.0005
"""Branches with a smaller share of a chunk are cut (never below two openings)."""
EXAMPLES = 24
MANY = 8
"""Templates that differ in one word only become one with a slot from this number on."""
LEAD = 240
_STOP = re.compile(r"[.!?:。！？：\n]")
_DIGITS = re.compile(r"\d+")
_LOOSE = word_set(
    "the a an of to in on at for and or is are was were be it this that these those as by with from i you "
    "he she they we his her its their there has have had not but if so can will would"
)
"""Words that make no template by themselves."""


def _plain(text: str) -> str:
    return _DIGITS.sub("#", text.lower().replace("’", "'"))


def opening_words(lead: str) -> list[str]:
    """The first words of a part, normalised."""
    return _plain(lead[:100]).split(None, DEPTH)[:DEPTH]


def closing_words(lead: str) -> list[str]:
    """The last words of a part's first sentence, last one first."""
    found = _STOP.search(lead, 1)
    sentence = lead[: found.end()] if found else lead
    return _plain(sentence[-100:]).split()[: -DEPTH - 1 : -1]


Lead = tuple[str, str]
"""The first LEAD code points of a part, and what the rules say of it: a family, or "" """


@dataclass(slots=True)
class Node:
    """How many openings begin (or end) with some words, and the first few of them."""

    count: int
    examples: list[Lead] = field(default_factory=list)


Tree = dict[tuple[Direction, Words], Node]


def _grow(tree: Tree, direction: Direction, at: Words, rows: list[tuple[list[str], Lead]], least: int) -> None:
    """Add the branches below `at` that at least `least` of the openings take."""
    depth = len(at)
    groups: dict[str, list[tuple[list[str], Lead]]] = {}
    for row in rows:
        words = row[0]
        if len(words) > depth:
            word = words[depth]
            if word in groups:
                groups[word].append(row)
            else:
                groups[word] = [row]
    for word, members in groups.items():
        if len(members) < least:
            continue
        path = (*at, word)
        tree[direction, path] = Node(len(members), [lead for _, lead in members[:EXAMPLES]])
        if depth + 1 < DEPTH:
            _grow(tree, direction, path, members, least)


def chunk_tree(leads: Sequence[Lead]) -> Tree:
    """The trees of the openings of one chunk, small branches cut.

    Args:
        leads: Of every part, without leading white space.
    """
    least = max(2, int(CUT * len(leads)))
    tree: Tree = {}
    _grow(tree, "start", (), [(opening_words(lead[0]), lead) for lead in leads], least)
    _grow(tree, "end", (), [(closing_words(lead[0]), lead) for lead in leads], least)
    return tree


def merge(into: Tree, other: Tree) -> None:
    """Add a chunk's trees."""
    for key, node in other.items():
        own = into.get(key)
        if own is None:
            into[key] = node
        else:
            own.count += node.count
            own.examples += node.examples[: EXAMPLES - len(own.examples)]


def _firm(words: Iterable[str]) -> list[str]:
    """The words that are neither loose nor mere marks."""
    return [w for w in words if w.strip("*_\"'.,!:;#") and w.strip("*_\"'.,!:;") not in _LOOSE]


def _telling(words: Iterable[str]) -> bool:
    """Whether words make a template: two that are not loose, or a short sentence of its own such as "Ahoy!"."""
    words = list(words)
    firm = _firm(words)
    return len(firm) >= 2 or (bool(firm) and len(words) > 3) or any(w.endswith(("!", ":")) for w in firm)


def select(tree: Tree, total: int, share: float) -> list[tuple[Direction, Words, int]]:
    """Disjoint templates: (direction, words, openings that no longer template covers), most frequent first.

    Args:
        tree: All openings.
        total: Number of openings.
        share: Smallest share of the openings a template must have.
    """
    least = max(3, share * total)
    chosen: dict[tuple[Direction, Words], int] = {}
    covered: Counter[tuple[Direction, Words]] = Counter()
    children: dict[tuple[Direction, Words], list[tuple[Direction, Words]]] = {}
    for direction, words in sorted(tree, key=lambda key: (-len(key[1]), key[1])):
        key = (direction, words)
        kin = children.get(key, [])
        alike = len(kin) >= MANY and bool(_firm(words))
        for child in kin if alike else ():
            covered[key] -= chosen.pop(child)
        left = tree[key].count - covered[key]
        if left >= least and (alike or _telling(words)):
            chosen[key] = left
        if len(words) > 1:
            parent = (direction, words[:-1])
            covered[parent] += covered[key] + chosen.get(key, 0)
            if key in chosen:
                children.setdefault(parent, []).append(key)
    return sorted(((d, words, n) for (d, words), n in chosen.items()), key=lambda c: (-c[2], c[1]))


def _common(first: list[str], second: list[str]) -> list[str]:
    """Longest common subsequence of two short lists."""
    best: list[list[list[str]]] = [[[] for _ in range(len(second) + 1)] for _ in range(len(first) + 1)]
    for i, a in enumerate(first):
        for j, b in enumerate(second):
            longer = max(best[i][j + 1], best[i + 1][j], key=len)
            best[i + 1][j + 1] = [*best[i][j], a] if a == b and len(best[i][j]) >= len(longer) else longer
    return best[-1][-1]


def template_text(words: Words, direction: Direction, examples: Sequence[Lead]) -> str:
    """A template as people read it: the common words of the first sentences, "{...}" where they differ.

    Args:
        words: Those of the tree; backwards for direction `end`.
        direction: Where they stand.
        examples: Openings that have them.
    """
    known = len(words) if direction == "start" else 0
    sentences = []
    for lead, _ in examples[:12]:
        taken = re.match(rf"\s*(?:\S+\s*){{{known}}}", lead)
        begin = max(1, len(lead[: taken.end()].rstrip()) - 1 if taken else 1)
        stop = _STOP.search(lead, begin)
        sentences.append(_plain(lead[: stop.end() if stop else LEAD]).split()[:32])
    common = sentences[0]
    for sentence in sentences[1:]:
        common = _common(common, sentence)
    fixed = list(words) if direction == "start" else list(reversed(words))
    if len(_firm(common)) <= len(_firm(fixed)):
        gap = ["{...}"] if any(len(s) > len(fixed) for s in sentences) else []
        return " ".join([*fixed, *gap] if direction == "start" else [*gap, *fixed])
    text: list[str] = []
    at = 0
    for word in common:
        where = sentences[0].index(word, at)
        text += ["{...}", word] if where > at else [word]
        at = where + 1
    return " ".join(text + (["{...}"] if at < len(sentences[0]) else []))


def is_generic(words: Iterable[str]) -> bool:
    """Whether all words of a template are generic ones (words.py), as in "there are several"."""
    return all(w.strip("*.,!:;'\"")[:STEM] in GENERIC for w in words)
