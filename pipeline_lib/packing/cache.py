"""The cache of packed chunks: where it lies, how it is checked, how any chunk of it is made again.

A cache folder `cache/<fingerprint of pack>/` is mutable and local: everything in it can be made again from `Recipe`. The stages
`pack` and `fill_gaps`, the reuse check and a training run that meets a damaged chunk all use the functions here.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline_lib.errors import DamagedError, NotFoundError, StageFailedError
from pipeline_lib.packing.chunk import ChunkFacts, ChunkSettings, commit_chunk, pack_documents
from pipeline_lib.packing.ranges import Range, chunk_name, ranges_of
from pipeline_lib.packing.texts import read_documents
from pipeline_lib.tables.parquet import read_tables
from pipeline_lib.tables.schemas import CHUNKS
from pipeline_lib.tokens.chat import chat_template
from pipeline_lib.tokens.encode import encoder_for
from pipeline_lib.workspace.files import read_json, write_json
from pipeline_lib.workspace.identity import file_digest
from pipeline_lib.workspace.machine import versions

if TYPE_CHECKING:
    from pipeline_lib.workspace.artifact import Artifact
    from pipeline_lib.workspace.workspace import Workspace

SEEN = ".seen.json"  # name → [digest, size, mtime_ns, inode] of files whose bytes were digested


@dataclass(frozen=True)
class Recipe:
    """All that is needed to make any chunk of a cache: small, and picklable to other processes."""

    folder: Path  # the cache folder
    tokenizer: Path  # tokenizer.json
    documents: tuple[Path, ...]  # files of the documents table, in order
    rows: Path  # the table `rows`
    settings: ChunkSettings

    def make(self, ranges: Sequence[Range], expected: Mapping[str, str] | None = None) -> Iterator[ChunkFacts]:
        """Make and commit the chunks of ranges, one after the other; their texts are read together.

        Args:
            ranges: what to make. Memory: the texts of all of them.
            expected: content digest by chunk name; a chunk that comes out otherwise is not committed.

        Raises:
            StageFailedError: documents or content are not what they were.
        """
        encoder = encoder_for(self.tokenizer)
        rows = pa.concat_tables([_rows_between(self.rows, r.first_row, r.last_row) for r in ranges]).combine_chunks()
        found = read_documents(self.documents, rows["document"].to_numpy(), rows["doc_id"].combine_chunks())
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
        return source.read_row_groups(groups, columns=["document", "doc_id"]).slice(first - begin, last - first + 1)


@dataclass(frozen=True)
class Cache:
    """A cache as the stages published it: its recipe, its ranges, and what is known of its chunks."""

    recipe: Recipe
    ranges: Mapping[str, Range]
    chunks: Mapping[str, ChunkFacts]
    versions: Mapping[str, str]  # of the libraries that packed it
    quarantine: Path

    @classmethod
    def of(cls, workspace: Workspace, pack: Artifact, documents: Artifact, chunks: Artifact | None = None) -> Cache:
        """The cache of a `pack` artifact, over the `documents` of `ingest`; `chunks` as `fill_gaps` published them, when given.

        Raises:
            StageFailedError: the tokenizer is not the one that the details name.
        """
        tokenizer = next(path for path in pack.files("tokenizer") if path.name == "tokenizer.json")
        if file_digest(tokenizer) != pack.details["tokenizer_digest"]:
            raise StageFailedError("tokenizer.json is not the one that packed this cache", where=str(tokenizer))
        if (told := pack.details["chat"]) and chat_template(tokenizer.parent).digest != told["digest"]:
            raise StageFailedError("the chat template is not the one that packed this cache", where=str(tokenizer.parent))
        recipe = Recipe(
            cache_folder(workspace, pack.details["cache"]),
            tokenizer,
            tuple(documents.files("documents")),
            pack.file("rows"),
            ChunkSettings.of(pack.details),
        )
        return cls(
            recipe,
            {wanted.name: wanted for wanted in ranges_of(pq.read_table(pack.file("ranges")))},
            {facts.name: facts for facts in facts_of(pq.read_table((chunks or pack).file("chunks")))},
            pack.manifest.versions,
            workspace.quarantine_folder,
        )

    def damages(self, *, full: bool = False) -> dict[str, str]:
        """Chunks that are not what was committed, with the reason (see `damages_of`)."""
        return damages_of(self.recipe.folder, list(self.chunks.values()), full=full)

    def heal(self, names: Sequence[str]) -> Iterator[ChunkFacts]:
        """Make chunks again from their source ranges, with equal content; what is left of the damaged ones goes to quarantine.

        Raises:
            StageFailedError: the content came out otherwise; says what drifted.
        """
        self.recipe.folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            self._set_aside(name)
        try:
            yield from self.recipe.make([self.ranges[n] for n in names], {n: self.chunks[n].content_digest for n in names})
        except StageFailedError as error:
            now = versions()
            changed = [f"{k} {v} → {now.get(k, 'none')}" for k, v in self.versions.items() if now.get(k) != v]
            drift = f"libraries changed since: {', '.join(changed)}" if changed else "same libraries: texts or code changed"
            raise StageFailedError(f"{error.what} ({drift})", where=error.where, fix=error.fix) from error

    def _set_aside(self, name: str) -> None:
        """Move what lies in a chunk's place to quarantine, to be looked at."""
        facts = self.chunks[name]
        path = facts.file(self.recipe.folder)
        if path.exists():
            aside = self.quarantine / f"cache-{self.recipe.folder.name}-{name}-{time.time_ns()}"
            aside.mkdir(parents=True)
            path.replace(aside / path.name)
            reason = f"damaged chunk; committed were {facts.size} bytes with digest {facts.file_digest}"
            write_json(aside / "reason.json", {"key": f"cache/{self.recipe.folder.name}/{name}", "reason": reason})


@dataclass(frozen=True)
class Healer:
    """Makes a chunk again on demand: picklable, for readers in other processes."""

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
        with workspace.lease(f"heal-{self.key.replace('/', '-')}-{name}", wait=True):
            cache = cache_behind(workspace, workspace.artifact(self.key))
            facts = cache.chunks[name]
            if damages_of(cache.recipe.folder, [facts]):  # another process may have healed it meanwhile
                (facts,) = cache.heal([name])
                remember(cache.recipe.folder, [facts])
        return facts


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

    Size, time and inode answer at once where the bytes were digested before; otherwise, and with `full`, the digest does.
    """
    seen = _read_seen(folder)
    found: dict[str, str] = {}
    verified = []
    for facts in chunks:
        name, path = facts.name, facts.file(folder)
        try:
            mark = _mark(path, facts)
        except FileNotFoundError:
            found[name] = "file is missing"
            continue
        if mark[1] != facts.size:
            found[name] = f"size is {mark[1]}, committed were {facts.size} bytes"
        elif full or seen.get(name) != mark:
            if file_digest(path) == facts.file_digest:
                verified.append(facts)
            else:
                found[name] = "bytes differ from what was committed"
    if verified:
        remember(folder, verified)
    return found


def remember(folder: Path, chunks: Sequence[ChunkFacts]) -> None:
    """Note time and inode of chunk files whose bytes were digested a moment ago."""
    marks = {facts.name: _mark(facts.file(folder), facts) for facts in chunks}
    write_json(folder / SEEN, {**_read_seen(folder), **marks})


def _mark(path: Path, facts: ChunkFacts) -> list[Any]:
    stat = path.stat()
    return [facts.file_digest, stat.st_size, stat.st_mtime_ns, stat.st_ino]


def _read_seen(folder: Path) -> dict[str, list[Any]]:
    try:
        found = read_json(folder / SEEN)
    except (FileNotFoundError, ValueError):
        return {}
    return dict(found) if isinstance(found, dict) else {}


def read_chunks(paths: Sequence[Path]) -> list[ChunkFacts]:
    """Facts of a published `chunks` table."""
    facts = facts_of(read_tables(paths))
    if not facts:
        raise DamagedError("the table `chunks` is empty", where=str(paths[0].parent))
    return facts
