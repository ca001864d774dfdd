"""Checkpoints as commits: what is kept, what is found damaged, and what happens when one cannot be written."""

import json
import pickle
import random
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from training_toy import PLAN, TINY

from pipeline_lib.config.model import ModelConfig, TrainConfig
from pipeline_lib.errors import DamagedError, RefusedError, StageFailedError
from pipeline_lib.training.checkpoints import (
    PARTS,
    RECORD,
    Checkpoint,
    DiskLowError,
    Retention,
    committed,
    damage,
    kept,
    newest,
    prune,
    record_of,
    require_room,
)
from pipeline_lib.training.data import RandomSequences
from pipeline_lib.training.forks import check_fits, hold, reference_of, source_of
from pipeline_lib.training.images import Image
from pipeline_lib.training.loop import Session, fit
from pipeline_lib.training.model import build_model
from pipeline_lib.training.plan import TrainingPlan
from pipeline_lib.training.saving import CheckpointWriter, read_part, restore
from pipeline_lib.trainings import Entry, verify
from pipeline_lib.workspace.identity import fingerprint_of
from pipeline_lib.workspace.workspace import Workspace

IDENTITY = {"data": "these sequences", "tokenizer": "this one"}


def session_of(folder: Path, steps: int, model: ModelConfig = TINY, *, train: bool = True) -> Session:
    """A session; trained until a step."""
    plan = TrainingPlan.from_details({**PLAN, "steps": 24})
    built = build_model(model, vocabulary_size=100, sequence_length=32, seed=0)
    session = Session(built, plan, TrainConfig(), RandomSequences(100, 32), 0, folder)
    if train:
        session.follow(session.schedule.stopped(steps))
        fit(session, [])
        session.follow(plan.first_schedule())
    return session


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two checkpoints of the same state, of steps 2 and 3."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("saved")
    session = session_of(folder, 2)
    with CheckpointWriter(folder / "checkpoints", identity=IDENTITY) as writer:
        writer.save(session, notes={"mine": [1.5]}, metrics={"dev_loss": 4.0}, observed={"controller": {"pace": 0.25}})
        session.step = 3
        writer.save(session, notes={"mine": [2.5]}, metrics={"dev_loss": 4.5}, observed={"controller": {"pace": 0.5}})
    return folder / "checkpoints"


@pytest.fixture
def copied(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "checkpoints"))


def looked_for(root: Path, events: list[tuple[str, dict[str, Any]]] | None = None) -> Checkpoint | None:
    plan = TrainingPlan.from_details({**PLAN, "steps": 24}).to_json()
    said = events if events is not None else []
    return newest(
        root, data_digest=IDENTITY["data"], plan=plan, quarantine=root.parent / "quarantine",
        event=lambda kind, **detail: said.append((kind, detail)),
    )  # fmt: skip


def test_what_was_saved_is_what_is_restored(saved: Path, tmp_path: Path) -> None:
    trained, fresh = session_of(tmp_path, 2), session_of(tmp_path, 0, train=False)
    found = looked_for(saved)
    assert found is not None
    assert (found.step, found.notes, found.observed) == (3, {"mine": [2.5]}, {"controller": {"pace": 0.5}})
    restore(found, fresh)
    for before, after in zip(trained.model.parameters(), fresh.model.parameters(), strict=True):
        assert torch.equal(before, after)
    old, new = trained.optimizer.state_dict()["state"], fresh.optimizer.state_dict()["state"]
    assert all(torch.equal(old[place][name], new[place][name]) for place in old for name in old[place])
    assert fresh.step == 3


def test_a_checkpoint_of_another_version_is_not_called_damaged(copied: Path) -> None:
    """It is whole, and stays where it is: the version that wrote it can go on."""
    folder = copied / "step-00000003"
    told = {name: value for name, value in json.loads((folder / RECORD).read_text()).items() if name != "digest"}
    told["format"] = 99
    (folder / RECORD).write_text(json.dumps({**told, "digest": fingerprint_of(told)}))
    entry = Entry(None, folder, record_of(folder), datetime.now(UTC), "newest")
    assert verify(entry).startswith("of format 99, written by another version")
    with pytest.raises(StageFailedError, match="of format 99"):
        looked_for(copied)
    assert folder.exists()
    (folder / RECORD).write_text(json.dumps({**told, "digest": "0" * 32}))  # a turned bit is no other version
    assert verify(entry).startswith("damaged: ")
    assert looked_for(copied).step == 2  # type: ignore[union-attr]


def test_the_files_are_safetensors_for_everybody(saved: Path) -> None:
    weights = load_file(saved / "step-00000002" / "model.safetensors")
    assert all(tensor.isfinite().all() for tensor in weights.values())
    assert "model.embed_tokens.weight" in weights


def test_an_image_holds_every_type(tmp_path: Path) -> None:
    tensors = {
        "wide": torch.arange(6, dtype=torch.float64).reshape(2, 3), "half": torch.ones(3, dtype=torch.bfloat16),
        "whole": torch.tensor(7), "truth": torch.tensor([True, False, True]), "none": torch.zeros(0),
        "turned": torch.arange(6.0).reshape(2, 3).t(), "ünicode": torch.tensor([1], dtype=torch.uint8),
    }  # fmt: skip
    image = Image(tensors)
    image.take(tensors)
    told = image.write(tmp_path / "image.safetensors")
    assert told["size"] == (tmp_path / "image.safetensors").stat().st_size
    found = load_file(tmp_path / "image.safetensors")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) and found[name].dtype == tensors[name].dtype for name in tensors)
    assert image.fits({name: tensor.clone() for name, tensor in tensors.items()})
    assert not image.fits({**tensors, "whole": torch.tensor(7.0)})


def test_every_flipped_bit_is_found(copied: Path) -> None:
    """In any file of the newest: it goes to quarantine with its reason, and the older one is used."""
    latest, chance = copied / "step-00000003", random.Random(1)
    for number in range(40):
        name = (*PARTS, RECORD)[number % 5]
        intact = (latest / name).read_bytes()
        data = bytearray(intact)
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        (latest / name).write_bytes(data)
        assert damage(latest), f"{name} has a flipped bit"
        if name.endswith(".safetensors"):
            with pytest.raises(DamagedError, match=name):
                read_part(Checkpoint(latest, json.loads((copied / "step-00000002" / RECORD).read_text())), name)
        if number == 39:
            break
        (latest / name).write_bytes(intact)
    events: list[tuple[str, dict[str, Any]]] = []
    found = looked_for(copied, events)
    assert found is not None
    assert found.step == 2
    ((kind, detail),) = events
    assert (kind, detail["checkpoint"]) == ("checkpoint_damaged", "step-00000003")
    (aside,) = (copied.parent / "quarantine").iterdir()
    assert json.loads((aside / "reason.json").read_text())["reason"] == detail["reason"]


def test_a_bit_in_what_promises_nothing_is_found_too(copied: Path) -> None:
    """The controller's pace is no part of the promised bytes; damaged, it is as if it were not there."""
    place = copied / "step-00000003" / "observed.json"
    place.write_text(place.read_text().replace("0.5", "0.7"))
    found = looked_for(copied)
    assert found is not None
    assert found.observed == {}


@pytest.mark.parametrize("harm", ["no record", "no optimizer", "pickle"])
def test_an_incomplete_or_pickled_checkpoint_is_not_loaded(copied: Path, harm: str) -> None:
    latest = copied / "step-00000003"
    if harm == "no record":
        (latest / RECORD).unlink()
    elif harm == "no optimizer":
        (latest / "optimizer.safetensors").unlink()
    else:
        (latest / "model.safetensors").write_bytes(pickle.dumps({"weights": [1.0]}))
    found = looked_for(copied)
    assert found is not None
    assert found.step == 2


def test_other_weights_are_refused(saved: Path, tmp_path: Path) -> None:
    other = session_of(tmp_path, 0, ModelConfig(width=32, depth=1, heads=2, ffn_width=64), train=False)
    found = looked_for(saved)
    assert found is not None
    with pytest.raises(StageFailedError, match="another model's weights"):
        restore(found, other)


def record(step: int, loss: float | None = None, *, scheduled: bool = True, stable: bool = True) -> dict[str, Any]:
    return {"step": step, "scheduled": scheduled, "stable": stable, "metrics": {"dev_loss": loss}}


def test_what_is_kept() -> None:
    line = [record(10, 5.0), record(20, 3.0), record(30, 3.5), record(35, None, scheduled=False), record(40, 4.0)]
    decay = [record(50, 3.9, stable=False), record(60, 3.8, stable=False), record(70, 3.7, stable=False)]
    assert kept(line, Retention()) == {20: "best", 30: "newest", 40: "newest, before the decay"}
    assert kept(line[:4], Retention()) == {20: "newest, best", 30: "newest, before the decay", 35: "newest"}
    assert kept([*line, *decay], Retention(2, milestone_every=10)).keys() == {10, 20, 30, 40, 50, 60, 70}
    assert kept([*line, *decay], Retention(3)) == {
        20: "best", 40: "before the decay", 50: "newest", 60: "newest", 70: "newest"
    }  # fmt: skip
    with pytest.raises(ValueError, match="never fewer than 2"):
        Retention(1)


def test_a_full_disk_is_refused_and_the_earlier_ones_stay(copied: Path) -> None:
    with pytest.raises(DiskLowError, match="earlier ones are intact"):
        require_room(copied, 10**18)
    assert not damage(copied / "step-00000003")
    assert not damage(copied / "step-00000002")


@contextmanager
def small_files_only(limit: int) -> Iterator[None]:
    """Writing beyond so many bytes of a file fails, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_write_that_fails_in_the_background_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    session, root = session_of(tmp_path, 2), tmp_path / "checkpoints"
    writer = CheckpointWriter(root, identity=IDENTITY)
    writer.save(session, notes={})
    writer.wait()
    session.step = 3
    with small_files_only(4096):
        writer.save(session, notes={})
        with pytest.raises(OSError, match="File too large"):
            writer.wait()
    assert [folder.name for folder in root.iterdir()] == ["step-00000002"]
    assert not damage(root / "step-00000002")
    writer.save(session, notes={})  # the next one is saved again
    writer.wait()
    assert not damage(root / "step-00000003")
    session.step = 4
    with small_files_only(4096), pytest.raises(OSError, match="File too large"), writer:  # told at the end of training, too
        writer.save(session, notes={})


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path: Path) -> None:
    """The state is copied at once: what training does to the weights afterwards is not what is saved."""
    session, root = session_of(tmp_path, 2), tmp_path / "checkpoints"
    weight = session.model.get_input_embeddings().weight
    before = weight.detach().clone()
    with CheckpointWriter(root, identity=IDENTITY) as writer:
        writer.save(session, notes={})
        with torch.no_grad():
            weight.zero_()
    assert torch.equal(load_file(root / "step-00000002" / "model.safetensors")["model.embed_tokens.weight"], before)


def test_pruning_removes_what_dead_writers_left(copied: Path) -> None:
    (copied / ".step-dead").mkdir()
    (copied / ".step-dead" / "model.safetensors").write_bytes(b"half")
    prune(copied, Retention())
    assert [path.name for path in sorted(copied.iterdir())] == ["step-00000002", "step-00000003"]


def test_a_fork_keeps_its_source(copied: Path, tmp_path: Path) -> None:
    workspace = Workspace.open(tmp_path / "home")
    reference = hold(workspace, copied / "step-00000002")
    assert reference == reference_of(record_of(copied / "step-00000002"))
    assert hold(workspace, copied / "step-00000002") == reference  # again: the same
    shutil.rmtree(copied)
    source = source_of(workspace, reference)
    assert source is not None
    assert (source.step, damage(source.folder)) == (2, "")
    assert source_of(workspace, "none") is None
    check_fits(source, IDENTITY)
    with pytest.raises(RefusedError, match="another tokenizer"):
        check_fits(source, {**IDENTITY, "tokenizer": "that one"})
    with pytest.raises(RefusedError, match="another data"):
        check_fits(source, {**IDENTITY, "data": "those"})
    path = source.folder / "model.safetensors"
    save_file({name: tensor + 1 for name, tensor in load_file(path).items()}, path)
    with pytest.raises(DamagedError, match=r"model\.safetensors"):
        restore(source, session_of(tmp_path, 0, train=False))


def test_a_damaged_checkpoint_is_no_beginning(copied: Path, tmp_path: Path) -> None:
    (copied / "step-00000002" / "rng.safetensors").write_bytes(b"")
    with pytest.raises(DamagedError, match=r"rng\.safetensors"):
        hold(Workspace.open(tmp_path / "home"), committed(copied)[0])
