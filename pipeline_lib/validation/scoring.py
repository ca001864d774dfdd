"""What is asked of the model, in parts that are scored once: a part's answers are taken over from any earlier validation.

A part is a suite, its perturbed items, the test side's text, or the samples. It is known by the digests of the model's files
(weights, configuration, tokenizer), of its items, and of the engine (`ENGINE` and the libraries that compute). So a changed suite
file leaves the other suites alone, and answers of other weights are never taken.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline_lib.config.model import ValidationConfig
from pipeline_lib.tables.parquet import read_tables, write_table
from pipeline_lib.tables.schemas import SCORES
from pipeline_lib.validation.answers import NO_NUMBER, Rows, answer
from pipeline_lib.validation.language import language
from pipeline_lib.validation.perturb import PERTURBATIONS, perturbed
from pipeline_lib.validation.samples import samples
from pipeline_lib.validation.scorer import Scorer
from pipeline_lib.workspace.identity import fingerprint_of
from pipeline_lib.workspace.machine import versions
from pipeline_lib.workspace.services import thread_mapper
from pipeline_lib.workspace.stage import StageRun

ENGINE = 4  # of answers, perturbations, texts and samples: what they compute
COMPUTES = ("torch", "transformers", "tokenizers")


@dataclass(frozen=True)
class Part:
    """What is scored at once. `kind` is language, clean, varied or samples; `asked` says what shapes its answers beside items."""

    kind: str
    suite: str
    items: Any  # rows of `suite_items`; language: the table of texts
    asked: Mapping[str, Any] = field(default_factory=dict)

    def identity(self, model: str) -> dict[str, Any]:
        """What its answers depend on, for a model of this digest."""
        items = self.items.to_pylist() if isinstance(self.items, pa.Table) else list(self.items)
        engine = {"version": ENGINE, **{name: version for name, version in versions().items() if name in COMPUTES}}
        return {
            "kind": self.kind, "suite": self.suite, "items": fingerprint_of(items), "asked": dict(self.asked), "model": model,
            "engine": engine,
        }  # fmt: skip


@dataclass
class Model:
    """The model folder; it is read when the first part has to be scored."""

    folder: Path
    digest: str
    batch_tokens: int

    @cached_property
    def scorer(self) -> Scorer:
        """Ready to score."""
        return Scorer(self.folder, batch_tokens=self.batch_tokens)


@dataclass(frozen=True)
class Answers:
    """Rows of `scores` by kind, how many items of a suite were not scored and why, and what else the parts told."""

    language: pa.Table
    clean: pa.Table
    varied: list[pa.Table]  # a suite each
    missing: list[dict[str, Any]]  # suite, items, reason
    test_tokens: int
    vocabulary: int  # entries of the tokenizer
    samples: list[dict[str, str]]


def scored(run: StageRun, validation: ValidationConfig, items: Rows, texts: pa.Table) -> Answers:
    """Score what no earlier validation has scored."""
    train = run.input("train")
    model = Model(train.files("model")[0].parent, train.manifest.tables["model"], validation.batch_tokens)
    parts = list(_parts(items, texts, validation, run.seed))
    run.services = replace(run.services, mapper=thread_mapper(1))  # a model takes all cores already
    shards = run.shards(parts, partial(_score, model=model), key=partial(_key, model=model.digest), unit="suites")
    rows: dict[str, list[pa.Table]] = {"language": [], "clean": [], "varied": [], "samples": []}
    for part, shard in zip(parts, shards, strict=True):
        rows[part.kind].append(read_tables([shard.files["scores"]]))
    counted = [(part, shard.metrics) for part, shard in zip(parts, shards, strict=True)]
    return Answers(
        language=pa.concat_tables(rows["language"]),
        clean=pa.concat_tables([SCORES.empty_table(), *rows["clean"]]),
        varied=rows["varied"],
        missing=[
            {"suite": part.suite, "items": count, "reason": reason}
            for part, metrics in counted
            for reason, count in metrics.get("missing", {}).items()
        ],
        test_tokens=sum(metrics.get("tokens", 0) for _, metrics in counted),
        vocabulary=max(metrics.get("vocabulary", 0) for _, metrics in counted),
        samples=[sample for _, metrics in counted for sample in metrics.get("samples", ())],
    )


def _parts(items: Rows, texts: pa.Table, validation: ValidationConfig, seed: int) -> Iterator[Part]:
    yield Part("language", "language", texts, {"tokens": validation.language_tokens})
    for suite in sorted({item["suite"] for item in items}):
        own = [item for item in items if item["suite"] == suite]
        yield Part("clean", suite, own)
        if chosen := _some(own, validation.robustness_items, seed):
            yield Part("varied", suite, chosen, {"seed": seed})
    if validation.samples:
        yield Part("samples", "samples", (), {"samples": validation.samples, "tokens": validation.sample_tokens, "seed": seed})


def _some(items: Rows, most: int, seed: int) -> Rows:
    """Items that have a prompt, drawn without regard to their order."""
    asked = [item for item in items if item["prompt"]]
    draw = np.random.default_rng([seed, len(asked)])
    return [asked[index] for index in sorted(draw.permutation(len(asked))[:most].tolist())]


def _key(part: Part, model: str) -> dict[str, Any]:
    return part.identity(model)


def _score(part: Part, folder: Path, *, model: Model) -> dict[str, Any]:
    """Shard work: write the part's rows of `scores`."""
    told: dict[str, Any] = {}
    tables: Sequence[pa.Table] = [SCORES.empty_table()]
    if part.kind == "language":
        table, told["tokens"] = language(part.items, model.scorer, part.asked["tokens"])
        told["vocabulary"] = model.scorer.vocabulary
        if lost := int(pc.sum(pc.invert(pc.is_finite(table["score"]))).as_py() or 0):  # bits of the rest alone would flatter it
            table, told["tokens"], told["missing"] = table.slice(0, 0), 0, {NO_NUMBER: lost}
        tables = [table]
    elif part.kind == "clean":
        table, missing = answer(part.items, model.scorer)
        tables, told["missing"] = [table], dict(Counter(item["reason"] for item in missing))
    elif part.kind == "varied":
        seed = part.asked["seed"]
        tables = [answer(perturbed(part.items, name, seed), model.scorer, variant=name)[0] for name in PERTURBATIONS]
    else:
        told["samples"] = samples(model.scorer, part.asked["samples"], part.asked["tokens"], part.asked["seed"])
    rows = pa.concat_tables(tables)
    named = pa.array([model.digest] * rows.num_rows, pa.string())
    write_table(rows.set_column(rows.column_names.index("model"), "model", named), folder / "scores.parquet")
    return told
