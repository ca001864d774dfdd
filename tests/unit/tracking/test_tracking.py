"""Tracking through the spool: what was said arrives, once, whatever happens to the server or to the process."""

import os
import signal
import subprocess
import sys
import textwrap
import time
import urllib.request

import pytest
from mlflow import MlflowClient

from flows.processes import free_port
from pipeline_lib.config.pipeline import PipelineConfig
from pipeline_lib.config.resources import TrackingConfig
from pipeline_lib.tracking.run import flat, reconcile, start_run
from pipeline_lib.tracking.server import database
from pipeline_lib.tracking.spool import Spool
from pipeline_lib.workspace.runs import RunRecord
from pipeline_lib.workspace.workspace import Workspace


def record(name="20260101-000000-abcdef", **config):
    return RunRecord(name, "test", goal="learn", config=PipelineConfig(**config).model_dump(mode="json"))


def client(uri):
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def only_run(mlflow, name):
    (run,) = mlflow.search_runs([mlflow.get_experiment_by_name("millrace").experiment_id], f"tags.`millrace.id` = '{name}'")
    return run


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    monkeypatch.delenv("MILLRACE_MLFLOW_URI", raising=False)
    return Workspace.open(tmp_path / "workspace")


def test_a_run_with_everything_is_read_back(workspace, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    run = start_run(workspace, TrackingConfig(), record(), log=print)
    for step in range(1500):
        run.metrics({"loss": 5 - step / 1000}, step=step)
    run.metrics({"bad": float("inf")}, step=1)
    child = run.child("trial-0", tags={"kind": "trial"})
    child.params({"learning_rate": 0.001})
    child.end("FAILED")
    run.dataset("ingest.documents", "ab" * 20, "ingest/x.0", context="ingest")
    run.artifact(tmp_path / "model" / "config.json", "report")
    run.model("step-00000010", tmp_path / "model", step=10, metrics={"dev_loss": 3.2}, tags={})
    run.model("model", tmp_path / "model", step=20, metrics={"dev_loss": 3.1}, tags={}, upload=True)
    run.register("millrace", "model", {"millrace.verdict": "pass"})
    run.alias("millrace", "champion", run.name)
    run.end()
    ids = run.close()
    mlflow = client(f"sqlite:///{database(workspace)}")
    found = mlflow.get_run(ids["run_id"])
    assert found.info.status == "FINISHED"
    assert len(mlflow.get_metric_history(ids["run_id"], "loss")) == 1500
    assert "bad" not in found.data.metrics
    assert "system/cpu_utilization_percentage" in found.data.metrics
    assert found.data.params["seed"] == "0"
    assert found.inputs.dataset_inputs[0].dataset.name == "ingest.documents"
    assert [f.path for f in mlflow.list_artifacts(ids["run_id"], "report")] == ["report/config.json"]
    nested = only_run(mlflow, f"{run.name}/trial-0")
    assert nested.data.tags["mlflow.parentRunId"] == ids["run_id"]
    assert (nested.info.status, nested.data.params) == ("FAILED", {"learning_rate": "0.001"})
    version = mlflow.get_model_version_by_alias("millrace", "champion")
    assert version.tags["millrace.verdict"] == "pass"
    best = mlflow.search_logged_models([ids["experiment_id"]], order_by=[{"field_name": "metrics.dev_loss", "ascending": True}])
    assert [m.name for m in best] == ["model", "step-00000010"]


def test_the_model_of_a_reused_training_is_registered_without_a_copy(workspace, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights.bin").write_bytes(b"w")
    names = ("20260101-000000-aaaaaa", "20260102-000000-bbbbbb")
    for name, made_by, verdict in [(names[0], "", "pass"), (names[1], names[0], "same")]:
        run = start_run(workspace, TrackingConfig(), record(name), log=print)
        run.model("model", tmp_path / "model", step=20, metrics={"dev_loss": 3.1}, tags={}, upload=True, made_by=made_by)
        run.register("millrace", "model", {"millrace.verdict": verdict}, made_by=made_by)
        run.end()
        run.close()
    mlflow = client(f"sqlite:///{database(workspace)}")
    assert [only_run(mlflow, name).data.metrics["dev_loss"] for name in names] == [3.1, 3.1]
    versions = sorted(mlflow.search_model_versions("name = 'millrace'"), key=lambda version: int(version.version))
    assert [version.tags["millrace.verdict"] for version in versions] == ["pass", "same"]
    assert versions[0].source == versions[1].source
    assert len(list((workspace.root / "mlartifacts").rglob("weights.bin"))) == 1


def test_a_resumed_run_is_the_same_run_and_keeps_its_parameters(workspace):
    for attempt in range(2):
        run = start_run(workspace, TrackingConfig(), record(), log=print)
        run.metrics({"loss": 1.0 + attempt}, step=attempt)
        run.end("KILLED" if attempt == 0 else "FINISHED")
        run.close()
    found = only_run(client(f"sqlite:///{database(workspace)}"), run.name)
    assert found.info.status == "FINISHED"
    assert found.data.metrics["loss"] == 2.0


def test_two_runs_that_differ_in_one_parameter_differ_in_exactly_that():
    one, two = flat(record().config), flat(record(seed=7).config)
    assert {key for key in one if one[key] != two[key]} == {"seed"}
    assert one.keys() == two.keys()


def test_a_torn_line_and_a_line_the_server_refuses_do_not_hold_up_the_rest(workspace):
    messages = []
    run = start_run(workspace, TrackingConfig(), record(), log=messages.append)
    run.spool.append("tags", run.name, values={"bad\nname": "x"})
    run.spool.append("metrics", run.name, values={"loss": 1.0}, step=0)
    run.close()
    with run.spool.path.open("a") as handle:
        handle.write('{"op": "metrics", "run"')
    assert run.spool.done()
    assert any("refused" in message for message in messages)
    assert only_run(client(f"sqlite:///{database(workspace)}"), run.name).data.metrics["loss"] == 1.0


def test_a_killed_process_leaves_no_running_run(workspace):
    script = f"""
        import os, signal
        from pipeline_lib.config.resources import TrackingConfig
        from pipeline_lib.tracking.run import start_run
        from pipeline_lib.workspace.runs import RunRecord
        from pipeline_lib.workspace.workspace import Workspace
        record = RunRecord("20260101-000000-dddddd", "test")
        run = start_run(Workspace.open({str(workspace.root)!r}), TrackingConfig(), record, log=print)
        run.child("trial-0")
        for step in range(100):
            run.metrics({{"loss": 1.0}}, step=step)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    killed = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], env={**os.environ}, check=False)
    assert killed.returncode == -signal.SIGKILL
    sent = reconcile(workspace, TrackingConfig(), {"20260101-000000-dddddd": "killed"}, log=print)
    assert sent > 0
    mlflow = client(f"sqlite:///{database(workspace)}")
    for name in ("20260101-000000-dddddd", "20260101-000000-dddddd/trial-0"):
        assert only_run(mlflow, name).info.status == "KILLED"
    assert len(mlflow.get_metric_history(only_run(mlflow, "20260101-000000-dddddd").info.run_id, "loss")) == 100
    assert reconcile(workspace, TrackingConfig(), {}, log=print) == 0


def serve(workspace, port):
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--workers", "1", "--port", str(port), "--host", "127.0.0.1"),
        *(
            "--backend-store-uri",
            f"sqlite:///{workspace.root}/server.db",
            "--default-artifact-root",
            str(workspace.root / "files"),
        ),
    ]
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    server = subprocess.Popen(
        command, env={**os.environ, **quiet}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    for _ in range(600):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1)
            return server
        except OSError:
            time.sleep(0.1)
    raise AssertionError("the MLflow server did not start")


def test_the_server_killed_and_restarted_in_mid_run_loses_nothing(workspace):
    port, messages = free_port(), []
    uri = f"http://127.0.0.1:{port}"
    server = serve(workspace, port)
    try:
        run = start_run(workspace, TrackingConfig(uri=uri), record(), log=messages.append)
        run.metrics({"loss": 3.0}, step=0)
        while not Spool(run.spool.path).done():
            time.sleep(0.1)
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
        for step in range(1, 50):
            run.metrics({"loss": 2.0}, step=step)
        while not messages:
            time.sleep(0.1)
        assert "metrics wait in the spool" in messages[0]
        server = serve(workspace, port)
        run.metrics({"loss": 1.0}, step=50)
        run.end()
        ids = run.close()
        history = client(uri).get_metric_history(ids["run_id"], "loss")
        assert sorted(m.step for m in history) == list(range(51))
        assert client(uri).get_run(ids["run_id"]).info.status == "FINISHED"
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
