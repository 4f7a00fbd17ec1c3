"""Where samples come from: built-in sets, local files, hub data sets; one function, `read_samples`.

Layouts are recognised by their columns. A row that cannot be used is an error that names the file and the line.
"""

import csv
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

import polars
from reasoning_gym import create_dataset

from prefixlab.config import DataConfig
from prefixlab.data.arms import keyed_hash
from prefixlab.data.chat import split_response
from prefixlab.errors import UserError, unknown
from prefixlab.records import EvalItem, Message, Sample

PROMPT_COLUMNS = ("prompt", "question", "instruction", "query")
RESPONSE_COLUMNS = ("response", "completion", "answer", "output", "solution", "chosen")
SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
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


def _jsonl(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"{path}, line {number}: not valid JSON ({error.msg})") from error
            if not isinstance(row, dict):
                raise UserError(f"{path}, line {number}: a row must be a JSON object, not {type(row).__name__}")
            yield row


def read_rows(path: Path) -> list[Row]:
    """All rows of a local JSONL, JSON, CSV or Parquet file.

    Raises:
        UserError: Missing, empty, unreadable or of another format; a broken line is named by its number.
    """
    if not path.exists():
        raise UserError(f"data file {str(path)!r} does not exist")
    if path.suffix not in SUFFIXES:
        raise UserError(f"data file {str(path)!r}: unknown format {path.suffix!r}; allowed: {', '.join(SUFFIXES)}")
    try:
        if path.suffix == ".jsonl":
            rows = list(_jsonl(path))
        elif path.suffix == ".json":
            loaded = json.loads(path.read_text(encoding="utf-8"))
            rows = loaded if isinstance(loaded, list) else []
        elif path.suffix == ".csv":
            with path.open(encoding="utf-8", newline="") as file:
                rows = list(csv.DictReader(file))
        else:
            rows = polars.read_parquet(path).to_dicts()
    except (UnicodeDecodeError, json.JSONDecodeError, csv.Error, polars.exceptions.PolarsError) as error:
        raise UserError(f"{path}: not valid {path.suffix[1:].upper()} in UTF-8 ({error})") from error
    if not rows:
        raise UserError(f"data file {str(path)!r} holds no rows")
    return rows


def _hub_rows(data: DataConfig) -> list[Row]:
    try:
        from datasets import load_dataset  # noqa: PLC0415  (an extra, heavy, and needed for the hub only)
        from datasets.exceptions import DatasetNotFoundError  # noqa: PLC0415
    except ImportError as error:
        raise UserError(f"data set {data.source!r}: reading from the hub needs pip install 'prefixlab[hub]'") from error
    try:
        loaded = load_dataset(data.source, split=data.split, revision=data.revision)
    except (DatasetNotFoundError, ConnectionError, FileNotFoundError, ValueError) as error:
        raise UserError(
            f"data set {data.source!r} could not be read from the hub: {str(error).splitlines()[0]}"
        ) from error
    return [dict(row) for row in loaded]


def _column(row: Row, data: DataConfig, role: str, usual: tuple[str, ...], where: str) -> str:
    named = data.columns.get(role)
    name = named or next((c for c in usual if c in row), None)
    if name is None or name not in row:
        raise UserError(
            f"{where}: no column for the {role}; columns there: {', '.join(map(str, row))}; name it in data.columns "
            f"({role}: COLUMN) or use one of {', '.join(usual)}"
        )
    value = row[name]
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{where}: column {name!r} must hold text, found {value!r}")
    return value


def _conversation(row: Row, where: str) -> tuple[tuple[Message, ...], str]:
    turns = row["messages"]
    shape = isinstance(turns, list) and all(isinstance(t, dict) and isinstance(t.get("content"), str) for t in turns)
    if not shape or len(turns) < 2 or turns[-1].get("role") != "assistant":
        raise UserError(f"{where}: messages must be a list of role and content that ends with an assistant turn")
    try:
        context = tuple(Message(role=t["role"], content=t["content"]) for t in turns[:-1])
    except (KeyError, ValueError) as error:
        raise UserError(f"{where}: messages hold a role other than system, user, assistant") from error
    if context[-1].role != "user":
        raise UserError(f"{where}: the turn before the last must be the user's")
    return context, str(turns[-1]["content"])


def _to_sample(row: Row, data: DataConfig, where: str) -> Sample:
    if "messages" in row and "prompt" not in data.columns:
        messages, response = _conversation(row, where)
    else:
        prompt = _column(row, data, "prompt", PROMPT_COLUMNS, where)
        extra = row.get("input")
        if "instruction" in row and isinstance(extra, str) and extra.strip():
            prompt = f"{prompt}\n{extra}"
        messages = (Message(role="user", content=prompt),)
        response = _column(row, data, "response", RESPONSE_COLUMNS, where)
    reasoning, answer = split_response(response)
    own = row.get(data.columns.get("id", "id"))
    source = row.get(data.columns.get("source", "source"))
    return Sample(
        id=str(own) if own is not None else content_id(messages[-1].content, response),
        messages=messages,
        reasoning=reasoning,
        answer=answer,
        source=str(source) if source is not None else "",
    )


def unique_ids(samples: list[Sample]) -> list[Sample]:
    """Number repeated ids: the second "a" becomes "a#2", so that every sample has its own key."""
    seen: dict[str, int] = {}
    result = []
    for sample in samples:
        seen[sample.id] = seen.get(sample.id, 0) + 1
        n = seen[sample.id]
        result.append(sample if n == 1 else sample.model_copy(update={"id": f"{sample.id}#{n}"}))
    return result


def chosen(items: list[T], ident: Callable[[T], str], key: str, limit: int | None) -> list[T]:
    """At most `limit` items, by keyed hash of their id; the order of the rest is kept."""
    if limit is None or limit >= len(items):
        return items
    best = sorted(items, key=lambda i: (keyed_hash(key, "limit", ident(i)), ident(i)))[:limit]
    keep = {ident(i) for i in best}
    return [i for i in items if ident(i) in keep]


def read_samples(data: DataConfig, key: str) -> tuple[list[Sample], list[Sample]]:
    """Training and held-out samples of a source.

    Args:
        data: Source, columns, limit, held_out.
        key: Data key of the hash that picks samples.

    Raises:
        UserError: The source is unknown, missing, empty or broken.
    """
    kind, _, name = data.source.partition(":")
    if kind == "builtin":
        if name not in BUILTIN_DATA:
            raise unknown("built-in data set", name, BUILTIN_DATA, where="data.source")
        samples = BUILTIN_DATA[name]()
    elif Path(data.source).suffix in SUFFIXES or Path(data.source).exists() or data.source.count("/") != 1:
        path = Path(data.source).expanduser()
        samples = [_to_sample(row, data, f"{path}, row {i}") for i, row in enumerate(read_rows(path), 1)]
    else:
        samples = [_to_sample(row, data, f"{data.source}, row {i}") for i, row in enumerate(_hub_rows(data), 1)]
    samples = unique_ids(samples)
    held = chosen(samples, lambda s: s.id, f"{key}:held_out", data.held_out) if data.held_out else []
    out = {s.id for s in held}
    train = [s for s in samples if s.id not in out]
    if not train:
        raise UserError(f"data {data.source!r}: {len(samples)} rows are no more than held_out {data.held_out}")
    return chosen(train, lambda s: s.id, key, data.limit), held
