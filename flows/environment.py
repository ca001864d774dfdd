"""Where Prefect lives: a remote server, the one that `millrace up` started, or an embedded one, its database in the workspace."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil

from flows.deploy import HEARTBEAT_SECONDS
from flows.processes import answers, free_port, start, stop, wait_until_healthy
from pipeline_lib.errors import MillraceError, ServiceError
from pipeline_lib.secrets import told
from pipeline_lib.tracking.server import shown
from pipeline_lib.workspace.workspace import Workspace
from tasks.live import EMBEDDED

# Nothing calls home, and what runs below does not talk over what people came to read.
QUIET = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_LOGGING_LEVEL": "ERROR",
    "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",  # Prefect's own embedded server would outlive a killed run
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
}
QUIET_LOGGERS = ("httpx", "httpcore", "alembic", "uvicorn", "uvicorn.access", "uvicorn.error", "asyncio", "aiosqlite")
SERVER = [sys.executable, "-m", "uvicorn", "--factory", "prefect.server.api.server:create_app", "--log-level", "error", "--lifespan", "on"]  # fmt: skip # noqa: E501


def server_environment(workspace: Workspace) -> dict[str, str]:
    """Prefect's files and database, in the workspace; a database URL that is already in the environment goes first."""
    url = os.environ.get("PREFECT_API_DATABASE_CONNECTION_URL") or f"sqlite+aiosqlite:///{workspace.db_folder / 'prefect.db'}"
    return {"PREFECT_HOME": str(workspace.db_folder / "prefect"), "PREFECT_API_DATABASE_CONNECTION_URL": url}


def running_servers(workspace: Workspace) -> dict[str, Any]:
    """What `millrace up` wrote about itself (`up.json`), if the process that wrote it is alive; else {}."""
    try:
        state: dict[str, Any] = json.loads((workspace.root / "up.json").read_text())
        process = psutil.Process(int(state["pid"]))
        alive = abs(process.create_time() - float(state["created"])) < 2.0 and process.status() != psutil.STATUS_ZOMBIE
    except (OSError, ValueError, KeyError, psutil.Error):
        return {}
    return state if alive else {}


def server_url(workspace: Workspace) -> str:
    """The Prefect API to use: `$PREFECT_API_URL`, that of the workspace's own servers, or "" for an embedded one."""
    if url := os.environ.get("PREFECT_API_URL", ""):
        return url
    url = str(running_servers(workspace).get("prefect_api", ""))
    return url if url and answers(f"{url}/health") else ""


def require_server(url: str) -> None:
    """See that somebody answers at a Prefect API, whatever the answer (one that asks for a key is there).

    Raises:
        ServiceError: nobody does; Prefect itself would try for minutes and end in a traceback.
    """
    try:
        urllib.request.urlopen(f"{shown(url).rstrip('/')}/health", timeout=10.0).close()  # noqa: S310 - an operator's setting
    except urllib.error.HTTPError:
        return
    except (OSError, ValueError) as error:
        raise ServiceError(
            f"no Prefect server answers at {shown(url)} ({told(error)})",
            where="$PREFECT_API_URL",
            fix="start it, or unset PREFECT_API_URL to run embedded; `millrace doctor` looks at all servers",
        ) from None


@contextlib.contextmanager
def environ(changes: Mapping[str, str]) -> Iterator[None]:
    """Environment variables for a while."""
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def prefect_for(workspace: Workspace, *, silent: bool = False) -> Iterator[str]:
    """Prefect set up for a workspace while inside; yields the API's URL. `silent`: only its warnings reach the terminal.

    Without a server to use, an embedded one is started as a child: while it starts, this process imports Prefect. Prefect reads
    the environment once, on import, so that nothing should import it earlier; where something did (tests), its settings are
    changed for the time of the block.
    """
    quiet = {name: value for name, value in QUIET.items() if name not in os.environ}
    with environ({"MILLRACE_HOME": str(workspace.root), **quiet}), contextlib.ExitStack() as stack:
        server = None
        if url := server_url(workspace):
            require_server(url)
            wanted = {"PREFECT_API_URL": url}
        else:
            port, log = free_port(), workspace.db_folder / "prefect" / "embedded.log"
            url = f"http://127.0.0.1:{port}/api"
            wanted = {"PREFECT_API_URL": url, EMBEDDED: "1", **server_environment(workspace)}
            extra = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}
            server = start([*SERVER, "--host", "127.0.0.1", "--port", str(port)], log=log, env={**wanted, **extra})
            stack.callback(stop, [server.pid])
        stack.enter_context(environ(wanted))
        import prefect.settings

        updates: dict[Any, Any] = {
            getattr(prefect.settings, name): value for name, value in wanted.items() if name.startswith("PREFECT_")
        }
        # The crash watch of `flows.deploy` expects a sign of life this often, also of runs that no worker started.
        updates[prefect.settings.PREFECT_FLOWS_HEARTBEAT_FREQUENCY] = HEARTBEAT_SECONDS
        if server:  # nobody watches the heartbeats of an embedded run, and joining their thread would cost it a second
            updates[prefect.settings.PREFECT_FLOWS_HEARTBEAT_FREQUENCY] = None
        stack.enter_context(_settings(updates))
        import tasks.stages  # noqa: F401 - while the server starts

        if server:
            wait_until_healthy(f"{url}/health", server, log=log)
        quiet_logs(silent=silent)
        if server:
            stack.callback(_deliver)
        yield url


@contextlib.contextmanager
def _settings(updates: dict[Any, Any]) -> Iterator[None]:
    """Prefect settings for a while, for this thread and for those that Prefect starts (they see only the global ones)."""
    import prefect.context
    from prefect.settings import temporary_settings

    before = prefect.context.GLOBAL_SETTINGS_CONTEXT
    with temporary_settings(updates):
        prefect.context.GLOBAL_SETTINGS_CONTEXT = prefect.context.get_settings_context()
        try:
            yield
        finally:
            prefect.context.GLOBAL_SETTINGS_CONTEXT = before


def _deliver() -> None:
    """Send what Prefect still has in its queues (logs, events) while the embedded server is there to take it.

    From a thread of its own: beside a running event loop (a notebook's) Prefect would hand back a coroutine instead of waiting.
    """
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    with ThreadPoolExecutor(1) as pool:
        for worker in (APILogWorker, EventsWorker):
            pool.submit(worker.drain_all, timeout=10).result()


def quiet_logs(*, silent: bool = False) -> None:
    """Keep libraries to warnings, and errors for people without their traceback. `silent`: Prefect's lines go to its API only."""
    from prefect.logging.handlers import PrefectConsoleHandler

    for handler in logging.getLogger().handlers:
        if isinstance(handler, PrefectConsoleHandler):
            handler.filters = [f for f in handler.filters if not isinstance(f, _WarningsOnly)]
            if silent:
                handler.addFilter(_WarningsOnly())  # a level would be reset by Prefect at the start of a flow
    for name in QUIET_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logger = logging.getLogger(name)
        if not any(isinstance(f, _ForPeople) for f in logger.filters):
            logger.addFilter(_ForPeople())


class _WarningsOnly(logging.Filter):
    """Warnings, and errors with their traceback. What Prefect says of an error for people, for the task and again for the flow,
    goes to its API only: the command that failed says it last."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno >= logging.ERROR and record.name in {"prefect.flow_runs", "prefect.task_runs"}:
            return record.exc_info is not None
        return record.levelno >= logging.WARNING


class _ForPeople(logging.Filter):
    """A `MillraceError` says what to do: its traceback would only bury that."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Never drops a record."""
        if record.exc_info and isinstance(record.exc_info[1], MillraceError):
            record.exc_info, record.exc_text = None, None
        return True
