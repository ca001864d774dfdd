"""Runs ingest to select on a folder of JSONL in a process of its own. Prints seconds, CPU seconds and peak bytes of each stage.

curation_child HOME FOLDER WORKERS LAST_STAGE
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path

from pipeline_lib.config.pipeline import PipelineConfig
from pipeline_lib.quality.signals import signals_ready
from pipeline_lib.stages import BY_NAME
from pipeline_lib.workspace.services import Services, thread_mapper
from pipeline_lib.workspace.stage import execute
from pipeline_lib.workspace.workspace import Workspace

STAGES = ("suites", "ingest", "score", "dedup", "split", "select")


def main() -> None:
    """Run the stages one after the other; compiled code is loaded before, as in a night's second shard."""
    home, folder, workers, last = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]
    source = {"name": "made", "kind": "files", "path": folder, "max_mb": 1e6, "domain": "prose"}
    config = PipelineConfig.model_validate({"ingest": {"sources": [source]}})
    workspace = Workspace.open(home)
    services = Services(mapper=thread_mapper(workers), workers=workers)
    signals_ready()
    refs = {}
    found: dict[str, dict[str, float]] = {}
    for name in STAGES[: STAGES.index(last) + 1]:
        begin, cpu = time.perf_counter(), time.process_time()
        refs[name] = execute(workspace, BY_NAME[name], config, refs, services=services)
        seconds = time.perf_counter() - begin
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        found[name] = {"seconds": seconds, "cpu": time.process_time() - cpu, "peak": peak}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
