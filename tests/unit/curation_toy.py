"""Toy suites, ingest and score artifacts from rows written in a test, and the real stages dedup, split and select behind them."""

from __future__ import annotations

import datetime as dt
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from blake3 import blake3

from pipeline_lib.config.fields import Section, setting
from pipeline_lib.config.pipeline import PipelineConfig
from pipeline_lib.stages import BY_NAME
from pipeline_lib.tables.parquet import write_table
from pipeline_lib.tables.schemas import DECISIONS, DOCUMENTS, SUITE_ITEMS
from pipeline_lib.workspace.artifact import Artifact, ArtifactRef
from pipeline_lib.workspace.services import Services, thread_mapper
from pipeline_lib.workspace.stage import Outcome, Stage, StageRun, execute
from pipeline_lib.workspace.workspace import Workspace

SIGNALS = pa.schema(
    [
        ("doc_id", pa.binary(16)),
        ("quality", pa.float64()),
        ("bytes", pa.int64()),
        ("words", pa.int64()),
        ("est_tokens", pa.int64()),
    ]
)


class ToyConfig(Section):
    documents: list[dict[str, Any]] = setting(list, "name, text; source, domain, created, quality, est_tokens, failed, kind")
    items: list[dict[str, str]] = setting(list, "suite, item, text; kind")
    priorities: dict[str, int] = setting(dict, "of the sources")
    files: int = setting(1, "documents are spread over this many files")


class Config(PipelineConfig):
    toy: ToyConfig = setting(ToyConfig, "Rows")


def doc_id(name: str) -> bytes:
    return bytes(blake3(name.encode()).digest(length=16))


def document(name: str, text: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "text": text, **more}


def suites(run: StageRun, *, toy: ToyConfig) -> Outcome:
    rows = [
        {"suite": i["suite"], "item": i["item"], "text": i["text"], "form": "cloze", "prompt": "", "options": [], "answer": 0,
         "kind": i.get("kind") or ("verbatim" if i["text"] else "template"), "entities": [], "category": ""}
        for i in toy.items
    ]  # fmt: skip
    write_table(pa.Table.from_pylist(rows, schema=SUITE_ITEMS), run.path("suite_items", "suite_items.parquet"))
    return Outcome()


def _parts(toy: ToyConfig) -> list[list[dict[str, Any]]]:
    """Documents by file: the one that a row names in `file`, or all in turn."""
    return [[row for i, row in enumerate(toy.documents) if row.get("file", i % toy.files) == part] for part in range(toy.files)]


def ingest(run: StageRun, *, toy: ToyConfig) -> Outcome:
    for number, part in enumerate(_parts(toy)):
        rows = []
        for index, row in enumerate(part):
            day = row.get("created")
            normal = " ".join(row["text"].casefold().split())
            rows.append(
                {"doc_id": doc_id(row["name"]), "kind": row.get("kind", "text"), "text": row["text"],
                 "source": row.get("source", "toy"),
                 "domain": row.get("domain", "prose"), "licence": "", "url": row["name"], "metadata": "{}", "file_digest": "",
                 "file": row.get("read_from", ""),
                 "created_at": dt.datetime.fromisoformat(day).replace(tzinfo=dt.UTC) if day else None, "record_index": index,
                 "byte_offset": row.get("byte_offset", 0), "byte_length": len(row["text"].encode()),
                 "text_hash": bytes(blake3(normal.encode()).digest(length=16))}
            )  # fmt: skip
        write_table(pa.Table.from_pylist(rows, schema=DOCUMENTS), run.path("documents", f"{number:03}.parquet"))
    return Outcome(details={"sources": {name: {"priority": value} for name, value in toy.priorities.items()}})


def score(run: StageRun, *, toy: ToyConfig) -> Outcome:
    for number, part in enumerate(_parts(toy)):
        rows = [
            {"doc_id": doc_id(row["name"]), "quality": row.get("quality", 0.5), "bytes": len(row["text"].encode()),
             "words": len(row["text"].split()), "est_tokens": row.get("est_tokens", len(row["text"].split()))}
            for row in part
        ]  # fmt: skip
        write_table(pa.Table.from_pylist(rows, schema=SIGNALS), run.path("signals", f"{number:03}.parquet"))
        failed = [
            {
                "doc_id": doc_id(row["name"]),
                "stage": "score",
                "rule": row["failed"],
                "kept": False,
                "reason": "toy rule",
                "value": 0.0,
            }
            for row in part
            if row.get("failed")
        ]
        write_table(pa.Table.from_pylist(failed, schema=DECISIONS), run.path("decisions", f"{number:03}.parquet"))
    return Outcome()


TOYS = [
    Stage("suites", 1, "pure", "curation_toy:suites", sections=("toy",)),
    Stage("ingest", 1, "pure", "curation_toy:ingest", sections=("toy",)),
    Stage("score", 1, "pure", "curation_toy:score", reads={"ingest": ("documents",)}, sections=("toy",)),
]


class Run:
    """The artifacts of one run of the toy pipeline up to `until`."""

    def __init__(
        self,
        folder: Path,
        documents: list[dict[str, Any]],
        *,
        until: str = "select",
        workers: int = 1,
        files: int = 1,
        items: list[dict[str, str]] | None = None,
        force: bool = False,
        priorities: dict[str, int] | None = None,
        **sections: Any,
    ) -> None:
        self.workspace = Workspace.open(folder)
        toy = {"documents": documents, "files": files, "items": items or [], "priorities": priorities or {}}
        self.config = Config.model_validate({"toy": toy, **sections})
        services = Services(mapper=thread_mapper(workers), workers=workers)
        self.refs: dict[str, ArtifactRef] = {}
        for stage in [*TOYS, BY_NAME["dedup"], BY_NAME["split"], BY_NAME["select"]]:
            again = force and stage.name == until
            self.refs[stage.name] = execute(self.workspace, stage, self.config, self.refs, services=services, force=again)
            if stage.name == until:
                break
        self.names = {doc_id(row["name"]): row["name"] for row in documents}

    def artifact(self, stage: str) -> Artifact:
        return self.workspace.store.artifact(self.refs[stage].key)

    def rows(self, stage: str, table: str) -> list[dict[str, Any]]:
        """Rows with documents by their toy names."""
        from pipeline_lib.tables.parquet import read_tables

        rows = read_tables(self.artifact(stage).files(table)).to_pylist()
        return [{k: self.names.get(v, v) if isinstance(v, bytes) else v for k, v in row.items()} for row in rows]

    def events(self, stage: str) -> dict[str, Any]:
        return {event["kind"]: event["detail"] for event in self.artifact(stage).manifest.events}


def words(rng: np.random.Generator, count: int, vocabulary: int = 5000) -> list[str]:
    return [f"w{n}" for n in rng.integers(0, vocabulary, count)]


def edited(rng: np.random.Generator, text: list[str], rate: float) -> list[str]:
    """Replace a share of the words, at least one unless the rate is 0."""
    new = list(text)
    for place in rng.choice(len(text), ceil(len(text) * rate), replace=False):
        new[place] = f"x{rng.integers(0, 10**6)}"
    return new


def jaccard(a: str, b: str, width: int = 5) -> float:
    """Brute force, in plain Python, for texts of ASCII letters and digits."""

    def shingles(text: str) -> set[tuple[str, ...]]:
        found = text.lower().split()
        return {tuple(found[i : i + width]) for i in range(max(1, len(found) - width + 1))}

    one, two = shingles(a), shingles(b)
    return len(one & two) / len(one | two)
