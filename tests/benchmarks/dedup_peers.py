"""Near-duplicates as other tools find them. Runs in the environment of the peers, as a child of the benchmark `dedup`.

    dedup_peers.py pairs TOOL FOLDER 16x8 21x6 …    every pair that TOOL calls similar, for each bands × rows
    dedup_peers.py four_steps FOLDER                datatrove's four MinHash steps as they are, on one core, in seconds

FOLDER holds `documents/*.parquet` with `id` and `text`. For `pairs` a text is its words with a space between them, so that every
tool sees the same shingles: runs of five words, and a shorter text is one shingle. The pairs go to `FOLDER/TOOL-16x8.npz` as
`left`, `right` (places of the documents) and `estimate`: the tool's own estimate of the Jaccard similarity, 1 where it has none.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path

import numpy as np

WIDTH = 5
PERMUTATIONS = 128
Pairs = list[tuple[int, int, float]]


def texts_of(folder: Path) -> list[str]:
    """The texts in order."""
    import pyarrow.parquet as pq

    texts: list[str] = pq.read_table(folder / "documents", columns=["text"])["text"].to_pylist()
    return texts


def shingles(text: str) -> list[str]:
    """Runs of WIDTH words."""
    words = text.split()
    return [" ".join(words[i : i + WIDTH]) for i in range(max(1, len(words) - WIDTH + 1))] if words else []


def datasketch_pairs(folder: Path, bands: list[tuple[int, int]]) -> Iterator[Pairs]:
    """What MinHashLSH proposes, with MinHash's estimate of each pair."""
    from datasketch import MinHash, MinHashLSH

    found = []
    for text in texts_of(folder):
        minhash = MinHash(num_perm=PERMUTATIONS)
        minhash.update_batch([shingle.encode() for shingle in shingles(text)])
        found.append(minhash)
    for count, rows in bands:
        index = MinHashLSH(num_perm=PERMUTATIONS, params=(count, rows))
        pairs: Pairs = []
        for number, minhash in enumerate(found):
            pairs += [(other, number, minhash.jaccard(found[other])) for other in map(int, index.query(minhash))]
            index.insert(str(number), minhash)
        yield pairs


def rensa_pairs(folder: Path, bands: list[tuple[int, int]]) -> Iterator[Pairs]:
    """What RMinHashLSH proposes, with RMinHash's estimate of each pair."""
    from rensa import RMinHash, RMinHashLSH

    tokens = [shingles(text) for text in texts_of(folder)]
    for count, rows in bands:
        found = RMinHash.from_token_sets(tokens, num_perm=count * rows, seed=42)
        index = RMinHashLSH(threshold=0.5, num_perm=count * rows, num_bands=count)  # `query` does not look at the threshold
        index.insert_many(found)
        yield [
            (other, number, minhash.jaccard(found[other]))
            for number, minhash in enumerate(found)
            for other in index.query(minhash)
            if other < number
        ]


def datatrove_pairs(folder: Path, bands: list[tuple[int, int]]) -> Iterator[Pairs]:
    """All pairs inside datatrove's clusters, which is what its last step goes by."""
    from datatrove.pipeline.dedup import minhash

    same_shingles = {"word_tokenizer": _Spaces()}
    for count, rows in bands:
        config = minhash.MinhashConfig(n_grams=WIDTH, num_buckets=count, hashes_per_bucket=rows)
        place = folder / f"datatrove-{count}x{rows}"
        _four_steps(folder, place, config, **same_shingles)
        clusters: dict[int, list[int]] = {}
        for file in sorted((place / "clusters").glob("*.clusters")):
            for number, cluster in np.fromfile(file, dtype="<u4").reshape(-1, 2).tolist():
                clusters.setdefault(cluster, []).append(number)
        yield [(a, b, 1.0) for members in clusters.values() for a, b in combinations(sorted(members), 2)]


class _Spaces:
    """Words are what stands between spaces; a text with fewer words than a shingle is one shingle (datatrove skips it)."""

    @staticmethod
    def word_tokenize(text: str) -> list[str]:
        words = text.split()
        return words + [""] * (WIDTH - len(words)) if words else []


def _four_steps(folder: Path, place: Path, config: object, word_tokenizer: object = None) -> dict[str, float]:
    """Signatures, buckets, clusters, filter; the seconds of each."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup.minhash import (
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupFilter,
        MinhashDedupSignature,
    )
    from datatrove.pipeline.readers import ParquetReader
    from datatrove.pipeline.writers import ParquetWriter

    def reader() -> ParquetReader:
        return ParquetReader(str(folder / "documents"))

    signature = MinhashDedupSignature(str(place / "signatures"), config)
    if word_tokenizer is not None:
        signature.word_tokenizer = word_tokenizer
    steps = {
        "signatures": [reader(), signature],
        "buckets": [MinhashDedupBuckets(str(place / "signatures"), str(place / "buckets"), config=config)],
        "clusters": [MinhashDedupCluster(str(place / "buckets"), str(place / "clusters"), config=config, save_cluster_id=True)],
        "filter": [
            reader(),
            MinhashDedupFilter(str(place / "clusters")),
            ParquetWriter(str(place / "kept")),
        ],
    }
    seconds = {}
    for name, pipeline in steps.items():
        tasks = config.num_buckets if name == "buckets" else 1
        begin = time.perf_counter()
        LocalPipelineExecutor(pipeline, tasks=tasks, workers=1, logging_dir=str(place / "logs" / name)).run()
        seconds[name] = time.perf_counter() - begin
    return seconds


TOOLS: dict[str, Callable[[Path, list[tuple[int, int]]], Iterator[Pairs]]] = {
    "datatrove": datatrove_pairs,
    "datasketch": datasketch_pairs,
    "rensa": rensa_pairs,
}


def main() -> None:
    """Run what the arguments say."""
    folder = Path(sys.argv[-1])
    if sys.argv[1] == "four_steps":
        from datatrove.pipeline.dedup.minhash import MinhashConfig

        said = _four_steps(folder, folder / "four_steps", MinhashConfig())
    else:
        _, _, tool, place, *names = sys.argv
        bands = [(int(count), int(rows)) for count, rows in (name.split("x") for name in names)]
        said = {}
        for name, pairs in zip(names, TOOLS[tool](Path(place), bands), strict=True):
            left, right, estimate = np.array(pairs, dtype=np.float64).reshape(-1, 3).T
            np.savez(Path(place) / f"{tool}-{name}.npz", left=left.astype(int), right=right.astype(int), estimate=estimate)
            said[name] = len(pairs)
    print("\n" + json.dumps(said))


if __name__ == "__main__":
    main()
