"""Try a rule on the documents of a run: what it would keep and drop, and the documents nearest to the line between them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline_lib.config.data import ScoreConfig
from pipeline_lib.corpus.redact import redact
from pipeline_lib.errors import NotFoundError
from pipeline_lib.quality.rules import Rule, rules_of, verdicts
from pipeline_lib.tables.duck import connect
from pipeline_lib.tables.ids import Ids, id_column, ids_of
from pipeline_lib.workspace.artifact import Artifact

NAME = "tried"
CHARACTERS = 160  # of an example
MARGIN = 100  # characters more that redaction sees, so that an address cut by the end is still one
BATCH_ROWS = 50_000


@dataclass(frozen=True)
class Example:
    """A document near the line; its text redacted and cut."""

    doc_id: str
    domain: str
    kept: bool
    value: float | None  # of the first signal that the rule names
    text: str


@dataclass(frozen=True)
class Tryout:
    """What a rule would do."""

    expression: str
    signal: str  # the first one that the rule names
    documents: int  # looked at
    of: int
    domains: Sequence[dict[str, Any]]  # domain, kept, dropped, dropped_now, newly_dropped
    examples: Sequence[Example]


def try_rule(ingest: Artifact, score: Artifact, expression: str, *, examples: int = 5, seconds: float = 60.0) -> Tryout:
    """Evaluate a rule over the signals of a run; nothing is written.

    Args:
        ingest: the documents.
        score: their signals and the decisions of today's rules.
        expression: true for a document to keep; the same checks as for a rule of the configuration.
        examples: documents shown from each side of the line.
        seconds: look at no further documents after this time.

    Raises:
        ConfigError: it is no rule.
        StageFailedError: it fails on a document's values.
        NotFoundError: there is no document.
    """
    documents, signals = ingest.files("documents"), score.files("signals")
    names = [name for name in pq.read_schema(signals[0]).names if name != "doc_id"] if signals else []
    config = ScoreConfig(rules={"*": "none"}, instruct_rules="none", extra_rules={NAME: expression})
    rule = next(rule for rule in rules_of(config, names).rules if rule.name == NAME)
    ids, values, kept, total = _verdicts(signals, rule, seconds)
    if not total:
        raise NotFoundError("the run has no documents", where=score.key)
    domains = pa.concat_arrays([pq.read_table(path, columns=["domain"])["domain"].combine_chunks() for path in documents])
    domain = domains.slice(0, len(ids))
    refused = _refused(score.files("decisions"))
    now = np.asarray(pc.is_in(id_column(ids), value_set=refused).to_numpy(zero_copy_only=False), dtype=bool)
    table = pa.table({
        "domain": domain, "kept": kept, "dropped": ~kept, "dropped_now": now, "newly_dropped": ~kept & ~now
    })  # fmt: skip
    counts = [(name, "sum") for name in table.column_names[1:]]
    grouped = table.group_by("domain", use_threads=False).aggregate(counts).sort_by("domain").to_pylist()
    rows = [{name.removesuffix("_sum"): value for name, value in row.items()} for row in grouped]
    near = [at for side in (True, False) for at in _nearest(values, kept, side, examples)]
    texts = _texts(documents, ids[near])
    shown = [
        Example(doc_id.hex(), domain[i].as_py(), bool(kept[i]), _plain(values[i]), texts[doc_id])
        for i, doc_id in zip(near, id_column(ids[near]).to_pylist(), strict=True)
    ]
    return Tryout(expression, rule.signal, len(ids), total, rows, shown)


def _verdicts(files: Sequence[Path], rule: Rule, seconds: float) -> tuple[Ids, NDArray[np.float64], NDArray[np.bool_], int]:
    """Ids, values of the rule's signal and verdicts, in the documents' order, as far as time allows; and how many there are."""
    start = time.monotonic()
    ids, values, kept = [np.empty(0, "S16")], [np.empty(0)], [np.empty(0, bool)]
    for path in files:
        with pq.ParquetFile(path) as parquet:
            for batch in parquet.iter_batches(BATCH_ROWS, use_threads=False):
                if time.monotonic() - start > seconds and len(ids) > 1:
                    break
                table = pa.Table.from_batches([batch])
                column = table[rule.signal]
                is_number = pa.types.is_integer(column.type) or pa.types.is_floating(column.type)
                ids.append(ids_of(table["doc_id"]))
                values.append(column.cast(pa.float64()).to_numpy() if is_number else np.full(len(column), np.nan))
                kept.append(verdicts(table, [rule])[:, 0])
    total = sum(pq.read_metadata(path).num_rows for path in files)
    return np.concatenate(ids), np.concatenate(values), np.concatenate(kept).astype(bool), total


def _refused(files: Sequence[Path]) -> pa.Array:
    """Documents that today's rules drop."""
    with connect({"decisions": files}) as connection:
        found = connection.sql("SELECT DISTINCT doc_id FROM decisions WHERE NOT kept").to_arrow_table()["doc_id"]
    return found.combine_chunks().cast(pa.binary(16))


def _nearest(values: NDArray[np.float64], kept: NDArray[np.bool_], side: bool, count: int) -> list[int]:
    """Documents of one side whose value is nearest to a value of the other side; the first ones, where values tell nothing."""
    mine = np.flatnonzero(kept == side)
    other = np.sort(values[(kept != side) & np.isfinite(values)])
    if not len(other) or not np.isfinite(values[mine]).any():
        return [int(i) for i in mine[:count]]
    at = np.searchsorted(other, values[mine])
    below, above = other[np.maximum(at - 1, 0)], other[np.minimum(at, len(other) - 1)]
    distance = np.minimum(np.abs(values[mine] - below), np.abs(above - values[mine]))
    return [int(i) for i in mine[np.argsort(distance, kind="stable")[:count]]]  # NaN goes last


def _texts(documents: Sequence[Path], ids: Ids) -> dict[bytes, str]:
    wanted = pa.table({"doc_id": id_column(ids)})
    with connect({"documents": documents}, loaded={"wanted": wanted}) as connection:
        rows = connection.execute(
            "SELECT doc_id, left(text, ?) FROM documents JOIN wanted USING (doc_id)", [CHARACTERS + MARGIN]
        ).fetchall()
    return {bytes(doc_id): redact(text.encode()).decode("utf-8", "replace")[:CHARACTERS] for doc_id, text in rows}


def _plain(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
