"""Stage `split`: every duplicate cluster goes to train, dev or test, as a whole, by hash.

**Rule.** Each cluster draws a number u in [0, 1) from its name (the earliest document's id) and the seed; it belongs to the
domain of its earliest document. dev is u < dev_share, test is u > 1 - test_share, train is the rest. Where this gives a domain
less than its floor, the lowest draws fill up dev and the highest fill up test: to the configured floor, or to a sixth of the
domain's clusters if that is less, so the floor never takes more than a third of a domain.

**What is stable.** The draw depends on nothing but name and seed, so when documents are added
- who is on dev or test by the share stays there;
- who is there for the floor goes to train once enough lower (for test: higher) draws have come; none comes back;
- only in a domain of less than six floors of clusters, where the floor itself still grows, can a train document be drawn into it;
- a document joins its cluster without effect, unless it is older than the whole cluster or ties two clusters together: then the
  cluster's name is that of the earliest document.
Along a chain of nightly selections nothing moves at all: `selection` keeps the side of every document it has chosen before.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline_lib.config.data import SplitConfig
from pipeline_lib.tables.ids import draw, id_column, ids_of, places_of
from pipeline_lib.tables.parquet import read_tables, write_table
from pipeline_lib.tables.schemas import SPLITS
from pipeline_lib.workspace.artifact import SummaryTable
from pipeline_lib.workspace.stage import Outcome, StageRun

SIDES = np.array(["train", "dev", "test"])
MOST = 6  # one sixth of a domain's clusters each for dev and test by the floor, one third together


def held_out(draws: NDArray[np.float64], share: float, floor: int) -> NDArray[np.bool_]:
    """Which clusters of a domain go to dev (for test: of the mirrored draws).

    Args:
        draws: the clusters' numbers in [0, 1).
        share: configured share.
        floor: at least this many clusters, if that is no more than a sixth of the domain.
    """
    count = max(int((draws < share).sum()), min(floor, len(draws) // MOST))
    chosen = np.zeros(len(draws), dtype=bool)
    chosen[np.argsort(draws, kind="stable")[:count]] = True
    return chosen


def sides_of(draws: NDArray[np.float64], domains: NDArray[np.int64], config: SplitConfig) -> NDArray[np.int64]:
    """Side (index into `SIDES`) of each cluster."""
    sides = np.zeros(len(draws), dtype=np.int64)
    for domain in np.unique(domains):
        members = np.flatnonzero(domains == domain)
        test = held_out(1.0 - draws[members], config.test_share, config.floor_per_domain)
        sides[members[test]] = 2
        dev = held_out(draws[members], config.dev_share, config.floor_per_domain)
        sides[members[dev]] = 1
    return sides


def split(run: StageRun, *, split: SplitConfig) -> Outcome:
    """See the module. Reads documents (id and domain) and clusters; a document without a cluster row is a cluster of its own."""
    documents = read_tables(run.input("ingest").files("documents"), ["doc_id", "domain"])
    clusters = read_tables(run.input("dedup").files("clusters"), ["doc_id", "cluster_id"])
    ids = ids_of(documents["doc_id"])
    order = np.argsort(ids, kind="stable")
    ids = ids[order]
    encoded = documents["domain"].combine_chunks().fill_null("").dictionary_encode()
    names = encoded.dictionary.to_pylist()
    domains = encoded.indices.to_numpy().astype(np.int64)[order]
    head = np.arange(len(ids))
    member = places_of(ids_of(clusters["doc_id"]), ids)
    head[member] = places_of(ids_of(clusters["cluster_id"]), ids)

    heads = np.unique(head)
    side_of_head = np.zeros(len(ids), dtype=np.int64)
    side_of_head[heads] = sides_of(draw(ids[heads], run.seed), domains[heads], split)
    side = side_of_head[head]
    rows = write_table(pa.table([id_column(ids), SIDES[side]], schema=SPLITS), run.path("splits", "splits.parquet"))

    counted = {
        str(name): {"documents": int((side == s).sum()), "clusters": int((side_of_head[heads] == s).sum())}
        for s, name in enumerate(SIDES)
    }
    table = [(names[d], *(int(((side == s) & (domains == d)).sum()) for s in range(len(SIDES)))) for d in np.unique(domains)]
    for name, *on_side in table:
        if empty := [str(SIDES[s]) for s in range(len(SIDES)) if not on_side[s]]:
            run.event("domain_missing_on_a_side", domain=name, sides=empty)
    return Outcome(
        metrics={f"{name}_{what}": number for name, numbers in counted.items() for what, number in numbers.items()},
        counts={"in": len(documents), "out": rows},
        summary=SummaryTable(("domain", *map(str, SIDES)), sorted(table), "Documents a side"),
        details={"sides": counted},
    )
