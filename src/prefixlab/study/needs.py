"""What a worker of each lane needs of a node: CPUs, GPUs, memory. Counted from the plan, never from a machine.

Every worker of a lane can do every step of it, so the largest model decides. The memory is the least that is possible,
weights as they are computed with and what the libraries take: what surely does not fit is refused before anything
runs, what fits closely may still fail.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from prefixlab.model.flops import model_shape
from prefixlab.records import ModelRef, Resolved
from prefixlab.study.schedule import Lane, base_of, lane_of
from prefixlab.study.steps import Plan, Step

LIBRARIES = 1 << 30
"""Bytes that torch, transformers and Inspect take in a process with a small model."""
ITEM = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Need:
    """What one worker takes."""

    cpus: float
    gpus: int
    memory: int
    """Bytes of the node's memory."""
    gpu_memory: int = 0
    """Bytes of each GPU's memory."""

    def said(self) -> str:
        """In words."""
        parts = [f"{self.cpus:g} CPUs", f"{self.memory / 1e9:.1f} GB of memory"]
        if self.gpus:
            parts.insert(1, f"{self.gpus} GPUs of {self.gpu_memory / 1e9:.1f} GB or more")
        return ", ".join(parts)


@cache
def _weights(path: str, revision: str | None, name: str) -> int:
    from prefixlab.model.load import load_config  # noqa: PLC0415  (seconds; a wrong address is said before)

    config = load_config(ModelRef(name=name, path=path, revision=revision, fingerprint="", note=""))
    shape = model_shape(config, name)
    tables = 1 if getattr(config, "tie_word_embeddings", False) else 2
    return shape.weights + tables * shape.vocabulary * shape.hidden


def weight_bytes(ref: ModelRef, dtype: str) -> int:
    """Bytes of a base's weights in the dtype they are computed with; adapters, biases and norms left out."""
    return _weights(ref.path, ref.revision, ref.name) * ITEM[dtype]


def models_of(plan: Plan, steps: Sequence[Step]) -> list[ModelRef]:
    """The models that steps load: the plan's, and one that judges where it runs in our own process."""
    from prefixlab.model.load import resolve_model  # noqa: PLC0415  (torch)

    judged = [s.config["judge_settings"] or {} for s in steps if s.kind == "eval"]
    judges = sorted({settings["model"] for settings in judged if "fingerprint" in settings})
    return [*plan.models, *map(resolve_model, judges)]


def needs(plan: Plan, steps: Sequence[Step]) -> dict[Lane, Need]:
    """Needs by lane; a lane without steps is left out.

    Args:
        plan: Whose models and hardware count.
        steps: Those of the plan that are to be done.
    """
    hardware: Resolved = plan.hardware
    gpus = hardware.device == "cuda"
    lanes = {lane_of(s, gpus) for s in steps}
    loads = any(base_of(s) or s.kind == "train" for s in steps)
    models = models_of(plan, steps) if loads else []
    weights = max((weight_bytes(ref, hardware.dtype) for ref in models), default=0)
    found: dict[Lane, Need] = {}
    if "model" in lanes:
        found["model"] = Need(
            # A GPU's work takes one CPU a process; `threads` is for models that run on the CPU.
            cpus=hardware.processes if gpus else hardware.threads,
            gpus=hardware.processes if gpus else 0,
            memory=weights + LIBRARIES,
            gpu_memory=weights if gpus else 0,
        )
    if "plain" in lanes:
        found["plain"] = Need(cpus=1, gpus=0, memory=LIBRARIES)
    return found
