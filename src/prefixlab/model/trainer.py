"""transformers' Trainer over planned micro-batches: our loss, one row of metrics a step, checkpoints, a clean stop.

The base's forward is replaced for the duration by one that returns token losses, so that PEFT, DistributedDataParallel
and FSDP see an ordinary forward pass.
"""

import math
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainerCallback

from prefixlab.errors import StepError
from prefixlab.model import checkpoints
from prefixlab.model.attention import NAME as FAST_ATTENTION
from prefixlab.model.attention import causal_mask
from prefixlab.model.batches import SPAN_ORDER, Microbatch, collate
from prefixlab.model.flops import ModelShape, train_flops
from prefixlab.model.loss import IGNORE, token_loss
from prefixlab.records import Rendered

EXPLODED = 1_000.0
"""A gradient norm this many times the median of the steps before it means that training has come apart."""
SETTLED = 5
"""Steps before that rule applies."""
Tick = Callable[[int, int], None]
"""Called with (step, steps) after each optimiser step."""


def hidden_states(model: PreTrainedModel, batch: Microbatch) -> Tensor:
    """Last hidden states (B, T, D) of a micro-batch; `model` is the causal LM, adapters injected or not."""
    fast = model.config._attn_implementation == FAST_ATTENTION
    mask = causal_mask(batch.valid, model.dtype) if fast else batch.valid.long()
    out = model.get_decoder()(input_ids=batch.ids, attention_mask=mask.to(batch.ids.device), use_cache=False)
    hidden: Tensor = out.last_hidden_state
    return hidden


@contextmanager
def returning_losses(base: PreTrainedModel) -> Iterator[None]:
    """Inside the block a forward pass of the base gives {"losses", "norms"} of its supervised tokens."""

    def forward(input_ids: Tensor, attention_mask: Tensor, labels: Tensor, **_: object) -> dict[str, Tensor]:
        hidden = hidden_states(base, Microbatch(input_ids, labels, attention_mask, labels))
        head: Tensor = base.get_output_embeddings().weight
        losses, norms = token_loss(hidden, head, labels)
        return {"losses": losses, "norms": norms}

    base.forward = forward
    try:
        yield
    finally:
        del base.forward


class StopRequest:
    """Whether SIGTERM or SIGINT has asked the training to end after the step in progress."""

    def __init__(self) -> None:
        self.signal: int | None = None

    @contextmanager
    def listening(self) -> Iterator["StopRequest"]:
        """Take both signals over inside the block; a second SIGINT interrupts at once. Main thread only."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)}

        def note(number: int, frame: FrameType | None) -> None:
            if self.signal == number == signal.SIGINT:
                raise KeyboardInterrupt
            self.signal = number

        for number in before:
            signal.signal(number, note)
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class _Planned(DataLoader[Any]):
    """Micro-batches from a step on; its length is that of the whole plan, which the Trainer counts with."""

    def __init__(self, todo: list[list[int]], total: int, fetch: Callable[[list[int]], dict[str, Tensor]]) -> None:
        # A generator of its own: DataLoader draws a number whenever it is iterated, and dropout must not see that.
        super().__init__(todo, batch_size=None, collate_fn=fetch, generator=torch.Generator())  # type: ignore[arg-type]
        self._total = total

    def __len__(self) -> int:
        return self._total


def _silent(batch: Microbatch) -> Microbatch:
    """A micro-batch whose tokens neither count nor carry loss."""
    nothing = torch.zeros_like(batch.valid)
    return Microbatch(batch.ids, torch.full_like(batch.labels, IGNORE), nothing, torch.full_like(batch.spans, -1))


class CellTrainer(Trainer):
    """Trainer over planned micro-batches, with the frozen-head loss and per-span metrics."""

    def __init__(
        self,
        *,
        steps: list[list[list[int]]],
        samples: Sequence[Rendered],
        pad: int,
        shape: ModelShape,
        rank: int,
        adapter_width: int,
        peak_flops: float | None,
        **kwargs: Any,
    ) -> None:
        super().__init__(train_dataset=list(samples), **kwargs)
        mine, world = self.args.process_index, self.args.world_size
        self._microbatches = [micro for step in steps for micro in step[mine::world]]
        self._per_step = len(steps[0]) // world
        self._samples, self._pad = samples, pad
        self._shape, self._rank, self._adapter_width, self._peak = shape, rank, adapter_width, peak_flops
        self._sums = torch.zeros(3, len(SPAN_ORDER), dtype=torch.float64)
        self._lengths: list[int] = []
        self._since = time.perf_counter()
        self.resumed_at = 0
        self.model_accepts_loss_kwargs = True
        self.remove_callback(PrinterCallback)

    @property
    def rows(self) -> list[dict[str, float]]:
        """One row a step, those before a resume included."""
        return [{k: v for k, v in row.items() if k != "epoch"} for row in self.state.log_history if "loss" in row]

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The planned micro-batches of this process, in order, behind the steps that are done."""
        samples, pad = self._samples, self._pad

        def fetch(indices: list[int]) -> dict[str, Tensor]:
            # A process without a share in a short step runs along with a sample that counts nothing.
            batch = collate([samples[i] for i in indices], pad) if indices else _silent(collate([samples[0]], pad))
            return {"input_ids": batch.ids, "labels": batch.labels, "valid": batch.valid, "spans": batch.spans}

        self._since = time.perf_counter()
        done = self.resumed_at * self._per_step
        return _Planned(self._microbatches[done:], len(self._microbatches), fetch)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Tensor | Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Sum of token losses over the supervised tokens of the whole optimiser step, of all processes."""
        labels, valid = inputs["labels"], inputs["valid"]
        out = model(input_ids=inputs["input_ids"], attention_mask=valid, labels=labels)
        losses: Tensor = out["losses"]
        spans = inputs["spans"][:, 1:][labels[:, 1:] != IGNORE].cpu()
        by_token = torch.stack([torch.ones(len(losses)), losses.detach().cpu(), out["norms"].detach().cpu()])
        self._sums.index_add_(1, spans, by_token.double())
        self._lengths += valid.sum(dim=1).tolist()
        # A step without any supervised token has no gradient, not a division by zero. DDP averages over processes.
        count = torch.as_tensor(num_items_in_batch, device=losses.device).clamp(min=1)
        total: Tensor = losses.sum() / count * self.accelerator.num_processes
        return total

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Turn the Trainer's step log into one row of metrics.jsonl, and stop where training has come apart."""
        if "loss" not in logs:
            return
        now = time.perf_counter()
        sums, lengths = self._gathered()
        supervised, tokens, seconds = float(sums[0].sum()), sum(lengths), now - self._since
        flops = train_flops(self._shape, lengths, int(supervised), self._rank, self._adapter_width)
        row: dict[str, float] = {
            "loss": float(sums[1].sum()) / supervised if supervised else 0.0,
            "grad_norm": float(logs.get("grad_norm", math.nan)),
            "learning_rate": float(logs.get("learning_rate", math.nan)),
            "tokens": tokens,
            "supervised_tokens": int(supervised),
            "seconds": seconds,
            "tokens_per_second": tokens / seconds,
            "flops": flops,
        }
        if self._peak:
            row["mfu"] = flops / seconds / self._peak
        for index, name in enumerate(SPAN_ORDER):
            if count := float(sums[0, index]):
                row[f"loss_{name}"] = float(sums[1, index]) / count
                row[f"logit_gradient_{name}"] = float(sums[2, index]) / count
        self._sums.zero_()
        self._lengths, self._since = [], now
        self._stop_if_broken(row)
        super().log(row)

    def _gathered(self) -> tuple[Tensor, list[int]]:
        """Sums by span and sample lengths, over all processes."""
        if self.args.world_size == 1:
            return self._sums, self._lengths
        parts: list[Any] = [None] * self.args.world_size
        torch.distributed.all_gather_object(parts, (self._sums, self._lengths))
        return torch.stack([sums for sums, _ in parts]).sum(dim=0), [n for _, lengths in parts for n in lengths]

    def _stop_if_broken(self, row: dict[str, float]) -> None:
        step, before = self.state.global_step, [r["grad_norm"] for r in self.rows]
        change = "lower training.learning_rate or training.max_grad_norm, or raise training.warmup_ratio"
        for name in ("loss", "grad_norm"):
            if not math.isfinite(row[name]):
                what = "training loss" if name == "loss" else "gradient norm"
                raise StepError(f"{what} became {row[name]} at step {step}; {change}")
        usual = statistics.median(before) if len(before) >= SETTLED else 0.0
        if usual and row["grad_norm"] > max(EXPLODED * usual, self.args.max_grad_norm):
            raise StepError(
                f"gradient norm exploded at step {step}: {row['grad_norm']:.3g} after a median of {usual:.3g}; {change}"
            )


class StepControl(TrainerCallback):
    """Progress, checkpoints by the clock, and a stop that is asked for from outside."""

    def __init__(
        self,
        tick: Tick,
        stop: StopRequest,
        folder: Path | None,
        identity: str,
        minutes: float,
        world: int,
        snapshots: Mapping[int, Path],
    ) -> None:
        self.tick, self.stop, self.folder, self.identity = tick, stop, folder, identity
        self.every, self.world, self.snapshots = minutes * 60, world, snapshots
        self.saved = time.monotonic()
        self.at = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Know where a resumed training stands."""
        self.at = state.global_step

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Keep a snapshot if one is due; decide, the same in every process, whether to save and whether to stop."""
        self.at = state.global_step
        if self.at in self.snapshots and state.is_world_process_zero:
            model.save_pretrained(str(self.snapshots[self.at]))
        self.tick(state.global_step, state.max_steps)
        due = bool(self.every) and time.monotonic() - self.saved >= self.every
        asked, due = self._agree(self.stop.signal or 0, due)
        if asked and self.stop.signal is None:
            self.stop.signal = asked
        if state.global_step >= state.max_steps:
            return
        control.should_save = bool(self.folder and (asked or due))
        control.should_training_stop = control.should_training_stop or bool(asked)

    def _agree(self, asked: int, due: bool) -> tuple[int, bool]:
        if self.world == 1:
            return asked, due
        votes: list[Any] = [None] * self.world
        torch.distributed.all_gather_object(votes, (asked, due))
        return max(a for a, _ in votes), any(d for _, d in votes)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Seal what the Trainer saved, then drop older checkpoints."""
        if self.world > 1:
            torch.distributed.barrier()
        if self.folder and state.is_world_process_zero:
            checkpoints.seal(self.folder, state.global_step, self.identity)
        self.saved = time.monotonic()
