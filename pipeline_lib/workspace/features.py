"""What memory recalls a run by: sizes, speeds, losses, seconds and peaks, from the run's record and the manifests of its stages.

Names end in their unit (`_seconds`, `_bytes`), so that a reader knows a size from an amount.
"""

from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING, Any

from pipeline_lib.errors import MillraceError
from pipeline_lib.workspace.files import read_json

if TYPE_CHECKING:
    from pipeline_lib.workspace.artifact import Manifest
    from pipeline_lib.workspace.runs import RunRecord
    from pipeline_lib.workspace.workspace import Workspace

# feature -> where it is found: the first stage that reports the metric tells it
METRICS = {
    "documents": (("ingest", "documents"),),
    "selected_documents": (("select", "documents"),),
    "tokens": (("pack", "tokens"), ("fill_gaps", "tokens")),
    "sequences": (("pack", "sequences"), ("fill_gaps", "sequences")),
    "parameters": (("train", "parameters"), ("calibrate", "parameters")),
    "steps": (("train", "steps"),),
    "trained_tokens": (("train", "tokens"),),
    "tokens_per_second": (("train", "tokens_per_second"), ("calibrate", "tokens_per_second")),
    "mfu": (("train", "mfu"),),
    "memory_share": (("calibrate", "memory_share"),),  # measured peak memory / what was estimated before
    "train_loss": (("train", "train_loss"),),
    "dev_loss": (("train", "dev_loss"),),
    "test_loss": (("validate", "test_loss"),),
}
SETTINGS = {
    "family": "model.family",
    "width": "model.width",
    "depth": "model.depth",
    "sequence_length": "pack.sequence_length",
    "vocabulary_size": "tokenizer.vocabulary_size",
    "batch_tokens": "train.batch_tokens",
    "optimizer": "train.optimizer",
}
# the trained model's config.json; older families have names of their own
MODEL_CONFIG = "model/config.json"
MODEL_NAMES = {
    "family": ("model_type",),
    "width": ("hidden_size", "n_embd", "d_model"),
    "depth": ("num_hidden_layers", "n_layer", "num_layers"),
}
MACHINE = ("cpu", "cores", "memory_gib")


def features_of(workspace: Workspace, record: RunRecord) -> dict[str, float | str]:
    """Everything a run can be recalled by. What is not known (a stage that never ran) is left out, never guessed."""
    manifests: dict[str, Manifest] = {}
    for name in record.stages:
        if ref := record.ref(name):
            try:
                manifests[name] = workspace.store.manifest(ref.key)
            except MillraceError:
                continue
    found: dict[str, Any] = {name: _dotted(record.config, path) for name, path in SETTINGS.items()}
    if "train" in manifests:
        found |= _trained(workspace, manifests["train"])
    found |= {name: record.machine.get(name) for name in MACHINE}
    found["gpu"] = ", ".join(record.machine.get("gpus", []))
    for name, places in METRICS.items():
        told = (manifests[stage].metrics.get(metric) for stage, metric in places if stage in manifests)
        found[name] = next((value for value in told if value is not None), None)
    for name, manifest in manifests.items():
        found[f"{name}_seconds"] = manifest.seconds  # of the work itself, also where it was reused
    if manifests:
        found["peak_memory_bytes"] = max(manifest.peak_memory_bytes for manifest in manifests.values())
        found["work_seconds"] = sum(manifest.seconds for manifest in manifests.values())
    found["run_seconds"] = sum(entry.seconds for entry in record.stages.values())
    return {name: value for name, value in found.items() if _usable(value)}


def _trained(workspace: Workspace, manifest: Manifest) -> dict[str, Any]:
    """What the trained model says of itself: one that was continued brings its own numbers, whatever `model.*` says."""
    found = {"vocabulary_size": manifest.details.get("vocabulary_size")}
    with contextlib.suppress(OSError, ValueError, AttributeError, MillraceError):
        told = read_json(workspace.store.place(manifest.key, MODEL_CONFIG))
        told = told.get("text_config", told)
        found |= {feature: next((told[name] for name in names if name in told), None) for feature, names in MODEL_NAMES.items()}
    return {name: value for name, value in found.items() if value is not None}


def _dotted(config: dict[str, Any], path: str) -> Any:
    section, _, name = path.partition(".")
    return config.get(section, {}).get(name)


def _usable(value: Any) -> bool:
    if isinstance(value, str):
        return True
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
