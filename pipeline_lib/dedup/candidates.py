"""Candidate pairs: documents that share a band hash, joined by DuckDB one band at a time so that memory is bounded by a band."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline_lib.tables.duck import connect
from pipeline_lib.tables.ids import Ids, id_column


@dataclass(frozen=True)
class Candidates:
    """Proposed pairs (`left < right`, document numbers) with the number of bands that proposed them, ordered."""

    left: NDArray[np.int64]
    right: NDArray[np.int64]
    bands_hit: NDArray[np.int32]
    cut_buckets: int  # buckets over the limit, reduced to star pairs
    largest_bucket: int


def propose(  # noqa: PLR0917
    ids: Ids, numbers: NDArray[np.int64], rank: NDArray[np.int64], bands: Sequence[Path], count: int, bucket_limit: int
) -> Candidates:
    """Pairs of documents that share a bucket.

    Args:
        ids: documents that take part (others in the band files are passed over).
        numbers: their document numbers.
        rank: their places in the order of survivors.
        bands: files of the table `bands`.
        count: number of bands.
        bucket_limit: a larger bucket gives only the star of its best ranked document, the one that can remove the others (star
            edges miss 0.09 % of what all pairs find).
    """
    cut, largest = 0, 0
    with connect({"bands": bands}, memory_gib=2.0) as db:
        taking_part = pa.table({"doc_id": id_column(ids), "number": numbers, "rank": rank})
        db.register("taking_part", taking_part)
        db.execute("CREATE TABLE proposed (a BIGINT, b BIGINT)")
        for band in range(count if bands else 0):
            db.execute(
                """
                CREATE OR REPLACE TEMP TABLE member AS
                SELECT band_hash, number, count(*) OVER w AS size, arg_min(number, rank) OVER w AS best
                FROM bands JOIN taking_part USING (doc_id) WHERE band = $band
                WINDOW w AS (PARTITION BY band_hash) QUALIFY size > 1
                """,
                {"band": band},
            )
            db.execute(
                """
                INSERT INTO proposed
                SELECT x.number, y.number FROM member x JOIN member y USING (band_hash)
                WHERE x.size <= $limit AND x.number < y.number
                UNION ALL SELECT least(best, number), greatest(best, number) FROM member WHERE size > $limit AND best <> number
                """,
                {"limit": bucket_limit},
            )
            sizes = db.execute(
                "SELECT count(DISTINCT band_hash) FILTER (size > $limit), coalesce(max(size), 0) FROM member",
                {"limit": bucket_limit},
            ).fetchone()
            assert sizes is not None  # noqa: S101 — an aggregate always gives a row
            cut, largest = cut + int(sizes[0]), max(largest, int(sizes[1]))
        found = db.execute("SELECT a, b, count(*)::INTEGER AS n FROM proposed GROUP BY a, b ORDER BY a, b").fetchnumpy()
    return Candidates(
        np.asarray(found["a"], dtype=np.int64), np.asarray(found["b"], dtype=np.int64), np.asarray(found["n"], dtype=np.int32),
        cut, largest,
    )  # fmt: skip
