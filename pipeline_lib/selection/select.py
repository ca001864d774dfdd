"""Stage `select`: quality × diversity × balance × recency → a budgeted choice; and the nightly chain (see `chain`).

- A document that a rule or dedup refused is rejected with that reason; dev and test documents that passed are all selected.
- Training documents compete within their domain (`choice`): greedily by quality and novelty (`diversity`), weighted by recency,
  within the domain's share of the budget (`shares`).
- Every document is either in `selection` or in `decisions`: counted. A tombstone in `decisions` is one that ingest has no more.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline_lib.config.data import SelectConfig
from pipeline_lib.corpus.split import SIDES
from pipeline_lib.selection.chain import Chain, continue_from, first_night, replayed
from pipeline_lib.selection.choice import Choice, choose, refused_by
from pipeline_lib.selection.diversity import vendi_score
from pipeline_lib.selection.features import FEATURES, measure_file, vectors_of
from pipeline_lib.selection.pool import Labels, Pool, read_pool, read_refusals
from pipeline_lib.tables.ids import draw, id_column
from pipeline_lib.tables.parquet import read_tables, write_table
from pipeline_lib.tables.schemas import DECISIONS, SELECTION
from pipeline_lib.workspace.artifact import SummaryTable
from pipeline_lib.workspace.resolve import parent_of
from pipeline_lib.workspace.stage import Outcome, StageRun

ROLES = np.array(["new", "replay", "kept"])
NEW, REPLAY, KEPT = 0, 1, 2
CHOSEN_BEFORE = "a document of its cluster was chosen on an earlier night"


def select(run: StageRun, *, select: SelectConfig) -> Outcome:
    """See the module. Reads documents, signals, decisions, clusters and splits; and the parent selection, named by digest.

    Raises:
        StageFailedError: inputs of different documents, or a parent that is not what it was.
    """
    pool = read_pool(run)
    refusals = read_refusals(run, pool.ids)
    parent = run.parent = parent_of(run, select.parent)  # without one, `run.shards` names whoever lends it a shard
    chain = continue_from(parent, pool, refusals) if parent else first_night(pool)
    vectors = _features(run)[pool.position]

    rule, reason = refusals.rule.copy(), refusals.reason.copy()
    for name, documents in chain.refused.items():
        late = documents & (rule == "")
        rule[late], reason[late] = name, CHOSEN_BEFORE
    rule[chain.kept] = ""
    competing = (rule == "") & ~chain.kept & (chain.side == 0)
    target = int(select.target_tokens * (1.0 - select.replay_share)) if parent else select.target_tokens
    choice = choose(pool, vectors, competing, select, target=target, seed=run.seed)
    for domain in np.unique(pool.domain.codes[competing]):
        out = competing & (choice.repeats == 0) & (pool.domain.codes == domain)
        rule[out], reason[out] = refused_by(choice, pool, target, domain)

    chosen = rule == ""
    new = chosen & competing
    new_tokens = int((pool.tokens * choice.repeats)[new].sum())
    again = replayed(chain, pool, new_tokens, select.replay_share, run.seed)
    role = np.where(chain.kept, np.where(again | (chain.side > 0), REPLAY, KEPT), NEW)
    selection = _selection(pool, chain, choice, chosen, role)
    decisions = _rejections(pool, chain, rule, reason)
    write_table(selection, run.path("selection", "selection.parquet"))
    write_table(decisions, run.path("decisions", "decisions.parquet"))

    training = chosen & (chain.side == 0)
    _warn_of_missing(run, "domain", pool.domain, training)
    _warn_of_missing(run, "source", pool.source, training)
    replay = training & (role == REPLAY)
    draws = draw(pool.ids, run.seed)
    metrics: dict[str, Any] = {
        "documents": len(pool),
        **{f"{side}_documents": int((chosen & (chain.side == s)).sum()) for s, side in enumerate(SIDES)},
        "new_documents": int(new.sum()),
        "new_tokens": new_tokens,
        "replay_documents": int(replay.sum()),
        "replay_tokens": int(pool.tokens[replay].sum()),
        "kept_documents": int((training & (role == KEPT)).sum()),
        "changed_documents": int(chain.changed.sum()),
        "tombstoned": len(chain.vanished) + int(chain.withdrawn.sum()),
        "mean_quality": round(float(pool.quality[training].mean()), 6) if training.any() else 0.0,
        "diversity": vendi_score(vectors[training], draws[training]),
        "diversity_of_all": vendi_score(vectors, draws),
    }
    rejected = decisions.num_rows - len(chain.vanished)
    return Outcome(
        metrics=metrics,
        counts={"in": len(pool), "out": selection.num_rows + rejected, "selected": selection.num_rows, "rejected": rejected},
        summary=_summary(pool, training, choice),
        details={
            "target_tokens": select.target_tokens,
            "domain_budgets": dict(zip(pool.domain.names, choice.budgets.tolist(), strict=True)),
            "parent": parent.key if parent else "",
        },
    )


def _features(run: StageRun) -> NDArray[np.int16]:
    """Vectors of all documents in file order (table `features`, file by file)."""
    ingest = run.input("ingest")
    digests = [entry.digest for entry in ingest.manifest.files if entry.table == "documents"]
    items = list(zip((str(path) for path in ingest.files("documents")), digests, strict=True))
    shards = run.shards(items, measure_file, key=lambda item: {"file": item[1]}, unit="files")
    tables = [read_tables([shard.files["features"]], ["vector"]) for shard in shards]
    return vectors_of((pa.concat_tables(tables) if tables else FEATURES.empty_table())["vector"])


def _selection(pool: Pool, chain: Chain, choice: Choice, chosen: NDArray[np.bool_], role: NDArray[np.int64]) -> pa.Table:
    rows = np.flatnonzero(chosen)
    columns = {
        "doc_id": id_column(pool.ids[rows]),
        "side": SIDES[chain.side[rows]],
        "domain": pa.array(pool.domain.names, pa.string()).take(pa.array(pool.domain.codes[rows])),
        "repeats": np.maximum(choice.repeats[rows], 1).astype(np.int32),
        "role": ROLES[role[rows]],
        "quality": pool.quality[rows],
        "score": np.where(chain.kept[rows], chain.score[rows], choice.score[rows]),
        "est_tokens": pool.tokens[rows],
    }
    return pa.table(columns, schema=SELECTION)


def _rejections(pool: Pool, chain: Chain, rule: NDArray[np.object_], reason: NDArray[np.object_]) -> pa.Table:
    """A row for every document that was not chosen, and a tombstone for each chosen one that vanished."""
    out = np.flatnonzero(rule != "")
    gone = len(chain.vanished)
    rows = pa.table(
        {
            "doc_id": id_column(np.concatenate([pool.ids[out], chain.vanished])),
            "stage": pa.array(["select"]).take(pa.array(np.zeros(len(out) + gone, dtype=np.int64))),
            "rule": pa.array([*rule[out], *["tombstone"] * gone], pa.string()),
            "kept": np.zeros(len(out) + gone, dtype=bool),
            "reason": pa.array(
                [*reason[out], *["was chosen on an earlier night and is no longer in the sources"] * gone], pa.string()
            ),
            "value": np.concatenate([pool.quality[out], np.zeros(gone)]),
        },
        schema=DECISIONS,
    )
    return rows.sort_by("doc_id")


def _warn_of_missing(run: StageRun, what: str, labels: Labels, training: NDArray[np.bool_]) -> None:
    """A domain or source without a single training document is worth a warning."""
    there = np.bincount(labels.codes, minlength=len(labels.names)) > 0
    left = np.bincount(labels.codes[training], minlength=len(labels.names)) > 0
    if missing := [labels.names[i] for i in np.flatnonzero(there & ~left)]:
        run.event(f"{what}_vanishes", **{f"{what}s": missing})


def _summary(pool: Pool, training: NDArray[np.bool_], choice: Choice) -> SummaryTable:
    """Documents and tokens by domain: what came in, what is trained on."""
    count = len(pool.domain.names)
    came = np.bincount(pool.domain.codes, minlength=count)
    chosen = np.bincount(pool.domain.codes[training], minlength=count)
    tokens = np.zeros(count, dtype=np.int64)
    np.add.at(tokens, pool.domain.codes[training], (pool.tokens * np.maximum(choice.repeats, 1))[training])
    share = tokens / max(1, int(tokens.sum()))
    rows = [(name, int(came[i]), int(chosen[i]), int(tokens[i]), f"{share[i]:.1%}") for i, name in enumerate(pool.domain.names)]
    columns = ("domain", "documents", "for training", "tokens, estimated", "share")
    return SummaryTable(columns, rows, "Selection")
