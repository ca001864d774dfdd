"""Answers of people to a run that asks for approval: one small file a run, so that they need no server."""

from __future__ import annotations

from typing import Any, Literal

from pipeline_lib.errors import RefusedError
from pipeline_lib.workspace.files import read_json, write_json
from pipeline_lib.workspace.runs import RunRecord
from pipeline_lib.workspace.services import now
from pipeline_lib.workspace.workspace import Workspace

Decision = Literal["promote", "keep"]


def write_answer(workspace: Workspace, record: RunRecord, decision: Decision, *, by: str) -> None:
    """Answer a run that waits for approval (`millrace approve RUN`).

    Raises:
        RefusedError: the run is over.
    """
    if record.outcome != "running":
        raise RefusedError(
            f"run {record.run_id} asks nothing: it is {record.outcome}",
            fix=f"`millrace promote {record.run_id}` promotes a finished run's model",
        )
    folder = workspace.root / "approvals"
    folder.mkdir(exist_ok=True)
    answer = {"decision": decision, "by": by, "time": now().isoformat(), "attempt": len(record.attempts)}
    write_json(folder / f"{record.run_id}.json", answer)


def read_answer(workspace: Workspace, record: RunRecord) -> dict[str, Any]:
    """The answer given to this attempt of a run, {} while there is none: an earlier attempt had another model to ask about."""
    try:
        answer = dict(read_json(workspace.root / "approvals" / f"{record.run_id}.json"))
    except FileNotFoundError:
        return {}
    return answer if answer.get("attempt") == len(record.attempts) else {}
