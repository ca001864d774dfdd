"""What a run leaves on a real MLflow server, read back through its client."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from pipeline_lib.workspace.runs import RunRecord
from tests.pipeline_toys import NAMES, STEPS, made, newest, states
from tests.servers import Up, millrace


@pytest.fixture(scope="module")
def first(shown: RunRecord) -> RunRecord:
    return shown


@pytest.fixture(scope="module")
def second(up: Up, shown_config: Path, first: RunRecord) -> RunRecord:
    """A run that differs in one parameter, and reuses the model."""
    millrace("run", "--config", str(shown_config), "--set", "gate.min_gain=0.01", home=up.workspace.root)
    return newest(up.workspace.root)


@pytest.fixture(scope="module")
def client(up: Up) -> MlflowClient:
    return MlflowClient(up.mlflow)


def run_of(client: MlflowClient, record: RunRecord) -> Run:
    return client.get_run(record.mlflow["run_id"])


def test_one_parent_with_its_trials(client: MlflowClient, first: RunRecord) -> None:
    assert made(first) == NAMES
    run = run_of(client, first)
    assert run.info.status == "FINISHED"
    assert run.data.tags["millrace.id"] == first.run_id
    assert run.data.tags["millrace.config_digest"] == first.config_digest
    assert run.data.tags["prefect.url"] == first.prefect["url"]
    assert first.prefect["flow_run_id"] in first.prefect["url"]
    children = client.search_runs([run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{run.info.run_id}'")
    assert [f"trial-{n}" for n in range(3)] == sorted(child.info.run_name for child in children)[:3]  # then finalists, again
    assert {child.info.status for child in children} == {"FINISHED"}
    assert all(child.data.metrics["dev_loss"] > 0 and "learning_rate" in child.data.params for child in children)


def test_parameters_curves_and_data_sets(client: MlflowClient, up: Up, first: RunRecord) -> None:
    run = run_of(client, first)
    assert run.data.params["train.learning_rate"] == "0.01"
    assert run.data.params["ingest.sources.machine.max_mb"] == "1.0"
    loss = client.get_metric_history(run.info.run_id, "train_loss")
    assert sorted(point.step for point in loss) == list(range(1, STEPS + 1))
    assert loss[0].value > loss[-1].value
    trained = first.ref("train")
    assert trained is not None
    assert run.data.metrics["train/dev_loss"] == trained.metrics["dev_loss"]
    digests = {
        stage: up.workspace.store.manifest(ref.key).tables[table][:36]
        for stage, table in [("ingest", "documents"), ("select", "selection"), ("fill_gaps", "chunks")]
        if (ref := first.ref(stage))
    }
    assert {(used.dataset.name.partition(".")[0]): used.dataset.digest for used in run.inputs.dataset_inputs} == digests
    assert any(file.path.endswith("report.html") for file in client.list_artifacts(run.info.run_id, "report"))


def test_the_model_is_registered_with_its_verdict(client: MlflowClient, first: RunRecord) -> None:
    (version,) = [v for v in client.search_model_versions("name = 'small'") if v.run_id == first.mlflow["run_id"]]
    assert version.tags["millrace.verdict"] == first.verdict["outcome"]
    trained = first.ref("train")
    assert trained is not None
    assert version.tags["millrace.artifact"] == trained.key
    files = {Path(file.path).name for file in client.list_logged_model_artifacts(version.source.removeprefix("models:/"))}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= files


def test_aliases_follow(client: MlflowClient, up: Up, first: RunRecord, second: RunRecord) -> None:
    challenger = client.get_model_version_by_alias("small", "challenger")
    assert challenger.run_id == second.mlflow["run_id"]
    if first.verdict["decision"] != "promote":  # a toy knows little
        millrace("promote", first.run_id, "--force", home=up.workspace.root)
    assert client.get_model_version_by_alias("small", "champion").run_id == first.mlflow["run_id"]


def test_two_runs_differ_in_exactly_the_changed_parameter(client: MlflowClient, first: RunRecord, second: RunRecord) -> None:
    one, other = run_of(client, first).data.params, run_of(client, second).data.params
    assert {name for name in one.keys() | other.keys() if one.get(name) != other.get(name)} == {"gate.min_gain"}


def test_a_reused_model_is_not_copied_again(client: MlflowClient, up: Up, first: RunRecord, second: RunRecord) -> None:
    versions = {v.run_id: v for v in client.search_model_versions("name = 'small'")}
    one, other = versions[first.mlflow["run_id"]], versions[second.mlflow["run_id"]]
    assert other.source == one.source
    assert other.tags["millrace.verdict"] == second.verdict["outcome"]
    copies = list((up.workspace.root / "mlartifacts").rglob("model.safetensors"))
    assert len(copies) == len({version.source for version in client.search_model_versions()})  # other tests' models, too


def test_a_reused_training_names_the_run_that_trained(client: MlflowClient, first: RunRecord, second: RunRecord) -> None:
    assert states(second) == dict.fromkeys(NAMES, "reused")
    run, maker = run_of(client, second), run_of(client, first)
    assert run.data.tags["millrace.trained_in"] == first.run_id
    assert run.data.tags["millrace.trained_in.mlflow_run_id"] == maker.info.run_id
    for name in ("train/dev_loss", "train/steps", "dev_loss"):
        assert run.data.metrics[name] == maker.data.metrics[name], name
    scores = {name for name in maker.data.metrics if name.startswith("validate/") and not name.endswith(("seconds", "mib"))}
    assert scores
    assert {name: run.data.metrics[name] for name in scores} == {name: maker.data.metrics[name] for name in scores}


def test_the_flow_run_links_to_it(up: Up, first: RunRecord) -> None:
    with httpx.Client(base_url=up.api) as api:
        body = {"artifacts": {"flow_run_id": {"any_": [first.prefect["flow_run_id"]]}, "key": {"any_": ["millrace-mlflow"]}}}
        (link,) = api.post("/artifacts/filter", json=body).json()
    assert first.mlflow["url"] in link["data"]
