"""What this machine can do, and the computing choices that follow from it by declared rules.

The rules look at counts and CPU features, never at a timing, so the same kind of machine always resolves the same
way. The result is stored in plan.json, is part of every step's id, and is obeyed on resume.
"""

import ctypes
import gc
import os
import platform
import re
from pathlib import Path

import torch

from prefixlab.config import HardwareConfig
from prefixlab.errors import UserError
from prefixlab.records import Resolved


def cpu_threads() -> int:
    """CPU threads this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def bf16_is_fast() -> bool:
    """Whether this CPU has instructions for bfloat16."""
    return bool(torch.cpu._is_avx512_bf16_supported())


def resolve(config: HardwareConfig) -> Resolved:
    """Turn `auto` into settings. Source of the bf16 rule: docs/decisions/0003-dtype.md."""
    device = config.device if config.device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
    if config.dtype != "auto":
        dtype, why = config.dtype, "set in the study"
        if device == "cpu" and dtype == "bfloat16" and not bf16_is_fast():
            why += "; this CPU has no AVX512-BF16: expect it to be more than ten times slower than float32"
    elif device != "cpu":
        dtype, why = "bfloat16", "a GPU"
    elif bf16_is_fast():
        dtype, why = "bfloat16", "the CPU has AVX512-BF16"
    else:
        dtype, why = "float32", "the CPU has no AVX512-BF16, and bfloat16 is slow without it"
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("hardware.device 'cuda': this machine has no GPU that torch can use; set auto or cpu")
    if device == "cuda" and config.processes > torch.cuda.device_count():
        raise UserError(
            f"hardware.processes {config.processes}: one a GPU, and this machine has {torch.cuda.device_count()}"
        )
    return Resolved(
        device=device,
        dtype=dtype,
        attention="prefixlab" if device == "cpu" else "sdpa",
        threads=config.threads or cpu_threads(),
        merge_adapters=dtype == "float32",
        processes=config.processes,
        why=why,
    )


PEAKS = {
    "H200": 989e12,
    "H200 NVL": 835e12,
    "H100": 989e12,
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "RTX 4090": 165e12,
}
"""Dense bf16 FLOP/s by the makers' data sheets, by words of the device's name; the entry with most words counts."""
LESSER = frozenset({"MIG", "Laptop", "D"})
"""Words of a device's name that mark a share or a smaller kind of what the table lists."""
CPU_PEAKS = {"bfloat16": 510e9, "float32": 75e9}
"""FLOP/s a thread, measured: bf16 with AVX512-BF16, fp32 with AVX2 (docs/performance.md)."""
AVX512_FLOAT32 = 262e9
"""The same for fp32 with AVX512 (docs/performance.md)."""


def gpu_peak(name: str, dtype: str) -> float | None:
    """FLOP/s of a GPU by its name; None where the name is not in the table or the dtype is not bfloat16.

    Args:
        name: As torch.cuda.get_device_name gives it, e.g. "NVIDIA A100-SXM4-80GB".
        dtype: Of the base weights and activations.
    """
    words = set(re.split(r"[\s-]+", name))
    if dtype != "bfloat16" or words & LESSER:
        return None
    fitting = [entry for entry in PEAKS if words.issuperset(entry.split())]
    return PEAKS[max(fitting, key=lambda entry: len(entry.split()))] if fitting else None


def peak_flops(hardware: Resolved) -> float | None:
    """FLOP/s that all training processes together can reach; None where nothing is known of the device."""
    if hardware.device != "cpu":
        one = gpu_peak(torch.cuda.get_device_name(0), hardware.dtype)
        return one and one * hardware.processes
    if hardware.dtype == "bfloat16" and not bf16_is_fast():
        return None
    fast = hardware.dtype == "float32" and torch.backends.cpu.get_cpu_capability() == "AVX512"
    return (AVX512_FLOAT32 if fast else CPU_PEAKS[hardware.dtype]) * hardware.threads


WARM_UP = 80.0
"""Seconds that compiling takes at most, seen on two CPU threads."""
COMPILE_GAIN = {"bfloat16": 0.15, "float32": 0.0}
"""Share of the training time that compiled layers save on a CPU (docs/performance.md; in float32 none was seen)."""


def compile_pays(hardware: Resolved, flops: float) -> bool:
    """Whether compiling repays its warm-up twice over, by the planned operations of one process: never by a timing."""
    peak = peak_flops(hardware)
    if hardware.device != "cpu" or peak is None:
        return False
    return COMPILE_GAIN[hardware.dtype] * flops / (0.7 * peak) > 2 * WARM_UP


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters of mallopt(3)."""


def return_freed_memory() -> None:
    """Have glibc give freed blocks of 4 MiB and more back at once, where it would keep up to 32 MiB each.

    Activations come and go in sizes that change with every batch; kept blocks that fit none of them raise
    the peak (docs/performance.md). Other C libraries are left alone.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    for option in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD):
        libc.mallopt(option, 1 << 22)


def return_device_memory() -> None:
    """Give the memory of models that nothing holds any more back to the device, for other processes."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def describe() -> dict[str, str]:
    """The machine in words, for env.json and `doctor`."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text().splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    return {
        "cpu": model,
        "cpu_threads": str(cpu_threads()),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "avx512_bf16": str(bf16_is_fast()),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none",
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }
