"""A real workspace up to `fill_gaps`, with documents that are easy to find again, and a search for them in every byte of it."""

from __future__ import annotations

import json
import random
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import ipc
from tokenizers import Tokenizer

from pipeline_lib.config.pipeline import PipelineConfig
from pipeline_lib.reporting.report import write_report
from pipeline_lib.run import run_plain
from pipeline_lib.stages import BY_NAME, STAGES
from pipeline_lib.workspace.artifact import ArtifactRef
from pipeline_lib.workspace.runs import RunBook, RunRecord
from pipeline_lib.workspace.sql import query
from pipeline_lib.workspace.stage import Outcome, Stage, StageRun, execute
from pipeline_lib.workspace.workspace import Workspace
from tests.pipeline_toys import DEEDS, PLACES, THINGS, small_config

MARK = "Zanzibarquux"  # in no other text
ORDER = tuple(stage.name for stage in STAGES)


def story(seed: int, *, mark: str = "") -> str:
    choose = random.Random(seed)
    sentences = [
        f"The {choose.choice(THINGS)} {choose.choice(DEEDS)} the {choose.choice(THINGS)} {choose.choice(PLACES)}."
        for _ in range(30)
    ]
    return " ".join([*sentences, f"{mark} lives at number {seed}." if mark else "", f"Night {seed} ends."])


def write_sources(folder: Path) -> None:
    """Two sources; the first has ids, and an earlier version of the marked document, which the later one replaces."""
    old = {"id": "m", "text": f"{MARK} was a miller once. {story(1)}"}
    marked = {"id": "m", "text": story(9000, mark=MARK)}
    short = {"id": "s", "text": f"{MARK} is short."}
    plain = [{"id": str(n), "text": story(n)} for n in range(150)]
    lines = [json.dumps(row) for row in [*plain[:50], old, *plain[50:], marked, short]]
    (folder / "a.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "b.jsonl").write_text("\n".join(json.dumps({"text": story(n)}) for n in range(1000, 1060)) + "\n")


def config_of(folder: Path, **sections: Any) -> PipelineConfig:
    sources = [
        {"name": "diary", "kind": "files", "path": str(folder / "a.jsonl"), "id_column": "id", "licence": "mit"},
        {"name": "blog", "kind": "files", "path": str(folder / "b.jsonl")},
    ]
    rules = {"rules": {"*": "none"}, "extra_rules": {"long_enough": "words >= 20"}}
    values = {"ingest": {"sources": sources}, "score": rules, "split": {"floor_per_domain": 5}, **sections}
    return small_config(report={"examples": "full"}, **values)


def make(folder: Path, **sections: Any) -> tuple[Workspace, RunRecord]:
    """A pinned run up to `fill_gaps` with its report."""
    workspace = Workspace.open(folder / "home")
    record = run_plain(workspace, config_of(folder, **sections), until="fill_gaps")
    assert record.outcome == "completed", record.error
    RunBook(workspace.runs_folder).pin(record.run_id)
    write_report(workspace, record, ORDER)
    return workspace, record


def train(run: StageRun) -> Outcome:
    """Stands in for training: weights and nothing else."""
    run.path("model", "model.safetensors").write_bytes(b"weights")
    return Outcome()


def train_on(workspace: Workspace, record: RunRecord) -> ArtifactRef:
    """A model of this run."""
    inputs = {name: ref for name in ("fill_gaps", "pack") if (ref := record.ref(name))}
    reads = {"fill_gaps": ("chunks",), "pack": ("tokenizer",)}
    stage = Stage("train", BY_NAME["train"].version, "pure", "forget_toy:train", reads=reads)
    return execute(workspace, stage, PipelineConfig.model_validate(record.config), inputs)


def marked_ids(workspace: Workspace, mark: str = MARK) -> list[str]:
    rows = query(workspace, f"select lower(hex(doc_id)) as id from documents where contains(text, '{mark}') order by id")  # noqa: S608
    return [str(row["id"]) for row in rows.to_pylist()]


def traces(root: Path, mark: str = MARK, doc_id: str = "") -> list[str]:
    """Files of a folder that hold a text or an id: their bytes, the cells of their tables, their tokens as text."""
    found = []
    tokenizers = [Tokenizer.from_file(str(path)) for path in root.rglob("tokenizer.json")]
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        held = [path.read_bytes(), *_cells(path, tokenizers)]
        if any(mark.encode() in data or (doc_id and bytes.fromhex(doc_id) in data) for data in held):
            found.append(path.relative_to(root).as_posix())
    return found


def _cells(path: Path, tokenizers: list[Tokenizer]) -> Iterator[bytes]:
    if path.suffix == ".parquet":
        yield from _binary(pq.read_table(path))
    elif path.suffix == ".arrow":
        table = ipc.open_file(pa.memory_map(str(path))).read_all()
        for tokens in table["tokens"].to_pylist():
            yield from (tokenizer.decode(tokens, skip_special_tokens=False).encode() for tokenizer in tokenizers)
    elif path.suffix == ".db":
        with sqlite3.connect(path) as connection:
            yield "".join(connection.iterdump()).encode()


def _binary(table: pa.Table) -> Iterator[bytes]:
    for column in table.columns:
        kind = column.type
        if pa.types.is_large_string(kind) or pa.types.is_string(kind):
            yield "\0".join(value or "" for value in column.to_pylist()).encode()
        elif pa.types.is_binary(kind) or pa.types.is_fixed_size_binary(kind):
            yield b"\0".join(value or b"" for value in column.to_pylist())
