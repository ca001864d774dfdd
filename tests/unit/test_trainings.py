"""Names of new runs, lengths of forks, and what nobody owns any more."""

from pathlib import Path

import pytest

from pipeline_lib.config.pipeline import PipelineConfig
from pipeline_lib.errors import ConfigError, NotFoundError
from pipeline_lib.fork import hours_of
from pipeline_lib.run import close_run, open_run
from pipeline_lib.training.forks import source_of
from pipeline_lib.trainings import entries, find, orphans, remove_orphan, resumable, suggest_name
from pipeline_lib.workspace.stage import Outcome, Stage, StageRun, execute
from pipeline_lib.workspace.workspace import Workspace


def of(*sources: str, length: int = 512) -> PipelineConfig:
    return PipelineConfig.model_validate({
        "ingest": {"sources": [{"name": name, "kind": "machine"} for name in sources]}, "pack": {"sequence_length": length},
    })  # fmt: skip


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        (415_300_000, "415M_openstax_512"),
        (1_300_000_000, "1.3B_openstax_512"),
        (2_950_000, "3M_openstax_512"),
        (7, "7_openstax_512"),
    ],
)
def test_a_name_says_size_data_and_length(tmp_path: Path, parameters: int, expected: str) -> None:
    assert suggest_name(Workspace.open(tmp_path), of("openstax"), parameters) == expected


def test_a_name_that_is_taken_gets_a_number(tmp_path: Path) -> None:
    workspace = Workspace.open(tmp_path)
    for name in ("415M_openstax_512", "415M_openstax_512_2"):
        config = of("openstax").model_copy(update={"name": name})
        close_run(workspace, open_run(workspace, config), "completed")
    assert suggest_name(workspace, of("openstax"), 415_000_000) == "415M_openstax_512_3"
    several = suggest_name(workspace, of("web_pages", "books", "mail"), 10**6)
    assert several == "1M_web-pages-and-2_512"
    PipelineConfig(name=several)  # a name that a pipeline may have


@pytest.mark.parametrize(("text", "hours"), [("2h", 2), ("90m", 1.5), ("1.5d", 36), ("45 min", 0.75), ("36s", 0.01)])
def test_durations(text: str, hours: float) -> None:
    assert hours_of(text) == pytest.approx(hours)


@pytest.mark.parametrize("text", ["", "2", "h", "-2h", "0h", "2 weeks", "1e3h"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ConfigError, match="no duration"):
        hours_of(text)


def test_what_no_run_owns(tmp_path: Path) -> None:
    workspace = Workspace.open(tmp_path)
    record = close_run(workspace, open_run(workspace, of("openstax")), "completed")
    for folder in (workspace.spool_folder, workspace.reports_folder):
        folder.mkdir(exist_ok=True)
    (workspace.spool_folder / f"{record.run_id}.jsonl").write_text("")
    (workspace.spool_folder / "20250101-000000-000000.jsonl").write_text("")
    (workspace.reports_folder / f"{record.run_id}.html").write_text("")
    work = workspace.work_folder / f"train-{'a' * 32}.0"
    (work / "journal").mkdir(parents=True)
    lost = orphans(workspace)
    assert [path.name for path in lost] == [work.name, "20250101-000000-000000.jsonl"]
    with workspace.lease(f"train-{'a' * 32}", wait=False):  # somebody trains there
        assert [path.name for path in orphans(workspace)] == ["20250101-000000-000000.jsonl"]
    for path in [*lost, workspace.spool_folder / f"{record.run_id}.jsonl"]:  # the last one is owned, and stays
        remove_orphan(workspace, path)
    assert orphans(workspace) == []
    assert (workspace.spool_folder / f"{record.run_id}.jsonl").exists()
    assert entries(workspace) == resumable(workspace) == []
    with pytest.raises(NotFoundError, match="no checkpoint of 'latest'"):
        find(workspace, "latest")


def save_checkpoint(run: StageRun) -> Outcome:
    run.path("checkpoints", "checkpoint.json").write_text("{}")
    run.observed("log.txt").write_text("")
    return Outcome()


def test_a_run_that_took_a_training_over_names_its_checkpoints(tmp_path: Path) -> None:
    workspace, config = Workspace.open(tmp_path), of("openstax")
    stage = Stage("train", 1, "pure", f"{__name__}:save_checkpoint")
    runs = []
    for state in ("made", "reused"):
        record = open_run(workspace, config)
        entry = record.stage("train")
        entry.state, entry.ref = state, execute(workspace, stage, config, {}).to_json()
        runs.append(close_run(workspace, record, "completed").run_id)
    (published,) = entries(workspace)
    assert published.name == f"{runs[0]}@0"
    assert [find(workspace, name) for name in ("latest", runs[1], f"{runs[1]}@0", runs[0])] == [published] * 4
    other = close_run(workspace, open_run(workspace, config), "failed").run_id
    for name in ("latest", other):  # it trained nothing
        with pytest.raises(NotFoundError, match="no checkpoint of"):
            find(workspace, name)


def test_a_source_that_is_gone_is_told(tmp_path: Path) -> None:
    workspace = Workspace.open(tmp_path)
    with pytest.raises(NotFoundError, match="not held any more"):
        source_of(workspace, f"checkpoint:{'0' * 32}")
    with pytest.raises(NotFoundError, match="is no checkpoint"):
        source_of(workspace, "checkpoint:../../etc")
