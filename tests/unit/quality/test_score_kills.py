"""A kill in the middle of score, and the run after it: only the missing shards are made, and the bytes are the same."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from score_toy import run

from pipeline_lib.config.pipeline import PipelineConfig
from pipeline_lib.stages import BY_NAME
from pipeline_lib.workspace.services import Progress, Services
from pipeline_lib.workspace.stage import execute
from pipeline_lib.workspace.workspace import Workspace

FILES = 4
CHILD = """
import sys
from pathlib import Path
from score_toy import run
from pipeline_lib.config.pipeline import PipelineConfig
run(Path(sys.argv[1]), PipelineConfig.model_validate_json(sys.argv[2]))
"""


@pytest.mark.parametrize(
    ("point", "measured", "decided"),
    [
        ("shard.before_commit:2", 1, 0),
        ("shard.after_commit:3", 3, 0),
        (f"shard.before_commit:{FILES + 3}", FILES, 2),
        ("publish.before_rename", FILES, FILES),
    ],
)
def test_a_killed_score_goes_on(tmp_path: Path, point: str, measured: int, decided: int) -> None:
    sources = []
    for number in range(FILES):
        rows = (
            {"id": f"{number}-{i}", "text": f"Document {i} of file {number} says this and that. " * (i + 1)} for i in range(20)
        )
        path = tmp_path / f"{number}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        sources.append({"name": f"toy{number}", "kind": "files", "path": str(path), "id_column": "id"})
    home, settings = tmp_path / "killed", PipelineConfig.model_validate({"ingest": {"sources": sources}})
    workspace = Workspace.open(home)
    ingest = execute(workspace, BY_NAME["ingest"], settings, {})
    environment = {**os.environ, "MILLRACE_FAULT": point, "PYTHONPATH": os.pathsep.join(sys.path)}
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(home), settings.model_dump_json()],
        env=environment, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert child.returncode == -signal.SIGKILL, child.stderr
    seen: list[Progress] = []
    made = execute(workspace, BY_NAME["score"], settings, {"ingest": ingest}, services=Services(announce=seen.append))
    at_first = {unit: next(p.done for p in seen if p.unit == unit) for unit in ("files measured", "files decided")}
    assert at_first == {"files measured": measured, "files decided": decided}
    assert made.digest == run(tmp_path / "clean", settings).manifest.digest
