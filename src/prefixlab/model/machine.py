"""What this machine can do, and the computing choices that follow from it by declared rules.

The rules look at counts and CPU features, never at a timing, so the same kind of machine always resolves the same
way. The result is stored in plan.json, is part of every step's id, and is obeyed on resume.
"""

import os
import platform
from pathlib import Path

import torch

from prefixlab.config import HardwareConfig
from prefixlab.records import Resolved


def cpu_threads() -> int:
    """CPU threads this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def resolve(config: HardwareConfig) -> Resolved:
    """Turn `auto` into settings. Source of the bf16 rule: docs/decisions/0003-dtype.md."""
    device = config.device if config.device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
    if config.dtype != "auto":
        dtype, why = config.dtype, "set in the study"
    elif device != "cpu":
        dtype, why = "bfloat16", "a GPU"
    elif torch.cpu._is_avx512_bf16_supported():
        dtype, why = "bfloat16", "the CPU has AVX512-BF16"
    else:
        dtype, why = "float32", "the CPU has no AVX512-BF16, and bfloat16 is slow without it"
    return Resolved(
        device=device,
        dtype=dtype,
        attention="prefixlab" if device == "cpu" else "sdpa",
        threads=config.threads or cpu_threads(),
        merge_adapters=dtype == "float32",
        why=why,
    )


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
        "avx512_bf16": str(torch.cpu._is_avx512_bf16_supported()),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none",
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }
