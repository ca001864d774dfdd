"""Fit the n-gram model on the documents of a run, or on files: what rules kept is the reference, what they dropped the
reject corpus."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline_lib.errors import ConfigError, NotFoundError
from pipeline_lib.quality.ngrams import fit_classifier, fit_tables, save_model, shuffled
from pipeline_lib.workspace.artifact import Artifact

MOST_BYTES = 32 << 20  # of a corpus: more does not fill the buckets better
OTHERS = 2_000  # documents that the classifier is trained against


@dataclass(frozen=True)
class Fitted:
    """How much a model was fitted on: documents of each side."""

    reference: int
    reject: int
    good: int


def documents_by_decision(ingest: Artifact, score: Artifact, domains: Sequence[str] = ()) -> tuple[list[str], list[str]]:
    """Texts of kind text that the rules of a run kept and dropped, in order, at most `MOST_BYTES` of each.

    Args:
        ingest: documents.
        score: decisions about them.
        domains: only these; none: all.
    """
    kept: list[str] = []
    dropped: list[str] = []
    room = {True: MOST_BYTES, False: MOST_BYTES}
    for documents, decisions in zip(ingest.files("documents"), score.files("decisions"), strict=True):
        table = pq.read_table(decisions, columns=["doc_id", "kept"])
        failed = np.unique(np.array(table.column("doc_id").filter(pc.invert(table.column("kept"))).to_pylist(), object))
        for batch in pq.ParquetFile(documents).iter_batches(4096, columns=["doc_id", "kind", "domain", "text"]):
            wanted = pc.equal(batch.column("kind"), "text")
            if domains:
                wanted = pc.and_(wanted, pc.is_in(batch.column("domain"), pa.array(domains, pa.string())))
            texts, ids = (batch.column(name).filter(wanted) for name in ("text", "doc_id"))
            is_kept = ~np.isin(np.array(ids.to_pylist(), object), failed)
            for side, found in ((True, kept), (False, dropped)):
                if room[side] > 0:
                    some = texts.filter(pa.array(is_kept == side)).to_pylist()
                    room[side] -= sum(map(len, some))
                    found.extend(some)
    return kept, dropped


def texts_of(paths: Sequence[Path]) -> list[str]:
    """Texts of files: `.jsonl` has an object with `text` a line, any other file is one text.

    Raises:
        NotFoundError: a file is not there.
        ConfigError: a line is no such object.
    """
    found = []
    for path in paths:
        if not path.is_file():
            raise NotFoundError("there is no such file", where=str(path))
        if path.suffix != ".jsonl":
            found.append(path.read_text("utf-8", errors="replace"))
            continue
        lines = path.read_text("utf-8").split("\n")  # JSON may hold what `splitlines` takes for a line end
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                found.append(str(json.loads(line)["text"]))
            except (ValueError, KeyError, TypeError) as error:
                raise ConfigError("is no object with `text`", where=f"{path}:{number}") from error
    return [text for text in found if text.strip()]


def fit_model(path: Path, reference: Sequence[str], reject: Sequence[str], good: Sequence[str] = (), *, seed: int = 0) -> Fitted:
    """Fit and write a model.

    Args:
        path: of the `.npz` file.
        reference: good texts.
        reject: bad texts; those of the reference with their words in random order are added.
        good: examples for the classifier, told from texts of both corpora; none: no classifier.
        seed: of the random order.

    Raises:
        ConfigError: no reference.
    """
    if not reference:
        raise ConfigError("no text to fit on", fix="give --reference, or a run whose rules kept documents")
    rejected = [*reject, *shuffled(reference, seed)]
    tables = {"reference": fit_tables(_column(reference)), "reject": fit_tables(_column(rejected))}
    classifier: NDArray[np.float32] | None = None
    if good:
        others = [*reference, *reject]
        chosen = np.sort(np.random.default_rng(seed).permutation(len(others))[:OTHERS])
        classifier = fit_classifier(_column(good), _column([others[i] for i in chosen]))
    save_model(path, tables, classifier)
    return Fitted(len(reference), len(rejected), len(good))


def _column(texts: Sequence[str]) -> pa.Array:
    return pa.array(texts, pa.large_string())
