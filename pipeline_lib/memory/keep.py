"""The memory of a workspace: its store in `memory/`, what a run that ends leaves there, and what ended before there was one."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationError

from pipeline_lib.config.resources import MemoryConfig
from pipeline_lib.memory.record import remembered
from pipeline_lib.memory.store import Config, MemoryStore
from pipeline_lib.secrets import told
from pipeline_lib.workspace.runs import RunBook, RunRecord
from pipeline_lib.workspace.workspace import Workspace

SLACK = 64  # runs beyond the warm size before a run that ends moves any: moving is done in batches


def store_of(workspace: Workspace, config: MemoryConfig | None = None) -> MemoryStore:
    """The memory that lies in a workspace."""
    config = config or MemoryConfig()
    return MemoryStore(
        Config(
            workspace.root / "memory",
            hot_memory_size=config.hot,
            warm_memory_size=config.warm,
            cold_memory_size=config.cold,
            warm_days=config.warm_days,
            embedding_model="" if config.embedding_model == "none" else config.embedding_model,
        )
    )


def caught_up(workspace: Workspace, config: MemoryConfig | None = None) -> MemoryStore:
    """The memory, with the ended runs that it did not know: those of before it, and those whose end it could not write."""
    store, book = store_of(workspace, config), RunBook(workspace.runs_folder)
    known = set(store.table()["run_id"].to_pylist())
    for record in book.all() if set(book.ids()) - known else ():
        if record.run_id not in known and record.outcome != "running":
            _add(store, workspace, record)
    return store


def remember(workspace: Workspace, record: RunRecord) -> None:
    """Keep what an ended run taught. What cannot be written (a full disk) is an event of the run, never its failure; it is made
    up for when memory is next asked.

    A failed run whose trouble was cured before gets an event that says how.
    """
    try:
        config = MemoryConfig.model_validate(record.config.get("memory", {}))
    except ValidationError:  # of another version
        config = MemoryConfig()
    store = store_of(workspace, config)
    memory = _add(store, workspace, record)
    if memory is None:
        return
    if record.outcome == "failed":
        for signal in sorted({failure["signal"] for failure in memory.failures}):
            if cures := store.cures(signal):
                _event(record, "cured_before", {"trouble": signal, "by": [f"{action} ({times}×)" for action, times in cures[:3]]})
    if sum(1 for _ in store.warm.glob("*.json")) > config.warm + SLACK:
        try:
            store.tidy()
        except OSError as error:
            _event(record, "memory_failed", {"error": told(error)})


def _add(store: MemoryStore, workspace: Workspace, record: RunRecord) -> Any:
    try:
        memory = remembered(record, workspace)
        store.add(memory)
    except OSError as error:
        _event(record, "memory_failed", {"error": told(error)})
        return None
    return memory


def _event(record: RunRecord, kind: str, detail: dict[str, Any]) -> None:
    record.events.append({"time": datetime.now(UTC).isoformat(), "kind": kind, "detail": detail})
