"""Peaks of devices by name and dtype: whole words only, and none where the table's figure would be another's."""

import pytest

from prefixlab.model.machine import gpu_peak, peak_flops
from prefixlab.records import Resolved


@pytest.mark.parametrize(
    ("name", "tera"),
    [
        ("NVIDIA H200", 989),
        ("NVIDIA H200 NVL", 835),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA L4", 121),
        ("NVIDIA L40", 181),
        ("NVIDIA L40S", 362),
        ("NVIDIA GeForce RTX 4090", 165),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA GeForce RTX 4090 D", None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
        ("NVIDIA GH200 480GB", None),
        ("NVIDIA A10", None),
        ("Tesla T4", None),
        ("", None),
    ],
)
def test_gpu_peaks(name, tera):
    assert gpu_peak(name, "bfloat16") == (tera and tera * 1e12)
    assert gpu_peak(name, "float32") is None
    assert gpu_peak(name, "float16") is None


def test_a_cpus_peak_grows_with_its_threads():
    def peak(threads):
        return peak_flops(
            Resolved(
                device="cpu",
                dtype="float32",
                attention="prefixlab",
                threads=threads,
                merge_adapters=True,
                why="",
            )
        )

    assert peak(1) > 1e9 and peak(4) == 4 * peak(1)
