"""Workspaces, manifests and records of other versions."""

import json

import pytest
from workspace_toys import config, make

from pipeline_lib.errors import ConfigError, DamagedError
from pipeline_lib.workspace.files import read_json
from pipeline_lib.workspace.runs import RunBook
from pipeline_lib.workspace.workspace import Workspace


def previous(root):
    """A workspace as format 1 left it: memories inside the artifacts, processes without birth, pins in records, no id."""
    workspace = Workspace.open(root)
    ref = make(workspace, config("ash", "birch"))
    memory = root / "seen" / f"{ref.key}.json"
    facts = read_json(memory)["facts"]
    (root / "artifacts" / ref.key / ".seen.json").write_text(json.dumps(facts))
    memory.unlink()
    record = {
        "run_id": "20260101-000000-abcdef",
        "pipeline": "p",
        "started": "2026-01-01T00:00:00+00:00",
        "outcome": "completed",
        "attempts": [{"started": "2026-01-01T00:00:00+00:00", "host": "h", "pid": 1, "ended": "", "state": "completed"}],
        "stages": {"words": {"state": "made", "ref": ref.to_json(), "seconds": 1.0, "error": "", "attempt": 1}},
        "pinned": True,
        "format": 1,
    }
    (root / "runs" / "20260101-000000-abcdef.json").write_text(json.dumps(record))
    (root / "workspace.json").write_text('{"format": 1}')
    return ref, facts


def test_the_previous_format_is_migrated_with_a_backup(tmp_path):
    ref, facts = previous(tmp_path)
    workspace = Workspace.open(tmp_path)
    assert read_json(tmp_path / "workspace.json")["format"] == 2
    assert len(workspace.id) == 32
    assert read_json(tmp_path / "seen" / f"{ref.key}.json")["facts"] == facts
    assert not list((tmp_path / "artifacts").rglob(".seen.json"))
    record = RunBook(workspace.runs_folder).load("latest")
    assert (record.pinned, record.format, record.attempts[0].born) == (True, 2, 0.0)
    assert record.window_from == record.started
    (backup,) = (tmp_path / "backup").iterdir()
    assert read_json(backup / "workspace.json") == {"format": 1}
    assert read_json(backup / "runs" / "20260101-000000-abcdef.json")["format"] == 1
    assert read_json(backup / "artifacts" / ref.key / ".seen.json") == facts
    assert make(workspace, config("ash", "birch")).reused
    identity = workspace.id
    assert Workspace.open(tmp_path).id == identity  # once
    assert len(list((tmp_path / "backup").iterdir())) == 1


def test_a_migration_that_was_killed_is_done_again(tmp_path):
    ref, facts = previous(tmp_path)
    memory = tmp_path / "seen" / f"{ref.key}.json"
    (tmp_path / "artifacts" / ref.key / ".seen.json").unlink()  # moved before the kill; the number was not changed
    memory.write_text(json.dumps({"facts": facts, "turn": 0}))
    workspace = Workspace.open(tmp_path)
    assert read_json(tmp_path / "workspace.json")["format"] == 2
    assert make(workspace, config("ash", "birch")).reused


def test_a_newer_workspace_is_refused_and_left_alone(tmp_path):
    Workspace.open(tmp_path)
    (tmp_path / "workspace.json").write_text('{"format": 3, "id": "x"}')
    with pytest.raises(ConfigError, match="format 3") as caught:
        Workspace.open(tmp_path)
    assert "newer than 0.1.0" in caught.value.fix
    assert (tmp_path / "workspace.json").read_text() == '{"format": 3, "id": "x"}'
    assert not (tmp_path / "backup").exists()


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"format": "x"}', '{"format": 0}'])
def test_an_unreadable_format_is_damage_not_a_new_workspace(tmp_path, text):
    Workspace.open(tmp_path)
    (tmp_path / "workspace.json").write_text(text)
    with pytest.raises(DamagedError):
        Workspace.open(tmp_path)


def test_a_newer_manifest_is_refused_not_quarantined(tmp_path):
    workspace = Workspace.open(tmp_path)
    ref = make(workspace)
    path = tmp_path / "artifacts" / ref.key / "manifest.json"
    path.write_text(path.read_text().replace('"format": 1', '"format": 9'))
    with pytest.raises(ConfigError, match="manifest format 9"):
        make(workspace)
    assert workspace.store.has(ref.key)
    assert not workspace.quarantine_folder.exists()
