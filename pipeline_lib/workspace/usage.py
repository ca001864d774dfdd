"""Disk: what the workspace holds, what a run will need, and the refusal when that does not fit."""

from __future__ import annotations

import glob
import json
import math
import os
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline_lib.errors import MillraceError, RefusedError
from pipeline_lib.workspace.artifact import SummaryTable
from pipeline_lib.workspace.resolve import key_of, read_champion
from pipeline_lib.workspace.runs import RunBook, RunRecord

if TYPE_CHECKING:
    from pipeline_lib.config.data import SourceConfig
    from pipeline_lib.config.pipeline import PipelineConfig
    from pipeline_lib.workspace.workspace import Workspace

RESERVE = 1.2  # free space must be this many times what a run needs
# Bytes a stage stores for a byte of source text: Parquet zstd-1 halves text; signals are some 40 numbers a document of 1-2 KB;
# bands are 21 rows of 28 bytes a document before compression; a token is about 4 bytes of text and 1.5 bytes of LZ4 uint16 (its
# chunks lie in the cache, counted under fill_gaps).
PER_TEXT_BYTE = {
    "ingest": 0.6,
    "score": 0.15,
    "dedup": 0.35,
    "split": 0.02,
    "select": 0.05,
    "pack": 0.1,
    "fill_gaps": 0.45,
}
FIXED = {"suites": 2_000_000, "calibrate": 1_000_000, "tune": 2_000_000, "plan": 100_000, "validate": 5_000_000}
LONGEST_HEADER = 100_000_000  # bytes; the safetensors format allows no longer one
BYTES_PER_PARAMETER = 4  # fp32 weights; a checkpoint also holds two Adam moments


@dataclass(frozen=True)
class DiskEstimate:
    """What a run will write, by stage, in bytes."""

    stages: Mapping[str, int]
    basis: str  # in words: factors, or the run whose real sizes it is

    @property
    def total(self) -> int:
        """Bytes of all stages."""
        return sum(self.stages.values())


def folder_bytes(path: Path) -> int:
    """Bytes of a file or of all files below a folder; what vanishes meanwhile counts nothing."""
    return sum(_files(path).values())


def _files(path: Path) -> dict[tuple[int, int], int]:
    """(device, inode) → size: a file with several names counts once."""
    found: dict[tuple[int, int], int] = {}
    paths = [path] if path.is_file() else [Path(root) / name for root, _, names in os.walk(path) for name in names]
    for file in paths:
        try:
            stat = file.lstat()
        except FileNotFoundError:
            continue
        found[stat.st_dev, stat.st_ino] = stat.st_size
    return found


def disk_usage(workspace: Workspace) -> SummaryTable:
    """What the workspace holds on this machine: a row for each stage's artifacts, each folder and each file beside them, the sum,
    and what is free."""
    root = workspace.root
    parts = [(f"artifacts/{path.name}", path) for path in sorted((root / "artifacts").glob("*"))]
    beside = sorted(root.iterdir(), key=lambda path: (path.is_file(), path.name))  # folders first
    parts += [(path.name, path) for path in beside if path.name != "artifacts"]
    rows: list[tuple[str, int, int]] = []
    counted: set[tuple[int, int]] = set()
    for name, path in parts:
        found = {inode: size for inode, size in _files(path).items() if inode not in counted}
        counted |= found.keys()
        rows.append((name, len(found), sum(found.values())))
    rows.append(("total", sum(row[1] for row in rows), sum(row[2] for row in rows)))
    rows.append(("free", 0, free_bytes(workspace)))
    return SummaryTable(("what", "files", "bytes"), rows, title=str(root))


def free_bytes(workspace: Workspace) -> int:
    """Free space where the workspace lies."""
    return shutil.disk_usage(workspace.root).free


def source_bytes(source: SourceConfig) -> int:
    """At most how much text a source will give: the size of its files where they can be seen, its limit otherwise; 20 MB where
    there is neither."""
    limit = source.limit_mb * 1e6
    if source.kind != "files" or "://" in source.path:
        return 20_000_000 if math.isinf(limit) else int(limit)
    path = Path(source.path)
    found = [path] if path.exists() else [Path(name) for name in glob.glob(source.path, recursive=True)]  # noqa: PTH207 - absolute
    return int(min(limit, sum(folder_bytes(item) for item in found)))


def model_parameters(config: PipelineConfig, workspace: Workspace | None = None) -> int:
    """Parameters of the model: what the files of its start hold; else, from scratch, a Llama-style model of these numbers.

    Args:
        config: `model.start` may still be the word `champion`.
        workspace: where artifacts are looked up; without it, and where the start cannot be read, the numbers count.
    """
    if held := sum(_header_parameters(path) for path in _start_files(config.model.start, workspace)):
        return held
    model, vocabulary = config.model, config.tokenizer.vocabulary_size
    kv = (model.kv_heads or model.heads) * (model.width // model.heads)
    layer = 2 * model.width * model.width + 2 * model.width * kv + 3 * model.width * model.ffn_width + 2 * model.width
    return vocabulary * model.width * (1 if model.tied_embeddings else 2) + model.depth * layer + model.width


def _start_files(start: str, workspace: Workspace | None) -> list[Path]:
    """The safetensors files that a model starts from, none from scratch."""
    if start == "scratch":
        return []
    try:
        key = key_of(start)
        if workspace and start == "champion":
            key = str(read_champion(workspace).get("champion", {}).get("train", ""))
        if not key:
            return sorted(Path(start).expanduser().glob("*.safetensors"))
        entries = workspace.store.manifest(key).files if workspace else []
        paths = [(entry.home or key, entry.path) for entry in entries if entry.table == "model"]
        return [workspace.store.place(*path) for path in paths if path[1].endswith(".safetensors")] if workspace else []
    except MillraceError:  # said by the stage that needs it; here it is only an estimate
        return []


def _header_parameters(path: Path) -> int:
    """Elements of all tensors, from the header of a safetensors file: 8 bytes of its length, then JSON with the shapes."""
    try:
        with path.open("rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            if length > LONGEST_HEADER:
                return 0
            header: dict[str, dict[str, Any]] = json.loads(handle.read(length))
        return sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return 0


def disk_by_factors(config: PipelineConfig, workspace: Workspace | None = None) -> dict[str, int]:
    """Bytes by stage from the sources' sizes and the stated factors."""
    text = sum(source_bytes(source) for source in config.ingest.sources)
    weights = model_parameters(config, workspace) * BYTES_PER_PARAMETER
    # checkpoints: the newest, the best, the last before the decay and the one that is being written, each weights and two
    # moments; then the model itself, and MLflow's copy of it
    training = weights * 3 * (config.train.keep_checkpoints + 3) + weights * (2 if config.tracking.enabled else 1)
    return {**{name: int(text * factor) for name, factor in PER_TEXT_BYTE.items()}, **FIXED, "train": training}


def disk_estimate(workspace: Workspace, config: PipelineConfig, *, reused: Collection[str] = ()) -> DiskEstimate:
    """What a run will write, by stage.

    With a completed run of this pipeline: what that run's artifacts hold, scaled by how much larger the sources and the model are
    now (by the factors). Otherwise the factors alone.

    Args:
        workspace: where it will be written.
        config: the configuration.
        reused: stages that will not run, because their artifacts are there (`status` knows).
    """
    now = disk_by_factors(config, workspace)
    basis = "source sizes and stated factors"
    for record in reversed(list(RunBook(workspace.runs_folder).all())):
        if record.outcome == "completed" and record.pipeline == config.name and (real := _real_sizes(workspace, record)):
            then = disk_by_factors(type(config).model_validate(record.config), workspace)
            now |= {name: int(size * max(1.0, now[name] / max(then[name], 1))) for name, size in real.items() if name in now}
            basis = f"sizes of run {record.run_id}"
            break
    return DiskEstimate({name: size for name, size in now.items() if name not in reused}, basis)


def _real_sizes(workspace: Workspace, record: RunRecord) -> dict[str, int]:
    sizes = {}
    for name in record.stages:
        if ref := record.ref(name):
            try:
                manifest = workspace.store.manifest(ref.key)
            except MillraceError:
                continue
            sizes[name] = sum(entry.size for entry in manifest.files)
            if name == "train" and record.config.get("tracking", {}).get("enabled", True):  # MLflow's copy
                sizes[name] += sum(entry.size for entry in manifest.files if entry.table == "model")
            if name == "fill_gaps":  # its bytes lie in the cache, under the name of its pack artifact
                pack = str(manifest.inputs.get("pack", {}).get("key", "")).partition("/")[2].partition(".")[0]
                sizes[name] += folder_bytes(workspace.cache_folder / pack) if pack else 0
    return sizes


def require_disk(workspace: Workspace, config: PipelineConfig, *, reused: Collection[str] = ()) -> DiskEstimate:
    """The estimate, if it fits.

    Raises:
        RefusedError: less than 1.2 times of it is free.
    """
    estimate = disk_estimate(workspace, config, reused=reused)
    free = free_bytes(workspace)
    if free < RESERVE * estimate.total:
        largest = max(estimate.stages, key=lambda name: estimate.stages[name])
        raise RefusedError(
            f"{free / 1e9:.2f} GB are free, the run needs about {estimate.total / 1e9:.2f} GB ({estimate.basis}; most of it: "
            f"{largest}) and {RESERVE:g} times of that must be free",
            where=str(workspace.root),
            fix="`millrace gc` shows what can go; or lower ingest.sources[].max_mb, or set MILLRACE_HOME to a larger disk",
        )
    return estimate
