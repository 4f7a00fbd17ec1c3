"""Which samples make up every optimiser step, decided from the whole set before training, and their tensors.

Order and grouping by length come from keyed hashes and from the length without prefix, so every arm of a cell sees the
same samples in the same order, however many processes share the work.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from prefixlab.data.arms import keyed_hash
from prefixlab.errors import UserError
from prefixlab.model.loss import IGNORE
from prefixlab.model.recipes import Recipe
from prefixlab.records import Rendered, SpanName

SPAN_ORDER: tuple[SpanName, ...] = ("prompt", "prefix", "reasoning", "answer", "end")
LENGTH_BUCKETS = 4
"""Optimiser steps whose samples are sorted by length together."""


def plan_batches(
    samples: Sequence[Rendered], plan: Recipe, key: str, seed: int, processes: int = 1
) -> list[list[list[int]]]:
    """Indices of every optimiser step, as its micro-batches, over all epochs.

    Each epoch orders samples by a keyed hash, sorts runs of a few batches by the length without prefix, and visits
    the batches in hashed order. A short last batch joins the one before if it has fewer samples than `accumulation`.

    Args:
        samples: Of one arm.
        plan: Batch size, accumulation, epochs.
        key: Data key.
        seed: Training seed.
        processes: Processes that share each step: micro-batch i belongs to process i modulo `processes`. The samples
            of a step do not depend on it; a micro-batch may then be empty.

    Raises:
        UserError: Fewer samples than `accumulation`.
    """
    size = plan.batch_size * plan.accumulation
    parts = accumulation(plan, processes) * processes
    check_count(len(samples), plan)
    steps: list[list[list[int]]] = []
    for epoch in range(plan.epochs):
        order = sorted(
            range(len(samples)), key=lambda i: (keyed_hash(key, samples[i].id, "order", seed, epoch), samples[i].id)
        )
        run = size * LENGTH_BUCKETS
        batches: list[list[int]] = []
        for start in range(0, len(order), run):
            group = sorted(order[start : start + run], key=lambda i: (samples[i].no_prefix_length, samples[i].id))
            batches += [group[i : i + size] for i in range(0, len(group), size)]
        if len(batches) > 1 and len(batches[-1]) < plan.accumulation:
            short = batches.pop()
            batches[-1] = batches[-1] + short
        batches.sort(key=lambda b: keyed_hash(key, samples[b[0]].id, "batch", seed, epoch))
        steps += [_split(batch, parts) for batch in batches]
    return steps


def check_count(samples: int, plan: Recipe) -> None:
    """Refuse a set with fewer samples than `accumulation`: micro-batches of its one step would be empty.

    Raises:
        UserError: Too few samples.
    """
    if samples < plan.accumulation:
        raise UserError(f"{samples} samples are fewer than training.accumulation {plan.accumulation}")


def count_steps(samples: int, plan: Recipe) -> int:
    """Optimiser steps that `plan_batches` makes of so many samples."""
    full, rest = divmod(samples, plan.batch_size * plan.accumulation)
    return plan.epochs * (full + (rest > 0 and (rest >= plan.accumulation or not full)))


def accumulation(plan: Recipe, processes: int) -> int:
    """Micro-batches that one process takes in an optimiser step."""
    return max(1, plan.accumulation // processes)


def _split(batch: list[int], parts: int) -> list[list[int]]:
    """Cut a batch into `parts` micro-batches of nearly equal size."""
    cuts = [len(batch) * i // parts for i in range(parts + 1)]
    return [batch[a:b] for a, b in pairwise(cuts)]


@dataclass(frozen=True)
class Microbatch:
    """Right-padded tensors of one micro-batch, (B, T) each."""

    ids: Tensor
    labels: Tensor
    valid: Tensor
    spans: Tensor
    """Index into SPAN_ORDER; -1 at padding."""

    def to(self, device: torch.device) -> "Microbatch":
        """The same on a device."""
        return Microbatch(*(t.to(device) for t in (self.ids, self.labels, self.valid, self.spans)))


def collate(samples: Sequence[Rendered], pad: int) -> Microbatch:
    """Right-pad samples to the longest."""
    width = max(len(s.ids) for s in samples)
    ids = torch.full((len(samples), width), pad)
    labels = torch.full((len(samples), width), IGNORE)
    spans = torch.full((len(samples), width), -1)
    valid = torch.zeros(len(samples), width, dtype=torch.bool)
    for row, sample in enumerate(samples):
        n = len(sample.ids)
        ids[row, :n] = torch.tensor(sample.ids)
        labels[row, :n] = torch.tensor(sample.labels)
        valid[row, :n] = True
        for span in sample.spans:
            spans[row, span.start : span.end] = SPAN_ORDER.index(span.name)
    return Microbatch(ids, labels, valid, spans)


def batches_of(samples: Sequence[Rendered], size: int) -> Iterator[list[int]]:
    """Indices in batches of similar length, longest first: planned from the whole set."""
    order = sorted(range(len(samples)), key=lambda i: (-len(samples[i].ids), samples[i].id))
    for start in range(0, len(order), size):
        yield order[start : start + size]
