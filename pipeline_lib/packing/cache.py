"""The cache of packed chunks: where it lies, how it is checked, how any chunk of it is made again.

A cache folder `cache/<fingerprint of pack>/` is mutable and local: everything in it can be made again from `Recipe`. The stages
`pack` and `fill_gaps`, the reuse check and a training run that meets a damaged chunk all use the functions here.
"""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline_lib.errors import DamagedError, NotFoundError, StageFailedError
from pipeline_lib.packing.chunk import ChunkFacts, ChunkSettings, commit_chunk, pack_documents
from pipeline_lib.packing.manifest import append_chunk, glance
from pipeline_lib.packing.ranges import Range, chunk_name, ranges_of
from pipeline_lib.packing.texts import read_documents
from pipeline_lib.tables.parquet import read_tables
from pipeline_lib.tables.schemas import CHUNKS, ROWS
from pipeline_lib.tokens.chat import chat_template
from pipeline_lib.tokens.encode import encoder_for
from pipeline_lib.workspace.faults import fault_point
from pipeline_lib.workspace.files import read_json, write_json
from pipeline_lib.workspace.identity import file_digest
from pipeline_lib.workspace.machine import versions
from pipeline_lib.workspace.resolve import key_of

if TYPE_CHECKING:
    from pipeline_lib.workspace.artifact import Artifact
    from pipeline_lib.workspace.workspace import Workspace

SEEN = ".seen.json"  # name → [digest, size, mtime_ns, inode] of files whose bytes were digested
FROM_PACK = "run from `pack` with --force"


@dataclass(frozen=True)
class Recipe:
    """All that is needed to make any chunk of a cache: small, and picklable to other processes."""

    folder: Path  # the cache folder
    tokenizer: Path  # tokenizer.json
    documents: tuple[Path, ...]  # files of the documents table, in order
    rows: Path  # the table `rows`
    settings: ChunkSettings
    first_row: int = 0  # number of the first row in `rows`; those before it belong to the caches that this one continues

    def make(self, ranges: Sequence[Range], expected: Mapping[str, str] | None = None) -> Iterator[ChunkFacts]:
        """Make and commit the chunks of ranges, one after the other; their texts are read together.

        Args:
            ranges: what to make. Memory: the texts of all of them.
            expected: content digest by chunk name; a chunk that comes out otherwise is not committed.

        Raises:
            StageFailedError: documents or content are not what they were.
        """
        encoder = encoder_for(self.tokenizer)
        begin = min(wanted.first_row for wanted in ranges)
        between = _rows_between(self.rows, begin - self.first_row, max(wanted.last_row for wanted in ranges) - self.first_row)
        rows = pa.concat_tables([between.slice(one.first_row - begin, one.documents) for one in ranges]).combine_chunks()
        found = read_documents(self.documents, rows["document"].to_numpy(), rows["doc_id"].combine_chunks()).without(
            rows["cuts"].combine_chunks()
        )
        chat = chat_template(self.tokenizer.parent) if found.turns.null_count < len(found.turns) else None
        start = 0
        for wanted in ranges:
            packed = pack_documents(encoder, found.slice(start, wanted.documents), wanted.first_row, self.settings, chat)
            start += wanted.documents
            promised = (expected or {}).get(wanted.name, "")
            yield commit_chunk(self.folder, wanted, packed, self.settings, expected=promised)


def _rows_between(path: Path, first: int, last: int) -> pa.Table:
    """Rows `first`…`last` of the table `rows`, reading only the row groups that hold them."""
    with pq.ParquetFile(path) as source:
        groups: list[int] = []
        begin, start = 0, 0
        for group in range(source.num_row_groups):
            end = start + source.metadata.row_group(group).num_rows
            if start <= last and end > first:
                begin = begin if groups else start
                groups.append(group)
            start = end
        columns = [name for name in ("document", "doc_id", "cuts") if name in source.schema_arrow.names]
        rows = source.read_row_groups(groups, columns=columns).slice(first - begin, last - first + 1)
        return rows if "cuts" in columns else rows.append_column("cuts", pa.nulls(len(rows), ROWS.field("cuts").type))


@dataclass(frozen=True)
class Link:
    """What one `pack` added to a cache; a cache that never grew has one link."""

    recipe: Recipe
    ranges: Mapping[str, Range]
    versions: Mapping[str, str]  # of the libraries that packed it

    @classmethod
    def of(cls, workspace: Workspace, pack: Artifact, documents: Artifact) -> Link:
        """The link of a `pack` artifact, over the `documents` of `ingest`.

        Raises:
            StageFailedError: the tokenizer is not the one that the details name.
        """
        tokenizer = next(path for path in pack.files("tokenizer") if path.name == "tokenizer.json")
        if file_digest(tokenizer) != pack.details["tokenizer_digest"]:
            raise StageFailedError("tokenizer.json is not the one that packed this cache", where=str(tokenizer), fix=FROM_PACK)
        if (told := pack.details["chat"]) and chat_template(tokenizer.parent).digest != told["digest"]:
            where = str(tokenizer.parent)
            raise StageFailedError("the chat template is not the one that packed this cache", where=where, fix=FROM_PACK)
        recipe = Recipe(
            cache_folder(workspace, pack.details["cache"]),
            tokenizer,
            tuple(documents.files("documents")),
            pack.file("rows"),
            ChunkSettings.of(pack.details),
            pack.details["first_row"],
        )
        return cls(
            recipe,
            {wanted.name: wanted for wanted in ranges_of(pq.read_table(pack.file("ranges")))},
            pack.manifest.versions,
        )


@dataclass(frozen=True)
class Cache:
    """A cache as the stages published it: how any chunk of it is made, and what is known of its chunks."""

    folder: Path  # of its newest link
    links: tuple[Link, ...]  # oldest first
    chunks: Mapping[str, ChunkFacts]
    quarantine: Path

    @classmethod
    def of(cls, workspace: Workspace, pack: Artifact, documents: Artifact, chunks: Artifact | None = None) -> Cache:
        """The cache of a `pack` artifact, over the `documents` of `ingest`; `chunks` as `fill_gaps` published them, when given.

        Raises:
            StageFailedError: a tokenizer is not the one that the details name.
            NotFoundError, DamagedError: an earlier cache that this one continues is gone or not what it was.
        """
        packs = ancestry(workspace, pack)
        sources = [*(workspace.artifact(earlier.manifest.inputs["ingest"]["key"]) for earlier in packs[:-1]), documents]
        tables = [pq.read_table((chunks or earlier).file("chunks")) for earlier in (packs[-1:] if chunks else packs)]
        return cls(
            cache_folder(workspace, pack.details["cache"]),
            tuple(Link.of(workspace, one, source) for one, source in zip(packs, sources, strict=True)),
            {facts.name: facts for facts in facts_of(pa.concat_tables(tables))},
            workspace.quarantine_folder,
        )

    def damages(self, *, full: bool = False) -> dict[str, str]:
        """Chunks that are not what was committed, with the reason (see `damages_of`)."""
        return damages_of(self.folder, list(self.chunks.values()), full=full)

    def heal(self, names: Sequence[str]) -> Iterator[ChunkFacts]:
        """Make chunks again from their source ranges, with equal content; what is left of the damaged ones goes to quarantine.

        Raises:
            StageFailedError: the content came out otherwise; says what drifted.
        """
        for link in self.links:
            if mine := [name for name in names if name in link.ranges]:
                yield from self._heal(link, mine)

    def _heal(self, link: Link, names: Sequence[str]) -> Iterator[ChunkFacts]:
        link.recipe.folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            self._set_aside(name)
        try:
            for facts in link.recipe.make([link.ranges[n] for n in names], {n: self.chunks[n].content_digest for n in names}):
                append_chunk(link.recipe.folder, facts)
                fault_point("cache.after_commit")
                yield facts
        except StageFailedError as error:
            now = versions()
            changed = [f"{k} {v} → {now.get(k, 'none')}" for k, v in link.versions.items() if now.get(k) != v]
            drift = f"libraries changed since: {', '.join(changed)}" if changed else "same libraries: texts or code changed"
            raise StageFailedError(f"{error.what} ({drift})", where=error.where, fix=error.fix) from error

    def make_aside(self, name: str, folder: Path) -> ChunkFacts:
        """Make a chunk in another folder, with equal content; nothing in the cache is touched.

        Raises:
            StageFailedError: the content came out otherwise.
        """
        (link,) = (link for link in self.links if name in link.ranges)
        recipe = replace(link.recipe, folder=folder)
        (facts,) = recipe.make([link.ranges[name]], {name: self.chunks[name].content_digest})
        return replace(facts, cache=str(folder))

    def _set_aside(self, name: str) -> None:
        """Move what lies in a chunk's place to quarantine, to be looked at."""
        facts = self.chunks[name]
        path = facts.file(self.folder)
        if path.exists():
            place = f"cache/{path.parent.name}/{name}"
            aside = self.quarantine / f"{place.replace('/', '-')}-{time.time_ns()}"
            aside.mkdir(parents=True)
            try:
                path.replace(aside / path.name)
            except FileNotFoundError:  # another process was faster
                aside.rmdir()
                return
            reason = f"damaged chunk; committed were {facts.size} bytes with digest {facts.file_digest}"
            write_json(aside / "reason.json", {"key": place, "reason": reason})


def ancestry(workspace: Workspace, pack: Artifact) -> list[Artifact]:
    """A `pack` artifact and those it continues, oldest first.

    Raises:
        NotFoundError, DamagedError: one of them is gone or is not what it was.
    """
    packs = [pack]
    while named := packs[-1].details["parent"]:
        earlier = workspace.artifact(key_of(named))
        if not earlier.manifest.was(named.partition("#")[2]):
            raise DamagedError(f"is not the cache that {packs[-1].key} continues", where=earlier.key)
        packs.append(earlier)
    return packs[::-1]


@dataclass(frozen=True)
class Healer:
    """Makes a chunk again on demand: picklable, for readers in other processes.

    Where the cache cannot be written (a full or read-only disk), the chunk is packed on the fly, for this process alone, from the
    same range by the same packer and with the same content digest, into the system's temporary folder ($TMPDIR).
    """

    root: Path  # of the workspace
    key: str  # of the fill_gaps artifact
    store_url: str = ""

    @classmethod
    def of(cls, workspace: Workspace, filled: Artifact) -> Healer:
        """The healer of the cache that a `fill_gaps` artifact vouches for."""
        return cls(workspace.root, filled.key, workspace.store_url)

    def __call__(self, side: str, chunk: int) -> ChunkFacts:
        """Make one chunk again; returns what is now known of it."""
        from pipeline_lib.workspace.workspace import Workspace

        workspace = Workspace.open(self.root, store_url=self.store_url)
        name = chunk_name(side, chunk)
        cache = cache_behind(workspace, workspace.artifact(self.key))
        try:
            with workspace.lease(f"heal-{self.key.replace('/', '-')}-{name}", wait=True):
                facts = cache.chunks[name]
                # Another process may have healed it meanwhile; a bit that turned on the disk changes neither size nor time.
                if damages_of(cache.folder, [facts], full=True):
                    (facts,) = cache.heal([name])
                    remember(cache.folder, [facts])
        except OSError as error:
            warnings.warn(f"{name} cannot be put into the cache ({error}); it is packed for this process", stacklevel=2)
            facts = cache.make_aside(name, _own_folder())
        return facts


@lru_cache(maxsize=1)
def _temporary() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="millrace-chunks-")


def _own_folder() -> Path:
    """A folder of this process, removed with it."""
    return Path(_temporary().name)


def cache_behind(workspace: Workspace, filled: Artifact) -> Cache:
    """The cache that a `fill_gaps` artifact vouches for."""
    inputs = filled.manifest.inputs
    pack, documents = (workspace.artifact(inputs[stage]["key"]) for stage in ("pack", "ingest"))
    return Cache.of(workspace, pack, documents, filled)


def cache_folder(workspace: Workspace, name: str) -> Path:
    """The folder of a cache; refuses what is no fingerprint."""
    if not name.isalnum():
        raise NotFoundError(f"{name!r} is no cache")
    return workspace.cache_folder / name


def facts_of(table: pa.Table) -> list[ChunkFacts]:
    """The rows of a CHUNKS table."""
    return [ChunkFacts(**row) for row in table.to_pylist()]


def chunks_table(facts: Sequence[ChunkFacts]) -> pa.Table:
    """The CHUNKS table of facts, in their order."""
    return pa.table({name: [getattr(f, name) for f in facts] for name in CHUNKS.names}, schema=CHUNKS)


def damages_of(folder: Path, chunks: Sequence[ChunkFacts], *, full: bool = False) -> dict[str, str]:
    """Which chunk files are not what was committed, by name, with the reason.

    Size, time and inode answer at once where the bytes were digested before; otherwise, and with `full`, the digest does. A chunk
    that was made again in other bytes (`as_noted`) is whole.
    """
    found = _differing(folder, chunks, full=full)
    suspects = [facts for facts in chunks if facts.name in found]
    again = [noted for facts, noted in zip(suspects, as_noted(folder, suspects), strict=True) if noted != facts]
    still = _differing(folder, again, full=full)
    whole = {facts.name for facts in again} - still.keys()
    return {name: reason for name, reason in found.items() if name not in whole}


def _differing(folder: Path, chunks: Sequence[ChunkFacts], *, full: bool) -> dict[str, str]:
    """Which files do not have these very bytes, by name, with the reason."""
    seen = {place: _read_seen(place) for place in {facts.file(folder).parent for facts in chunks}}
    found: dict[str, str] = {}
    verified = []
    for facts in chunks:
        name, path = facts.name, facts.file(folder)
        try:
            mark = _mark(path, facts)
            if mark[1] != facts.size:
                found[name] = f"size is {mark[1]}, committed were {facts.size} bytes"
            elif full or seen[path.parent].get(name) != mark:
                if facts.is_whole(path.read_bytes()):
                    verified.append(facts)
                else:
                    found[name] = "bytes differ from what was committed"
        except FileNotFoundError:
            found[name] = "file is missing"
        except OSError as error:  # a bad sector, say
            found[name] = f"file cannot be read ({error.strerror})"
    if verified:
        remember(folder, verified)
    return found


def as_noted(folder: Path, chunks: Sequence[ChunkFacts]) -> list[ChunkFacts]:
    """The chunks, each with the bytes that its folder's manifest notes, where that notes the same content.

    Another library version compresses otherwise: a chunk that was made again with it has another file digest than the published
    list says, and the content digest that was promised.
    """
    noted = {place: glance(place).chunks for place in {facts.file(folder).parent for facts in chunks}}
    found = []
    for facts in chunks:
        known = noted[facts.file(folder).parent].get(facts.name, facts)
        same = known.content_digest == facts.content_digest
        found.append(replace(facts, file_digest=known.file_digest, size=known.size) if same else facts)
    return found


def remember(folder: Path, chunks: Sequence[ChunkFacts]) -> None:
    """Note time and inode of chunk files whose bytes were digested a moment ago; where that cannot be written, they are digested
    again the next time."""
    marks: dict[Path, dict[str, list[Any]]] = {}
    with suppress(OSError):
        for facts in chunks:
            path = facts.file(folder)
            marks.setdefault(path.parent, {})[facts.name] = _mark(path, facts)
        for place, found in marks.items():
            write_json(place / SEEN, {**_read_seen(place), **found})


def _mark(path: Path, facts: ChunkFacts) -> list[Any]:
    stat = path.stat()
    return [facts.file_digest, stat.st_size, stat.st_mtime_ns, stat.st_ino]


def _read_seen(folder: Path) -> dict[str, list[Any]]:
    try:
        found = read_json(folder / SEEN)
    except (OSError, ValueError):
        return {}
    return dict(found) if isinstance(found, dict) else {}


def read_chunks(paths: Sequence[Path]) -> list[ChunkFacts]:
    """Facts of a published `chunks` table."""
    facts = facts_of(read_tables(paths))
    if not facts:
        raise DamagedError("the table `chunks` is empty", where=str(paths[0].parent))
    return facts
