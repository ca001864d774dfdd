"""Ask a person before promotion: a typed form in the Prefect UI, or `millrace approve RUN`, until the time is over."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from contextvars import copy_context
from typing import Any
from uuid import UUID

from prefect import get_run_logger
from prefect.flow_runs import pause_flow_run, resume_flow_run
from prefect.input import RunInput
from prefect.runtime import flow_run
from pydantic import Field

from flows.answers import Decision, read_answer
from tasks.live import LiveRun
from tasks.show import escape

POLL_SECONDS = 1.0
SLACK_SECONDS = 600  # Prefect's own limit lies behind ours, which answers with the default instead of failing the run


class Approval(RunInput):
    """The form."""

    decision: Decision = Field(description="promote: this model becomes the champion; keep: the champion stays")
    by: str = Field(
        default="somebody in the Prefect UI", description="Who decided; kept in the champion's history", max_length=100
    )


def ask(run: LiveRun, verdict: Mapping[str, Any]) -> tuple[Decision, str]:
    """Wait for a person's decision. A file's answer resumes the paused flow run, as the form does.

    Returns:
        The decision and who took it; after `gate.approval_minutes` the configured default.
    """
    gate, logger = run.config.gate, get_run_logger()
    reasons = "\n".join(f"- {escape(str(reason))}" for reason in verdict.get("reasons", []))
    form = Approval.with_initial_data(
        decision=gate.approval_default,
        description=f"**{escape(str(verdict.get('outcome', '')))}**: shall the model of run `{run.record.run_id}` become the "
        f"champion?\n\n{reasons}\n\nWithout an answer in {gate.approval_minutes:g} minutes: **{gate.approval_default}**.",
    )
    logger.info(
        "waiting for approval, at most %g minutes: answer in the Prefect UI, or `millrace approve %s`",
        gate.approval_minutes,
        run.record.run_id,
    )
    answered = threading.Event()
    watcher = threading.Thread(target=copy_context().run, args=(_watch, run, answered), daemon=True)
    watcher.start()
    try:
        approval = pause_flow_run(
            wait_for_input=form, timeout=int(gate.approval_minutes * 60) + SLACK_SECONDS, poll_interval=int(POLL_SECONDS)
        )
    finally:
        answered.set()
    return approval.decision, approval.by


def _watch(run: LiveRun, answered: threading.Event) -> None:
    """Resume the flow run with the answer from the command line, or with the default when the time is over."""
    gate = run.config.gate
    end = time.monotonic() + gate.approval_minutes * 60
    while not answered.wait(POLL_SECONDS):
        answer = read_answer(run.workspace, run.record)
        if not answer and time.monotonic() < end:
            continue
        given = {"decision": answer.get("decision", gate.approval_default), "by": answer.get("by", "the time limit")}
        try:
            resume_flow_run(UUID(flow_run.get_id()), run_input=given)
        except Exception:  # noqa: S112 - not paused yet, answered at this moment in the UI, or no server: asked again
            continue
        return
