import pytest
import torch

from pipeline_lib.hardware.machine import describe, peak_flops
from pipeline_lib.hardware.peaks import PEAKS, published_peak
from pipeline_lib.workspace.machine import usable_cores


@pytest.mark.parametrize(
    ("name", "teraflops"),
    [
        ("NVIDIA H200", 989),
        ("NVIDIA H200 NVL", 835),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A10G", 70),
        ("NVIDIA A10", 125),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA B200", 2250),
    ],
)
def test_a_device_has_its_own_peak(name: str, teraflops: float) -> None:
    """A table that lacks a device and takes a similar name reports an MFU that is several times too high."""
    peak = published_peak(name)
    assert peak is not None
    assert peak.flops == teraflops * 1e12


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA H20",
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 4090 D",
        "Tesla T4",
    ],
)
def test_what_is_not_in_the_table_has_no_number(name: str) -> None:
    assert published_peak(name) is None


def test_every_peak_says_where_it_stands() -> None:
    assert all(peak.source and peak.flops > 1e12 for peak in PEAKS)


def test_this_machine() -> None:
    machine = describe()
    assert machine.cores == usable_cores()
    assert 0 < machine.memory_free_bytes < machine.memory_bytes
    assert machine.torch == torch.__version__


def test_a_cpu_peak_is_measured_once_for_each_thread_count() -> None:
    torch.set_num_threads(1)
    peak = peak_flops(torch.device("cpu"), "fp32")
    assert peak.measured
    assert 1e9 < peak.flops < 1e13
    assert peak_flops(torch.device("cpu"), "fp32") == peak
