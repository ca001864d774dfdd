"""What the stages before `train` have decided and made: the plan, the packed sequences of both sides, the tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline_lib.errors import RefusedError
from pipeline_lib.packing.reader import PackedDataset
from pipeline_lib.training.data import Batch, spread
from pipeline_lib.training.evaluate import DEV_SEQUENCES
from pipeline_lib.training.plan import TrainingPlan
from pipeline_lib.workspace.identity import fingerprint_of
from pipeline_lib.workspace.stage import StageRun


@dataclass(frozen=True)
class Material:
    """What an attempt reads and never changes."""

    plan: TrainingPlan
    planned: Mapping[str, Any]  # details of the plan as they are: the controller reads more of them
    packed: Mapping[str, Any]  # details of the cache: lengths, special tokens
    data: PackedDataset  # what is learned from
    dev: Sequence[Batch]  # what every evaluation reads
    tokenizer_files: Sequence[Path]
    identity: Mapping[str, str]  # {"data": digest, "tokenizer": digest}: what a checkpoint belongs to

    @classmethod
    def of(cls, run: StageRun) -> Material:
        """Of a run's inputs.

        Raises:
            RefusedError: there is nothing to learn from, or nothing to be judged by.
        """
        planned, pack = run.input("plan").details, run.input("pack")
        plan = TrainingPlan.from_details(planned)
        data, dev = _open(run, "train"), _open(run, "dev")
        if not len(data) or not len(dev):
            raise RefusedError(
                f"{len(data)} training and {len(dev)} dev sequences: nothing to learn from or to be judged by",
                where="stage train", fix="give the pipeline more text, or raise split.dev_share until dev has a document",
            )  # fmt: skip
        digest = fingerprint_of({name: run.input(name).manifest.tables for name in ("fill_gaps", "pack")})
        return cls(
            plan, planned, run.input("fill_gaps").details, data, spread(dev, DEV_SEQUENCES, plan.micro_batch),
            pack.files("tokenizer"), {"data": digest, "tokenizer": pack.manifest.tables["tokenizer"]},
        )  # fmt: skip

    @property
    def length(self) -> int:
        """Tokens of a sequence."""
        return int(self.packed["sequence_length"])

    @property
    def vocabulary(self) -> int:
        """Entries of the tokenizer."""
        return int(self.packed["vocabulary_size"])

    @property
    def tokenizer_json(self) -> Path | None:
        """The tokenizer that made the data."""
        return next((path for path in self.tokenizer_files if path.name == "tokenizer.json"), None)


def _open(run: StageRun, side: str) -> PackedDataset:
    """The packed sequences of a side; a chunk that is damaged meanwhile is made again."""
    return PackedDataset.of(run.workspace, run.input("fill_gaps"), side)


class Growth:
    """Says when a later selection has added to the cache; the training keeps its snapshot, which its plan was made for."""

    def __init__(self, data: PackedDataset, event: Callable[..., None]) -> None:
        self.data, self.event, self.told = data, event, 0

    def look(self) -> None:
        """Report each later era once."""
        eras = self.data.later_eras()
        for era in eras[self.told :]:
            self.event("cache_grew", era=era["era"], sequences=era["sequences"], tokens=era["tokens"])
        self.told = len(eras)
