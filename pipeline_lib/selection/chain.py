"""The nightly chain: what an earlier selection chose stays chosen, on its side, and only new documents compete.

An old document is *kept* when it is still there with the same text and contains no validation item. Of the kept training
documents a hash-chosen part is trained on again tonight (role `replay`), the rest is not (role `kept`); kept dev and test
documents are used every night (role `replay`). One whose text changed competes again, on its old side; one that vanished is
tombstoned.

A new document of a cluster with kept members takes their side, so that nothing is tested on the neighbour of what was trained
on. It is refused when the members are on several sides, and when dedup would now drop a kept member of its cluster: the one that
was chosen first stays.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline_lib.corpus.split import SIDES
from pipeline_lib.selection.pool import Pool, Refusals, side_codes
from pipeline_lib.tables.ids import Ids, draw, ids_of, places_of
from pipeline_lib.tables.parquet import read_tables
from pipeline_lib.workspace.artifact import Artifact

SEED_DIGITS = 15  # hexadecimal digits of the parent's digest in the replay's seed: fits 63 bits


@dataclass(frozen=True)
class Chain:
    """What the earlier selection means for tonight's documents."""

    digest: str  # output digest of the parent, "" without one
    kept: NDArray[np.bool_]
    changed: NDArray[np.bool_]  # chosen before under this id, with another text
    withdrawn: NDArray[np.bool_]  # chosen before, and now known to contain a validation item
    score: NDArray[np.float64]  # of kept documents, as it was when they were chosen
    side: NDArray[np.int64]  # of every document, by split and chain together; index into SIDES
    refused: dict[str, NDArray[np.bool_]]  # rule -> new documents that may not be chosen
    vanished: Ids


def first_night(pool: Pool) -> Chain:
    """No earlier selection."""
    none = np.zeros(len(pool), dtype=bool)
    return Chain("", none, none, none, np.zeros(len(pool)), pool.side, {}, pool.ids[:0])


def continue_from(parent: Artifact, pool: Pool, refusals: Refusals) -> Chain:
    """See the module."""
    chosen = read_tables(parent.files("selection"), ["doc_id", "side", "score"])
    features = read_tables(parent.files("features"), ["doc_id", "text_hash"])
    old_ids = ids_of(chosen["doc_id"])
    known = ids_of(features["doc_id"])
    by_id = np.argsort(known, kind="stable")
    old_hash = ids_of(features["text_hash"])[by_id][places_of(old_ids, known[by_id])]

    here = places_of(old_ids, pool.ids)
    there = here >= 0
    place = here[there]
    same = np.zeros(len(pool), dtype=bool)
    same[place] = pool.text_hash[place] == old_hash[there]
    was_chosen = np.zeros(len(pool), dtype=bool)
    was_chosen[place] = True
    kept = same & ~refusals.contaminated
    score = np.zeros(len(pool), dtype=np.float64)
    score[place] = chosen["score"].to_numpy()[there]
    side = pool.side.copy()
    side[place] = side_codes(chosen["side"])[there]

    low, high = np.full(len(pool), len(SIDES)), np.full(len(pool), -1)  # of the kept members' sides, by cluster
    np.minimum.at(low, pool.cluster[kept], side[kept])
    np.maximum.at(high, pool.cluster[kept], side[kept])
    low, high = low[pool.cluster], high[pool.cluster]
    joins = ~kept & (high >= 0)
    side[joins & ~was_chosen] = low[joins & ~was_chosen]
    displaced = np.zeros(len(pool), dtype=bool)
    displaced[pool.cluster[kept & refusals.duplicate]] = True
    return Chain(
        digest=parent.manifest.digest,
        kept=kept,
        changed=was_chosen & ~same,
        withdrawn=was_chosen & refusals.contaminated,
        score=score,
        side=side,
        refused={"cluster_on_two_sides": joins & (low != high), "duplicate_of_chosen": joins & displaced[pool.cluster]},
        vanished=np.sort(old_ids[~there]),
    )


def replayed(chain: Chain, pool: Pool, new_tokens: int, share: float, seed: int) -> NDArray[np.bool_]:
    """Kept training documents to train on again: as many, in hash order, as fit `share` of tonight's training tokens."""
    room = int(new_tokens * share / (1.0 - share))
    old = np.flatnonzero(chain.kept & (chain.side == 0))
    if not len(old):
        return np.zeros(len(pool), dtype=bool)
    order = old[np.argsort(draw(pool.ids[old], (seed + int(chain.digest[:SEED_DIGITS], 16)) % 2**63), kind="stable")]
    again = np.zeros(len(pool), dtype=bool)
    again[order[np.cumsum(pool.tokens[order]) <= room]] = True
    return again
