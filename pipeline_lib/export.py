"""Hand a model out: as a folder that transformers loads, or as a GGUF file, after a comparison with the live model."""

from __future__ import annotations

import difflib
import shutil
import tempfile
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline_lib.config.pipeline import PipelineConfig
from pipeline_lib.errors import ConfigError, DamagedError, NotFoundError, RefusedError
from pipeline_lib.training.checkpoints import Checkpoint, damage, record_of
from pipeline_lib.training.start import special_ids
from pipeline_lib.workspace.usage import folder_bytes

if TYPE_CHECKING:
    from pipeline_lib.trainings import Entry
    from pipeline_lib.workspace.artifact import Artifact
    from pipeline_lib.workspace.runs import RunRecord
    from pipeline_lib.workspace.workspace import Workspace

FORMATS = ("hf", "gguf")
ROOM = 1.1  # free space for each byte that is written
PER_WEIGHT = 2  # a checkpoint is three times its weights; a folder and a GGUF file beside it are two


def export_run(workspace: Workspace, run: RunRecord, folder: Path, *, to: str = "hf") -> dict[str, str]:
    """Write the published model of a run into a new folder.

    Args:
        workspace: where the run lies.
        run: a run whose training is finished.
        folder: is made; must not hold anything.
        to: `hf` or `gguf`.

    Returns:
        What was checked, in words.

    Raises:
        NotFoundError: the run has no model.
        ConfigError: unknown format, a folder with something in it, a family that the format does not know.
        DamagedError: the model or its checkpoint is not what was committed.
        RefusedError: the disk is too small.
        StageFailedError: what was written is not the live model; the folder is not made.
    """
    _check_format(to)
    ref = run.ref("train")
    if ref is None:
        raise NotFoundError(
            f"run {run.run_id} has no finished training", fix="`millrace checkpoints export` hands out what it has saved so far"
        )
    artifact = workspace.artifact(ref.key)
    published, last = artifact.files("model"), artifact.files("checkpoints")[0].parent

    def write(model: Any, tokenizer: Sequence[Path], target: Path) -> None:
        target.mkdir(parents=True)
        for path in published:  # the very files that were published are compared with the checkpoint's model
            shutil.copyfile(path, target / path.name)

    return _export(workspace, run, last, folder, to=to, write=write)


def export_checkpoint(workspace: Workspace, entry: Entry, folder: Path, *, to: str = "hf") -> dict[str, str]:
    """Write the model of a checkpoint into a new folder; see `export_run`.

    Raises: as `export_run`; RefusedError where nobody knows the checkpoint's run, whose tokenizer it needs.
    """
    from pipeline_lib.training.export import write_model

    _check_format(to)
    if entry.run is None:
        raise RefusedError(f"no run is known that {entry.name} belongs to, so nobody knows its tokenizer")
    return _export(workspace, entry.run, entry.folder, folder, to=to, write=write_model)


def _export(
    workspace: Workspace,
    run: RunRecord,
    source: Path,
    folder: Path,
    *,
    to: str,
    write: Callable[[Any, Sequence[Path], Path], None],
) -> dict[str, str]:
    folder = folder.expanduser().absolute()
    _check_target(folder, source)
    if reason := damage(source):
        raise DamagedError(reason, where=str(source), fix="`millrace checkpoints list` names the others")
    from pipeline_lib.training.export import compare_in_fresh_process, expectation, live_model

    pack = _packed(workspace, run)
    tokenizer = pack.files("tokenizer")
    config = PipelineConfig.model_validate(run.config)
    live = live_model(Checkpoint(source, record_of(source)), config.train.lora, special_ids(pack.details))
    tokenizer_json = next(path for path in tokenizer if path.name == "tokenizer.json")
    beside = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
    try:
        with tempfile.TemporaryDirectory(prefix="millrace-export-") as scratch:
            expectation(live, tokenizer_json, Path(scratch))
            write(live, tokenizer, beside)
            report = compare_in_fresh_process(beside, Path(scratch))
        if to == "gguf":
            report |= _as_gguf(beside, run.pipeline, live)
        if folder.exists():
            folder.rmdir()
        beside.rename(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return report


def _as_gguf(folder: Path, name: str, live: Any) -> dict[str, str]:
    """Replace a folder's files by one GGUF file of them."""
    from pipeline_lib.training.export import compare_gguf
    from pipeline_lib.training.gguf_file import write_gguf

    made = folder / f"{name}.gguf"
    told = write_gguf(folder, made, name=name)
    told["gguf logits"] = compare_gguf(made, live)
    for path in folder.iterdir():
        if path != made:
            path.unlink()
    return told


def _check_format(to: str) -> None:
    if to not in FORMATS:
        near = difflib.get_close_matches(to, FORMATS, 1)
        raise ConfigError(f"{to!r} is no format", where="--to", fix=f"did you mean {near[0]}?" if near else "hf or gguf")
    if to == "gguf":
        try:
            import gguf  # noqa: F401
        except ImportError as error:
            raise ConfigError(
                f"GGUF files need the package gguf, which is not installed ({error})",
                where="--to",
                fix="pip install 'millrace[gguf]'",
            ) from error


def _check_target(folder: Path, source: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError("is there already and not empty", where=str(folder), fix="name a new folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    needed, free = ROOM * folder_bytes(source) / 3 * PER_WEIGHT, shutil.disk_usage(folder.parent).free
    if free < needed:
        raise RefusedError(
            f"{free / 1e6:,.0f} MB are free, the export needs about {needed / 1e6:,.0f} MB", where=str(folder), fix="make room"
        )


def _packed(workspace: Workspace, run: RunRecord) -> Artifact:
    ref = run.ref("pack")
    if ref is None:
        raise NotFoundError(f"run {run.run_id} has no packed data, and so no tokenizer")
    return workspace.artifact(ref.key)
