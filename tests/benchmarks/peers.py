"""Runs a peer (another project's tool) in the environment that `make bench` makes, as a child process of the benchmark."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]
PYTHON = REPOSITORY / ".venv-bench" / "bin" / "python"


def peers_installed() -> bool:
    """Whether `make bench` has run here. Without it a benchmark prints its own figures and leaves the comparison out."""
    return PYTHON.exists()


def peer(script: Path, *arguments: str, cores: int = 1, seconds: float = 3600) -> dict[str, Any]:
    """Run a script of ours that uses a peer; its last line of output is a JSON object of what it measured.

    The script sees `cores` threads in the usual thread-pool variables. A failing peer raises with what it said: a comparison that
    could not be made is not a comparison won.
    """
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS", "MKL_NUM_THREADS"), str(cores))
    done = subprocess.run(
        [str(PYTHON), str(script), *arguments],
        capture_output=True, text=True, timeout=seconds, check=False, cwd=REPOSITORY,
        env={**os.environ, **threads, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
    )  # fmt: skip
    if done.returncode != 0:
        raise RuntimeError(f"{script.name} ended with {done.returncode}: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found
