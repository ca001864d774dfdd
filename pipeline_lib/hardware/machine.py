"""What this machine is and can do. torch is imported only when a function that needs it is called."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import shutil
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline_lib.hardware.peaks import published_peak
from pipeline_lib.workspace.machine import cpu_model, total_memory_bytes, usable_cores

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Gpu:
    """One accelerator, as its driver describes it."""

    name: str
    memory_bytes: int
    capability: str  # "9.0"
    bf16: bool


@dataclass(frozen=True)
class Machine:
    """Processor, memory, accelerators and what torch can do with them."""

    cpu: str
    cores: int  # usable by this process
    memory_bytes: int
    memory_free_bytes: int
    gpus: tuple[Gpu, ...]
    bf16: str  # "gpu", "cpu" (native instructions) or "emulated"
    compile: bool  # torch.compile has a compiler to call
    interconnect: str  # how GPUs reach each other and the machine; without any, the machine's memory nodes
    torch: str

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class PeakFlops:
    """What model FLOP/s are divided by to give MFU."""

    flops: float  # FLOP/s
    source: str
    measured: bool  # False: published by the maker


def describe() -> Machine:
    """Look at the machine (imports torch)."""
    import psutil
    import torch

    gpus = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        properties = torch.cuda.get_device_properties(index)
        bf16 = properties.major >= 8
        gpus.append(Gpu(properties.name, int(properties.total_memory), f"{properties.major}.{properties.minor}", bf16))
    return Machine(
        cpu=cpu_model(),
        cores=usable_cores(),
        memory_bytes=total_memory_bytes(),
        memory_free_bytes=int(psutil.virtual_memory().available),
        gpus=tuple(gpus),
        bf16="gpu" if gpus and all(gpu.bf16 for gpu in gpus) else "cpu" if cpu_has_bf16() else "emulated",
        compile=bool(gpus) or has_compiler(),
        interconnect=_interconnect(len(gpus)),
        torch=str(torch.__version__),
    )


def has_compiler() -> bool:
    """Whether torch.compile finds the C++ compiler that it needs on processors."""
    return any(shutil.which(name) for name in ("g++", "clang++"))


def _interconnect(n_gpus: int) -> str:
    """In words: whether GPUs read each other's memory directly, and the PCI links they hang on."""
    import torch

    if not n_gpus:
        nodes = len(list(Path("/sys/devices/system/node").glob("node[0-9]*"))) or 1
        return f"{nodes} memory node{'s' * (nodes > 1)}"
    pairs = [(one, other) for one in range(n_gpus) for other in range(n_gpus) if one != other]
    direct = sum(torch.cuda.can_device_access_peer(one, other) for one, other in pairs)
    words = [f"{direct} of {len(pairs)} ways between GPUs direct"] if pairs else []
    links = set()
    for device in Path("/sys/bus/pci/drivers/nvidia").glob("*:*"):
        with contextlib.suppress(OSError):
            speed, width = ((device / f"current_link_{name}").read_text("ascii").strip() for name in ("speed", "width"))
            links.add(f"PCI {speed.removesuffix(' PCIe')} × {width}")
    return ", ".join([*words, *sorted(links)]) or "unknown"


@functools.cache
def cpu_has_bf16() -> bool:
    """Whether the processor multiplies bf16 natively (AVX-512 BF16, AMX, Arm BF16)."""
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as handle:
            flags = next((line for line in handle if line.startswith(("flags", "Features"))), "")
    except OSError:
        return False
    return any(flag in flags.split() for flag in ("avx512_bf16", "amx_bf16", "bf16"))


def training_device() -> torch.device:
    """Where training runs: the first accelerator, else the processor."""
    import torch

    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def training_memory_bytes() -> int:
    """Memory of where training runs: the accelerator's own, else the machine's."""
    import torch

    device = training_device()
    return int(torch.cuda.get_device_properties(device).total_memory) if device.type == "cuda" else total_memory_bytes()


def peak_flops(device: torch.device, precision: str) -> PeakFlops:
    """The peak that MFU is measured against.

    Args:
        device: the device that computes.
        precision: "fp32" or "bf16". A GPU's published bf16 peak is used for both: fp32 training there is a choice that
            costs, and MFU should show it.

    An unknown GPU and every CPU are measured with large matrix products, once a process, precision and thread count.
    """
    import torch

    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        if peak := published_peak(name):
            return PeakFlops(peak.flops, f"{name}: {peak.source}", measured=False)
        return PeakFlops(_matmul_flops("cuda", "bf16", 0), f"{name}: measured bf16 matrix product", measured=True)
    threads = torch.get_num_threads()
    source = f"{cpu_model()}, {threads} threads: measured {precision} matrix product"
    return PeakFlops(_matmul_flops("cpu", precision, threads), source, measured=True)


@functools.cache
def _matmul_flops(device: str, precision: str, threads: int) -> float:
    """FLOP/s of the best of five square matrix products (the best: a peak is what the machine can do, not what it shared)."""
    import torch

    size = 8192 if device == "cuda" else 1024
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    left = torch.full((size, size), 0.5, dtype=dtype, device=device)
    right = torch.full((size, size), 0.25, dtype=dtype, device=device)
    times = []
    for _ in range(6):
        begin = time.perf_counter()
        torch.mm(left, right)
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    return float(2 * size**3 / min(times[1:]))


def peak_memory_bytes(device: torch.device) -> int:
    """Peak memory since `reset_peak_memory`: resident memory of this process, or what is allocated on a GPU.

    Where the system cannot count a process's peak anew (other than Linux), of the process since it began.
    """
    import torch

    from pipeline_lib.workspace.peak import process_peak_bytes

    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return _status_bytes("VmHWM") or process_peak_bytes()


def reset_peak_memory(device: torch.device) -> None:
    """Give free memory back to the system and count the peak anew."""
    import torch

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    _trim()
    with contextlib.suppress(OSError):  # proc(5): 5 resets the peak resident size
        Path("/proc/self/clear_refs").write_text("5", "ascii")


def resident_bytes() -> int:
    """Resident memory of this process, after giving back what is free."""
    import psutil

    _trim()
    return int(psutil.Process().memory_info().rss)


def _trim() -> None:
    """glibc keeps freed memory; elsewhere there is nothing to ask for."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def _status_bytes(name: str) -> int:
    """A size of /proc/self/status, 0 where there is none."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text("ascii", "replace").splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    return 0


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what was asked of it, so that a clock means something."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory could not be had: of a GPU, of torch on a processor, of Python."""
    import torch

    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and ("can't allocate memory" in str(error) or "out of memory" in str(error).lower())


def release_memory(device: torch.device) -> None:
    """Give back what is no longer used, cycles included: after memory ran out."""
    import torch

    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def median(values: list[float]) -> float:
    """Median, 0 for an empty list."""
    return float(statistics.median(values)) if values else 0.0
