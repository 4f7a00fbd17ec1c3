"""One batch in which every request names its own LoRA adapter: one frozen base, several adapters, none of them merged.

All rows share the base's matmuls; rows of one adapter stand together and add their own low-rank update. The same
function as running each adapter alone, unmerged.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import PreTrainedModel

from prefixlab.model.decode import FusedForward, fusable
from prefixlab.model.generate import Completion, Request, complete, generate, with_adapter


@contextmanager
def _loaded(model: PreTrainedModel, folders: Sequence[Path]) -> Iterator[tuple[PeftModel, list[str]]]:
    """Load adapters beside each other into `model` inside the block; their names are their places."""
    names = [f"adapter{i}" for i in range(len(folders))]
    wrapped: Any = PeftModel.from_pretrained(model, str(folders[0]), adapter_name=names[0])
    try:
        for name, folder in zip(names[1:], folders[1:], strict=True):
            wrapped.load_adapter(str(folder), adapter_name=name)
        yield wrapped.eval(), names
    finally:
        wrapped.unload()


def generate_mixed(
    model: PreTrainedModel,
    requests: Sequence[Request],
    adapters: Sequence[Path | None],
    *,
    stop_ids: frozenset[int],
    pad: int,
) -> list[Completion]:
    """Complete one batch in which each request uses its own adapter.

    Args:
        model: The base; changed in place for the duration, and left as it was.
        requests: The batch.
        adapters: PEFT LoRA folder of each request; None is the base.
        stop_ids: Any of these ends a completion and is not part of it.
        pad: Token id for padding; hidden by the mask.

    Returns:
        One completion a request, in the same order. Models and kinds of adapter that cannot be mixed run one adapter
        after another.
    """
    if len(adapters) != len(requests):
        raise ValueError(f"{len(adapters)} adapters for {len(requests)} requests: give one, or None, for each")
    folders = list(dict.fromkeys(a for a in adapters if a is not None))
    if not folders:
        return generate(model, requests, stop_ids=stop_ids, pad=pad)
    if fusable(model):
        with _loaded(model, folders) as (wrapped, names):
            configs: list[Any] = list(wrapped.peft_config.values())
            if fusable(model) and not any(c.modules_to_save or c.trainable_token_indices for c in configs):
                numbers = [() if a is None else (folders.index(a),) for a in adapters]
                forward = FusedForward(model, names)
                return complete(forward, requests, stop_ids=stop_ids, pad=pad, adapters=numbers)
    done: dict[int, Completion] = {}
    for folder in (None, *folders):
        mine = [i for i, a in enumerate(adapters) if a == folder]
        if not mine:
            continue
        with with_adapter(model, folder, merge=False) as alone:
            done |= zip(mine, generate(alone, [requests[i] for i in mine], stop_ids=stop_ids, pad=pad), strict=True)
    return [done[i] for i in range(len(requests))]
