"""Batches of an evaluation, fixed before the first request is sent; and what of them is done already.

A plan depends on prompts and decoding alone, never on the order of arrival. A batch that was completed is written down
at once, so that a killed evaluation goes on at the next one and ends with the completions of an undisturbed one.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from prefixlab.data.arms import keyed_hash
from prefixlab.evals.conditions import Prompt
from prefixlab.evals.protocols import Decoding
from prefixlab.model.generate import Completion
from prefixlab.records import Record

Key = tuple[str, int]
"""Item id and epoch (from 1)."""


class PlannedRequest(Record):
    """One completion to come: what is sent and how it is drawn."""

    item: str
    epoch: int
    ids: tuple[int, ...]
    prefill: str
    """Text of the last ids that stands for the start of the model's own turn; empty if nothing is prefilled."""
    seed: int
    options: tuple[tuple[int, ...], ...] = ()
    """Answers whose log-likelihood is asked for, instead of a completion."""

    @property
    def key(self) -> Key:
        """Item and epoch."""
        return self.item, self.epoch


class BatchPlan(Record):
    """Every request of an evaluation in its batch, fixed before the first one is sent."""

    max_tokens: int
    temperature: float
    top_p: float
    repetition_penalty: float
    batches: tuple[tuple[PlannedRequest, ...], ...]

    def digest(self) -> str:
        """Hash of the whole plan."""
        return hashlib.sha256(self.model_dump_json().encode("utf-8", "surrogatepass")).hexdigest()


def plan_batches(
    prompts: Mapping[Key, Prompt],
    how: Decoding,
    key: str,
    batch_size: int,
    options: Mapping[str, tuple[tuple[int, ...], ...]] | None = None,
) -> BatchPlan:
    """Batches of prompts of similar length, longest first; the samples of one prompt stay together where they fit.

    Args:
        prompts: What is sent, by item id and epoch.
        how: Decoding.
        key: Part of every request's seed.
        batch_size: Requests a batch.
        options: Ids of the answers of a multiple-choice item.
    """
    requests = [
        PlannedRequest(
            item=item,
            epoch=epoch,
            ids=prompt.ids,
            prefill=prompt.prefill,
            seed=keyed_hash(key, item, epoch) % 2**63,
            options=options[item] if options else (),
        )
        for (item, epoch), prompt in prompts.items()
    ]
    requests.sort(key=lambda r: (-len(r.ids), r.item, r.epoch))
    size = max(batch_size - batch_size % how.epochs, how.epochs) if how.epochs <= batch_size else batch_size
    return BatchPlan(
        max_tokens=how.max_tokens,
        temperature=how.temperature,
        top_p=how.top_p,
        repetition_penalty=how.repetition_penalty,
        batches=tuple(tuple(requests[i : i + size]) for i in range(0, len(requests), size)),
    )


class Answer(Record):
    """What came back for one request: ids of a completion, its text alone, or log-likelihoods of its options."""

    ids: tuple[int, ...] = ()
    text: str | None = None
    """From a server that does not tell the ids."""
    n_tokens: int | None = None
    """Of `text`, as the server counts them, without the token that ended it."""
    truncated: bool = False
    log_likelihoods: tuple[float, ...] = ()

    @classmethod
    def of(cls, done: Completion) -> "Answer":
        """From the engine's completion."""
        return cls(ids=done.ids, truncated=done.truncated)


class Kept:
    """Finished batches on disk, one line each. No file where `path` is None.

    Args:
        path: The file; its first line says what its batches are of.
        plan: The batches.
        identity: Which model answers: batches of another one are not used.
    """

    def __init__(self, path: Path | None, plan: BatchPlan, identity: str = "") -> None:
        self._path, self._plan = path, plan
        self.batches: dict[int, tuple[Answer, ...]] = {}
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        head, *lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else [""]
        mine = f"{plan.digest()} {identity}"
        if head != mine:
            path.write_text(mine + "\n", encoding="utf-8")
            return
        for line in lines:
            try:
                number, answers = json.loads(line)
            except ValueError:  # the last line of a killed process
                continue
            self.batches[int(number)] = tuple(Answer.model_validate(a) for a in answers)

    def add(self, number: int, answers: Sequence[Answer]) -> None:
        """Write a batch down for good."""
        self.batches[number] = tuple(answers)
        if self._path is None:
            return
        with self._path.open("a", encoding="utf-8") as file:
            # A line may follow one that a kill left open.
            file.write("\n" + json.dumps([number, [a.model_dump(mode="json") for a in answers]]) + "\n")
            file.flush()
            os.fsync(file.fileno())
