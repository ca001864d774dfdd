"""The table of stages: order, inputs, parameters, code. What runs, plans, explains or reruns stages reads this table."""

from __future__ import annotations

from pipeline_lib.workspace.stage import Stage

STAGES: tuple[Stage, ...] = (
    Stage("suites", 4, "pure", "pipeline_lib.validation.suites:suites", sections=("suites",), seeded=True,
          outside="pipeline_lib.validation.suites:file_digests", extends=("suite",)),
    Stage("ingest", 4, "pure", "pipeline_lib.corpus.ingest:ingest", sections=("ingest",),
          outside="pipeline_lib.corpus.sources:file_digests", forgets="pipeline_lib.corpus.barred:forgets", extends=("source",)),
    Stage("score", 4, "pure", "pipeline_lib.quality.score:score", reads={"ingest": ("documents",)}, sections=("score",),
          extends=("signal", "rule_set"), outside="pipeline_lib.quality.ngrams:file_digests"),
    Stage(
        "dedup", 6, "pure", "pipeline_lib.dedup.dedup:dedup", outside="pipeline_lib.dedup.embedding_model:file_digests",
        reads={"ingest": ("documents", "details"), "score": ("signals", "decisions"), "suites": ("suite_items",)},
        sections=("dedup",),
    ),
    Stage("split", 2, "pure", "pipeline_lib.corpus.split:split", reads={"ingest": ("documents",), "dedup": ("clusters",)},
          sections=("split",), seeded=True),
    Stage(
        "select", 3, "pure", "pipeline_lib.selection.select:select",
        reads={
            "suites": ("suite_items",), "ingest": ("documents",), "score": ("signals", "decisions"),
            "dedup": ("clusters", "decisions", "edits"), "split": ("splits", "decisions"),
        },
        sections=("select",), seeded=True, outside="pipeline_lib.selection.target:file_digests",
        uses={"world": "pipeline_lib.validation.statements:training_statements"},
    ),
    Stage("pack", 5, "pure", "pipeline_lib.packing.pack:pack", reads={"ingest": ("documents",), "select": ("selection", "cuts")},
          sections=("pack", "tokenizer"), outside="pipeline_lib.tokens.load:file_digests"),
    Stage("fill_gaps", 2, "pure", "pipeline_lib.packing.fill:fill_gaps",
          reads={"ingest": ("documents",), "pack": ("rows", "ranges", "chunks", "tombstones", "tokenizer", "details")},
          sections=("fill_gaps",), intact="pipeline_lib.packing.fill:intact"),
    Stage(
        "calibrate", 3, "recorded", "pipeline_lib.planning.calibrate:calibrate",
        sections=("calibrate", "model", "train.optimizer", "train.precision", "train.attention", "train.isolation",
                  "train.compile", "train.activation_checkpointing", "train.lora", "pack.sequence_length", "tokenizer"),
        machine=True, extends=("model",), outside="pipeline_lib.planning.calibrate:file_digests",
    ),
    Stage("tune", 3, "recorded", "pipeline_lib.tuning.tune:tune",
          reads={"fill_gaps": ("chunks", "details"), "pack": ("tokenizer",), "calibrate": ("details",)},
          sections=("tune", "model", "train", "resources"), seeded=True, stoppable=True, extends=("model",),
          outside="pipeline_lib.training.start:file_digests"),
    Stage("plan", 2, "recorded", "pipeline_lib.planning.plan:plan",
          reads={"fill_gaps": ("chunks", "details"), "calibrate": ("details",), "tune": ("details",)},
          sections=("plan", "model", "train", "resources", "validation.language_tokens", "suites.level"),
          outside="pipeline_lib.training.start:file_digests"),
    Stage("train", 4, "pure", "pipeline_lib.training.train:train",
          reads={"fill_gaps": ("chunks", "details"), "pack": ("tokenizer",), "plan": ("details",)},
          sections=("train", "model"), seeded=True, stoppable=True,
          uses={"controller": "pipeline_lib.planning.controller:WindowController"}, extends=("model", "callback"),
          outside="pipeline_lib.training.start:file_digests"),
    Stage("validate", 9, "pure", "pipeline_lib.validation.validate:validate",
          reads={"suites": ("suite_items", "details"), "ingest": ("documents",), "select": ("selection", "cuts"),
                 "pack": ("rows",), "train": ("model",)},
          sections=("validation",), seeded=True),
)  # fmt: skip

BY_NAME = {stage.name: stage for stage in STAGES}
ORDER = [stage.name for stage in STAGES] + ["report"]  # report is a view: rendered for every run, never fingerprinted or reused
