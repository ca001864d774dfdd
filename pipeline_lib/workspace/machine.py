"""What must be known of the machine to compare results: identity, library versions, code revision."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

LIBRARIES = (
    "torch",
    "transformers",
    "accelerate",
    "peft",
    "tokenizers",
    "numpy",
    "numba",
    "pyarrow",
    "duckdb",
    "optuna",
    "lz4",
)


@functools.cache
def cpu_model() -> str:
    """The processor's name, as the system gives it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text("utf-8", "replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def usable_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.cache
def total_memory_bytes() -> int:
    """Physical memory of the machine."""
    import psutil

    return int(psutil.virtual_memory().total)


@functools.cache
def machine_identity() -> dict[str, Any]:
    """Small JSON: what a speed measured here depends on. GPUs are added by the subject `hardware`."""
    return {
        "cpu": cpu_model(),
        "cores": usable_cores(),
        "memory_gib": round(total_memory_bytes() / 2**30),
        "system": platform.system(),
        "gpus": _gpus(),
    }


def _gpus() -> list[str]:
    folder = Path("/proc/driver/nvidia/gpus")
    names = []
    for path in sorted(folder.glob("*/information")) if folder.exists() else []:
        names += [line.partition(":")[2].strip() for line in path.read_text().splitlines() if line.startswith("Model")]
    return names


@functools.cache
def versions() -> dict[str, str]:
    """Versions of the libraries whose results are stored, without importing them."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = ""
    return found


@functools.cache
def code_revision() -> str:
    """Git revision of the code, with `+` when it was changed; "" outside a checkout."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return ""
    if not (git := shutil.which("git")):
        return ""
    try:
        head = subprocess.run(
            [git, "-C", str(root), "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True
        )
        state = subprocess.run(
            [git, "-C", str(root), "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return head.stdout.strip() + ("+" if state.stdout.strip() else "")
