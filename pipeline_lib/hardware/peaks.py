"""Peak arithmetic of accelerators: dense bf16 with fp32 accumulation, without sparsity, as their makers publish it."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Peak:
    """A published peak: FLOP/s of dense bf16 matrix products, and where the number stands."""

    pattern: str
    flops: float
    source: str


# First match wins: variants stand before the plain name. Data sheets that give "with sparsity" are halved.
PEAKS: tuple[Peak, ...] = (
    Peak(r"\bGB200\b", 2500e12, "NVIDIA GB200 NVL72 data sheet: 360 PFLOP/s sparse for 72 GPUs, halved"),
    Peak(r"\bB200\b", 2250e12, "NVIDIA HGX B200 data sheet: 36 PFLOP/s sparse for 8 GPUs, halved"),
    Peak(r"\bH200 NVL\b", 835e12, "NVIDIA H200 data sheet: 1,671 TFLOP/s sparse, halved"),
    Peak(r"\bH200\b", 989e12, "NVIDIA H200 data sheet: 1,979 TFLOP/s sparse, halved"),
    Peak(r"\bGH200\b", 989e12, "NVIDIA GH200 data sheet: 1,979 TFLOP/s sparse, halved"),
    Peak(r"\bH100 NVL\b", 835e12, "NVIDIA H100 data sheet: 1,671 TFLOP/s sparse, halved"),
    Peak(r"\bH100 PCIe\b", 756e12, "NVIDIA H100 data sheet: 1,513 TFLOP/s sparse, halved"),
    Peak(r"\bH100\b", 989e12, "NVIDIA H100 data sheet: 1,979 TFLOP/s sparse, halved"),
    Peak(r"\bA(100|800)\b", 312e12, "NVIDIA A100 data sheet"),
    Peak(r"\bL40S\b", 362e12, "NVIDIA L40S data sheet"),
    Peak(r"\bL40\b", 181e12, "NVIDIA L40 data sheet"),
    Peak(r"\bL4\b", 121e12, "NVIDIA L4 data sheet: 242 TFLOP/s sparse, halved"),
    Peak(r"\bA40\b", 149.7e12, "NVIDIA A40 data sheet"),
    Peak(r"\bA30\b", 165e12, "NVIDIA A30 data sheet"),
    Peak(r"\bA10G\b", 70e12, "NVIDIA A10G: 70 TFLOP/s dense, Amazon EC2 G5 description"),
    Peak(r"\bA10\b", 125e12, "NVIDIA A10 data sheet"),
    Peak(r"\bRTX 5090$", 209.5e12, "NVIDIA RTX Blackwell architecture paper, fp32 accumulation"),
    Peak(r"\bRTX 4090$", 165.2e12, "NVIDIA Ada architecture paper, fp32 accumulation"),
    Peak(r"\bRTX 4080$", 97.5e12, "NVIDIA Ada architecture paper, fp32 accumulation"),
    Peak(r"\bRTX 3090 Ti$", 80e12, "NVIDIA GA102 architecture paper, fp32 accumulation"),
    Peak(r"\bRTX 3090$", 71e12, "NVIDIA GA102 architecture paper, fp32 accumulation"),
    Peak(r"\bMI300X\b", 1307.4e12, "AMD Instinct MI300X data sheet"),
)


def published_peak(name: str) -> Peak | None:
    """The published peak of a device, by the name its driver gives; None when the table does not know exactly this device.

    A slice of a device (MIG), a laptop variant or an unknown suffix is not the device: no number is better than a wrong one.
    """
    if re.search(r"\b(MIG|Laptop|Max-Q)\b", name, re.IGNORECASE):
        return None
    return next((peak for peak in PEAKS if re.search(peak.pattern, name)), None)
