"""Runs whose process died are closed; runs that stopped are taken up again."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from pipeline_lib.errors import BusyError
from pipeline_lib.workspace.runs import RunBook, RunRecord, this_attempt

if TYPE_CHECKING:
    from pipeline_lib.workspace.workspace import Workspace


def reconcile(workspace: Workspace) -> list[RunRecord]:
    """Close the records of killed runs: those still `running` whose process is dead become `killed`.

    Returns:
        The records that were closed, oldest first, so that the caller can close what they left open elsewhere.
    """
    book = RunBook(workspace.runs_folder)
    closed = []
    with workspace.catalogue():
        for record in book.all():
            if record.outcome != "running" or book.alive(record):
                continue
            last_sign = datetime.fromtimestamp(book.path(record.run_id).stat().st_mtime, UTC).isoformat()
            record.outcome, record.ended, record.error = "killed", last_sign, "the process was killed"
            for attempt in record.attempts:
                if attempt.state == "running":
                    attempt.state, attempt.ended = "killed", last_sign
            for entry in record.stages.values():
                if entry.state == "running":
                    entry.state, entry.error = "killed", "the process was killed"
            book.save(record)
            book.clear(record.run_id)
            closed.append(record)
    return closed


def resume_run(workspace: Workspace, run_id: str, *, automatic: bool = False) -> RunRecord:
    """Continue a run that stopped: the same record, the next attempt.

    Args:
        workspace: where the record lies.
        run_id: the run.
        automatic: a retry without a person keeps the deadline. When a person retries after the window has passed, a new window of
            the same length opens now, and the record says so.

    Raises:
        NotFoundError: there is no such run.
        BusyError: the run is still going.
    """
    book = RunBook(workspace.runs_folder)
    with workspace.catalogue():
        record = book.load(run_id)
        attempt = this_attempt()
        last = record.attempts[-1] if record.attempts else None
        if record.outcome == "running" and last and not book.held_here(record.run_id) and book.alive(record):
            raise BusyError(f"run {record.run_id} is still going (process {last.pid})", fix="wait for it, or stop it first")
        now = datetime.now(UTC)
        if record.deadline and not automatic and now > datetime.fromisoformat(record.deadline):
            length: timedelta = datetime.fromisoformat(record.deadline) - datetime.fromisoformat(
                record.window_from or record.started
            )
            detail = {"passed": record.deadline, "hours": round(length.total_seconds() / 3600, 3)}
            record.window_from, record.deadline = now.isoformat(), (now + length).isoformat()
            record.events.append({"time": now.isoformat(), "kind": "new_window", "detail": detail})
        book.hold(record.run_id)
        record.attempts.append(attempt)
        record.outcome, record.ended, record.error = "running", "", ""
        book.save(record)
    return record
