"""`millrace up`: Prefect server, MLflow server, a worker and the deployments, as one group that starts and stops together."""

from __future__ import annotations

import ipaddress
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import psutil

from flows.deploy import HEARTBEAT_SECONDS, POOL, ROOT, deploy, prepare
from flows.environment import QUIET, SERVER, environ, quiet_logs, running_servers, server_environment
from flows.processes import free_port, start, stop, wait_until_healthy
from pipeline_lib.errors import BusyError, ConfigError, ServiceError
from pipeline_lib.workspace.files import read_json, write_json
from pipeline_lib.workspace.lease import lease_if_free
from pipeline_lib.workspace.workspace import Workspace

PREFECT_PORT, MLFLOW_PORT = 4200, 5000
LOOPBACK = "127.0.0.1"
WORKER_SECONDS, WORKER_ENDS = 10.0, 3  # a worker that ends sooner, so many times in a row, is broken


@dataclass(frozen=True)
class Servers:
    """Addresses of running servers."""

    prefect: str  # the UI; the API is below /api
    mlflow: str
    children: dict[str, subprocess.Popen[bytes]]
    start_worker: Callable[[], None]

    @property
    def ended(self) -> str:
        """The name of a child that ended by itself, "" while all run."""
        return next((name for name, child in self.children.items() if child.poll() is not None), "")


def _checked(host: str, exposed: bool) -> str:
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError as error:
        raise ConfigError(f"{host!r} is not an IP address", where="--host", fix="0.0.0.0 is every interface") from error
    if not loopback and not exposed:
        raise ConfigError(
            f"{host} is reachable from other machines, and neither server asks for a password: whoever reaches it can start runs "
            "with the rights of this account, read all runs and delete them",
            where="--host",
            fix="stay on 127.0.0.1 and tunnel (ssh -L), or say --expose if the network is yours",
        )
    return host


def clear_leftovers(workspace: Workspace) -> None:
    """End what an `up` left behind whose own process was killed; known by process id and start time."""
    path = workspace.root / "up.json"
    try:
        state = read_json(path)
    except (FileNotFoundError, ValueError):
        return
    left = [child["pid"] for child in state.get("children", {}).values() if _is(child["pid"], child["created"])]
    stop(left)
    path.unlink(missing_ok=True)


def _is(pid: int, created: float) -> bool:
    try:
        return abs(psutil.Process(pid).create_time() - created) < 2.0
    except psutil.Error:
        return False


@contextmanager
def _alone(workspace: Workspace) -> Iterator[None]:
    """One `up` a workspace at a time, from before its first server starts until after its last has ended."""
    with lease_if_free(workspace.lease_path("up")) as free:
        state = running_servers(workspace)
        if state or not free:
            where = f": Prefect {state['prefect']} · MLflow {state['mlflow']} (process {state['pid']})" if state else ""
            raise BusyError(
                "the servers run already" + (where or ", or are being started"),
                where=str(workspace.root),
                fix="open these, or `millrace down` first",
            )
        clear_leftovers(workspace)
        yield


@contextmanager
def servers(
    workspace: Workspace,
    *,
    host: str = LOOPBACK,
    exposed: bool = False,
    prefect_port: int = PREFECT_PORT,
    mlflow_port: int = MLFLOW_PORT,
    say: Callable[[str], None] = lambda line: None,
) -> Iterator[Servers]:
    """Start everything; on leaving, stop everything, with all that it started.

    Args:
        workspace: databases, logs (`db/logs/`) and artifacts lie here.
        host: the address to listen on.
        exposed: the operator knows that this address is reachable from elsewhere.
        prefect_port, mlflow_port: another free one is chosen where it is taken.
        say: told what happens.

    Raises:
        BusyError: the servers of this workspace run already.
        ServiceError: one did not start.
    """
    _checked(host, exposed)
    logs, artifacts = workspace.db_folder / "logs", workspace.root / "mlartifacts"
    artifacts.mkdir(exist_ok=True)
    ports = {"prefect": free_port(prefect_port, host=host), "mlflow": free_port(mlflow_port, host=host)}
    reach = LOOPBACK if host == "0.0.0.0" else host  # noqa: S104 - compared, not bound
    url = {name: f"http://{f'[{reach}]' if ':' in reach else reach}:{port}" for name, port in ports.items()}
    environment = {
        **QUIET,
        **server_environment(workspace),
        "MILLRACE_HOME": str(workspace.root),
        "MILLRACE_MLFLOW_URI": os.environ.get("MILLRACE_MLFLOW_URI") or url["mlflow"],
        # not an argument: those are seen by everybody on the machine, and it may hold a password
        "MLFLOW_BACKEND_STORE_URI": os.environ.get("MILLRACE_MLFLOW_DB") or f"sqlite:///{workspace.db_folder / 'mlflow.db'}",
        "PREFECT_API_URL": f"{url['prefect']}/api",  # the UI asks this address too; without it, port 4200
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_SECONDS),
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "PREFECT_WORKER_ENABLE_CANCELLATION": "true",
    }
    commands = {
        "prefect": [*SERVER, "--host", host, "--port", str(ports["prefect"])],
        "mlflow": [
            sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", host, "--port", str(ports["mlflow"]),
            "--default-artifact-root", str(artifacts), "--no-serve-artifacts",
        ],
        "worker": [
            sys.executable, "-m", "prefect", "worker", "start",
            "--pool", POOL, "--type", "process", "--name", worker_name(),
        ],
    }  # fmt: skip
    health = {"prefect": f"{url['prefect']}/api/health", "mlflow": f"{url['mlflow']}/health"}
    with _alone(workspace), environ(environment), ExitStack() as stack:
        children: dict[str, subprocess.Popen[bytes]] = {}
        stack.callback((workspace.root / "up.json").unlink, missing_ok=True)
        stack.callback(lambda: stop([child.pid for child in children.values()]))
        stack.callback(lambda: stop([children["worker"].pid], seconds=30.0) if "worker" in children else None)  # its runs report
        for name in ("prefect", "mlflow"):
            children[name] = start(commands[name], log=logs / f"{name}.log", cwd=ROOT)
            _write_state(workspace, url, children)
        say("starting Prefect and MLflow")
        import prefect.settings

        quiet_logs()
        stack.enter_context(
            prefect.settings.temporary_settings(
                {getattr(prefect.settings, name): value for name, value in environment.items() if name.startswith("PREFECT_")}
            )
        )
        wait_until_healthy(health["prefect"], children["prefect"], log=logs / "prefect.log")
        say("deploying flows")
        prepare()
        deploy()

        def start_worker() -> None:
            children["worker"] = start(commands["worker"], log=logs / "worker.log", cwd=ROOT)
            _write_state(workspace, url, children)

        start_worker()
        wait_until_healthy(health["mlflow"], children["mlflow"], log=logs / "mlflow.log")
        _wait_for_worker(children["worker"])
        yield Servers(url["prefect"], url["mlflow"], children, start_worker)


def worker_name() -> str:
    """What the worker of this process's servers is called in the pool."""
    return f"millrace-{os.getpid()}"


def _wait_for_worker(worker: subprocess.Popen[bytes], *, seconds: float = 60.0) -> None:
    """Until the pool knows the worker: a run started before would look stuck. A slow one is no error; `doctor` tells of it."""
    from prefect.client.orchestration import get_client

    end = time.monotonic() + seconds
    with get_client(sync_client=True) as client:
        while worker.poll() is None and time.monotonic() < end:
            known = client.read_workers_for_work_pool(POOL)  # workers of an `up` before are in it, too
            if any(one.name == worker_name() and one.status == "ONLINE" for one in known):
                return
            time.sleep(0.2)


def _write_state(workspace: Workspace, url: dict[str, str], children: dict[str, subprocess.Popen[bytes]]) -> None:
    def born(pid: int) -> float:
        return float(psutil.Process(pid).create_time())

    state: dict[str, Any] = {
        "pid": os.getpid(),
        "created": born(os.getpid()),
        **url,
        "prefect_api": f"{url['prefect']}/api",
        "children": {name: {"pid": child.pid, "created": born(child.pid)} for name, child in children.items()},
    }
    write_json(workspace.root / "up.json", state)


def serve(workspace: Workspace, *, opened: Callable[[Servers], None], **options: Any) -> None:
    """Start the servers (`servers` tells the options), say where they are, and hold them until Ctrl-C or SIGTERM.

    Raises:
        KeyboardInterrupt: asked to stop while they were starting; they are stopped.
        ServiceError: a server ended by itself; the others are stopped. A worker that was killed is started again.
    """
    asked, started = threading.Event(), threading.Event()

    def stop_asked(*_: object) -> None:
        again = asked.is_set()
        asked.set()
        if not started.is_set() and not again:  # a second one must not disturb the stopping
            raise KeyboardInterrupt

    before = {number: signal.signal(number, stop_asked) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with servers(workspace, **options) as running:
            started.set()
            opened(running)
            worker_since, early = time.monotonic(), 0
            while not asked.wait(0.5):
                if running.ended == "worker" and early < WORKER_ENDS:
                    early = early + 1 if time.monotonic() - worker_since < WORKER_SECONDS else 0
                    running.start_worker()
                    worker_since = time.monotonic()
                elif running.ended:
                    log = workspace.db_folder / "logs" / f"{running.ended}.log"
                    raise ServiceError(
                        f"{running.ended} ended by itself", where=str(log), fix="its log says why; then `millrace up`"
                    )
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def down(workspace: Workspace) -> bool:
    """Stop the servers that an `up` elsewhere holds; true when there were any."""
    state = running_servers(workspace)
    if state:
        stop([int(state["pid"])], seconds=30.0)
    clear_leftovers(workspace)
    return bool(state)
