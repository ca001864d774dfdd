"""Made corpora for near-duplicate search: a million documents of 1 kB, skewed ones, and texts with planted edits.

A corpus is a folder with `documents/*.parquet` and `signals/*.parquet`, as the stages ingest and score leave them;
`ready(…).dedup()` runs the real stage on it. The same arguments give the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline_lib.config.fields import Section, setting
from pipeline_lib.config.pipeline import PipelineConfig
from pipeline_lib.stages import BY_NAME
from pipeline_lib.tables.ids import id_column
from pipeline_lib.tables.schemas import DECISIONS, DOCUMENTS, SUITE_ITEMS
from pipeline_lib.workspace.artifact import Artifact, ArtifactRef
from pipeline_lib.workspace.files import link_or_copy
from pipeline_lib.workspace.services import Services, thread_mapper
from pipeline_lib.workspace.stage import Outcome, Stage, StageRun, execute
from pipeline_lib.workspace.workspace import Workspace

BATCH = 10_000  # documents made at once; a row group
WORDS = 162  # in a document of 1 kB
VOCABULARY = 50_000
EDIT_RATES = (0.0, 0.002, 0.005, 0.01, 0.02, 0.04)  # of words; Jaccard of 5-word shingles is about (1 − 5r) / (1 + 5r)
SIGNALS = pa.schema(
    [
        ("doc_id", pa.binary(16)), ("quality", pa.float64()), ("bytes", pa.int64()), ("words", pa.int64()),
        ("est_tokens", pa.int64()),
    ]
)  # fmt: skip
Array = NDArray[Any]


@dataclass
class Batch:
    """Documents in a row as word numbers; document `i` has the words `bounds[i]` to `bounds[i + 1]`."""

    words: Array
    bounds: Array
    text_hash: Array  # S16

    def text(self, vocabulary: pa.Array) -> pa.Array:
        lists = pa.LargeListArray.from_arrays(pa.array(self.bounds, pa.int64()), vocabulary.take(pa.array(self.words)))
        return pc.binary_join(lists, pa.scalar(" ", pa.large_string()))

    def __len__(self) -> int:
        return len(self.bounds) - 1


def vocabulary(rng: np.random.Generator) -> pa.Array:
    """Different words of 2 to 9 letters."""
    letters = rng.integers(97, 123, (VOCABULARY * 2, 9), dtype=np.uint8)
    lengths = rng.integers(3, 9, len(letters))
    texts = dict.fromkeys(bytes(row[:n]).decode() for row, n in zip(letters, lengths, strict=True))
    return pa.array(list(texts)[:VOCABULARY], pa.large_string())


def originals(rng: np.random.Generator, count: int, words: int = WORDS) -> Batch:
    """Unrelated documents, of half to one and a half times `words`."""
    lengths = rng.integers(words // 2, words * 3 // 2 + 1, count)
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    return Batch(rng.integers(0, VOCABULARY, bounds[-1], dtype=np.int32), bounds, hashes(rng, count))


def hashes(rng: np.random.Generator, count: int) -> Array:
    """Random bytes that stand for ids and text hashes."""
    return np.frombuffer(rng.bytes(16 * count), dtype="S16")


def taken(batch: Batch, rows: Array) -> Batch:
    """Some documents of a batch."""
    lengths = np.diff(batch.bounds)[rows]
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    places = np.arange(bounds[-1]) - np.repeat(bounds[:-1] - batch.bounds[rows], lengths)
    return Batch(batch.words[places], bounds, batch.text_hash[rows])


def edited(rng: np.random.Generator, batch: Batch, rates: Array) -> Batch:
    """Each word replaced with the probability of its document; documents without an edit keep their hash."""
    hit = rng.random(len(batch.words)) < np.repeat(rates, np.diff(batch.bounds))
    words = np.where(hit, rng.integers(0, VOCABULARY, len(hit), dtype=np.int32), batch.words)
    edits = np.add.reduceat(hit, batch.bounds[:-1])
    return Batch(words, batch.bounds, np.where(edits > 0, hashes(rng, len(batch)), batch.text_hash))


def joined(*batches: Batch) -> Batch:
    """One batch behind the other."""
    lengths = np.concatenate([np.diff(batch.bounds) for batch in batches])
    return Batch(
        np.concatenate([batch.words for batch in batches]),
        np.concatenate([[0], np.cumsum(lengths)]),
        np.concatenate([batch.text_hash for batch in batches]),
    )


def million(
    folder: Path, n: int = 1_000_000, seed: int = 0, *, files: int = 4, duplicates: float = 0.15, words: int = WORDS
) -> int:
    """`n` documents, a share of them near-duplicates (`EDIT_RATES`) of the batch before. Returns the bytes of text."""
    rng = np.random.default_rng(seed)

    def batches() -> Iterator[Batch]:
        before = None
        for start in range(0, n, BATCH):
            count = min(BATCH, n - start)
            copies = int(count * duplicates)
            fresh = originals(rng, count - copies, words)
            source = taken(before or fresh, rng.integers(0, len(before or fresh), copies))
            yield joined(fresh, edited(rng, source, rng.choice(EDIT_RATES, copies)))
            before = fresh

    return write(folder, batches(), n, seed, files)


def skewed(folder: Path, n: int = 1_000_000, seed: int = 0, *, files: int = 4, bucket: int = 100_000) -> int:
    """`n` documents: `bucket` of them nearly the same, and half of all begin with the same boilerplate, half of their text."""
    rng = np.random.default_rng(seed)
    one = originals(rng, 1)
    boilerplate = rng.integers(0, VOCABULARY, WORDS // 2, dtype=np.int32)

    def batches() -> Iterator[Batch]:
        for start in range(0, n, BATCH):
            count = min(BATCH, n - start)
            same = count * bucket // n
            near = edited(rng, taken(one, np.zeros(same, dtype=np.int64)), np.full(same, 0.005))
            plain = originals(rng, count // 2 - same)
            rest = originals(rng, count - len(plain) - same, WORDS // 2)
            lengths = np.diff(rest.bounds) + len(boilerplate)
            bounds = np.concatenate([[0], np.cumsum(lengths)])
            words = np.empty(bounds[-1], dtype=np.int32)
            head = bounds[:-1, None] + np.arange(len(boilerplate))
            words[head] = boilerplate
            tail = np.ones(len(words), dtype=bool)
            tail[head] = False
            words[tail] = rest.words
            yield joined(near, plain, Batch(words, bounds, rest.text_hash))

    return write(folder, batches(), n, seed, files)


def near_copies(folder: Path, n: int = 1_000_000, seed: int = 0, *, files: int = 4, copies: int = 500) -> int:
    """`n` documents: each text `copies` times, nearly the same (one word in a hundred is another one)."""
    rng = np.random.default_rng(seed)

    def batches() -> Iterator[Batch]:
        for start in range(0, n, BATCH):
            count = min(BATCH, n - start)
            one = originals(rng, -(-count // copies))
            yield edited(rng, taken(one, np.arange(count) // copies), np.full(count, 0.01))

    return write(folder, batches(), n, seed, files)


def planted(bases: int, seed: int, rates: Sequence[float] = EDIT_RATES, *, words: int = WORDS) -> tuple[pa.Array, Array]:
    """Texts for comparison with brute force: `bases` originals, and one edited copy of each for each rate; and their bases."""
    rng = np.random.default_rng(seed)
    base = originals(rng, bases, words)
    parts = [base, *(edited(rng, base, np.full(bases, rate)) for rate in rates)]
    return joined(*parts).text(vocabulary(np.random.default_rng(seed))), np.tile(np.arange(bases), len(parts))


def write(folder: Path, batches: Iterator[Batch], n: int, seed: int, files: int) -> int:
    """Write the batches as `files` files of about the same size."""
    rng = np.random.default_rng([seed, 1])
    words = vocabulary(np.random.default_rng(seed))
    size, done, file = 0, 0, -1
    writers: list[pq.ParquetWriter] = []
    for name in ("documents", "signals"):
        (folder / name).mkdir(parents=True)
    for batch in batches:
        if done * files // n > file or not writers:
            file += 1
            [writer.close() for writer in writers]
            writers = [
                pq.ParquetWriter(folder / name / f"{file:03}.parquet", schema, compression="zstd", compression_level=1)
                for name, schema in (("documents", DOCUMENTS), ("signals", SIGNALS))
            ]
        for writer, table in zip(writers, tables_of(rng, batch, words), strict=True):
            writer.write_table(table)
            size += int(pc.sum(table["bytes"]).as_py()) if "bytes" in table.column_names else 0
        done += len(batch)
    [writer.close() for writer in writers]
    return size


def tables_of(rng: np.random.Generator, batch: Batch, words: pa.Array) -> tuple[pa.Table, pa.Table]:
    """Rows of `documents` and of `signals`."""
    count = len(batch)
    ids, text = id_column(hashes(rng, count)), batch.text(words)
    size = pc.binary_length(text).cast(pa.int64())
    source = pa.array(["a", "b"]).take(pa.array(np.arange(count) % 2))
    created = pa.array(rng.integers(10**9, 17 * 10**8, count), pa.timestamp("s", tz="UTC"))
    given = {
        "doc_id": ids, "kind": _same("text", count), "text": text, "source": source, "domain": _same("prose", count),
        "created_at": created, "byte_length": size, "text_hash": id_column(batch.text_hash),
    }  # fmt: skip
    documents = [given.get(field.name, pa.nulls(count, field.type)) for field in DOCUMENTS]
    numbers = np.diff(batch.bounds)
    return pa.table(documents, schema=DOCUMENTS), pa.table([ids, rng.random(count), size, numbers, numbers], schema=SIGNALS)


def _same(text: str, count: int) -> pa.Array:
    return pa.array([text]).take(pa.array(np.zeros(count, dtype=np.int64)))


class FolderConfig(Section):
    """The corpus that stands for ingest and score."""

    folder: str = setting("", "Folder of the corpus")
    files: list[str] = setting(list, "Names of the files that take part; empty: all")


class Config(PipelineConfig):
    """A pipeline on a made corpus."""

    corpus: FolderConfig = setting(FolderConfig, "Corpus")


def _link(run: StageRun, corpus: FolderConfig, table: str) -> None:
    for path in sorted((Path(corpus.folder) / table).iterdir()):
        if not corpus.files or path.name in corpus.files:
            link_or_copy(path, run.path(table, path.name))


def suites(run: StageRun, *, corpus: FolderConfig) -> Outcome:
    """No validation items."""
    pq.write_table(SUITE_ITEMS.empty_table(), run.path("suite_items", "suite_items.parquet"))
    return Outcome()


def ingest(run: StageRun, *, corpus: FolderConfig) -> Outcome:
    """The documents of the folder."""
    _link(run, corpus, "documents")
    return Outcome()


def score(run: StageRun, *, corpus: FolderConfig) -> Outcome:
    """The signals of the folder; no rule refuses anything."""
    _link(run, corpus, "signals")
    pq.write_table(DECISIONS.empty_table(), run.path("decisions", "decisions.parquet"))
    return Outcome()


INPUTS = [
    Stage("suites", 1, "pure", "tests.benchmarks.corpora:suites", sections=("corpus",)),
    Stage("ingest", 1, "pure", "tests.benchmarks.corpora:ingest", sections=("corpus",)),
    Stage("score", 1, "pure", "tests.benchmarks.corpora:score", reads={"ingest": ("documents",)}, sections=("corpus",)),
]


@dataclass
class Ready:
    """A made corpus as the stages before dedup leave it."""

    workspace: Workspace
    config: Config
    refs: dict[str, ArtifactRef]
    services: Services

    def dedup(self, *, force: bool = False) -> Artifact:
        """The artifact of stage dedup."""
        ref = execute(self.workspace, BY_NAME["dedup"], self.config, self.refs, services=self.services, force=force)
        return self.workspace.store.artifact(ref.key)


def ready(workspace: Path, folder: Path, *, workers: int = 1, files: Sequence[str] = (), **sections: Any) -> Ready:
    """Run what comes before dedup on a made corpus."""
    config = Config.model_validate({"corpus": {"folder": str(folder), "files": list(files)}, **sections})
    made = Ready(Workspace.open(workspace), config, {}, Services(mapper=thread_mapper(workers), workers=workers))
    for stage in INPUTS:
        made.refs[stage.name] = execute(made.workspace, stage, config, made.refs, services=made.services)
    return made
