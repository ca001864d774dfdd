"""A thousand single flipped bits in everything a cache consists of: each is seen before a token is used."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "packing"))

from packing_toy import Toy, ToyCorpus, run_toy

from pipeline_lib.errors import DamagedError, NotFoundError
from pipeline_lib.packing.cache import read_chunks
from pipeline_lib.packing.chunk import inspect_chunk
from pipeline_lib.packing.manifest import NAME, read_manifest
from pipeline_lib.packing.reader import PackedDataset
from pipeline_lib.packing.sequences import SequenceReader
from pipeline_lib.workspace.artifact import Artifact
from pipeline_lib.workspace.workspace import Workspace

SEEDS = {"chunk": 500, "manifest": 250, "list": 150, "settings": 100}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, Artifact]:
    workspace, found = run_toy(tmp_path_factory.mktemp("flips"), Toy(toy=ToyCorpus(documents=60)))
    return workspace, found["fill_gaps"]


def flipped(path: Path, number: int, check: Callable[[], None]) -> None:
    """Call `check` for every one of `number` bits of a file, flipped alone."""
    whole = path.read_bytes()
    mode = path.stat().st_mode
    path.chmod(0o644)
    for bit in np.random.default_rng(number).choice(8 * len(whole), number, replace=False).tolist():
        data = bytearray(whole)
        data[bit // 8] ^= 1 << (bit % 8)
        path.write_bytes(data)
        check()
    path.write_bytes(whole)
    path.chmod(mode)


def test_of_a_chunk(made: tuple[Workspace, Artifact]) -> None:
    workspace, filled = made
    folder = workspace.cache_folder / filled.details["cache"]
    facts = read_chunks(filled.files("chunks"))
    path = folder / "train-00000.arrow"
    told, _ = inspect_chunk(path)
    blind = 0

    def check() -> None:
        nonlocal blind
        with pytest.raises(DamagedError):
            SequenceReader(folder, facts, "train")[0]
        try:  # what the file says of itself: never another content under a digest that fits
            found, _ = inspect_chunk(path)
            assert found.content_digest == told.content_digest
            blind += 1  # a byte that nothing reads
        except DamagedError:
            pass

    flipped(path, SEEDS["chunk"], check)
    assert blind < SEEDS["chunk"] / 4
    assert len(SequenceReader(folder, facts, "train")[0].tokens) > 0


def test_of_the_manifest_in_the_folder(made: tuple[Workspace, Artifact]) -> None:
    workspace, filled = made
    folder = workspace.cache_folder / filled.details["cache"]
    whole = read_manifest(folder)
    assert whole.damaged == 0

    def check() -> None:
        found = read_manifest(folder)
        assert found.damaged >= 1 or len(found.chunks) < len(whole.chunks)
        assert all(whole.chunks[name] == facts for name, facts in found.chunks.items())

    flipped(folder / NAME, SEEDS["manifest"], check)
    assert read_manifest(folder) == whole


def test_of_the_published_list_of_chunks(made: tuple[Workspace, Artifact]) -> None:
    workspace, filled = made

    def check() -> None:
        with pytest.raises(DamagedError):
            PackedDataset.of(workspace, workspace.artifact(filled.key), "train")

    flipped(filled.file("chunks"), SEEDS["list"], check)
    assert len(PackedDataset.of(workspace, workspace.artifact(filled.key), "train")) > 0


def test_of_the_published_settings(made: tuple[Workspace, Artifact]) -> None:
    """In the artifact's manifest: seen, or in a place that says nothing about tokens (a time, the name of the machine)."""
    workspace, filled = made
    tokens = PackedDataset.of(workspace, filled, "train")[0]["input_ids"].tolist()
    seen = 0

    def check() -> None:
        nonlocal seen
        try:
            found = workspace.artifact(filled.key)
            data = PackedDataset.of(workspace, found, "train")
        except (DamagedError, NotFoundError):
            seen += 1
            return
        assert (found.manifest.digest, found.manifest.tables) == (filled.manifest.digest, filled.manifest.tables)
        assert found.details == filled.details
        assert data[0]["input_ids"].tolist() == tokens

    flipped(workspace.store.place(filled.key, "manifest.json"), SEEDS["settings"], check)
    assert seen > SEEDS["settings"] / 4
