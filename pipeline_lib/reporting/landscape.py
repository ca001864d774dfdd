"""Sections of the loss landscape that were computed for a run (`millrace validate landscape`), kept beside its report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline_lib.errors import DamagedError
from pipeline_lib.reporting.page import report_folder
from pipeline_lib.workspace.files import read_json, write_json
from pipeline_lib.workspace.workspace import Workspace

FILE = "landscape.json"


def keep_landscape(workspace: Workspace, run_id: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Keep the rows of `validation.landscape.sections`, in place of what was kept; a loss that is no number is null."""
    kept = [{**row, "bits_per_byte": bits if math.isfinite(bits := row["bits_per_byte"]) else None} for row in rows]
    folder = report_folder(workspace, run_id)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / FILE, kept)


def landscape_of(workspace: Workspace, run_id: str) -> list[dict[str, Any]]:
    """What `keep_landscape` kept; [] where nothing was computed.

    Raises:
        DamagedError: the file cannot be read.
    """
    path = report_folder(workspace, run_id) / FILE
    if not path.exists():
        return []
    try:
        return [
            {
                "direction": int(row["direction"]),
                "distance": float(row["distance"]),
                "bits_per_byte": math.nan if row["bits_per_byte"] is None else float(row["bits_per_byte"]),
            }
            for row in read_json(path)
        ]
    except (ValueError, TypeError, KeyError) as error:
        raise DamagedError(
            f"the sections of the loss landscape cannot be read ({type(error).__name__})",
            where=str(path), fix=f"`millrace validate landscape {run_id}` computes them again",
        ) from None  # fmt: skip
