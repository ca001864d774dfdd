"""`millrace doctor`: whether this machine, its versions and its servers are fit for runs, and what to do where they are not."""

from __future__ import annotations

import importlib.metadata
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from packaging.requirements import Requirement

from flows.environment import running_servers, server_url
from flows.processes import answers
from pipeline_lib.config.resources import TrackingConfig
from pipeline_lib.errors import MillraceError
from pipeline_lib.hardware.machine import describe, peak_flops, training_device
from pipeline_lib.secrets import told
from pipeline_lib.tracking.server import shown, tracking_uri
from pipeline_lib.workspace.runs import RunBook
from pipeline_lib.workspace.workspace import Workspace

DANGEROUS = ("fastapi", "SQLAlchemy", "prefect")  # unpinned, they install well and break schedules, deployments or the server
ENOUGH_DISK_GB, LITTLE_DISK_GB = 20.0, 5.0
LITTLE_MEMORY_GIB = 4.0
INSTALL = "install from the lock file: `make clean install`"


@dataclass(frozen=True)
class Finding:
    """One line of the examination."""

    subject: str
    state: Literal["ok", "warn", "bad"]
    what: str
    fix: str = ""

    def to_json(self) -> dict[str, str]:
        """As plain JSON values."""
        return asdict(self)


def examine(workspace: Workspace) -> Iterator[Finding]:
    """Every finding, as it is made."""
    yield from _machine(workspace)
    yield from _versions()
    yield from _runs(workspace)
    yield from _servers(workspace)


def _machine(workspace: Workspace) -> Iterator[Finding]:
    version = f"Python {sys.version_info.major}.{sys.version_info.minor}.{sys.version_info.micro}"
    fit = sys.version_info >= (3, 11)
    yield Finding("python", "ok" if fit else "bad", version, "" if fit else "install Python 3.11 or newer")
    yield _hardware()
    yield from _peaks()
    free = shutil.disk_usage(workspace.root).free / 1e9
    state: Literal["ok", "warn", "bad"] = "ok" if free >= ENOUGH_DISK_GB else "warn" if free >= LITTLE_DISK_GB else "bad"
    yield Finding(
        "disk", state, f"{free:.0f} GB free at {workspace.root}", "" if state == "ok" else "`millrace gc` shows what could go"
    )


def _hardware() -> Finding:
    try:
        machine = describe()
    except (ImportError, OSError) as error:  # a library that torch loads is missing or of another system
        return Finding("machine", "bad", f"torch cannot be loaded: {told(error)}", INSTALL)
    memory = machine.memory_bytes / 2**30
    gpus = ", ".join(f"{gpu.name} ({gpu.memory_bytes / 2**30:.0f} GiB)" for gpu in machine.gpus) or "no GPU"
    what = f"{machine.cpu}, {machine.cores} cores, {memory:.1f} GiB of memory, {gpus}, bf16: {machine.bf16}"
    what += f", torch.compile: {'yes' if machine.compile else 'no compiler'}, {machine.interconnect}"
    little = memory < LITTLE_MEMORY_GIB
    fix = f"{LITTLE_MEMORY_GIB:g} GiB are wanted: lower resources.memory_gib and execution.workers"
    return Finding("machine", "warn" if little else "ok", what, fix if little else "")


def _peaks() -> Iterator[Finding]:
    """What model FLOP/s are divided by to give MFU."""
    try:
        device = training_device()
        peaks = {precision: peak_flops(device, precision) for precision in ("fp32", "bf16")}
    except (ImportError, OSError, RuntimeError):  # said by the line before
        return
    seen = dict.fromkeys(f"{peak.flops / 1e9:,.0f} GFLOP/s ({peak.source})" for peak in peaks.values())
    yield Finding("peak", "ok", "; ".join(seen))


def _versions() -> Iterator[Finding]:
    """Installed versions against what this package says it works with."""
    wanted = {r.name.lower(): r for text in importlib.metadata.requires("millrace") or [] if not (r := Requirement(text)).marker}
    for name in DANGEROUS:
        installed, requirement = importlib.metadata.version(name), wanted[name.lower()]
        fit = requirement.specifier.contains(installed, prereleases=True)
        yield Finding(
            name.lower(),
            "ok" if fit else "bad",
            f"{installed} (works with {requirement.specifier})",
            "" if fit else INSTALL,
        )


def _runs(workspace: Workspace) -> Iterator[Finding]:
    book = RunBook(workspace.runs_folder)
    running = [record for record in book.all() if record.outcome == "running"]
    dead = [record.run_id for record in running if not book.alive(record)]
    going = [record.run_id for record in running if record.run_id not in dead]
    if dead:
        yield Finding("runs", "warn", f"killed: {', '.join(dead)}", "the next run closes their records; `millrace retry RUN`")
    if going:
        yield Finding("runs", "ok", f"going: {', '.join(going)}")


def _servers(workspace: Workspace) -> Iterator[Finding]:
    up = running_servers(workspace)
    uri = tracking_uri(TrackingConfig(), workspace, running=str(up.get("mlflow", "")))
    if uri.startswith("http"):
        fit = answers(f"{uri}/health")
        yield Finding(
            "mlflow", "ok" if fit else "warn", shown(uri), "" if fit else "it does not answer; metrics wait in the spool"
        )
    else:
        yield Finding("mlflow", "ok", "embedded: a database file in the workspace")
    url = server_url(workspace)
    if not url:
        yield Finding("prefect", "ok", "embedded: started with every run; `millrace up` for a UI, schedules and triggers")
        return
    if not answers(f"{url}/health"):
        yield Finding("prefect", "bad", f"{shown(url)} does not answer", "start it, or unset PREFECT_API_URL to run embedded")
        return
    yield Finding("prefect", "ok", shown(url))
    try:
        yield from _prefect(url)
    except Exception as error:
        yield Finding(
            "prefect", "bad", f"{type(error).__name__}: {told(error)}", "is the server of the version in the lock file?"
        )


def _prefect(url: str) -> Iterator[Finding]:
    from flows.environment import environ

    with environ({"PREFECT_API_URL": url}):
        import prefect.settings
        from prefect.client.orchestration import get_client
        from prefect.exceptions import ObjectNotFound

        from flows.deploy import CRASH_WATCH, POOL

        settings = prefect.settings.temporary_settings({prefect.settings.PREFECT_API_URL: url})
        with settings, get_client(sync_client=True) as client:
            try:
                pool = client.read_work_pool(POOL)
            except ObjectNotFound:
                yield Finding("work pool", "bad", f"{POOL} is missing", "`millrace up` makes it")
                return
            workers = [w for w in client.read_workers_for_work_pool(POOL) if w.status == "ONLINE"]
            fit = bool(workers) and not pool.is_paused
            what = f"{POOL}: {len(workers)} worker(s) online" + (", paused" if pool.is_paused else "")
            yield Finding("work pool", "ok" if fit else "bad", what, "" if fit else "`millrace up` starts a worker")
            yield _limit(client)
            names = [automation["name"] for automation in _all(client, "/automations/filter")]
            watched = CRASH_WATCH in names
            what = "killed runs are marked Crashed" if watched else "killed runs would stay Running"
            yield Finding(
                "crash watch", "ok" if watched else "warn", what, "" if watched else "`millrace up` makes the automation"
            )
            yield from _schedules(client)


def _limit(client: Any) -> Finding:
    from prefect.exceptions import ObjectNotFound

    from tasks.stages import TRAINING_LIMIT

    try:
        limit = client.read_global_concurrency_limit_by_name(TRAINING_LIMIT)
    except ObjectNotFound:
        return Finding("limit", "warn", "trainings of several workspaces could run at once", "`millrace up` makes the limit")
    return Finding("limit", "ok", f"{TRAINING_LIMIT}: {limit.active_slots} of {limit.limit} in use")


def _schedules(client: Any) -> Iterator[Finding]:
    """Active schedules must have runs: with a wrong SQLAlchemy they silently have none."""
    deployments = _all(client, "/deployments/filter")
    if not deployments:
        yield Finding("deployments", "bad", "none", "`millrace up` deploys them")
    for deployment in deployments:
        schedules = [s for s in deployment["schedules"] if s["active"]]
        if not schedules or deployment["paused"]:
            continue
        body = {
            "flow_runs": {"deployment_id": {"any_": [deployment["id"]]}, "state": {"type": {"any_": ["SCHEDULED"]}}},
            "sort": "EXPECTED_START_TIME_ASC",
            "limit": 1,
        }
        runs = client.request("POST", "/flow_runs/filter", json=body).json()
        age = datetime.now(UTC) - datetime.fromisoformat(deployment["updated"])
        if runs:
            yield Finding("schedule", "ok", f"{deployment['name']}: next at {runs[0]['expected_start_time']}")
        elif age.total_seconds() < 60:
            yield Finding(
                "schedule", "warn", f"{deployment['name']}: no run yet", "deployed a moment ago: look again in a minute"
            )
        else:
            fix = "its cron never comes, or the scheduler is broken: see sqlalchemy above"
            yield Finding("schedule", "bad", f"{deployment['name']}: active, but no run is scheduled", fix)


def _all(client: Any, path: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = client.request("POST", path, json={"limit": 200}).json()
    return found


def exit_code(findings: list[Finding]) -> int:
    """0 when nothing is bad."""
    return MillraceError.exit_code if any(finding.state == "bad" for finding in findings) else 0
