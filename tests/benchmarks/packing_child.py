"""What the benchmark `packing` measures in processes of their own, on as many cores as it says. Prints JSON.

packing_child prepare ROOT TEXTS            publish the documents of TEXTS/*.parquet and a selection of all of them
packing_child pack ROOT TEXTS LENGTH CORES RANGE     the stage pack, with the tokenizer in TEXTS/tokenizer
packing_child read ROOT KEY                 read the train side of a pack at random and in order, on one core
packing_child spoil ROOT TEXTS LENGTH RANGE pack, fill, spoil one chunk, fill again
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from blake3 import blake3
from numpy.typing import NDArray

from pipeline_lib.config.fields import Section, setting
from pipeline_lib.config.model import FillGapsConfig, PackConfig, TokenizerConfig
from pipeline_lib.packing.cache import cache_folder, read_chunks
from pipeline_lib.packing.sequences import Chunk, SequenceReader
from pipeline_lib.stages import BY_NAME
from pipeline_lib.tables.parquet import write_table
from pipeline_lib.tables.schemas import DOCUMENTS, SELECTION
from pipeline_lib.workspace.artifact import Artifact, ArtifactRef
from pipeline_lib.workspace.services import Services, thread_mapper
from pipeline_lib.workspace.stage import Outcome, Stage, StageRun, execute
from pipeline_lib.workspace.workspace import Workspace

BYTES_PER_TOKEN = 4.4  # of an estimate
HELD = 100  # one document of so many is on dev, one on test


class Corpus(Section):
    """Texts to pack."""

    folder: str = setting("", "holds Parquet files with a column `text`")


class Config(Section):
    corpus: Corpus = setting(Corpus, "texts")
    pack: PackConfig = setting(PackConfig, "pack")
    tokenizer: TokenizerConfig = setting(TokenizerConfig, "tokenizer")
    fill_gaps: FillGapsConfig = setting(FillGapsConfig, "fill")


def _ids(first: int, count: int) -> pa.Array:
    return pa.array([blake3(str(i).encode()).digest(16) for i in range(first, first + count)], pa.binary(16))


def ingest(run: StageRun, *, corpus: Corpus) -> Outcome:
    """Documents as the real stage publishes them."""
    first = 0
    for number, path in enumerate(sorted(Path(corpus.folder).glob("*.parquet"))):
        texts = pq.read_table(path, columns=["text"])["text"].cast(pa.large_string())
        count = len(texts)
        known = {"doc_id": _ids(first, count), "text": texts, "kind": pa.array(["text"] * count)}
        columns = [known.get(field.name, pa.nulls(count, field.type)) for field in DOCUMENTS]
        write_table(pa.table(columns, schema=DOCUMENTS), run.path("documents", f"part-{number:03d}.parquet"))
        first += count
    return Outcome()


def select(run: StageRun, *, corpus: Corpus) -> Outcome:
    """All of them."""
    sizes = [
        pc.binary_length(pq.read_table(p, columns=["text"])["text"]).to_numpy() for p in run.input("ingest").files("documents")
    ]
    estimated = np.maximum(np.concatenate(sizes) / BYTES_PER_TOKEN, 1).astype(np.int64)
    n = len(estimated)
    sides = np.full(n, "train")
    sides[7 % n :: HELD], sides[13 % n :: HELD] = "dev", "test"
    columns = {
        "doc_id": _ids(0, n), "side": sides, "domain": ["text"] * n, "repeats": np.ones(n, np.int32), "role": ["new"] * n,
        "quality": np.ones(n), "score": np.ones(n), "est_tokens": estimated,
    }  # fmt: skip
    write_table(pa.table(columns, schema=SELECTION), run.path("selection", "selection.parquet"))
    return Outcome()


INGEST = Stage("ingest", 1, "pure", f"{__name__}:ingest", sections=("corpus",))
SELECT = Stage("select", 1, "pure", f"{__name__}:select", reads={"ingest": ("documents",)}, sections=("corpus",))


def _prepared(workspace: Workspace, config: Config) -> dict[str, ArtifactRef]:
    refs = {"ingest": execute(workspace, INGEST, config, {})}
    return {**refs, "select": execute(workspace, SELECT, config, refs)}


def _use_cores(cores: int) -> Services:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    pa.set_cpu_count(cores)
    return Services(mapper=thread_mapper(cores), workers=cores)


def _config(texts: str, length: int = 2048, range_tokens: int = 1 << 20) -> Config:
    return Config(
        corpus=Corpus(folder=texts),
        pack=PackConfig(sequence_length=length, range_tokens=range_tokens),
        tokenizer=TokenizerConfig(source=str(Path(texts) / "tokenizer")),
    )


def _train(workspace: Workspace, pack: Artifact) -> tuple[Path, list[Any]]:
    folder = cache_folder(workspace, pack.details["cache"])
    return folder, [facts for facts in read_chunks(pack.files("chunks")) if facts.side == "train"]


def prepare(root: str, texts: str) -> dict[str, Any]:
    """Publish documents and selection."""
    refs = _prepared(Workspace.open(Path(root)), _config(texts))
    return {name: ref.key for name, ref in refs.items()}


def pack(root: str, texts: str, length: str, cores: str, range_tokens: str) -> dict[str, Any]:
    """The stage, from the published selection to the published list of chunks, all of them synced to disk."""
    services = _use_cores(int(cores))
    workspace, config = Workspace.open(Path(root)), _config(texts, int(length), int(range_tokens))
    refs = _prepared(workspace, config)
    from pipeline_lib.packing import bestfit  # noqa: F401 - imports and compiled kernels are no part of packing

    begin = time.perf_counter()
    ref = execute(workspace, BY_NAME["pack"], config, refs, services=services, force=True)
    seconds = time.perf_counter() - begin
    made = workspace.artifact(ref.key)
    folder, chunks = _train(workspace, made)
    avoidable = tokens_of_all = fewest = 0
    for facts in chunks:
        chunk = Chunk(facts, folder)
        rows, pieces = np.unique(chunk.provenance[0], return_counts=True)
        tokens = np.bincount(np.searchsorted(rows, chunk.provenance[0]), weights=chunk.lengths[2])
        avoidable += int(((pieces > 1) & (tokens <= int(length))).sum())
        tokens_of_all += int(chunk.lengths[2].sum())
        fewest += fewest_sequences(chunk.lengths[2], int(length))
    return {
        **made.metrics, "key": ref.key, "seconds": seconds, "train_utilisation": made.details["utilisation"]["train"],
        "avoidably_cut": avoidable, "best_utilisation": tokens_of_all / (fewest * int(length)),
        "peak_bytes": made.manifest.peak_memory_bytes,
    }  # fmt: skip


def fewest_sequences(pieces: NDArray[np.int32], length: int) -> int:
    """A number of sequences that no packing of whole pieces can go below: the bound L2 of Martello and Toth (1990).

    For every size k up to half a sequence: pieces above length − k share with none of at least k, those above half a sequence not
    with each other, and the rest of at least k has only what these leave free.
    """
    ordered = np.sort(pieces).astype(np.int64)
    above_half = ordered[ordered > length // 2]
    sums = np.concatenate([[0], np.cumsum(ordered)])
    most = -(-int(ordered.sum()) // length)
    for k in np.unique(ordered[ordered <= length // 2]):
        beside = above_half[above_half <= length - k]
        small = int(sums[len(ordered) - len(above_half)] - sums[np.searchsorted(ordered, k)])
        rest = small - (len(beside) * length - int(beside.sum()))
        most = max(most, len(above_half) + max(0, -(-rest // length)))
    return most


def _best(work: Callable[[], object], times: int = 7) -> float:
    seconds = []
    for _ in range(times):
        begin = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begin)
    return min(seconds)


def read(root: str, key: str) -> dict[str, Any]:
    """Random sequences after every chunk was touched once; tensors as training gets them; a scan that verifies every chunk."""
    from pipeline_lib.packing.reader import as_tensors

    _use_cores(1)
    workspace = Workspace.open(Path(root))
    made = workspace.artifact(key)
    folder, chunks = _train(workspace, made)
    begin = time.perf_counter()
    reader = SequenceReader(folder, chunks, "train")
    used = len(reader[0].tokens)
    first = time.perf_counter() - begin
    order = [int(i) for i in np.random.default_rng(0).permutation(len(reader))]
    for i in order:
        used += len(reader[i].tokens)
    settings = reader.settings
    tokens = sum(facts.tokens for facts in chunks)
    return {
        "open_seconds": first,
        "reads_per_second": len(order) / _best(lambda: [reader[i] for i in order]),
        "tensors_per_second": len(order)
        / _best(lambda: [as_tensors(reader[i], settings.sequence_length, settings.pad_id) for i in order]),
        "scan_tokens_per_second": tokens / _best(lambda: sum(map(len, SequenceReader(folder, chunks, "train").scan())), 15),
    }


def spoil(root: str, texts: str, length: str, range_tokens: str) -> dict[str, Any]:
    """Flip one bit of one chunk among many; how long until it is found, and until it is whole again."""
    services = _use_cores(1)
    workspace, config = Workspace.open(Path(root)), _config(texts, int(length), int(range_tokens))
    refs = _prepared(workspace, config)
    refs["pack"] = execute(workspace, BY_NAME["pack"], config, refs, services=services)
    refs["fill_gaps"] = execute(workspace, BY_NAME["fill_gaps"], config, refs, services=services)
    folder, chunks = _train(workspace, workspace.artifact(refs["pack"].key))
    before = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.glob("*.arrow")}
    victim = chunks[len(chunks) // 2].file(folder)
    whole = victim.read_bytes()
    spoiled = bytearray(whole)
    spoiled[len(whole) // 2] ^= 16
    victim.write_bytes(spoiled)
    begin = time.perf_counter()
    ref = execute(workspace, BY_NAME["fill_gaps"], config, refs, services=services)
    seconds = time.perf_counter() - begin
    filled = workspace.artifact(ref.key)
    touched = [path for path, mark in before.items() if (path.stat().st_ino, path.stat().st_mtime_ns) != mark]
    return {
        "chunks": len(before), "seconds": seconds, "filled": filled.metrics["filled"], "touched": len(touched),
        "check_seconds": filled.metrics["check_seconds"], "identical": victim.read_bytes() == whole,
    }  # fmt: skip


if __name__ == "__main__":
    mode: Callable[..., dict[str, Any]] = {"prepare": prepare, "pack": pack, "read": read, "spoil": spoil}[sys.argv[1]]
    print(json.dumps(mode(*sys.argv[2:])))
