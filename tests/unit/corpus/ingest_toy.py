"""Real ingest runs on small files."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline_lib.config.pipeline import PipelineConfig
from pipeline_lib.stages import BY_NAME
from pipeline_lib.tables.parquet import read_tables
from pipeline_lib.workspace.artifact import Artifact, ArtifactRef
from pipeline_lib.workspace.services import Services, thread_mapper
from pipeline_lib.workspace.stage import execute
from pipeline_lib.workspace.workspace import Workspace


def config(*sources: dict[str, Any], extensions: list[str] | None = None, **ingest: Any) -> PipelineConfig:
    return PipelineConfig.model_validate(
        {"ingest": {"sources": list(sources), **ingest}, "execution": {"extensions": extensions or []}}
    )


def files(path: Path | str, name: str = "toy", **more: Any) -> dict[str, Any]:
    return {"name": name, "kind": "files", "path": str(path), **more}


def run(workspace: Workspace, settings: PipelineConfig, workers: int = 1) -> ArtifactRef:
    return execute(workspace, BY_NAME["ingest"], settings, {}, services=Services(mapper=thread_mapper(workers)))


def ingest(home: Path, *sources: dict[str, Any], workers: int = 1, **more: Any) -> Artifact:
    workspace = Workspace.open(home)
    return workspace.store.artifact(run(workspace, config(*sources, **more), workers).key)


def table(artifact: Artifact, name: str) -> pa.Table:
    return read_tables(artifact.files(name))


def texts(artifact: Artifact) -> list[str]:
    return table(artifact, "documents").column("text").to_pylist()


def reasons(artifact: Artifact) -> Counter[str]:
    return Counter(table(artifact, "quarantine").column("reason").to_pylist())


def jsonl(*records: Any) -> bytes:
    return b"".join(json.dumps(record, ensure_ascii=False).encode() + b"\n" for record in records)
