"""Stage validate: score the model on the suites and on the test side, each score with its interval."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline_lib.config.model import ValidationConfig
from pipeline_lib.errors import StageFailedError
from pipeline_lib.tables.duck import connect
from pipeline_lib.tables.parquet import read_tables, write_table
from pipeline_lib.tables.schemas import SCORES
from pipeline_lib.validation.intervals import Estimate, estimate
from pipeline_lib.validation.measures import majority, measures
from pipeline_lib.validation.scorer import Scorer
from pipeline_lib.workspace.artifact import SummaryTable
from pipeline_lib.workspace.stage import Outcome, StageRun

DOCUMENT_CHARACTERS = 8000  # of a test document, at most: many documents say more than few long ones
BITS = 1 / np.log(2)


def validate(run: StageRun, *, validation: ValidationConfig) -> Outcome:
    """Score the trained model.

    Table `scores`: for item suites score is 1 (right) or 0 and weight 1; for suite `language` score is the document's bits and
    weight its bytes, so that Σ score / Σ weight is bits per byte, comparable across tokenizers.
    """
    folder = run.input("train").files("model")[0].parent
    scorer = Scorer(folder, batch_tokens=validation.batch_tokens)
    model = run.input("train").manifest.tables["model"]
    not_scored: list[dict[str, Any]] = []
    language, tokens, baseline = _language(run, scorer, validation.language_tokens)
    items = _items(run, scorer, not_scored)
    table = pa.concat_tables([language, items], promote_options="default").drop_columns("model")
    table = table.append_column("model", pa.array([model] * table.num_rows, pa.string())).select(SCORES.names).cast(SCORES)
    write_table(table, run.path("scores", "scores.parquet"))

    def measured(rows: pa.Table) -> Estimate:
        weights = rows["weight"].to_numpy()
        return estimate(
            rows["score"].to_numpy(), weights, n_resamples=validation.bootstrap, seed=run.seed, groups=_groups(rows["fact"])
        )

    scores, rows = _scores(table, measured, baseline)
    if not scores:
        raise StageFailedError("nothing could be scored", where="stage validate", fix="see the tasks not scored in the log")
    bits, n_bytes = float(np.sum(language["score"].to_numpy())), float(np.sum(language["weight"].to_numpy()))
    metrics: dict[str, Any] = {name: score["value"] for name, score in scores.items() if "/" not in name}
    if tokens:
        metrics["test_loss"] = round(bits / BITS / tokens, 6)
        metrics["perplexity"] = round(float(np.exp(bits / BITS / tokens)), 4)
    metrics["items"] = table.num_rows
    return Outcome(
        metrics=metrics,
        summary=SummaryTable(("task", "score", "95 % interval", "chance", "items"), rows, "Scores"),
        details={
            "scores": scores,
            "regions": _regions(items, measured),
            "not_scored": not_scored,
            "baseline_bits_per_byte": baseline,
            "test_tokens": tokens,
            "test_bytes": int(n_bytes),
        },
    )


def _scores(
    table: pa.Table, measured: Callable[[pa.Table], Estimate], baseline: float
) -> tuple[dict[str, Any], list[list[str | float | int]]]:
    scores: dict[str, Any] = {}
    rows: list[list[str | float | int]] = []
    for suite in sorted(set(table["suite"].to_pylist()), key=lambda name: (name != "language", name)):
        part = table.filter(pc.equal(table["suite"], suite))
        whole = "bits_per_byte" if suite == "language" else suite
        for task in ["", *_tasks(part["task"])]:
            chosen = (
                part if not task else part.filter(pc.or_(pc.equal(part["task"], task), pc.starts_with(part["task"], task + "/")))
            )
            chance = baseline if suite == "language" else float(np.mean(chosen["chance"].to_numpy()))
            score = measured(chosen)
            name = f"{whole}/{task}" if task else whole
            scores[name] = {**score.to_json(), "chance": round(chance, 4), "lower_is_better": suite == "language"}
            if suite != "language":
                scores[name]["majority"] = round(float(np.mean(chosen["majority"].to_numpy())), 4)
                scores[name] |= {key: round(value, 4) for key, value in measures(chosen).items()}
            if not task or suite == "language":  # the summary is short; every task is in the details and in the report
                rows.append([name, round(score.value, 4), f"{score.low:.4f} to {score.high:.4f}", round(chance, 4), score.n])
    return scores, rows


def _tasks(tasks: pa.ChunkedArray) -> list[str]:
    """Every task, and every beginning of one that ends before a slash."""
    found = set()
    for task in set(tasks.to_pylist()):
        parts = task.split("/")
        found |= {"/".join(parts[:end]) for end in range(1, len(parts) + 1)}
    return sorted(found)


def _groups(facts: pa.ChunkedArray) -> NDArray[np.int64]:
    """A number for each fact; an item without one is alone."""
    codes = np.asarray(facts.combine_chunks().dictionary_encode().indices.fill_null(-1), np.int64)
    alone = np.asarray(pc.equal(pc.fill_null(facts, ""), ""))
    codes[alone] = codes.max(initial=0) + 1 + np.arange(alone.sum())
    return codes


def _regions(table: pa.Table, measured: Callable[[pa.Table], Estimate]) -> dict[str, dict[str, Any]]:
    """Suite → region → score and measures, for the items that have a region."""
    found: dict[str, dict[str, Any]] = {}
    placed = table.filter(pc.not_equal(pc.fill_null(table["region"], ""), ""))
    for suite, region in sorted(set(zip(placed["suite"].to_pylist(), placed["region"].to_pylist(), strict=True))):
        rows = placed.filter(pc.and_(pc.equal(placed["suite"], suite), pc.equal(placed["region"], region)))
        numbers = {key: round(value, 4) for key, value in measures(rows).items()}
        found.setdefault(suite, {})[region] = measured(rows).to_json() | numbers
    return found


def _language(run: StageRun, scorer: Scorer, budget: int) -> tuple[pa.Table, int, float]:
    """Bits of each test document; the tokens scored; bits per byte of a model that knows only byte frequencies."""
    with connect(
        {"documents": run.input("ingest").files("documents"), "selection": run.input("select").files("selection")}
    ) as db:
        texts: pa.Table = db.sql(
            """
            SELECT lower(hex(doc_id)) AS item, s.domain AS domain, left(text, ?) AS text
            FROM selection s JOIN documents USING (doc_id) WHERE s.side = 'test' ORDER BY s.domain, doc_id
            """,
            params=[DOCUMENT_CHARACTERS],
        ).to_arrow_table()
    encoded = scorer.encode(texts["text"].to_pylist())
    share = budget // max(1, len(set(texts["domain"].to_pylist())))
    spent: dict[str, int] = {}
    chosen = []
    for row, domain in enumerate(texts["domain"].to_pylist()):
        if len(encoded[row]) and spent.get(domain, 0) < share:
            spent[domain] = spent.get(domain, 0) + len(encoded[row])
            chosen.append(row)
    spans = [(row, span) for row in chosen for span in scorer.windows(encoded[row])]
    run.progress(0, len(spans), "windows of test text")
    sums = np.zeros(len(texts))
    np.subtract.at(sums, [row for row, _ in spans], scorer.log_probs([span for _, span in spans]) * BITS)
    picked = texts.take(pa.array(chosen, pa.int64()))
    raw = [text.encode() for text in picked["text"].to_pylist()]
    table = pa.table(
        {
            "suite": pa.array(["language"] * len(chosen), pa.string()),
            "task": picked["domain"],
            "item": picked["item"],
            "score": pa.array(sums[chosen], pa.float64()),
            "weight": pa.array([len(text) for text in raw], pa.float64()),
        }
    )
    if not np.isfinite(sums).all():
        raise StageFailedError(
            "the model gives NaN on test text",
            where="stage validate",
            fix="`millrace show RUN`: the training's events say where it broke",
        )
    return table, sum(spent.values()), _byte_entropy(b"".join(raw))


def _byte_entropy(text: bytes) -> float:
    """Bits per byte of the best model that ignores order (Shannon's unigram entropy)."""
    if not text:
        return 8.0
    counts = np.bincount(np.frombuffer(text, np.uint8), minlength=256)
    shares = counts[counts > 0] / counts.sum()
    return round(float(-(shares * np.log2(shares)).sum()), 6)


def _items(run: StageRun, scorer: Scorer, not_scored: list[dict[str, Any]]) -> pa.Table:
    """Right or wrong for each item. Items that do not fit the context or come out as NaN are named, not guessed."""
    items = read_tables(run.input("suites").files("suite_items")).to_pylist()
    owners = [number for number, item in enumerate(items) for _ in item["options"]]
    options = [option for item in items for option in item["options"]]
    spans = scorer.continuations([items[number]["prompt"] for number in owners], options)
    run.progress(0, len(items), "items")
    sums = scorer.log_probs(spans)
    per_byte = sums / np.array([len(option.encode()) for option in options])
    guesses = majority(items)
    rows, first = [], 0
    missing: Counter[str] = Counter()
    for item, guess in zip(items, guesses, strict=True):
        last = first + len(item["options"])
        total, values = sums[first:last], (sums if item["form"] == "minimal_pair" else per_byte)[first:last]
        first = last
        if not np.isfinite(values).all():
            missing[item["suite"]] += 1
            continue
        shares = np.exp(total - total.max())
        shares /= shares.sum()
        best = int(values.argmax())
        # A tie is not knowledge: the right option must be strictly best.
        right = best == item["answer"] and values[best] > np.delete(values, best).max()
        rows.append(
            {
                "suite": item["suite"], "task": item["category"], "item": item["item"], "fact": item["fact"],
                "region": item["region"], "score": float(right), "weight": 1.0, "chance": 1 / len(values), "majority": guess,
                "chosen": best, "confidence": shares[best], "probability": shares[item["answer"]], "log_probs": total,
            }
        )  # fmt: skip
    for suite, count in sorted(missing.items()):
        not_scored.append({"suite": suite, "items": count, "reason": "longer than the model's context, or not a number"})
        run.event("not_scored", suite=suite, items=count)
    return pa.Table.from_pylist(rows, schema=SCORES)
