"""Answers of people, and who may start servers."""

import pytest

from flows.answers import read_answer, write_answer
from flows.servers import servers
from pipeline_lib.config.pipeline import PipelineConfig
from pipeline_lib.errors import BusyError
from pipeline_lib.run import close_run, open_run, resume_run
from pipeline_lib.workspace.lease import lease_if_free
from pipeline_lib.workspace.workspace import Workspace


def test_an_answer_is_for_the_attempt_that_asked(tmp_path):
    workspace = Workspace.open(tmp_path / "w")
    record = open_run(workspace, PipelineConfig(name="asks"))
    assert read_answer(workspace, record) == {}
    write_answer(workspace, record, "promote", by="anna")
    assert read_answer(workspace, record)["by"] == "anna"
    close_run(workspace, record, "failed")
    again = resume_run(workspace, record.run_id)
    assert read_answer(workspace, again) == {}
    write_answer(workspace, again, "keep", by="berta")
    assert read_answer(workspace, again)["decision"] == "keep"
    close_run(workspace, again, "completed")


def test_two_that_start_servers_at_the_same_moment_are_not_both_let_in(tmp_path):
    workspace = Workspace.open(tmp_path / "w")
    with lease_if_free(workspace.lease_path("up")) as first:
        assert first
        with pytest.raises(BusyError, match="being started"), servers(workspace):
            pass
    assert not (workspace.root / "up.json").exists()
