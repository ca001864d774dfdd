"""Stopped after any step and taken up in a fresh process's state, a training ends with the bits of one that was never stopped."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from packing_toy import Toy, ToyCorpus, run_toy
from training_toy import PLAN, TINY
from transformers import TrainerCallback

from pipeline_lib.config.model import PackConfig, TokenizerConfig, TrainConfig
from pipeline_lib.packing.manifest import append_growth
from pipeline_lib.packing.reader import PackedDataset
from pipeline_lib.training import clipping
from pipeline_lib.training.checkpoints import newest
from pipeline_lib.training.loop import Session, fit
from pipeline_lib.training.model import build_model
from pipeline_lib.training.plan import TrainingPlan
from pipeline_lib.training.saving import CheckpointWriter, restore

STEPS, STOP = 5, 2
FACTORS: dict[str, tuple[Any, ...]] = {
    "optimizer": ("adamw", "muon", "adafactor", "lamb", "lars"),
    "schedule": ("wsd", "linear", "cosine"),
    "precision": ("fp32", "bf16", "fp16"),
    "dropout": (0.0, 0.1),
    "accumulation": (1, 2),
    "growing": (False, True),
    "clipping": ("fixed", "adaptive"),
    "activation_checkpointing": (False, True),
}
PLAIN = {name: values[0] for name, values in FACTORS.items()}


def covering() -> list[dict[str, Any]]:
    """Few settings in which every pair of values of two factors occurs: greedily the one with the most pairs that are missing."""
    names = list(FACTORS)
    values = {name: range(len(FACTORS[name])) for name in names}
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    missing = {((a, x), (b, y)) for a, b in pairs for x in values[a] for y in values[b]}
    rows = []
    while missing:
        row = dict(min(missing))
        for name in names:
            if name not in row:
                row[name] = max(
                    values[name],
                    key=lambda v: sum(_pair(n, w, name, v, names) in missing for n, w in row.items()),
                )
        missing -= {((a, row[a]), (b, row[b])) for a, b in pairs}
        rows.append({name: FACTORS[name][value] for name, value in row.items()})
    return rows


def _pair(a: str, x: int, b: str, y: int, names: list[str]) -> tuple[tuple[str, int], tuple[str, int]]:
    return ((a, x), (b, y)) if names.index(a) < names.index(b) else ((b, y), (a, x))


@dataclass(frozen=True)
class Cache:
    """A real packed cache, and the folder in which it may grow."""

    folder: Path
    chunks: Path

    def data(self) -> PackedDataset:
        return PackedDataset(self.folder, self.chunks, "train")


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Cache]:
    config = Toy(
        toy=ToyCorpus(documents=40), pack=PackConfig(sequence_length=32, range_tokens=2048),
        tokenizer=TokenizerConfig(vocabulary_size=300),
    )  # fmt: skip
    found = {}
    for growing in (False, True):
        workspace, made = run_toy(tmp_path_factory.mktemp("cache"), config)
        found[growing] = Cache(workspace.cache_folder / made["pack"].details["cache"], made["fill_gaps"].file("chunks"))
    return found


class _SaveAt(TrainerCallback):
    """Saves after a step; what a kill in the next one would leave."""

    def __init__(self, session: Session, writer: CheckpointWriter, step: int) -> None:
        self.session, self.writer, self.step = session, writer, step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.session.step == self.step:
            self.writer.save(self.session, notes={})


def session_of(setting: dict[str, Any], cache: Cache, folder: Path) -> Session:
    tiny = TINY.model_copy(update={"family": "gpt2", "depth": 1, "dropout": setting["dropout"]})
    model = build_model(tiny, vocabulary_size=300, sequence_length=32, seed=1)
    plan = TrainingPlan.from_details({
        **PLAN, "steps": STEPS, "warmup_steps": 1, "decay_steps": 2, "schedule": setting["schedule"],
        "precision": setting["precision"], "batch_sequences": 2, "micro_batch": 2 // setting["accumulation"],
    })  # fmt: skip
    names = ("optimizer", "clipping", "activation_checkpointing")
    return Session(model, plan, TrainConfig(**{name: setting[name] for name in names}), cache.data(), 3, folder)


@pytest.mark.parametrize(
    "setting",
    [*covering(), pytest.param({**PLAIN, "optimizer": "adamw_8bit"}, marks=pytest.mark.slow)],  # its library is not in the lock
    ids=lambda row: "-".join(str(value) for value in row.values()),
)
def test_a_stopped_training_ends_with_the_same_bits(
    setting: dict[str, Any], caches: dict[bool, Cache], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(clipping, "LEAST_SEEN", 2)
    cache = caches[setting["growing"]]
    calm = session_of(setting, cache, tmp_path)
    with CheckpointWriter(tmp_path / "checkpoints", identity={"data": "d", "tokenizer": "t"}) as writer:
        fit(calm, [_SaveAt(calm, writer, STOP)])
    if setting["growing"]:
        append_growth(cache.folder, {"era": 1, "cache": "later", "sequences": {"train": 900}, "tokens": {"train": 9000}})
    second = session_of(setting, cache, tmp_path)
    torch.manual_seed(99)  # whatever the process drew before
    found = newest(tmp_path / "checkpoints", data_digest="d", plan=second.plan.to_json(), quarantine=tmp_path / "q")
    assert found is not None
    restore(found, second)
    fit(second, [])

    assert (second.step, second.learning_rate) == (STEPS, calm.learning_rate)
    for ours, wanted in zip(second.model.parameters(), calm.model.parameters(), strict=True):
        assert torch.equal(ours, wanted)
    for name, wanted in calm.tensors().items():
        assert torch.equal(second.tensors()[name].nan_to_num(), wanted.nan_to_num())


def test_the_covering_covers_every_pair() -> None:
    rows = covering()
    assert len(rows) <= 20
    for (a, left), (b, right) in itertools.permutations(FACTORS.items(), 2):
        assert {(row[a], row[b]) for row in rows} == set(itertools.product(left, right))
