"""A kill in the middle of select, and the run after it: only what is missing is measured, and the bytes are the same."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from curation_toy import Run
from test_select import corpus

from pipeline_lib.stages import BY_NAME
from pipeline_lib.workspace.services import Progress, Services
from pipeline_lib.workspace.stage import execute

FILES = 4
SELECT = {"target_tokens": 3000, "toward_candidates": 1.5}
CHILD = """
import json, sys
from pathlib import Path
from curation_toy import Run
rows, select = json.load(sys.stdin)
Run(Path(sys.argv[1]), rows, files=4, select=select)
"""


@pytest.mark.parametrize(
    ("point", "measured"),
    [("shard.before_commit:2", 1), ("shard.after_commit:3", 3), ("publish.before_rename", FILES)],
)
def test_a_killed_selection_goes_on(tmp_path: Path, point: str, measured: int) -> None:
    rows = corpus(120)
    Run(tmp_path / "killed", rows, files=FILES, until="split", select=SELECT)
    environment = {**os.environ, "MILLRACE_FAULT": point, "PYTHONPATH": os.pathsep.join(sys.path)}
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path / "killed")],
        input=json.dumps([rows, SELECT]), env=environment, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert child.returncode == -signal.SIGKILL, child.stderr
    seen: list[Progress] = []
    run = Run(tmp_path / "killed", rows, files=FILES, until="split", select=SELECT)
    ref = execute(run.workspace, BY_NAME["select"], run.config, run.refs, services=Services(announce=seen.append))
    assert next(progress for progress in seen if progress.unit == "files measured").done == measured
    clean = Run(tmp_path / "clean", rows, files=FILES, select=SELECT)
    assert ref.digest == clean.refs["select"].digest
