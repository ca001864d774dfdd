"""What a Prefect server needs before runs can be started on it: work pool, limits, crash watch, deployments."""

from __future__ import annotations

import contextlib
import importlib
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import yaml

from pipeline_lib.config.load import load_config
from pipeline_lib.errors import ConfigError, ServiceError

POOL = "millrace"
CRASH_WATCH = "millrace: a run without heartbeats has crashed"
HEARTBEAT_SECONDS = 30  # the shortest that Prefect allows
ROOT = Path(__file__).parent.parent
PREFECT_FILE = ROOT / "deployments" / "prefect.yaml"


def read_pipeline(path: str) -> dict[str, Any]:
    """A build step of `prefect.yaml`: the values that a deployment's form is filled with, from a pipeline file."""
    return {"config": load_config(Path(path)).model_dump(mode="json")}


def deployed_modules() -> set[str]:
    """The dotted extension modules of the pipelines that `prefect.yaml` deploys."""
    if not PREFECT_FILE.exists():
        return set()
    steps = [step for one in yaml.safe_load(PREFECT_FILE.read_text())["deployments"] for step in one.get("build") or []]
    files = {step["flows.deploy.read_pipeline"]["path"] for step in steps if "flows.deploy.read_pipeline" in step}
    return {name for file in files for name in load_config(ROOT / file).execution.extensions}


def prepare() -> None:
    """Make the process work pool, the limit of one training at a time, and the automation that finds killed runs."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate, WorkPoolCreate
    from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound

    from tasks.stages import TRAINING_LIMIT

    with get_client(sync_client=True) as client:
        with contextlib.suppress(ObjectAlreadyExists):
            client.create_work_pool(WorkPoolCreate(name=POOL, type="process"))
        try:
            client.read_global_concurrency_limit_by_name(TRAINING_LIMIT)
        except ObjectNotFound:
            client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=TRAINING_LIMIT, limit=1))
    _watch_for_crashes()


def _watch_for_crashes() -> None:
    """A flow run whose process was killed cannot say so: when its heartbeats stop, it is marked Crashed."""
    from prefect.automations import Automation, ChangeFlowRunState, EventTrigger, Posture, ResourceSpecification
    from prefect.client.schemas.objects import StateType
    from prefect.utilities.asyncutils import run_coro_as_sync

    with contextlib.suppress(ValueError):  # there is none of this name
        run_coro_as_sync(Automation.aread(name=CRASH_WATCH))
        return
    ends = {f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Cancelled", "Crashed")}
    watch = Automation(
        name=CRASH_WATCH,
        trigger=EventTrigger(
            after={"prefect.flow-run.heartbeat"},
            expect={"prefect.flow-run.heartbeat", *ends},
            match=ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}),
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=2 * HEARTBEAT_SECONDS),
        ),
        actions=[ChangeFlowRunState(state=StateType.CRASHED, name=None, force=False, message="no heartbeat: killed")],
    )
    run_coro_as_sync(watch.acreate())


def deploy(prefect_file: Path = PREFECT_FILE) -> None:
    """Deploy everything in `prefect.yaml` to the server of $PREFECT_API_URL.

    Raises:
        ConfigError: this installation has no deployments beside it.
        ServiceError: Prefect refused.
    """
    if not prefect_file.exists():
        raise ConfigError(f"{prefect_file} is missing", fix="run from a checkout of the repository: deployments are files in it")
    # Prefect deploys code that cannot be imported without a word
    for entry in {d["entrypoint"] for d in yaml.safe_load(prefect_file.read_text())["deployments"]}:
        importlib.import_module(entry.partition(":")[0].removesuffix(".py").replace("/", "."))
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--prefect-file", str(prefect_file), "--all"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=180, check=False)
    if done.returncode:
        raise ServiceError(
            f"the deployments were refused: {(done.stdout + done.stderr)[-1500:]}",
            where=str(prefect_file),
            fix="`millrace doctor` checks versions that are known to break this",
        )
