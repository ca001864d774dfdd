"""The data line gives the same bytes whatever does the work, and in whatever order files came."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline_lib.run import run_plain
from pipeline_lib.workspace.services import Services, thread_mapper
from pipeline_lib.workspace.workspace import Workspace
from tests.mappers import process_mapper
from tests.pipeline_toys import PURE, digests, small_config, write_stories

DATA = PURE[: PURE.index("train")]


def config(folder: Path):
    return small_config(
        ingest={
            "sources": [
                {"name": "machine", "kind": "machine", "max_mb": 1.0},
                {"name": "news", "kind": "files", "path": str(folder / "*.jsonl"), "domain": "stories"},
            ]
        },
        score={"rules": {"code": "code", "licence": "licence", "stories": "none", "*": "prose"}},
        pack={"range_tokens": 8192},
    )


@pytest.fixture(scope="module")
def incoming(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("incoming")
    for number in range(5):
        write_stories(folder / f"{number}.jsonl", 40, number)
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, incoming: Path) -> dict[str, tuple[str, str]]:
    """One worker, one file after the other."""
    workspace = Workspace.open(tmp_path_factory.mktemp("alone"))
    record = run_plain(workspace, config(incoming), until="fill_gaps")
    assert len(workspace.store.manifest(record.stages["score"].ref["key"]).shards) >= 4
    assert workspace.store.manifest(record.stages["pack"].ref["key"]).metrics["chunks"] >= 10
    return digests(record)


def test_all_data_stages_are_compared(alone: dict[str, tuple[str, str]]) -> None:
    assert list(alone) == DATA


@pytest.mark.parametrize(
    "services",
    [Services(thread_mapper(2), 2), Services(thread_mapper(8), 8), Services(process_mapper(2), 2)],
    ids=["two threads", "eight threads", "two processes"],
)
def test_who_works_does_not_show(tmp_path: Path, incoming: Path, alone: dict[str, tuple[str, str]], services: Services) -> None:
    assert digests(run_plain(Workspace.open(tmp_path), config(incoming), services=services, until="fill_gaps")) == alone


def test_how_the_corpus_grew_shows_in_the_chain_only(tmp_path: Path, incoming: Path, alone: dict[str, tuple[str, str]]) -> None:
    """Files that came one after the other, in another order: the same documents, signals and clusters."""
    folder = tmp_path / "incoming"
    folder.mkdir()
    workspace = Workspace.open(tmp_path / "w")
    for number in (3, 0, 4, 1, 2):
        os.link(incoming / f"{number}.jsonl", folder / f"{number}.jsonl")
        if number in (4, 2):
            record = run_plain(workspace, config(folder), until="fill_gaps")
    assert digests(record) == alone
