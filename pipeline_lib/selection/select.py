"""Stage `select`: quality × diversity × balance × recency → a budgeted choice; and the nightly chain (see `chain`).

- A document that a rule or dedup refused is rejected with that reason; dev and test documents that passed are all selected.
- Training documents compete (`choice`): greedily by quality and novelty (`diversity`), weighted by recency, within their
  domain's share of the budget (`shares`), with floors for sources and for cells of the corpus (`cells`).
- Every document is either in `selection` or in `decisions`: counted. A tombstone in `decisions` is one that ingest has no more.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline_lib.config.data import SelectConfig
from pipeline_lib.corpus.split import SIDES
from pipeline_lib.dedup.decontaminate import merged
from pipeline_lib.selection.chain import Chain, continue_from, first_night, replayed
from pipeline_lib.selection.choice import Choice, choose, costs_of, refused_by
from pipeline_lib.selection.diversity import vendi_score
from pipeline_lib.selection.features import measure_file, read_vectors
from pipeline_lib.selection.importance import importance
from pipeline_lib.selection.measures import cells_detail, shares_of, summary_of, warn
from pipeline_lib.selection.pool import Pool, Verdicts, read_pool, read_refusals
from pipeline_lib.selection.rights import rights_of
from pipeline_lib.tables.ids import Ids, draw, id_column, ids_of, order_of, places_of
from pipeline_lib.tables.parquet import read_tables, write_table
from pipeline_lib.tables.schemas import CUTS, DECISIONS, SELECTION
from pipeline_lib.workspace.resolve import parent_of
from pipeline_lib.workspace.stage import Outcome, StageRun

ROLES = np.array(["new", "replay", "kept"])
NEW, REPLAY, KEPT = 0, 1, 2
CHOSEN_BEFORE = "a document of its cluster was chosen on an earlier night"
GONE = "was chosen on an earlier night and is no longer in the sources"


def select(run: StageRun, *, select: SelectConfig) -> Outcome:
    """See the module. Reads documents, signals, decisions, clusters and splits; and the parent selection, named by digest.

    Raises:
        StageFailedError: inputs of different documents, or a parent that is not what it was.
        ConfigError, NotFoundError: a target sample that cannot be read.
    """
    pool = read_pool(run)
    refusals = read_refusals(run, pool.ids)
    parent = run.parent = parent_of(run, select.parent)  # without one, `run.shards` names whoever lends it a shard
    chain = continue_from(parent, pool, refusals) if parent else first_night(pool)
    ingest = run.input("ingest")
    digests = [entry.digest for entry in ingest.manifest.files if entry.table == "documents"]
    items = list(zip((str(path) for path in ingest.files("documents")), digests, strict=True))
    measured = run.shards(items, measure_file, key=lambda item: {"file": item[1]}, unit="files measured")
    vectors = read_vectors([shard.files["features"] for shard in measured])[pool.position]
    toward = importance(run, items, select)[pool.position] if select.toward != "none" else None

    verdicts = refusals.verdicts
    nothing = np.zeros(len(pool), dtype=np.float64)
    for name, documents in chain.refused.items():
        verdicts.refuse(documents, name, CHOSEN_BEFORE, nothing)
    verdicts.spare(chain.kept)
    trainable = ~chain.kept & (chain.side == 0)
    poor = trainable & (pool.quality < select.min_quality)
    verdicts.refuse(poor, "quality", f"needs quality >= {select.min_quality:g}", pool.quality)
    competing = verdicts.open & trainable
    target = select.target_tokens or select.target_documents
    if parent and target:
        target = max(1, int(target * (1.0 - select.replay_share)))
    choice = choose(
        pool, vectors, competing, select, target=target, seed=run.seed, log_importance=toward,
        already=np.bincount(pool.source.codes[chain.kept & (chain.side == 0)], minlength=len(pool.source.names)),
        workers=run.services.workers,
    )  # fmt: skip
    left = competing & (choice.repeats == 0)
    if toward is not None:
        reason = f"not drawn toward {'the world' if select.toward == 'world' else 'the sample'}: the value is its log importance"
        verdicts.refuse(left & ~choice.candidate, "importance", reason, toward)
    unit = "documents" if select.target_documents else "tokens"
    for domain in np.unique(pool.domain.codes[left]):
        verdicts.refuse(left & (pool.domain.codes == domain), *refused_by(choice, pool, target, domain, unit), choice.gain)

    chosen = verdicts.open
    new = chosen & competing
    new_tokens = int((pool.tokens * choice.repeats)[new].sum())
    again = replayed(chain, pool, new_tokens, select.replay_share, run.seed)
    role = np.where(chain.kept, np.where(again | (chain.side > 0), REPLAY, KEPT), NEW)
    selection = _selection(pool, chain, choice, chosen, role)
    decisions = _rejections(pool, chain, verdicts)
    tables = {"selection": selection, "cuts": _cuts(run, pool.ids[chosen]), "decisions": decisions, "cells": choice.cells}
    for name, table in tables.items():
        write_table(table, run.path(name, f"{name}.parquet"))

    training = chosen & (chain.side == 0)
    warn(run, pool, training, choice, select)
    replay = training & (role == REPLAY)
    draws = draw(pool.ids, run.seed)
    weight = np.where(training, np.maximum(choice.repeats, 1), 0)
    metrics: dict[str, Any] = {
        "documents": len(pool),
        "tokens": int(pool.tokens.sum()),
        **{f"{side}_documents": int((chosen & (chain.side == s)).sum()) for s, side in enumerate(SIDES)},
        "train_tokens": int((pool.tokens * weight).sum()),
        "new_documents": int(new.sum()),
        "new_tokens": new_tokens,
        "replay_documents": int(replay.sum()),
        "replay_tokens": int(pool.tokens[replay].sum()),
        "kept_documents": int((training & (role == KEPT)).sum()),
        "changed_documents": int(chain.changed.sum()),
        "tombstoned": len(chain.vanished) + int(chain.withdrawn.sum()),
        "mean_quality": _mean(pool.quality, training),
        "mean_quality_of_all": _mean(pool.quality, np.ones(len(pool), dtype=bool)),
        "diversity": vendi_score(vectors[training], draws[training]),
        "diversity_of_all": vendi_score(vectors, draws),
        **cells_detail(choice.cells),
    }
    if toward is not None:
        metrics["log_importance"] = _mean(toward, training)
        metrics["log_importance_of_all"] = _mean(toward, np.ones(len(pool), dtype=bool))
    rejected = decisions.num_rows - len(chain.vanished)
    costs = costs_of(pool, select)
    return Outcome(
        metrics=metrics,
        counts={"in": len(pool), "out": selection.num_rows + rejected, "selected": selection.num_rows, "rejected": rejected},
        summary=summary_of(pool, training, weight),
        details={
            "target": target,
            "unit": unit,
            "spent": int((costs * weight)[new].sum()),
            "domain_budgets": dict(zip(pool.domain.names, choice.budgets.tolist(), strict=True)),
            "shares": shares_of(pool, weight),
            "floors_not_reached": choice.short,
            "parent": parent.key if parent else "",
            "rights": rights_of(selection, run.input("ingest").files("documents")),
        },
    )


def _mean(values: NDArray[np.float64], of: NDArray[np.bool_]) -> float:
    return round(float(values[of].mean()), 6) if of.any() else 0.0


def _selection(pool: Pool, chain: Chain, choice: Choice, chosen: NDArray[np.bool_], role: NDArray[np.int64]) -> pa.Table:
    rows = np.flatnonzero(chosen)

    def named(names: Any, codes: NDArray[np.int64]) -> pa.Array:
        return pa.array(names, pa.string()).take(pa.array(codes[rows]))

    columns = {
        "doc_id": id_column(pool.ids[rows]),
        "side": named(SIDES, chain.side),
        "domain": named(pool.domain.names, pool.domain.codes),
        "repeats": np.maximum(choice.repeats[rows], 1).astype(np.int32),
        "role": named(ROLES, role),
        "quality": pool.quality[rows],
        "score": np.where(chain.kept[rows], chain.score[rows], choice.gain[rows]),
        "est_tokens": pool.tokens[rows],
    }
    return pa.table(columns, schema=SELECTION)


def _cuts(run: StageRun, chosen: Ids) -> pa.Table:
    """What dedup cut out of the chosen documents (sorted ids), for `pack`."""
    edits = read_tables(run.input("dedup").files("edits"), ["doc_id", "start", "end"])
    document = places_of(ids_of(edits["doc_id"]), chosen)
    here = document >= 0
    document, start, end = merged(document[here], edits["start"].to_numpy()[here], edits["end"].to_numpy()[here])
    return pa.table([id_column(chosen[document]), start, end], schema=CUTS)


def _rejections(pool: Pool, chain: Chain, verdicts: Verdicts) -> pa.Table:
    """A row for every document that was not chosen, and a tombstone for each chosen one that vanished."""
    out = np.flatnonzero(~verdicts.open)
    gone = len(chain.vanished)
    rules, reasons = verdicts.texts(out)
    ids = np.concatenate([pool.ids[out], chain.vanished])
    rows = pa.table(
        {
            "doc_id": id_column(ids),
            "stage": pa.array(["select"]).take(pa.array(np.zeros(len(ids), dtype=np.int64))),
            "rule": pa.concat_arrays([rules, pa.array(["tombstone"] * gone, pa.string())]),
            "kept": np.zeros(len(ids), dtype=bool),
            "reason": pa.concat_arrays([reasons, pa.array([GONE] * gone, pa.string())]),
            "value": np.concatenate([verdicts.value[out], np.zeros(gone)]),
        },
        schema=DECISIONS,
    )
    return rows.take(pa.array(order_of(ids))) if gone else rows
