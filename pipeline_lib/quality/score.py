"""The stage `score`: measure every document, then decide by the rules of its domain."""

from __future__ import annotations

import time
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline_lib.config.data import ScoreConfig
from pipeline_lib.extensions import active_extensions, digests, load_extensions
from pipeline_lib.quality.language import model_digest, model_file
from pipeline_lib.quality.ngrams import ngram_model
from pipeline_lib.quality.rules import Rules, rule_numbers, rules_of, verdicts
from pipeline_lib.quality.signals import TEXT_NAMES, signal_names, signal_table
from pipeline_lib.quality.statistics import summarise
from pipeline_lib.tables.parquet import TableWriter, write_table
from pipeline_lib.tables.schemas import DECISIONS
from pipeline_lib.workspace.artifact import SummaryTable
from pipeline_lib.workspace.shards import Shard
from pipeline_lib.workspace.stage import Outcome, StageRun

BATCH_ROWS = 4096


@dataclass(frozen=True)
class DocumentsFile:
    """A file of documents, known by its digest."""

    path: Path
    digest: str


def score(run: StageRun, *, score: ScoreConfig) -> Outcome:
    """Measure and decide.

    Tables: signals (doc_id and one column a signal; a file for each file of documents, rows in the same order), decisions (for
    every document a row for each rule it fails; one row with rule "" and kept = true when it fails none), statistics (what both
    are like, in counts that add up). Signals do not depend on rules: a changed threshold decides again without measuring again.

    Raises:
        ConfigError: an unknown rule set, or an expression that is no rule.
        StageFailedError: an extension's signal fails.
    """
    rules = rules_of(score, signal_names())
    ingest = run.input("ingest")
    entries = [entry for entry in ingest.manifest.files if entry.table == "documents"]
    files = [DocumentsFile(p, entry.digest) for p, entry in zip(ingest.files("documents"), entries, strict=True)]
    if model_file() is None:
        run.event("no_language_model", fix="pip install 'millrace[language]'", without="language and language_confidence")
    with_what = {
        "extensions": digests(["signal"], active_extensions()),
        "language": model_digest(),
        "ngrams": ngram_model(score.ngram_model).digest,
        "unicode": unicodedata.unidata_version,
    }
    measured = run.shards(
        files,
        partial(measure_file, modules=active_extensions(), ngrams=score.ngram_model),
        key=lambda file: {"documents": file.digest, **with_what},
        unit="files measured",
    )
    pairs = list(zip(files, measured, strict=True))
    decided = run.shards(
        pairs,
        partial(decide_file, rules=rules),
        key=lambda pair: {"signals": pair[1].fingerprint, "rules": rules.key()},
        unit="files decided",
    )
    documents = sum(shard.metrics["documents"] for shard in decided)
    kept = sum(shard.metrics["kept"] for shard in decided)
    metrics: dict[str, Any] = {"documents": documents, "kept": kept, "dropped": documents - kept}
    fresh = [shard.metrics for shard in measured if not shard.reused]
    if seconds := sum(m["seconds"] for m in fresh):
        metrics["mb_per_second"] = round(sum(m["bytes"] for m in fresh) / 1e6 / seconds, 1)
    return Outcome(
        metrics=metrics,
        counts={"in": sum(shard.metrics["documents"] for shard in measured), "out": documents, "kept": kept},
        summary=_summary(rules, decided),
        details={"rule_sets": {domain: "+".join(names) for domain, names in rules.domains.items()}},
    )


def measure_file(file: DocumentsFile, folder: Path, *, modules: Sequence[str], ngrams: str) -> dict[str, Any]:
    """Write `signals` for one file of documents."""
    if tuple(modules) != active_extensions():
        load_extensions(modules)
    counts = {"documents": 0, "bytes": 0}
    begin = time.perf_counter()
    schema = signal_table(pa.array([], pa.binary(16)), pa.array([], pa.large_string())).schema
    model = ngram_model(ngrams)
    with pq.ParquetFile(file.path) as parquet, TableWriter(schema, folder / "signals.parquet") as signals:
        for batch in parquet.iter_batches(batch_size=BATCH_ROWS, columns=["doc_id", "text", "turns"], use_threads=False):
            table = signal_table(batch.column("doc_id"), batch.column("text"), batch.column("turns"), ngrams=model)
            counts["documents"] += table.num_rows
            counts["bytes"] += int(np.sum(table.column("bytes").to_numpy()))
            signals.add(table)
    return {**counts, "seconds": round(time.perf_counter() - begin, 4)}


def decide_file(pair: tuple[DocumentsFile, Shard], folder: Path, *, rules: Rules) -> dict[str, Any]:
    """Write `decisions` for one file of documents; count what each rule dropped, and what it alone dropped."""
    file, shard = pair
    columns = pq.read_table(file.path, columns=["domain", "kind", "source", "licence"])
    coded = [columns.column(name).combine_chunks().dictionary_encode() for name in ("domain", "kind")]
    (domains, domain_names), (kinds, kind_names) = ((one.indices.to_numpy(), one.dictionary.to_pylist()) for one in coded)
    signals = pq.read_table(shard.files["signals"])
    failed = ~verdicts(signals, rules.rules)
    for k, kind in enumerate(kind_names):
        for d, domain in enumerate(domain_names):
            applies = np.zeros(len(rules.rules), bool)
            applies[list(rule_numbers(rules, domain, kind))] = True
            failed[(domains == d) & (kinds == k)] &= applies
    number = failed.sum(axis=1)
    write_table(_decisions(signals, failed, rules), folder / "decisions.parquet")
    cells = {name: columns[name] for name in ("source", "domain", "licence")}
    write_table(summarise(cells, signals, failed, [rule.name for rule in rules.rules]), folder / "statistics.parquet")
    dropped = [[int(failed[:, k].sum()), int((failed[:, k] & (number == 1)).sum())] for k in range(len(rules.rules))]
    return {"documents": len(domains), "kept": int((number == 0).sum()), "dropped": dropped}


def _decisions(signals: pa.Table, failed: NDArray[np.bool_], rules: Rules) -> pa.Table:
    """Rows in the order of the documents; of one document in the order of the rules."""
    passed = ~failed.any(axis=1, keepdims=True)
    rows, which = np.nonzero(np.hstack([failed, passed]))  # the column after the rules stands for "kept"
    value = np.full(len(rows), np.nan)
    for number, rule in enumerate(rules.rules):
        at = which == number
        if rule.signal not in TEXT_NAMES:
            value[at] = signals.column(rule.signal).to_numpy()[rows[at]]
    names = pa.array([*(rule.name for rule in rules.rules), ""])
    reasons = pa.array([*(f"needs {rule.expression}" for rule in rules.rules), ""])
    columns = [
        signals.column("doc_id").take(pa.array(rows)),
        pa.repeat(pa.scalar("score"), len(rows)),
        names.take(pa.array(which)),
        pa.array(which == len(rules.rules)),
        reasons.take(pa.array(which)),
        pa.array(value, from_pandas=True),  # NaN: null
    ]
    return pa.table(columns, schema=DECISIONS)


def _summary(rules: Rules, decided: Sequence[Shard]) -> SummaryTable:
    rows: list[list[str | float | int]] = []
    for number, rule in enumerate(rules.rules):
        dropped, alone = (sum(shard.metrics["dropped"][number][i] for shard in decided) for i in (0, 1))
        rows.append([rule.rule_set, rule.name, dropped, alone])
    return SummaryTable(("rule set", "rule", "dropped", "by this rule alone"), rows, title="Documents dropped by rules")
