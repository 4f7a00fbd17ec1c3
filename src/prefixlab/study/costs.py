"""Formulas of the plan: memory of training and of evaluation, seconds of decoding, bytes on disk (docs/methods.md, 12).

Operations are counted in model/flops.py. Everything here is arithmetic on a model's numbers: no torch, no files.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prefixlab.model.flops import generate_flops
from prefixlab.study.devices import SERVER_STEP, TRAIN_LAUNCHES, USABLE, Device

if TYPE_CHECKING:
    from prefixlab.model.architectures import Architecture
    from prefixlab.model.recipes import Recipe

ADAPTER_BYTES = 16
"""A trained weight in float32, its gradient, and two moments of AdamW."""
HEAD_ROWS = 128
"""Rows of logits that the loss holds at once (model/loss.py)."""
INPUTS = {"q_proj": "attention", "k_proj": "attention", "v_proj": "attention", "gate_proj": "mlp", "up_proj": "mlp"}
"""Layers that read the same tensor; o_proj's input is kept by the attention anyway."""
LOG_BYTES, LOG_TOKEN = 1_700, 4.0
"""Bytes of a logged completion, and of each of its tokens, over the two logs and the score tables together: 96
completions of at most 80 tokens took 573 kB as logs, batch plan and scores."""
TABLE_ROW = 14
"""Bytes of a token in the compressed tables of the token analysis."""


@dataclass(frozen=True)
class Setting:
    """What can be changed to make training fit, without changing a gradient."""

    micro_batch: int
    accumulation: int
    checkpointing: bool

    def words(self) -> str:
        """As keys of a study file."""
        extra = ", trainer: {activation_checkpointing: true}" if self.checkpointing else ""
        return f"training: {{batch_size: {self.micro_batch}, accumulation: {self.accumulation}{extra}}}"


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes at the peak of a training step."""

    weights: float
    adapter: float
    activations: float
    head: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.weights + self.adapter + self.activations + self.head


def adapted(arch: "Architecture", plan: "Recipe") -> list[str]:
    """Names of the layers that get an adapter."""
    linear = arch.shape.linear
    return list(linear) if plan.target_modules == "all-linear" else [n for n in plan.target_modules if n in linear]


def adapter_parameters(arch: "Architecture", plan: "Recipe") -> int:
    """Trained weights: rank times (in + out) of every adapted layer."""
    return plan.r * arch.shape.adapter_width(plan.target_modules)


def layer_bytes(arch: "Architecture", plan: "Recipe", width: int, length: int, *, explicit: bool) -> float:
    """Bytes that the backward pass needs of one token in one layer.

    The MLP's three products, queries, keys, values and what attention gives, the norms' float32 copies, and the
    inputs of adapters; a dropped input is kept for each layer with its mask.

    Args:
        arch: The model.
        plan: Its adapter.
        width: Bytes of an activation.
        length: Tokens of the sample.
        explicit: Whether attention keeps its weights, as ours for CPUs does, or computes them again.
    """
    names, linear = adapted(arch, plan), arch.shape.linear
    kept = width * (3 * arch.inner + 2 * arch.queries + 2 * arch.kv) + 8 * arch.hidden + 4 * arch.heads
    if plan.dropout:
        kept += sum(linear[n][0] * (width + 1) for n in names)
    else:
        own = {INPUTS[n] for n in names if n in INPUTS}
        kept += width * (arch.hidden * len(own) + (arch.inner if "down_proj" in names else 0))
    kept += width * plan.r * len(names)
    return float(kept + (width * arch.heads * length if explicit else 0))


def training_memory(
    arch: "Architecture", plan: "Recipe", width: int, length: int, setting: Setting, *, explicit: bool = False
) -> TrainingMemory:
    """Memory of one cell in training, on one device.

    With checkpointing a layer's input is all that is kept of it, and one layer's activations are there at a time. The
    backward pass of an MLP holds two more of its products.

    Args:
        arch: The model.
        plan: Recipe of the adapter.
        width: Bytes of a base weight and of an activation.
        length: Tokens of the longest sample, padding to it included.
        setting: Micro-batch and checkpointing.
        explicit: As in `layer_bytes`.
    """
    tokens = setting.micro_batch * length
    one = layer_bytes(arch, plan, width, length, explicit=explicit)
    layers = arch.layers * width * arch.hidden + one if setting.checkpointing else arch.layers * one
    passing = 2 * width * arch.inner
    return TrainingMemory(
        weights=float(arch.parameters * width),
        adapter=float(adapter_parameters(arch, plan) * ADAPTER_BYTES),
        activations=tokens * (layers + passing),
        head=float(HEAD_ROWS * arch.vocabulary * (4 + 2 * width) + 3 * tokens * arch.hidden * width),
    )


def settings(plan: "Recipe") -> Iterator[Setting]:
    """The study's own setting, then those of the same optimiser step that need less: the faster ones first."""
    step = plan.batch_size * plan.accumulation
    asked = bool(plan.trainer_options.get("activation_checkpointing"))
    yield Setting(plan.batch_size, plan.accumulation, asked)
    smaller = [b for b in range(plan.batch_size - 1, 0, -1) if step % b == 0]
    for checkpointing in (False, True) if not asked else (True,):
        for batch in [*([plan.batch_size] if checkpointing and not asked else []), *smaller]:
            yield Setting(batch, step // batch, checkpointing)


def fits(total: float, memory: float | None) -> bool | None:
    """Whether so many bytes fit; None where the memory is not known."""
    return None if memory is None else total <= USABLE * memory


def kv_bytes(arch: "Architecture", width: int) -> int:
    """Keys and values of one token over all layers."""
    return 2 * arch.layers * arch.kv * width


def evaluation_memory(arch: "Architecture", width: int, rows: float, length: float) -> float:
    """Weights, and keys and values of `rows` rows of `length` tokens."""
    return arch.parameters * width + rows * length * kv_bytes(arch, width)


def rows_that_fit(arch: "Architecture", width: int, length: float, memory: float | None, asked: int) -> int | None:
    """Rows of `length` tokens that are decoded at once, at most those asked for; None where memory is unknown."""
    if memory is None:
        return None
    left = USABLE * memory - arch.parameters * width
    return max(0, min(asked, int(left // (length * kv_bytes(arch, width)))))


def prefill_seconds(arch: "Architecture", device: Device, tokens: float, scored: float) -> float | None:
    """Seconds of forward passes over many tokens, the head at `scored` of them; None where no rate is known."""
    return generate_flops(arch.shape, tokens, scored) / device.forward if device.forward else None


def longest_of(rows: int, mean: float, limit: float) -> float:
    """Expected length of the longest of `rows` completions, of exponentially distributed lengths that a limit cuts.

    The maximum of n exponential lengths is the mean times 1 + 1/2 + ... + 1/n.
    """
    return min(limit, mean * sum(1 / n for n in range(1, rows + 1)))


@dataclass(frozen=True)
class Decoding:
    """Completions of one suite, as they are decoded together."""

    rows: int
    """In a batch at its start."""
    prompt: float
    """Mean tokens in front."""
    completions: float
    mean: float
    """Expected length of a completion."""
    limit: float
    """Longest one."""
    served: bool
    """By a server, which replaces a finished row at once and launches a whole step as one. In our engine it leaves, the
    batch ends with its longest completion, and each layer is launched by itself."""


def decode_seconds(arch: "Architecture", device: Device, job: Decoding) -> float | None:
    """Seconds to write completions.

    A step takes its operations or the reading of weights, keys and values, whichever is longer, and a fixed time:
    for each layer in our engine, for the step on a server. None where no rate is known, or not even one row fits.
    """
    if not device.forward or job.rows < 1:
        return None
    steps = job.mean if job.served else longest_of(job.rows, job.mean, job.limit)
    active = job.rows * job.mean / steps
    step = active * generate_flops(arch.shape, 1, 1) / device.forward
    if device.bandwidth:
        # Half of a length that all rows have; the mean of lengths that spread, of which long ones last longer.
        behind = job.prompt + min(job.mean, steps / 2)
        step = max(step, evaluation_memory(arch, device.dtype_bytes, active, behind) / device.bandwidth)
    launch = SERVER_STEP if job.served and device.launch else arch.layers * device.launch
    return job.completions / job.rows * steps * (step + launch)


def train_seconds(arch: "Architecture", device: Device, flops: float, micro_batches: float) -> float | None:
    """Seconds of trainings: their operations, or the time to launch them, whichever is longer; None without a rate."""
    if not device.train:
        return None
    return max(flops / device.train, micro_batches * arch.layers * device.launch * TRAIN_LAUNCHES)


def adapter_file(arch: "Architecture", plan: "Recipe") -> int:
    """Bytes of a saved adapter, which is float32."""
    return 4 * adapter_parameters(arch, plan)
