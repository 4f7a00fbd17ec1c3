"""One batch in which every request names its own LoRA adapter: one frozen base, several adapters, none of them merged.

All rows share the base's matmuls; rows of one adapter stand together and add their own low-rank update. The same
function as running each adapter alone, unmerged.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from peft import LoraConfig, PeftConfig
from safetensors.torch import load_file
from transformers import PreTrainedModel

from prefixlab.model.decode import PROJECTIONS, FusedForward, Updates, fusable
from prefixlab.model.generate import Completion, Request, complete, generate, with_adapter

PLAIN = {
    *("task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode"),
    *("r", "lora_alpha", "use_rslora", "lora_dropout", "target_modules", "exclude_modules", "init_lora_weights"),
    *("layers_to_transform", "layers_pattern"),
}
"""Fields of a LoRA configuration that leave the update what it is: B A times the scaling."""


def read_updates(model: PreTrainedModel, folder: Path) -> Updates | None:
    """The updates in a PEFT folder, without changing the model; None if they are of another kind than `PLAIN`."""
    config = PeftConfig.from_pretrained(str(folder))
    file = folder / "adapter_model.safetensors"
    if not isinstance(config, LoraConfig) or config.init_lora_weights not in (True, False, "gaussian"):
        return None
    usual = LoraConfig()
    odd = [k for k, v in vars(config).items() if k not in PLAIN and v != getattr(usual, k)]
    if odd or not file.exists():
        return None
    tensors = load_file(file)
    scaling = config.lora_alpha / (math.sqrt(config.r) if config.use_rslora else config.r)
    paths = {f"model.layers.{i}.{name}" for i in range(model.config.num_hidden_layers) for name in PROJECTIONS}
    updates: Updates = {}
    for key, down in tensors.items():
        path, _, kind = key.removeprefix("base_model.model.").partition(".lora_")
        if path not in paths or kind not in ("A.weight", "B.weight"):
            return None
        if kind == "A.weight":
            up = tensors[key.replace(".lora_A.", ".lora_B.")] * scaling
            # PEFT computes updates in float32 beside a base of lower precision.
            updates[path] = [(down.to(model.device, torch.float32), up.to(model.device, torch.float32))]
    return updates


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
        model: The base, without adapters.
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
        updates = [read_updates(model, folder) for folder in folders]
        known = [u for u in updates if u is not None]
        if len(known) == len(updates):
            numbers = [() if a is None else (folders.index(a),) for a in adapters]
            forward = FusedForward(model, known)
            return complete(forward, requests, stop_ids=stop_ids, pad=pad, adapters=numbers)
    done: dict[int, Completion] = {}
    for folder in (None, *folders):
        mine = [i for i, a in enumerate(adapters) if a == folder]
        if not mine:
            continue
        with with_adapter(model, folder, merge=False) as alone:
            done |= zip(mine, generate(alone, [requests[i] for i in mine], stop_ids=stop_ids, pad=pad), strict=True)
    return [done[i] for i in range(len(requests))]
