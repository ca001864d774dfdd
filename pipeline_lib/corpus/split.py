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
**With a parent** (an earlier split) nothing moves at all: a document that it knows keeps its side, and a new document takes the
side of the known ones in its cluster. A new document of a cluster that is held out is neither trained on nor tested on: it is
refused by a decision (`near_dev`, `near_test`), so that dev and test stay what they were. Where a new document ties together
clusters of several sides, it is held out, too; the known ones stay apart: they are no direct duplicates of each other.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline_lib.config.data import SplitConfig
from pipeline_lib.tables.ids import Ids, draw, id_column, ids_of, places_of
from pipeline_lib.tables.parquet import read_tables, write_table
from pipeline_lib.tables.schemas import DECISIONS, SPLITS
from pipeline_lib.workspace.artifact import Artifact, SummaryTable
from pipeline_lib.workspace.resolve import parent_of
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


def keep_sides(
    ids: Ids, head: NDArray[np.int64], drawn: NDArray[np.int64], known: Ids, known_side: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Sides with a parent, and which documents are refused because a held-out one is in their cluster.

    Args:
        ids: documents, sorted.
        head: number of the document that names each one's cluster.
        drawn: sides as they would be without a parent.
        known: documents of the parent.
        known_side: their sides there.
    """
    places = places_of(known, ids)
    here = places >= 0
    side = drawn.copy()
    old = np.zeros(len(ids), dtype=bool)
    old[places[here]] = True
    side[places[here]] = known_side[here]
    strictest = np.full(len(ids), -1, dtype=np.int64)  # of the known members, by cluster: test before dev before train
    np.maximum.at(strictest, head[old], side[old])
    joins = ~old & (strictest[head] >= 0)
    side[joins] = strictest[head[joins]]
    return side, joins & (side > 0)


def split(run: StageRun, *, split: SplitConfig) -> Outcome:
    """See the module. Reads documents (id and domain) and clusters; a document without a cluster row is a cluster of its own.

    Raises:
        StageFailedError: the parent is not what it was.
    """
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
    parent = parent_of(run, split.parent)
    heads = np.unique(head)
    drawn = np.zeros(len(ids), dtype=np.int64)
    drawn[heads] = sides_of(draw(ids[heads], run.seed), domains[heads], split)
    side, refused = drawn[head], np.zeros(len(ids), dtype=bool)
    if parent:
        side, refused = keep_sides(ids, head, side, *_known(parent))
    rows = write_table(pa.table([id_column(ids), SIDES[side]], schema=SPLITS), run.path("splits", "splits.parquet"))
    write_table(_decisions(ids[refused], side[refused]), run.path("decisions", "decisions.parquet"))

    counted = {
        str(name): {"documents": int((side == s).sum()), "clusters": len(np.unique(head[side == s]))}
        for s, name in enumerate(SIDES)
    }
    late = {f"refused_near_{SIDES[s]}": int((refused & (side == s)).sum()) for s in (1, 2)}
    if refused.any():
        run.event("late_duplicates_of_held_out", **late)
    table = [(names[d], *(int(((side == s) & (domains == d)).sum()) for s in range(len(SIDES)))) for d in np.unique(domains)]
    for name, *on_side in table:
        if empty := [str(SIDES[s]) for s in range(len(SIDES)) if not on_side[s]]:
            run.event("domain_missing_on_a_side", domain=name, sides=empty)
    return Outcome(
        metrics={f"{name}_{what}": counted[name][what] for what in ("documents", "clusters") for name in counted} | late,
        counts={"in": len(documents), "out": rows},
        summary=SummaryTable(("domain", *map(str, SIDES)), sorted(table), "Documents a side"),
        details={"sides": counted, "parent": parent.key if parent else ""},
    )


def _known(parent: Artifact) -> tuple[Ids, NDArray[np.int64]]:
    """Documents of an earlier split and their sides. What it refused is new again: it will be refused again."""
    before, refused = read_tables(parent.files("splits")), read_tables(parent.files("decisions"), ["doc_id"])
    before = before.filter(pc.invert(pc.is_in(before["doc_id"], value_set=refused["doc_id"].combine_chunks())))
    return ids_of(before["doc_id"]), np.asarray(pc.index_in(before["side"], pa.array(SIDES)).to_numpy(), dtype=np.int64)


def _decisions(ids: Ids, side: NDArray[np.int64]) -> pa.Table:
    """A refusal for each late duplicate of a held-out document."""
    rules = pa.array(["", "near_dev", "near_test"]).take(pa.array(side))
    reasons = pa.array(["", *(f"in the cluster of a document that was held out for {SIDES[s]} earlier" for s in (1, 2))])
    stage = pa.array(["split"]).take(pa.array(np.zeros(len(ids), dtype=np.int64)))
    columns = [id_column(ids), stage, rules, np.zeros(len(ids), dtype=bool), reasons.take(pa.array(side)), np.ones(len(ids))]
    return pa.table(columns, schema=DECISIONS)
