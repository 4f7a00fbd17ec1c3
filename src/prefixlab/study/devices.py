"""What a device can do, for the plan's hours and memory: data sheets, and the shares of them that are assumed.

Peaks are model/machine's (dense bf16); memory and bandwidth are of the makers' data sheets. A share of the peak is an
assumption, no promise: LoRA steps of a few hundred tokens and eager decoding reach less than large pre-training runs.
"""

import os
import re
from dataclasses import dataclass

import torch

from prefixlab.errors import unknown
from prefixlab.model.machine import CPU_PEAKS, PEAKS, bf16_is_fast, gpu_peak
from prefixlab.records import Resolved

TRAIN_SHARE = 0.30
"""Of a GPU's peak, in training."""
FORWARD_SHARE = 0.40
"""Of a GPU's peak, where many tokens pass at once: prompts, given answers, a guard model."""
BANDWIDTH_SHARE = 0.70
"""Of a GPU's memory bandwidth, in decoding."""
LAUNCH = 0.8e-3
"""Seconds a layer and step of eager decoding takes however small it is: 26 ms for 32 layers."""
SERVER_STEP = 4e-3
"""Seconds that a server takes for a step of all its completions beside the device's own work."""
TRAIN_LAUNCHES = 2.5
"""So many times LAUNCH a layer of a micro-batch in training takes at least: forward with adapters, and backward."""
CPU_TRAIN, CPU_FORWARD = 35e9, 46e9
"""FLOP/s a thread in float32, seen on two AVX2 threads: 140 tokens/s of training, 64 prompts of 60 tokens with 60 new
tokens each in 20 s (SmolLM2-135M)."""
CPU_BF16 = 200e9
"""FLOP/s a thread in bfloat16 with AVX512-BF16 (docs/performance.md)."""
SLOW_BF16 = 1 / 16
"""Share of the float32 rates that a CPU without AVX512-BF16 reaches in bfloat16: TRL's there (docs/performance.md)."""
USABLE = 0.9
"""Of the memory; the rest is for the context, fragments and what no formula counts."""


@dataclass(frozen=True)
class Device:
    """One accelerator, or the CPU of one machine."""

    name: str
    memory: float | None
    """Bytes; None where it is not known."""
    train: float | None
    """FLOP/s reached in training; None where the peak is not known."""
    forward: float | None
    """FLOP/s reached in forward passes over many tokens."""
    bandwidth: float | None
    """Bytes/s reached in decoding; None where operations alone count, as on a CPU."""
    launch: float
    """Seconds a layer and decoding step at least."""
    dtype_bytes: int
    about: str
    """What the rates are taken from."""


# Name on the command line -> entry of PEAKS, memory in bytes, bandwidth in bytes/s, maker's data sheet.
GPUS: dict[str, tuple[str, float, float]] = {
    "h200": ("H200", 141e9, 4.8e12),
    "h100": ("H100", 80e9, 3.35e12),
    "a100-80": ("A100", 80e9, 2.039e12),
    "a100-40": ("A100", 40e9, 1.555e12),
    "l40s": ("L40S", 48e9, 864e9),
    "l4": ("L4", 24e9, 300e9),
    "rtx4090": ("RTX 4090", 24e9, 1.008e12),
}
THIS = "this machine"
BF16 = "bfloat16"


def _gpu(name: str, peak: float | None, memory: float, bandwidth: float | None, width: int, processes: int) -> Device:
    about = (
        f"{100 * TRAIN_SHARE:.0f}% of its bf16 peak in training, {100 * FORWARD_SHARE:.0f}% in forward passes, "
        f"{100 * BANDWIDTH_SHARE:.0f}% of its bandwidth in decoding: assumed, not measured"
        if peak
        else "only rates in bfloat16 are known, and not of every GPU: there are no hours"
    )
    return Device(
        name=name,
        memory=memory,
        train=peak and peak * TRAIN_SHARE * processes,
        forward=peak and peak * FORWARD_SHARE,
        bandwidth=bandwidth and bandwidth * BANDWIDTH_SHARE,
        launch=LAUNCH,
        dtype_bytes=width,
        about=about,
    )


def cpu_rates(dtype: str) -> tuple[float, float]:
    """FLOP/s a thread of this CPU in training and in forward passes."""
    if dtype == "float32":
        return CPU_TRAIN, CPU_FORWARD
    return (CPU_BF16, CPU_BF16) if bf16_is_fast() else (SLOW_BF16 * CPU_TRAIN, SLOW_BF16 * CPU_FORWARD)


def _listed(name: str, memory: float) -> tuple[str, float, float] | None:
    """The GPU of the table that a device's name means; of several with one name the nearest in memory."""
    words = set(re.split(r"[\s-]+", name))
    known = [gpu for gpu in GPUS.values() if words.issuperset(gpu[0].split()) and PEAKS[gpu[0]] == gpu_peak(name, BF16)]
    return min(known, key=lambda gpu: abs(gpu[1] - memory), default=None)


def this_device(hardware: Resolved) -> Device:
    """The machine that plans, as its settings were resolved."""
    width = 4 if hardware.dtype == "float32" else 2
    if hardware.device != "cpu":
        found = torch.cuda.get_device_properties(0)
        peak, near = gpu_peak(found.name, hardware.dtype), _listed(found.name, found.total_memory)
        return _gpu(found.name, peak, found.total_memory, near and near[2], width, hardware.processes)
    memory = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    train, forward = cpu_rates(hardware.dtype)
    share = 100 * train / CPU_PEAKS[hardware.dtype]
    if hardware.dtype == "float32" or bf16_is_fast():
        how = f"({share:.0f}% of the peak), {forward / 1e9:.0f} in forward passes, as measured on two threads in "
        how += hardware.dtype
    else:
        how = "in bfloat16, for which this CPU has no instructions: in float32 it is about 16 times as fast"
    return Device(
        name=f"{THIS}'s CPU, {hardware.threads} threads",
        memory=memory,
        train=train * hardware.threads,
        forward=forward * hardware.threads,
        bandwidth=None,
        launch=0.0,
        dtype_bytes=width,
        about=f"{train / 1e9:.0f} GFLOP/s a thread in training {how}",
    )


def find_device(name: str, hardware: Resolved, dtype: str = "auto") -> Device:
    """A GPU of the table, or this machine for an empty name.

    Args:
        name: As `--device` takes it.
        hardware: This machine's settings.
        dtype: As the study asks for it; bfloat16 on a GPU where it leaves the choice.

    Raises:
        UserError: No such device.
    """
    if not name:
        return this_device(hardware)
    if name not in GPUS:
        raise unknown("device", name, GPUS, where="--device")
    entry, memory, bandwidth = GPUS[name]
    if dtype == "float32":
        return _gpu(entry, None, memory, bandwidth, 4, 1)
    return _gpu(entry, PEAKS[entry], memory, bandwidth, 2, 1)
