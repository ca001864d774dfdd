"""Stage validate: score the model on the suites and on the test side, each score with its interval."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline_lib.config.model import ValidationConfig
from pipeline_lib.errors import StageFailedError
from pipeline_lib.tables.parquet import read_tables, write_table
from pipeline_lib.validation.bias import bias
from pipeline_lib.validation.intervals import Estimate, estimate, paired_change, spelled
from pipeline_lib.validation.items import FORMS
from pipeline_lib.validation.language import BITS, byte_entropy, test_texts
from pipeline_lib.validation.measures import measures, related
from pipeline_lib.validation.overlap import overlap, statements
from pipeline_lib.validation.scoring import scored
from pipeline_lib.workspace.artifact import SummaryTable
from pipeline_lib.workspace.stage import Outcome, StageRun

Measured = Callable[..., Estimate]  # of rows, and how where they are changes


def validate(run: StageRun, *, validation: ValidationConfig) -> Outcome:
    """Score the trained model.

    Raises:
        StageFailedError: nothing could be scored.
    """
    items = read_tables(run.input("suites").files("suite_items")).to_pylist()
    texts = test_texts(run.input("ingest").files("documents"), run.input("select").files("selection"))
    answers = scored(run, validation, items, texts)
    documents, answered = answers.language, answers.clean
    texts = texts.filter(pc.is_in(texts["item"], value_set=documents["item"].combine_chunks()))
    told = pa.concat_tables([statements(items), _documents(texts)])
    overlaps = overlap(run, told)
    write_table(overlaps, run.path("overlap", "overlap.parquet"))
    # A random token of the model's own tokenizer is a better guess than any byte: what an untrained model reaches is chance.
    n_bytes = float(np.sum(documents["weight"].to_numpy()))
    baseline = min(byte_entropy(texts["text"]), float(np.log2(answers.vocabulary)) * answers.test_tokens / max(n_bytes, 1.0))

    def measured(rows: pa.Table, of: Callable[..., Estimate] = estimate) -> Estimate:
        scores, weights = rows["score"].to_numpy(), rows["weight"].to_numpy()
        return of(scores, weights, n_resamples=validation.bootstrap, seed=run.seed, groups=related(rows["fact"]))

    rows = pa.concat_tables([documents, answered])
    scores = _scores(rows, measured, baseline, _contaminated(rows, overlaps))
    not_scored = [*run.input("suites").details["not_built"], *answers.missing]
    for lost in not_scored:
        run.event("not_scored", **lost)
    if not scores:
        reasons = "; ".join(dict.fromkeys(f"{lost['suite']}: {lost['reason']}" for lost in not_scored))
        raise StageFailedError(
            f"nothing could be scored ({reasons})",
            where="stage validate",
            fix="`millrace show RUN`: the training's events say where a model broke",
        )
    bits = float(np.sum(documents["score"].to_numpy()))
    metrics: dict[str, Any] = {name: score["value"] for name, score in scores.items() if "/" not in name}
    if tokens := answers.test_tokens:
        metrics["test_loss"] = round(bits / BITS / tokens, 6)
        metrics["perplexity"] = round(float(np.exp(bits / BITS / tokens)), 4)
    metrics["items"] = len(items)
    return Outcome(
        metrics=metrics,
        summary=_summary(scores),
        details={
            "scores": scores,
            "regions": _regions(answered, measured),
            "bias": bias(answered),
            "robustness": _robustness(answered, answers.varied, measured),
            "years": _years(documents, measured),
            "samples": answers.samples,
            "not_scored": not_scored,
            "baseline_bits_per_byte": round(baseline, 6),
            "test_tokens": tokens,
            "test_bytes": int(n_bytes),
        },
    )


def _scores(table: pa.Table, measured: Measured, baseline: float, contaminated: NDArray[np.bool_]) -> dict[str, Any]:
    """Name of a suite, task or beginning of one → value, interval, items, guesses to compare with, measures, contamination."""
    scores: dict[str, Any] = {}
    table = table.append_column("contaminated", pa.array(contaminated))
    for suite in sorted(set(table["suite"].to_pylist()), key=lambda name: (name != "language", name)):
        part = table.filter(pc.equal(table["suite"], suite))
        whole = "bits_per_byte" if suite == "language" else suite
        for task in ["", *_tasks(part["task"])]:
            under = pc.or_(pc.equal(part["task"], task), pc.starts_with(part["task"], task + "/"))
            chosen = part.filter(under) if task else part
            score: dict[str, Any] = {**measured(chosen).to_json(), "lower_is_better": suite == "language"}
            if suite == "language":
                score["chance"] = round(baseline, 4)
            else:
                score |= {name: round(float(np.mean(chosen[name].to_numpy())), 4) for name in ("chance", "majority")}
                score |= {name: round(value, 4) for name, value in measures(chosen).items()}
                score["judged"] = all(FORMS[form].judged for form in set(chosen["form"].to_pylist()))
            score["contaminated_items"] = int(pc.sum(chosen["contaminated"]).as_py())
            if 0 < score["contaminated_items"] < chosen.num_rows:
                for name, rows in (("clean", pc.invert(chosen["contaminated"])), ("contaminated", chosen["contaminated"])):
                    score[name] = measured(chosen.filter(rows)).to_json()
            scores[f"{whole}/{task}" if task else whole] = score
    return scores


def _documents(texts: pa.Table) -> pa.Table:
    """Test documents as what is asked: suite, item, text."""
    suite = pa.repeat(pa.scalar("language"), len(texts))
    return pa.table({"suite": suite, "item": texts["item"], "text": texts["text"].cast(pa.string())})


def _contaminated(rows: pa.Table, overlaps: pa.Table) -> NDArray[np.bool_]:
    """Which rows of `scores` ask what the training text gives away."""
    found = overlaps.filter(overlaps["contaminated"])
    known = set(zip(found["suite"].to_pylist(), found["item"].to_pylist(), strict=True))
    return np.array([pair in known for pair in zip(rows["suite"].to_pylist(), rows["item"].to_pylist(), strict=True)], bool)


def _years(documents: pa.Table, measured: Measured) -> dict[str, dict[str, Any]]:
    """Year → bits per byte of the test documents of that year."""
    years = sorted(set(pc.drop_null(documents["year"]).to_pylist()))
    return {str(year): measured(documents.filter(pc.equal(documents["year"], year))).to_json() for year in years}


def _tasks(tasks: pa.ChunkedArray) -> list[str]:
    """Every task, and every beginning of one that ends before a slash."""
    found = set()
    for task in set(tasks.to_pylist()):
        parts = task.split("/")
        found |= {"/".join(parts[:end]) for end in range(1, len(parts) + 1)}
    return sorted(found)


def _regions(rows: pa.Table, measured: Measured) -> dict[str, dict[str, Any]]:
    """Suite → region → score and measures, for the items that have a region."""
    found: dict[str, dict[str, Any]] = {}
    placed = rows.filter(pc.not_equal(pc.fill_null(rows["region"], ""), ""))
    for suite, region in sorted(set(zip(placed["suite"].to_pylist(), placed["region"].to_pylist(), strict=True))):
        part = placed.filter(pc.and_(pc.equal(placed["suite"], suite), pc.equal(placed["region"], region)))
        numbers = {name: round(value, 4) for name, value in measures(part).items()}
        found.setdefault(suite, {})[region] = measured(part).to_json() | numbers
    return found


def _robustness(clean: pa.Table, varied: Sequence[pa.Table], measured: Measured) -> list[dict[str, Any]]:
    """Suite and perturbation → how often the answer changes (`flips`), and by how much the score falls (`drop`)."""
    before = {
        (suite, item): (chosen, score)
        for suite, item, chosen, score in zip(
            *(clean[name].to_pylist() for name in ("suite", "item", "chosen", "score")), strict=True
        )
    }
    found = []
    for rows in varied:
        for variant in sorted(set(rows["variant"].to_pylist())):
            part = rows.filter(pc.equal(rows["variant"], variant))
            suite = part["suite"][0].as_py()
            was = [before.get((suite, item), (None, np.nan)) for item in part["item"].to_pylist()]
            scored = [not np.isnan(score) for _, score in was]
            part, was = part.filter(pa.array(scored)), list(itertools.compress(was, scored))
            if not was:
                continue
            flips = [float(now != then) for now, (then, _) in zip(part["chosen"].to_pylist(), was, strict=True)]
            fall = np.array([score for _, score in was]) - part["score"].to_numpy()
            place = part.column_names.index("score")
            changed = measured(part.set_column(place, "score", pa.array(flips)))
            drop = measured(part.set_column(place, "score", pa.array(fall, pa.float64())), paired_change)
            found.append({"suite": suite, "variant": variant, "flips": changed.to_json(), "drop": drop.to_json()})
    return found


def _summary(scores: Mapping[str, Any]) -> SummaryTable:
    """The suites, and the domains of the test side; every task is in the details and in the report."""
    rows: list[list[str | float | int]] = [
        [name, round(s["value"], 4), spelled(s), s["chance"], s["n"]]
        for name, s in scores.items()
        if "/" not in name or name.startswith("bits_per_byte/")
    ]
    return SummaryTable(("task", "score", "95 % interval", "chance", "items"), rows, "Scores")
