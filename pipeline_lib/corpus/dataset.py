"""Data sets of the library `datasets` as files: which ones belong to a split is its knowledge, reading them is ours.

No loading script runs and no row passes through the library: a folder that `save_to_disk` made is Arrow files, any other folder
and a repository on the hub are data files that its rules (names, or `configs` in the README) give to a split.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline_lib.config.data import SourceConfig
from pipeline_lib.corpus.files import SourceFile, form_of, local_file
from pipeline_lib.corpus.streams import is_remote
from pipeline_lib.errors import ConfigError, NotFoundError, RefusedError, StageFailedError
from pipeline_lib.secrets import told

_HUB = re.compile(r"hf://datasets/([\w.-]+/[\w.-]+)/?")
_READ = ("jsonl", "json", "csv", "tsv", "parquet", "arrow", "text")


def dataset_files(source: SourceConfig) -> list[SourceFile]:
    """The files of a split of a data set: local, or on the hub at a commit (from the hub's cache on this machine if it is there).

    Raises:
        NotFoundError: there is no such folder, data set or split.
        ConfigError: the address is none of a data set.
        RefusedError: the data set names files outside its own folder.
        StageFailedError: the hub cannot be reached, or the files are of a form that is not read.
    """
    if not is_remote(source.path):
        folder = Path(source.path)
        if not folder.is_dir():
            raise NotFoundError(f"source {source.name!r} is no folder", where=source.path, fix="name a local folder")
        return _checked(source, list(_in_folder(source, folder, folder)))
    address = _HUB.fullmatch(source.path)
    if not address:
        raise ConfigError("is no data set on the hub", where=source.path, fix="hf://datasets/owner/name")
    snapshot = _snapshot(address[1], source.revision)
    if snapshot:  # its files are links to the blobs beside it
        return _checked(source, list(_in_folder(source, snapshot, snapshot.parents[1])))
    return _checked(source, list(_on_hub(source, address[1])))


def _checked(source: SourceConfig, files: list[SourceFile]) -> list[SourceFile]:
    strange = sorted({Path(file.name).suffix for file in files if file.form not in _READ})
    if strange:
        raise StageFailedError(
            f"data files ending in {', '.join(strange)} are not read", where=source.path, fix="convert the data set to Parquet"
        )
    return sorted(files, key=lambda file: file.name)


def _in_folder(source: SourceConfig, folder: Path, root: Path) -> Iterator[SourceFile]:
    if (folder / "dataset_dict.json").exists():
        splits = _json(folder / "dataset_dict.json").get("splits", [])
        if source.split not in splits:
            raise _no_split(source, splits)
        folder = folder / source.split
    if (folder / "state.json").exists():
        listed = [folder / str(entry.get("filename", "")) for entry in _json(folder / "state.json").get("_data_files", [])]
    else:
        listed = [Path(path) for path in _data_files(source, str(folder))]
    for path in listed:
        if not path.resolve().is_relative_to(root.resolve()):
            raise RefusedError(
                f"the data set names {path}, which lies outside its folder",
                where=source.path,
                fix="look at its README and state.json",
            )
        if not path.is_file():
            raise NotFoundError("a file of the data set is missing", where=str(path), fix="copy the data set again")
        yield local_file(path, path.relative_to(folder).as_posix())


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise StageFailedError(f"cannot be read: {error}", where=str(path), fix="copy the data set again") from None
    return found if isinstance(found, dict) else {}


def _data_files(source: SourceConfig, place: str, revision: str | None = None) -> list[str]:
    """The data files of the split, by the rules of `datasets`: paths, or URLs for the hub."""
    import datasets

    with tempfile.TemporaryDirectory(prefix="millrace-datasets-") as cache:
        try:
            builder = datasets.load_dataset_builder(place, source.subset or None, revision=revision, cache_dir=cache)
        except Exception as error:  # whatever a repository makes the library raise
            raise StageFailedError(
                f"`datasets` says: {told(error)}", where=source.path, fix="is it a data set that `datasets` can load?"
            ) from None
    splits = dict(builder.config.data_files or {})
    if source.split not in splits:
        raise _no_split(source, [str(name) for name in splits])
    return [str(path) for path in splits[source.split]]


def _no_split(source: SourceConfig, known: list[str]) -> NotFoundError:
    return NotFoundError(
        f"no split {source.split!r}", where=source.path, fix=f"set `split` to one of {', '.join(known) or 'those it has (none)'}"
    )


def _snapshot(name: str, revision: str) -> Path | None:
    """Where the hub's cache on this machine holds a data set at a commit; None: it does not."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, repo_type="dataset", revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, FileNotFoundError):
        return None


def _on_hub(source: SourceConfig, name: str) -> Iterator[SourceFile]:
    from huggingface_hub import HfFileSystem

    system = HfFileSystem()
    for url in _data_files(source, name, source.revision):
        if not url.startswith(f"hf://datasets/{name}@{source.revision}/"):
            raise RefusedError(f"the data set names {url}, which is not in it", where=source.path, fix="look at its README")
        info = system.info(url)
        place = url.partition("@")[2].partition("/")[2]
        yield SourceFile(
            name=place, path=url, digest=f"hub:{source.revision}:{place}", size=int(info.get("size") or 0), form=form_of(place)
        )
