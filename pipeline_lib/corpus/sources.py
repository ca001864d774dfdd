"""What the sources hold: files with their digests, and the parts (shards) they are read in. Nothing is parsed here."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blake3 import blake3

from pipeline_lib.config.data import IngestConfig, SourceConfig
from pipeline_lib.corpus.barred import Barred
from pipeline_lib.corpus.dataset import dataset_files
from pipeline_lib.corpus.files import PART_BYTES, SourceFile, form_of, local_file, local_link, unreadable
from pipeline_lib.corpus.machine import machine_files
from pipeline_lib.corpus.module import module_digest
from pipeline_lib.corpus.normalise import Recipe
from pipeline_lib.corpus.public_web import remote_digest, remote_system
from pipeline_lib.corpus.ranges import ranges
from pipeline_lib.corpus.streams import Caps, is_remote
from pipeline_lib.errors import ConfigError, MillraceError, NotFoundError, StageFailedError
from pipeline_lib.secrets import hide_passwords, told
from pipeline_lib.workspace.files import inside
from pipeline_lib.workspace.identity import fingerprint_of

_REMOTE_IDENTITY = ("ETag", "etag", "md5Hash", "crc32c", "checksum")  # what stores say about content


@dataclass(frozen=True)
class Part:
    """Files that are read as one shard, and all that its output depends on."""

    source: SourceConfig
    files: tuple[SourceFile, ...]
    share: float  # share of the documents that is kept, by hash
    max_document_bytes: int
    caps: Caps = field(default_factory=Caps)
    recipe: Recipe = field(default_factory=Recipe)
    barred: Barred = field(default_factory=Barred)

    @property
    def has_ids(self) -> bool:
        """Whether records may have ids of their own, and so the same id twice."""
        return bool(self.source.id_column) or self.source.kind == "module"

    def key(self) -> dict[str, Any]:
        """Identity: contents and parameters, never places."""
        columns = {"path", "max_mb", "priority", "attribution", "revision", "split", "subset"}
        return {
            "source": self.source.model_dump(mode="json", exclude=columns),
            "files": [file.identity for file in self.files],
            "share": self.share,
            "max_document_bytes": self.max_document_bytes,
            "caps": [self.caps.ratio, self.caps.size],
            "recipe": self.recipe.key(),
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
        if source.kind == "module":
            found[source.name] = module_digest(source)
        else:
            found[source.name] = fingerprint_of([file.identity for file in list_files(source, ingest.max_file_gb)])
    return found


def parts(source: SourceConfig, files: Sequence[SourceFile], ingest: IngestConfig) -> list[Part]:
    """The parts of a source: small files in groups by the hash of their names, a large file alone or in ranges.

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
    chosen = [groups[number] for number in sorted(groups)]
    chosen += [[piece] for file in files if file.size >= PART_BYTES for piece in ranges(file)]
    longest = int(ingest.max_document_mb * 1e6)
    caps, recipe = Caps(ingest.max_expansion, int(ingest.max_file_gb * 1e9)), Recipe(ingest.mojibake, tuple(ingest.redact))
    return [Part(source, tuple(group), share, longest, caps, recipe) for group in chosen]


def list_files(source: SourceConfig, max_file_gb: float = 100.0) -> list[SourceFile]:
    """The files of a source, in name order.

    Args:
        source: which.
        max_file_gb: a remote file whose store does not vouch for its content is read for its digest, up to this size.

    Raises:
        NotFoundError: there are none.
        StageFailedError: a remote file is too large.
    """
    if source.kind == "machine":
        return machine_files(int(source.limit_mb * 1e6))
    if source.kind == "dataset":
        found = dataset_files(source)
    else:
        found = _reached(source, int(max_file_gb * 1e9)) if is_remote(source.path) else list(_local(source))
    if not any(file.form != "link" for file in found):
        raise NotFoundError(
            f"source {source.name!r} has no files to read",
            where=hide_passwords(source.path),
            fix="name a file, a glob, or a folder that holds .jsonl, .json, .csv, .tsv, .parquet, .arrow, .txt, .md, .rst, .html "
            "or .warc files (compressed or not); with `format` any names will do",
        )
    return sorted(found, key=lambda file: file.name)


def passed_over(source: SourceConfig) -> dict[str, int]:
    """Files in the folder of a source that are not read because their names tell no form: how many by suffix."""
    place = Path(source.path)
    if source.kind != "files" or source.format != "auto" or is_remote(source.path) or not place.is_dir():
        return {}
    found: Counter[str] = Counter()
    for _, subfolders, names in os.walk(place):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        found.update(Path(name).suffix.lower() for name in names if not name.startswith(".") and form_of(name) == "sniff")
    return dict(sorted(found.items()))


def _share(source: SourceConfig, files: Sequence[SourceFile]) -> float:
    """Share of a source that fits into max_mb, on a ladder of quarter powers of two.

    On the ladder a growing source keeps its share, and so its shards, until the total has grown by a fifth.
    """
    share, total = 1.0, sum(f.size for f in files)
    while share * total > source.limit_mb * 1e6:
        share *= 2**-0.25
    return round(share, 6)


def _hash(name: str) -> int:
    return int.from_bytes(blake3(name.encode()).digest(8), "big")


def _local(source: SourceConfig) -> Iterator[SourceFile]:
    place, form = Path(source.path), "" if source.format == "auto" else source.format
    if place.is_file():
        yield local_file(place, place.name, form)
    elif place.is_dir():
        for folder, subfolders, names in os.walk(place):  # links to folders are not followed
            links = [name for name in subfolders if Path(folder, name).is_symlink()]
            subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
            for name in sorted([*names, *links]):
                file = Path(folder, name)
                if name.startswith(".") or not (form or form_of(name) != "sniff" or name in links):
                    continue
                if file.is_symlink():  # what it points to may lie outside, or be listed anyway, or lead round in a circle
                    yield local_link(file, file.relative_to(place).as_posix())
                else:
                    yield from _entry(place, file, form)
    else:
        root = Path(*_literal(place.parts))
        for match in sorted(glob.glob(source.path, recursive=True)):  # noqa: PTH207  (an absolute pattern)
            file = Path(match)
            if inside(root, file):
                yield from _entry(root, file, form)
            elif file.is_file():  # a link may lead out of what was named
                yield local_link(file, file.relative_to(root).as_posix())


def _entry(root: Path, file: Path, form: str) -> Iterator[SourceFile]:
    """A file, if it is one."""
    name = file.relative_to(root).as_posix()
    try:
        if file.is_file():
            yield local_file(file, name, form)
    except PermissionError:
        yield unreadable(file, name)


def _literal(pieces: Sequence[str]) -> list[str]:
    """The leading components without wildcards."""
    return list(pieces[: next((i for i, piece in enumerate(pieces) if glob.has_magic(piece)), len(pieces) - 1)])


def _reached(source: SourceConfig, most: int) -> list[SourceFile]:
    try:
        return list(_remote(source, most))
    except MillraceError:
        raise
    except Exception as error:  # each file system has errors of its own
        raise StageFailedError(
            f"cannot be reached: {told(error)}", where=hide_passwords(source.path), fix="run again when it can be reached"
        ) from None


def _remote(source: SourceConfig, most: int) -> Iterator[SourceFile]:
    form = "" if source.format == "auto" else source.format
    system, place = remote_system(source.path)
    pieces = place.split("/")
    if glob.has_magic(place):
        root, found = "/".join(_literal(pieces)), system.glob(place)
    elif system.isfile(place):
        root, found = "/".join(pieces[:-1]), [place]
    elif system.isdir(place):
        root, found = place, [path for path in system.find(place) if form or form_of(path) != "sniff"]
    else:
        return
    for path in found:
        info = system.info(path)
        if info["type"] != "file":
            continue
        vouched = next((f"{name}:{info[name]}" for name in _REMOTE_IDENTITY if info.get(name)), "")
        name = path.removeprefix(root).lstrip("/")
        yield SourceFile(
            name=name,
            path=system.unstrip_protocol(path),
            digest=vouched or remote_digest(system, path, most),
            size=int(info.get("size") or 0),
            form=form or form_of(name),
        )
