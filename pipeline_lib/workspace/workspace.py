"""The workspace: one folder (`$MILLRACE_HOME`, default `./workspace`) that holds everything a pipeline made and knows."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from pipeline_lib.errors import ConfigError, NotFoundError
from pipeline_lib.workspace.artifact import Artifact
from pipeline_lib.workspace.files import read_json, write_json
from pipeline_lib.workspace.lease import lease, lock_of
from pipeline_lib.workspace.migrate import FORMAT, migrate
from pipeline_lib.workspace.store import LocalStore, Store
from pipeline_lib.workspace.uses import add_uses, living_uses


class Workspace:
    """Folders of a workspace and the store in it.

    ```
    workspace.json   format number, id        runs/       run records        work/        work in progress, locks, uses
    artifacts/       published artifacts      cache/      packed chunks      quarantine/  what was found damaged
    db/              embedded databases       spool/      metrics on their way to MLflow
    champion.json    champion, previous       reports/    rendered reports   seen/        which bytes were checked here
    ```
    With a store elsewhere (`store_url`), `artifacts/` is its local mirror; everything else is always local.
    """

    def __init__(self, root: Path, *, store_url: str = "") -> None:
        self.root = root
        self.work_folder = root / "work"
        self.locks_folder = root / "work" / "locks"
        self.uses_folder = root / "work" / "uses"
        self.quarantine_folder = root / "quarantine"
        self.runs_folder = root / "runs"
        self.cache_folder = root / "cache"
        self.db_folder = root / "db"
        self.spool_folder = root / "spool"
        self.reports_folder = root / "reports"
        self.store_url = store_url
        local = LocalStore(root / "artifacts", seen=root / "seen", quarantine=self.quarantine_folder)
        self.store: Store = local
        if store_url:
            from pipeline_lib.workspace.remote import RemoteStore

            self.store = RemoteStore(store_url, mirror=local)

    @classmethod
    def open(cls, root: Path | str | None = None, *, store_url: str | None = None) -> Workspace:
        """Open or make the workspace; absolute from here on, so that a changed working directory cannot split it.

        Args:
            root: the folder; default `$MILLRACE_HOME`, then `./workspace`.
            store_url: an fsspec URL for the artifacts; default `$MILLRACE_STORE`, then the folder itself.

        Raises:
            ConfigError: it was written by a newer version, or cannot be made there.
        """
        folder = Path(root or os.environ.get("MILLRACE_HOME") or "workspace").absolute()
        url = os.environ.get("MILLRACE_STORE", "") if store_url is None else store_url
        workspace = cls(folder, store_url=url)
        mark = folder / "workspace.json"
        if not mark.exists():
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                fix = "name a folder that can be written: $MILLRACE_HOME, or `millrace --home FOLDER`"
                raise ConfigError(f"is no folder for a workspace ({error.strerror})", where=str(folder), fix=fix) from None
            write_json(mark, {"format": FORMAT, "id": uuid.uuid4().hex})
        migrate(folder)
        for path in (workspace.locks_folder, workspace.uses_folder, workspace.runs_folder, workspace.db_folder):
            path.mkdir(parents=True, exist_ok=True)
        return workspace

    @property
    def id(self) -> str:
        """A name that no other workspace has."""
        return str(read_json(self.root / "workspace.json")["id"])

    def lease_path(self, name: str) -> Path:
        """The lock file of a name."""
        return self.locks_folder / f"{name}.lock"

    @contextlib.contextmanager
    def lease(self, name: str, *, wait: bool, log: Callable[[str], None] = lambda line: None) -> Iterator[None]:
        """Own a name while inside (see `lease.lease`)."""
        with lease(self.lease_path(name), wait=wait, log=log):
            yield

    @contextlib.contextmanager
    def catalogue(self) -> Iterator[None]:
        """Own the catalogue for a moment: what is in use, and what is taken away, changes only inside (see `gc`)."""
        with lock_of(self.lease_path("catalogue")):
            yield

    def use(self, *keys: str) -> set[str]:
        """Protect artifacts from garbage collection until this process ends; returns those that are (still) there."""
        with self.catalogue():
            add_uses(self.uses_folder, keys)
            return {key for key in keys if self.store.has(key)}

    def in_use(self) -> set[str]:
        """Keys that living processes work with. The caller holds the catalogue."""
        return living_uses(self.uses_folder)

    def artifact(self, key: str) -> Artifact:
        """A committed artifact, protected from garbage collection from here on.

        Raises:
            NotFoundError: nothing is committed under this key.
        """
        if key not in self.use(key):
            raise NotFoundError(f"no artifact {key!r} in this workspace", fix="run the pipeline again: it is remade")
        return self.store.artifact(key)
