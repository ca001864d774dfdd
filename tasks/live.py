"""A run that is going: what every task of it works with."""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime

from pipeline_lib.config.pipeline import PipelineConfig
from pipeline_lib.workspace.runs import RunRecord
from pipeline_lib.workspace.services import Services
from pipeline_lib.workspace.workspace import Workspace

EMBEDDED = "MILLRACE_EMBEDDED"  # this variable is set while the Prefect server is a child of this process: nobody else is on it
GRACE_SECONDS = 3600.0  # a stage that still runs an hour after the window has hung


class LiveRun:
    """Workspace, record and services of a run, and which stages are wanted of it.

    Not a dataclass on purpose: Prefect walks through the fields of dataclass arguments looking for futures.

    Args:
        workspace: where everything lies.
        record: the run's record; tasks write what happened into it.
        config: the resolved configuration.
        services: injected into every stage.
        wanted: stages that run (or are reused); the others are left as the record has them.
        force: stages that are made again even where an artifact could be reused.
        wait: wait for another run that makes the same artifact, instead of leaving.
    """

    def __init__(
        self,
        workspace: Workspace,
        record: RunRecord,
        config: PipelineConfig,
        services: Services,
        *,
        wanted: Collection[str],
        force: Collection[str] = (),
        wait: bool = True,
    ) -> None:
        self.workspace = workspace
        self.record = record
        self.config = config
        self.services = services
        self.wanted = frozenset(wanted)
        self.force = frozenset(force)
        self.wait = wait
        self.outcome = "completed"  # a flow that ends the run otherwise says so here

    def timeout_seconds(self) -> float | None:
        """How long a stage may take from now before it counts as hung; None without a deadline."""
        if not self.record.deadline:
            return None
        left = (datetime.fromisoformat(self.record.deadline) - datetime.now(UTC)).total_seconds()
        return max(left, 0.0) + GRACE_SECONDS
