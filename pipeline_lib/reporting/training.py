"""Tables of a training's log: evaluations, losses by domain and source, what the model wrote, the worst dev documents."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from pipeline_lib.corpus.redact import redact
from pipeline_lib.tables.duck import connect
from pipeline_lib.tables.parquet import read_tables
from pipeline_lib.workspace.artifact import Artifact, SummaryTable

Rows = list[list[str | float | int]]
TEXT_CHARACTERS = 160
EVALUATIONS = 8  # columns of a matrix: the first, the last, and some between
MOST_ROWS = 20
MARKED = {  # events that stand on the curve of the loss
    "loss_spike", "divergence", "non_finite", "plateau", "schedule_changed", "recovery", "resumed", "forked", "cache_grew",
    "learning_rate_changed", "checkpoint_damaged",
}  # fmt: skip


@dataclass
class Log:
    """What is shown of a training's log."""

    evaluations: list[dict[str, Any]] = field(default_factory=list)  # one an evaluation, in order
    parts: list[dict[str, Any]] = field(default_factory=list)  # rows of `losses`, dev side
    samples: list[dict[str, Any]] = field(default_factory=list)
    worst: list[dict[str, Any]] = field(default_factory=list)  # of the last evaluation, `text` beside
    marks: list[tuple[int, str]] = field(default_factory=list)  # (step, kind of event)


def read_log(train: Artifact, ingest: Artifact | None, examples: str) -> Log:
    """The log of a `train` artifact.

    Args:
        train: its observed tables; those of an earlier version may be missing.
        ingest: where the texts of documents are; None: they are not shown.
        examples: `none`, `redacted` or `full` (`report.examples`).
    """
    places = {entry.path: train.place(entry) for entry in train.manifest.files if entry.table == "observed"}

    def rows(name: str) -> list[dict[str, Any]]:
        place = places.get(f"observed/{name}.parquet")
        found: list[dict[str, Any]] = read_tables([place]).to_pylist() if place else []
        return [row for row in found if not row.get("superseded")]

    log, events = Log(), rows("events")
    told = {row["step"]: json.loads(row["detail"]) for row in events if row["kind"] == "evaluated"}
    log.evaluations = [{"step": step, **told[step]} for step in sorted(told)]
    log.marks = _marks(events)
    log.parts = [row for row in rows("losses") if row["side"] == "dev"]
    log.samples = [{**row, "text": _shown(row["text"], examples)} for row in rows("samples")]
    worst = rows("worst")
    log.worst = [row for row in worst if row["step"] == worst[-1]["step"]]
    texts = _texts(ingest, [row["doc_id"] for row in log.worst]) if ingest and examples != "none" else {}
    for row in log.worst:
        row["text"] = _shown(texts.get(row["doc_id"], ""), examples)
    return log


def marks_of(events: pa.Table) -> list[tuple[int, str]]:
    """(step, kind) of the events that stand on the curve of the loss, from a table `events`."""
    return _marks(events.to_pylist())


def _marks(events: Sequence[Mapping[str, Any]]) -> list[tuple[int, str]]:
    return [(int(row["step"]), row["kind"]) for row in events if row["kind"] in MARKED]


def _texts(ingest: Artifact, ids: Sequence[bytes]) -> dict[bytes, str]:
    wanted = "SELECT doc_id, left(text, ?) FROM documents WHERE doc_id IN (SELECT unnest(?::BLOB[]))"
    with connect({"documents": ingest.files("documents")}) as db:
        return dict(db.execute(wanted, [2 * TEXT_CHARACTERS, list(ids)]).fetchall())  # redaction sees more than is shown


def _shown(text: str, examples: str) -> str:
    if examples == "none":
        return ""
    return (text if examples == "full" else redact(text.encode()).decode("utf-8", "ignore"))[:TEXT_CHARACTERS]


def evaluations_table(log: Log) -> SummaryTable:
    """Dev loss and what else was measured at each evaluation."""
    names = {"dev_loss": "dev loss", "perplexity": "perplexity", "accuracy": "accuracy", "repetition": "repeated 4-grams",
             "distinct_2": "distinct bigrams", "worst_domain": "worst domain"}  # fmt: skip
    shown = [name for name in names if any(name in one for one in log.evaluations)]
    rows: Rows = [[int(one["step"]), *(_number(one.get(name)) for name in shown)] for one in _some(log.evaluations)]
    return SummaryTable(("step", *(names[name] for name in shown)), rows, "Evaluations on the dev side")


def parts_table(log: Log, name: str) -> SummaryTable:
    """Dev loss by `domain` or `source`: at the first and at the last evaluation, worst first."""
    steps = sorted({row["step"] for row in log.parts})
    if not steps:
        return SummaryTable((), (), "")
    first, last = (_means([row for row in log.parts if row["step"] == step], name) for step in (steps[0], steps[-1]))
    ranked = sorted(last, key=lambda key: (-last[key][1], key))
    rows: Rows = [
        [key or "none", last[key][0], round(first[key][1], 4), round(last[key][1], 4), round(last[key][1] - first[key][1], 4)]
        for key in ranked[:MOST_ROWS]
    ]
    columns = (name, "dev tokens", f"loss at step {steps[0]:,}", f"at step {steps[-1]:,}", "change")
    return SummaryTable(columns, rows, f"Dev loss by {name} (nats per token)")


def _means(rows: Sequence[Mapping[str, Any]], name: str) -> dict[str, tuple[int, float]]:
    """(tokens, mean loss) by name."""
    sums: dict[str, tuple[int, float]] = {}
    for row in rows:
        tokens, loss = sums.get(row[name], (0, 0.0))
        sums[row[name]] = tokens + row["tokens"], loss + row["tokens"] * row["loss"]
    return {key: (tokens, loss / tokens) for key, (tokens, loss) in sums.items()}


def samples_table(log: Log) -> SummaryTable:
    """What the model made of each prompt, by step."""
    steps = _some(sorted({row["step"] for row in log.samples}))
    texts = {(row["step"], row["prompt"]): row["text"] for row in log.samples}
    prompts = list(dict.fromkeys(row["prompt"] for row in log.samples))
    if not any(texts.values()):
        return SummaryTable((), (), "")
    rows: Rows = [[step, *(texts.get((step, prompt), "") for prompt in prompts)] for step in steps]
    return SummaryTable(("step", *prompts), rows, "Samples: how the model goes on")


def worst_table(log: Log) -> SummaryTable:
    """The dev documents that the finished model finds hardest."""
    rows: Rows = [
        [row["doc_id"].hex(), row["source"], row["domain"], row["tokens"], _number(row["loss"]), row["text"]] for row in log.worst
    ]
    columns = ("document", "source", "domain", "tokens", "loss", "begins")
    return SummaryTable(columns, rows, "Dev documents with the highest loss")


def _number(value: Any) -> str | float | int:
    return "" if value is None else round(value, 4) if isinstance(value, float) else value


def _some(values: Sequence[Any]) -> list[Any]:
    """At most `EVALUATIONS` of them, first and last included."""
    if len(values) <= EVALUATIONS:
        return list(values)
    return [values[round(i * (len(values) - 1) / (EVALUATIONS - 1))] for i in range(EVALUATIONS)]
