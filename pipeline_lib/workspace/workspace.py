"""The workspace: one folder (`$MILLRACE_HOME`, default `./workspace`) that holds everything a pipeline made and knows."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline_lib.errors import ConfigError, DamagedError
from pipeline_lib.workspace.files import read_json, write_json
from pipeline_lib.workspace.lease import lease
from pipeline_lib.workspace.store import LocalStore

FORMAT = 1


class Workspace:
    """Folders of a workspace and the store in it.

    ```
    workspace.json   format number            runs/       run records        work/        work in progress, locks
    artifacts/       published artifacts      cache/      packed chunks      quarantine/  what was found damaged
    db/              embedded databases       spool/      metrics on their way to MLflow
    champion.json    champion, previous       reports/    rendered reports
    ```
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.work_folder = root / "work"
        self.locks_folder = root / "work" / "locks"
        self.quarantine_folder = root / "quarantine"
        self.runs_folder = root / "runs"
        self.cache_folder = root / "cache"
        self.db_folder = root / "db"
        self.spool_folder = root / "spool"
        self.reports_folder = root / "reports"
        self.store = LocalStore(root / "artifacts")

    @classmethod
    def open(cls, root: Path | str | None = None) -> Workspace:
        """Open or make the workspace; absolute from here on, so that a changed working directory cannot split it.

        Raises:
            ConfigError: it was written by a newer version.
        """
        folder = Path(root or os.environ.get("MILLRACE_HOME") or "workspace").absolute()
        workspace = cls(folder)
        mark = folder / "workspace.json"
        if not mark.exists():
            folder.mkdir(parents=True, exist_ok=True)
            write_json(mark, {"format": FORMAT})
        found = read_json(mark)["format"]
        if found > FORMAT:
            raise ConfigError(
                f"this workspace has format {found}; this version of millrace knows formats up to {FORMAT}",
                where=str(mark),
                fix="install the version of millrace that wrote it, or newer",
            )
        for path in (workspace.work_folder, workspace.locks_folder, workspace.runs_folder, workspace.db_folder):
            path.mkdir(parents=True, exist_ok=True)
        return workspace

    @contextlib.contextmanager
    def lease(self, name: str, *, wait: bool, log: Callable[[str], None] = lambda line: None) -> Iterator[None]:
        """Own a name while inside (see `lease.lease`)."""
        with lease(self.locks_folder / f"{name}.lock", wait=wait, log=log):
            yield

    def known_shards(self, stage: str, wanted: set[str]) -> dict[str, dict[str, Any]]:
        """Shards of earlier artifacts of a stage that are wanted again and intact: mark → record with `home` and `entries`."""
        found: dict[str, dict[str, Any]] = {}
        for key in self.store.keys(stage):
            try:
                artifact = self.store.artifact(key)
            except DamagedError:
                continue
            by_path = {(e.home, e.path): e for e in artifact.manifest.files}
            for mark in wanted & artifact.manifest.shards.keys() - found.keys():
                record = artifact.manifest.shards[mark]
                entries = {t: by_path[record["home"], path] for t, path in record["files"].items()}
                if any(artifact.damage(entry) for entry in entries.values()):
                    continue
                home = record["home"] or key
                homed = {table: {**asdict(entry), "home": home} for table, entry in entries.items()}
                found[mark] = {**record, "home": home, "entries": homed}
        return found

    def shard_file(self, record: dict[str, Any], table: str) -> Path:
        """Where a known shard's file lies."""
        return self.store.root / str(record["home"]) / str(record["files"][table])
