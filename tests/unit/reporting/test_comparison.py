"""Runs side by side: seeds are one group, curves are compared where all of them are, runs that share nothing say so."""

import json

import pytest
from typer.testing import CliRunner

from flows.cli.main import make_app
from pipeline_lib.config.pipeline import PipelineConfig
from pipeline_lib.errors import RefusedError
from pipeline_lib.reporting.compare import compare, flat, interval
from pipeline_lib.run import close_run, open_run, step
from pipeline_lib.stages import ORDER
from pipeline_lib.workspace.services import Services
from pipeline_lib.workspace.workspace import Workspace

EVIL = "<script>alert(1)</script>"


def opened(workspace, text, **sections):
    source = {"name": "files", "kind": "files", "path": str(text), "domain": EVIL, "licence": "MIT"}
    record = open_run(workspace, PipelineConfig.model_validate({"goal": EVIL, "ingest": {"sources": [source]}, **sections}))
    step(workspace, record, "ingest", services=Services())
    close_run(workspace, record, "failed", error="it broke")
    return record


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two seeds of one experiment, and another learning rate on other text."""
    folder = tmp_path_factory.mktemp("compare")
    workspace = Workspace.open(folder / "workspace")
    for name in ("one", "two"):
        lines = [{"text": f"A sentence of the text called {name}, with number {n}. " * 5} for n in range(20)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    records = [opened(workspace, folder / "one.jsonl", seed=seed) for seed in (0, 1)]
    records.append(opened(workspace, folder / "two.jsonl", train={"learning_rate": 0.01}))
    return workspace, records


def test_seeds_are_one_group_and_differences_are_named(runs):
    workspace, records = runs
    made = compare(workspace, records, ORDER)
    assert [[side.run_id for side in group.sides] for group in made.groups] == [
        [records[0].run_id, records[1].run_id],
        [records[2].run_id],
    ]
    differences = {row[0]: row[1:] for row in made.configuration.rows}
    assert differences["train.learning_rate"] == ["0", "0.01"]
    assert "seed" not in differences
    documents = next(row for row in made.data.rows if row[0] == "documents")
    assert documents[1:] == ["20", "20"]
    page = made.html.read_text("utf-8")
    assert "<script" not in page
    assert "None of them has scores." in page
    assert "there are no curves" in page


def test_runs_that_share_nothing_say_so(runs):
    workspace, records = runs
    assert any("share nothing" in remark for remark in compare(workspace, [records[0], records[2]], ORDER).remarks)
    assert not any("share nothing" in remark for remark in compare(workspace, records[:2], ORDER).remarks)
    with pytest.raises(RefusedError, match="two different runs"):
        compare(workspace, [records[0], records[0]], ORDER)


def test_the_command_prints_what_the_page_shows(runs, monkeypatch):
    workspace, records = runs
    monkeypatch.setenv("MILLRACE_HOME", str(workspace.root))
    answer = CliRunner().invoke(make_app(), ["compare", *(record.run_id for record in records), "--json"])
    assert answer.exit_code == 0, answer.output
    told = json.loads(answer.output)
    assert list(told["groups"].values()) == [[r.run_id for r in records[:2]], [records[2].run_id]]
    assert {"Runs", "Differences of configuration", "Data"} <= {table["title"] for table in told["tables"]}


def test_intervals_and_flat_settings():
    mean, low, high = interval([1.0, 2.0, 3.0])  # t(0.975, 2) = 4.303, standard error 1/√3
    assert (mean, round(low, 4), round(high, 4)) == (2.0, -0.4843, 4.4843)
    assert interval([2.0]) == (2.0, 2.0, 2.0)
    assert flat({"a": {"b": 1, "c": [1]}, "d": {}}) == {"a.b": 1, "a.c": [1], "d": {}}
