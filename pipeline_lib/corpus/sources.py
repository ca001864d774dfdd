"""What the sources hold: files with their digests, and the parts (shards) they are read in. Nothing is parsed here."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
from blake3 import blake3

from pipeline_lib.config.data import IngestConfig, SourceConfig
from pipeline_lib.corpus.barred import Barred
from pipeline_lib.corpus.files import PART_BYTES, SourceFile, form_of, local_file
from pipeline_lib.corpus.machine import machine_files
from pipeline_lib.corpus.module import BATCHED, batches
from pipeline_lib.corpus.streams import is_remote
from pipeline_lib.errors import ConfigError, NotFoundError
from pipeline_lib.workspace.files import inside
from pipeline_lib.workspace.identity import bytes_digest, fingerprint_of

_REMOTE_IDENTITY = ("ETag", "etag", "md5Hash", "crc32c", "checksum")  # what object stores say about content


@dataclass(frozen=True)
class Part:
    """Files that are read as one shard, and all that its output depends on."""

    source: SourceConfig
    files: tuple[SourceFile, ...]
    share: float  # share of the documents that is kept, by hash
    max_document_bytes: int
    barred: Barred = Barred()

    @property
    def has_ids(self) -> bool:
        """Whether records may have ids of their own, and so the same id twice."""
        return bool(self.source.id_column) or self.source.kind == "module"

    def key(self) -> dict[str, Any]:
        """Identity: contents and parameters, never places."""
        columns = {"path", "max_mb", "priority"}
        return {
            "source": self.source.model_dump(mode="json", exclude=columns),
            "files": [[f.name, f.digest, f.form, f.domain, f.licence] for f in self.files],
            "share": self.share,
            "max_document_bytes": self.max_document_bytes,
            **self.barred.key(),
        }


def file_digests(*, ingest: IngestConfig) -> dict[str, Any]:
    """Identity of everything the sources hold: what makes a new or changed file noticed.

    Raises:
        NotFoundError: a source has no files.
        ConfigError: two sources have the same name.
    """
    found = {}
    for source in ingest.sources:
        if source.name in found:
            raise ConfigError(f"two sources are called {source.name!r}", where="ingest.sources", fix="give each its own name")
        if source.kind in BATCHED:
            found[source.name] = _module_digest(source)
        else:
            found[source.name] = fingerprint_of([[f.name, f.digest, f.form, f.domain, f.licence] for f in list_files(source)])
    return found


def parts(source: SourceConfig, files: Sequence[SourceFile], max_document_mb: float) -> list[Part]:
    """The parts of a source: a large file alone, small files in groups by the hash of their names.

    The number of groups is a power of two, so that groups hold still while files are added; it changes when the total doubles.
    """
    share = 1.0 if source.kind == "machine" else _share(source, files)
    groups: dict[int, list[SourceFile]] = {}
    small = [f for f in files if f.size < PART_BYTES]
    count = 1
    while count * PART_BYTES < sum(f.size for f in small):
        count *= 2
    for file in small:
        groups.setdefault(_hash(file.name) % count, []).append(file)
    chosen = [groups[number] for number in sorted(groups)] + [[f] for f in files if f.size >= PART_BYTES]
    return [Part(source, tuple(group), share, int(max_document_mb * 1e6)) for group in chosen]


def list_files(source: SourceConfig) -> list[SourceFile]:
    """The files of a source, in name order.

    Raises:
        NotFoundError: there are none.
    """
    if source.kind == "machine":
        return machine_files(int(source.max_mb * 1e6))
    found = list(_remote(source.path) if is_remote(source.path) else _local(source.path))
    if not found:
        raise NotFoundError(
            f"source {source.name!r} has no files to read",
            where=source.path,
            fix="name a file, a glob, or a folder that holds .jsonl, .csv, .parquet, .txt, .md or .rst files (compressed or not)",
        )
    return sorted(found, key=lambda file: file.name)


def _share(source: SourceConfig, files: Sequence[SourceFile]) -> float:
    """Share of a source that fits into max_mb, on a ladder of quarter powers of two.

    On the ladder a growing source keeps its share, and so its shards, until the total has grown by a fifth.
    """
    share, total = 1.0, sum(f.size for f in files)
    while share * total > source.max_mb * 1e6:
        share *= 2**-0.25
    return round(share, 6)


def _hash(name: str) -> int:
    return int.from_bytes(blake3(name.encode()).digest(8), "big")


def _local(path: str) -> Iterator[SourceFile]:
    place = Path(path)
    if place.is_file():
        yield local_file(place, place.name)
    elif place.is_dir():
        for folder, subfolders, names in os.walk(place):  # links to folders are not followed
            subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
            for name in sorted(names):
                file = Path(folder, name)
                if not name.startswith(".") and form_of(name) != "sniff" and file.is_file() and not file.is_symlink():
                    yield local_file(file, file.relative_to(place).as_posix())
    else:
        root = Path(*_literal(place.parts))
        for match in sorted(glob.glob(path, recursive=True)):  # noqa: PTH207  (an absolute pattern)
            file = Path(match)
            if file.is_file() and inside(root, file):  # a link may lead out of what was named
                yield local_file(file, file.relative_to(root).as_posix())


def _literal(pieces: Sequence[str]) -> list[str]:
    """The leading components without wildcards."""
    return list(pieces[: next((i for i, piece in enumerate(pieces) if glob.has_magic(piece)), len(pieces) - 1)])


def _remote(url: str) -> Iterator[SourceFile]:
    system, place = fsspec.core.url_to_fs(url)
    pieces = place.split("/")
    if glob.has_magic(place):
        root, found = "/".join(_literal(pieces)), system.glob(place)
    elif system.isfile(place):
        root, found = "/".join(pieces[:-1]), [place]
    elif system.isdir(place):
        root, found = place, [path for path in system.find(place) if form_of(path) != "sniff"]
    else:
        return
    for path in found:
        info = system.info(path)
        if info["type"] != "file":
            continue
        told = next((str(info[name]) for name in _REMOTE_IDENTITY if info.get(name)), "")
        name = path.removeprefix(root).lstrip("/")
        yield SourceFile(
            name=name,
            path=system.unstrip_protocol(path),
            digest=told or bytes_digest(system.cat_file(path)),
            size=int(info["size"]),
            form=form_of(name),
        )


def _module_digest(source: SourceConfig) -> str:
    hasher = blake3()
    for batch in batches(source):
        hasher.update(batch.serialize())
    return str(hasher.hexdigest())
