"""Where samples come from: built-in sets, local files, hub data sets; one function, `read_samples`.

Reading is rows.py's, layouts are layouts.py's. A row that cannot be used is an error that names the file and the row,
or is listed as skipped where the caller asks for that.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

from prefixlab.config import DataConfig
from prefixlab.data.arms import keyed_hash
from prefixlab.data.layouts import Unusable, layout_of, no_layout_for, parts_of
from prefixlab.data.rows import iter_rows
from prefixlab.data.surrogates import is_sound
from prefixlab.errors import UserError, unknown
from prefixlab.records import EvalItem, Message, Sample

Row = dict[str, Any]
T = TypeVar("T")

SUMS_POOL = 2_000
SUMS_SEED = 20_260


def worked_sum(question: str) -> tuple[str, str]:
    """A worked solution of a chain sum, left to right, and its final answer.

    Args:
        question: Contains the terms, e.g. "... problem: 12 + 7 - 3 =".
    """
    expression = re.search(r"-?\d+(?: [+-] \d+)+", question)
    if expression is None:
        raise ValueError(f"no chain sum in {question!r}")
    parts = expression.group().split()
    total, lines = int(parts[0]), []
    for operator, term in zip(parts[1::2], parts[2::2], strict=True):
        value = total + int(term) if operator == "+" else total - int(term)
        lines.append(f"{total} {operator} {term} = {value}.")
        total = value
    return f"{' '.join(lines)} The answer is {total}.", str(total)


@cache
def _sum_pool() -> tuple[tuple[str, str, str], ...]:
    """Distinct chain sums of 2 to 4 terms of 1 to 2 digits: question, worked solution, answer."""
    from reasoning_gym import create_dataset  # noqa: PLC0415  (two seconds of imports, needed for the built-in set only)

    made = create_dataset(
        "chain_sum", size=SUMS_POOL, seed=SUMS_SEED, min_terms=2, max_terms=4, min_digits=1, max_digits=2
    )
    questions = dict.fromkeys(str(entry["question"]) for entry in made)
    return tuple((q, *worked_sum(q)) for q in questions)


def _is_test(key: str) -> bool:
    """The fixed half of a built-in set that is kept for testing."""
    return keyed_hash("split", key) % 2 == 0


def _sums(test: bool) -> list[tuple[str, str, str]]:
    return [row for row in _sum_pool() if _is_test(row[0]) == test]


def _safety_rows(test: bool) -> list[Row]:
    """The half of the safety set kept for training or test: alternating rows of every category and kind."""
    text = (files("prefixlab.data") / "builtin" / "safety.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.split("\n") if line]
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["kind"], row["category"]), []).append(row)
    kept: list[Row] = []
    for group in groups.values():
        ranked = sorted(group, key=lambda r: keyed_hash("split", r["prompt"]))
        kept += ranked[1::2] if test else ranked[::2]
    return sorted(kept, key=lambda r: str(r["id"]))


def content_id(prompt: str, response: str) -> str:
    """Id of a row without an id column: a hash of what it says."""
    return hashlib.blake2b(f"{prompt}\x1f{response}".encode("utf-8", "surrogatepass"), digest_size=6).hexdigest()


def _train_sums() -> list[Sample]:
    return [
        Sample(
            id=content_id(q, a),
            messages=(Message(role="user", content=q),),
            reasoning=None,
            answer=a,
            source="chain_sum",
        )
        for q, a, _ in _sums(test=False)
    ]


def _train_safety() -> list[Sample]:
    return [
        Sample(
            id=r["id"],
            messages=(Message(role="user", content=r["prompt"]),),
            reasoning=None,
            answer=r["response"],
            source=r["kind"],
            category=r["category"],
        )
        for r in _safety_rows(test=False)
    ]


BUILTIN_DATA: dict[str, Callable[[], list[Sample]]] = {"chain_sum": _train_sums, "safety": _train_safety}


def test_sums() -> list[EvalItem]:
    """Test half of the chain sums."""
    return [
        EvalItem(id=content_id(q, ""), messages=(Message(role="user", content=q),), target=t, kind="problem")
        for q, _, t in _sums(test=True)
    ]


def test_safety() -> list[EvalItem]:
    """Test half of the safety set: harmful prompts and harmless look-alikes."""
    return [
        EvalItem(
            id=r["id"],
            messages=(Message(role="user", content=r["prompt"]),),
            target="",
            kind=r["kind"],
            category=r["category"],
        )
        for r in _safety_rows(test=True)
    ]


def read_rows(path: Path) -> list[Row]:
    """All rows of a local file, which must all be readable.

    Raises:
        UserError: Missing, empty, unreadable or of another format; a broken row is named by its number.
    """
    rows = []
    for raw in iter_rows(str(path)):
        if raw.value is None:
            raise UserError(f"{path}, row {raw.index + 1}: {raw.error}")
        rows.append(raw.value)
    if not rows:
        raise UserError(f"data file {str(path)!r} holds no rows")
    return rows


def _to_sample(row: Row, columns: Mapping[str, str]) -> Sample:
    """The sample of a row: its last assistant turn, and the conversation before it.

    Raises:
        Unusable: Why there is none.
    """
    layout = layout_of(row, columns)
    if layout is None:
        raise Unusable(
            f"{no_layout_for(row)}; name prompt and response (data.columns in a study, --column on the command line)"
        )
    turns = layout[1](row)
    parts = list(parts_of(turns, "last"))
    at = max(i for i, t in enumerate(turns) if t.role == "assistant")
    before = turns[:at]
    if any(t.role == "tool" for t in before):
        raise Unusable("holds tool calls, which a sample cannot carry")
    if not before or before[-1].role != "user":
        raise Unusable("the turn before the response must be the user's")
    if not before[-1].text.strip():
        raise Unusable("the user's turn is empty")
    texts = {part.name: part.text for part in parts}
    if not all(map(is_sound, (*texts.values(), *(t.text for t in before)))):
        raise Unusable("holds half a surrogate pair, which is no character")
    own, source = row.get(columns.get("id", "id")), row.get(columns.get("source", "source"))
    messages = tuple(Message.model_validate({"role": t.role, "content": t.text}) for t in before)
    return Sample(
        id=str(own) if own is not None else content_id(messages[-1].content, turns[at].text),
        messages=messages,
        reasoning=texts.get("reasoning"),
        answer=texts.get("answer", ""),
        source=str(source) if source is not None else "",
    )


_FINAL = re.compile(
    r"(?:^|\n)[ \t]*(?:####|\**(?:final )?answer\**\s*:|(?:so |thus |therefore,? |hence,? )?the (?:final )?answer is)"
    r"|(?<=[.!?] )The (?:final )?answer is",
    re.IGNORECASE,
)


def with_rationale(sample: Sample) -> Sample:
    """The text before the final-answer marker ("####", "Answer:", "The answer is") as reasoning, if there is one."""
    if sample.reasoning is not None:
        return sample
    marks = list(_FINAL.finditer(sample.answer))
    if not marks or not sample.answer[: marks[-1].start()].strip():
        return sample
    at = marks[-1].start()
    return sample.model_copy(update={"reasoning": sample.answer[:at].strip(), "answer": sample.answer[at:].strip()})


def unique_ids(samples: list[Sample]) -> list[Sample]:
    """Number repeated ids: the second "a" becomes "a#2". Numbers follow the content, so that order plays no role."""
    places: dict[str, list[int]] = {}
    for i, sample in enumerate(samples):
        places.setdefault(sample.id, []).append(i)
    result = list(samples)
    for ident, found in places.items():
        ranked = sorted(found, key=lambda i: samples[i].model_dump_json()) if len(found) > 1 else found
        for n, i in enumerate(ranked[1:], 2):
            result[i] = samples[i].model_copy(update={"id": f"{ident}#{n}"})
    return result


def chosen(items: list[T], ident: Callable[[T], str], key: str, limit: int | None) -> list[T]:
    """At most `limit` items, by keyed hash of their id; the order of the rest is kept."""
    if limit is None or limit >= len(items):
        return items
    best = sorted(items, key=lambda i: (keyed_hash(key, "limit", ident(i)), ident(i)))[:limit]
    keep = {ident(i) for i in best}
    return [i for i in items if ident(i) in keep]


def read_samples(
    data: DataConfig, key: str, *, rationale: bool = False, skipped: list[tuple[int, str]] | None = None
) -> tuple[list[Sample], list[Sample]]:
    """Training and held-out samples of a source.

    Args:
        data: Source, columns, limit, held_out.
        key: Data key of the hash that picks samples.
        rationale: Make reasonings of rationales: `with_rationale`.
        skipped: Rows that cannot be used are put here, with the reason, instead of being an error.

    Raises:
        UserError: The source is unknown, missing, empty or broken.
    """
    kind, _, name = data.source.partition(":")
    if kind == "builtin":
        if name not in BUILTIN_DATA:
            raise unknown("built-in data set", name, BUILTIN_DATA, where="data.source")
        samples = BUILTIN_DATA[name]()
    else:
        samples = _file_samples(data, skipped)
    samples = unique_ids([with_rationale(s) for s in samples] if rationale else samples)
    held = chosen(samples, lambda s: s.id, f"{key}:held_out", data.held_out) if data.held_out else []
    out = {s.id for s in held}
    train = [s for s in samples if s.id not in out]
    if not train:
        why = f"; {len(skipped)} skipped, row {skipped[0][0] + 1}: {skipped[0][1]}" if skipped else ""
        raise UserError(f"data {data.source!r}: {len(samples)} rows are no more than held_out {data.held_out}{why}")
    return chosen(train, lambda s: s.id, key, data.limit), held


def _file_samples(data: DataConfig, skipped: list[tuple[int, str]] | None) -> list[Sample]:
    samples, first, n = [], "", 0
    rows = iter_rows(data.source, split=data.split, revision=data.revision, config=data.config)
    for n, raw in enumerate(rows, 1):
        try:
            if raw.value is None:
                raise Unusable(raw.error)
            samples.append(_to_sample(raw.value, data.columns))
        except Unusable as error:
            if skipped is None:
                raise UserError(f"{data.source}, row {n}: {error}") from error
            first = first or f"row {n}: {error}"
            skipped.append((raw.index, str(error)))
    if not n:
        raise UserError(f"data file {data.source!r} holds no rows")
    if not samples:
        raise UserError(f"{data.source}: none of {n} rows can be used; {first}")
    return samples
