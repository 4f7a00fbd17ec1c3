"""What a device can do, for the plan's hours and memory: data sheets, and the shares of them that are assumed.

Peaks are model/machine's (dense bf16); memory and bandwidth are of the makers' data sheets. A share of the peak is an
assumption, no promise: LoRA steps of a few hundred tokens and eager decoding reach less than large pre-training runs.
"""

import os
from dataclasses import dataclass

import torch

from prefixlab.errors import unknown
from prefixlab.model.machine import CPU_PEAKS, PEAKS, gpu_peak
from prefixlab.records import Resolved

TRAIN_SHARE = 0.30
"""Of a GPU's peak, in training."""
FORWARD_SHARE = 0.40
"""Of a GPU's peak, where many tokens pass at once: prompts, given answers, a guard model."""
BANDWIDTH_SHARE = 0.70
"""Of a GPU's memory bandwidth, in decoding."""
LAUNCH = 0.8e-3
"""Seconds a layer and step of eager decoding takes however small it is: 26 ms for 32 layers."""
CPU_TRAIN, CPU_FORWARD = 35e9, 46e9
"""FLOP/s a thread in float32, seen on two AVX2 threads: 140 tokens/s of training, 64 prompts of 60 tokens with 60 new
tokens each in 20 s (SmolLM2-135M)."""
CPU_BF16 = 200e9
"""FLOP/s a thread in bfloat16 with AVX512-BF16 (docs/performance.md)."""
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


def _gpu(name: str, peak: float | None, memory: float, bandwidth: float | None, width: int, processes: int) -> Device:
    about = (
        f"{100 * TRAIN_SHARE:.0f}% of its bf16 peak in training, {100 * FORWARD_SHARE:.0f}% in forward passes, "
        f"{100 * BANDWIDTH_SHARE:.0f}% of its bandwidth in decoding: assumed, not measured"
        if peak
        else "no bf16 peak is known of it, so there are no hours"
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


def this_device(hardware: Resolved) -> Device:
    """The machine that plans, as its settings were resolved."""
    width = 4 if hardware.dtype == "float32" else 2
    if hardware.device != "cpu":
        found = torch.cuda.get_device_properties(0)
        peak = gpu_peak(found.name, hardware.dtype)
        near = next((g for g in GPUS.values() if peak is not None and PEAKS[g[0]] == peak), None)
        return _gpu(found.name, peak, found.total_memory, near and near[2], width, hardware.processes)
    slow = hardware.dtype == "float32"
    memory = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    train, forward = (CPU_TRAIN, CPU_FORWARD) if slow else (CPU_BF16, CPU_BF16)
    share = 100 * train / CPU_PEAKS[hardware.dtype]
    return Device(
        name=f"{THIS}'s CPU, {hardware.threads} threads",
        memory=memory,
        train=train * hardware.threads,
        forward=forward * hardware.threads,
        bandwidth=None,
        launch=0.0,
        dtype_bytes=width,
        about=f"{train / 1e9:.0f} GFLOP/s a thread in training ({share:.0f}% of the peak), {forward / 1e9:.0f} in "
        f"forward passes, as measured on two threads in {hardware.dtype}",
    )


def find_device(name: str, hardware: Resolved) -> Device:
    """A GPU of the table, or this machine for an empty name.

    Args:
        name: As `--device` takes it.
        hardware: This machine's settings.

    Raises:
        UserError: No such device.
    """
    if not name:
        return this_device(hardware)
    if name not in GPUS:
        raise unknown("device", name, GPUS, where="--device")
    entry, memory, bandwidth = GPUS[name]
    return _gpu(entry, PEAKS[entry], memory, bandwidth, 2, 1)
