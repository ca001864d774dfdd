"""The process that is broken: `python -m tests.benchmarks.recovery_child HOME CONFIG` trains on what is there."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path

from pipeline_lib.config.pipeline import PipelineConfig
from pipeline_lib.errors import MillraceError
from pipeline_lib.run import run_plain
from pipeline_lib.workspace.services import Services
from pipeline_lib.workspace.workspace import Workspace


def main(home: Path, described: Path) -> int:
    """Only the stage `train`, following its plan to the step; prints what came out as one line of JSON."""
    config = PipelineConfig.model_validate(json.loads(described.read_text()))
    workspace = Workspace.open(home)
    try:
        record = run_plain(workspace, config, only="train", services=Services(adaptive=False))
    except MillraceError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    ref = record.ref("train")
    assert ref is not None
    manifest = workspace.store.manifest(ref.key)
    told = {"dev_loss": manifest.metrics["dev_loss"], "steps": manifest.details["steps"], "events": manifest.events}
    print(json.dumps(told, default=str), flush=True)
    return 0


if __name__ == "__main__":
    code = 130
    with contextlib.suppress(KeyboardInterrupt):
        code = main(Path(sys.argv[1]), Path(sys.argv[2]))
    sys.stdout.flush()
    os._exit(code)
