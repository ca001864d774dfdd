"""Small files that cannot be read are told, and garbage collection takes nothing while it cannot know what is needed."""

from pathlib import Path

import pytest

from pipeline_lib.config.resources import KeepConfig
from pipeline_lib.errors import DamagedError
from pipeline_lib.workspace.gc import plan_gc
from pipeline_lib.workspace.resolve import read_champion
from pipeline_lib.workspace.runs import RunBook
from pipeline_lib.workspace.workspace import Workspace


@pytest.mark.parametrize("text", ["{", "[]", "", '{"run_id": 3}'])
def test_an_unreadable_record_is_told_and_never_taken_for_nothing(tmp_path: Path, text: str) -> None:
    workspace = Workspace.open(tmp_path / "w")
    (workspace.runs_folder / "20260101-000000-aaaaaaaa.json").write_text(text)
    book = RunBook(workspace.runs_folder)
    with pytest.raises(DamagedError, match="record cannot be read"):
        book.load("latest")
    assert list(book.all()) == []
    with pytest.raises(DamagedError, match="what it needs is not known"):
        plan_gc(workspace, KeepConfig())


@pytest.mark.parametrize("text", ["{", "[]", '{"champion": 3}', '{"previous": [["train", "x"]]}'])
def test_an_unreadable_champion_is_told_and_stops_garbage_collection(tmp_path: Path, text: str) -> None:
    workspace = Workspace.open(tmp_path / "w")
    (workspace.root / "champion.json").write_text(text)
    with pytest.raises(DamagedError, match="cannot be read"):
        read_champion(workspace)
    with pytest.raises(DamagedError, match="cannot be read"):
        plan_gc(workspace, KeepConfig())
