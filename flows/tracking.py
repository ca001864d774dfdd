"""What a run tells MLflow beside its curves: data sets, stage figures, checkpoints, the registered model, the report."""

from __future__ import annotations

import json
import logging
from datetime import datetime
from pathlib import Path

from flows.environment import running_servers
from pipeline_lib.config.pipeline import PipelineConfig
from pipeline_lib.errors import MillraceError
from pipeline_lib.tracking.run import FLUSH_SECONDS, STATUS, Run, start_run
from pipeline_lib.tracking.run import reconcile as reconcile_spools
from pipeline_lib.tracking.server import comparison_link, run_link, tracking_uri
from pipeline_lib.tracking.sinks import SinkTracker, open_sinks
from pipeline_lib.tracking.spool import Spool
from pipeline_lib.workspace.artifact import Artifact
from pipeline_lib.workspace.resolve import read_champion
from pipeline_lib.workspace.runs import RunBook, RunRecord
from pipeline_lib.workspace.services import NullTracker, Tracker, now
from pipeline_lib.workspace.workspace import Workspace

SHORTEST_FLUSH_SECONDS = 5.0  # on a quiet machine MLflow has everything in less
DATASETS = {
    "ingest": "documents",
    "select": "selection",
    "fill_gaps": "chunks",
}  # stage → the table that is a data set of the run


def _log(line: str) -> None:
    logging.getLogger("prefect.millrace").warning(line)


def _address(workspace: Workspace) -> str:
    state = running_servers(workspace)
    return str(state["mlflow"]) if state else ""


def open_tracker(config: PipelineConfig, workspace: Workspace, record: RunRecord) -> Tracker:
    """The run's tracker; returns at once, MLflow is met in the background."""
    sinks = open_sinks(config.tracking.sinks, workspace.root / "curves", run_id=record.run_id, project=config.tracking.experiment)
    if not config.tracking.enabled:
        return SinkTracker(sinks) if sinks else NullTracker()
    run = start_run(workspace, config.tracking, record, log=_log, running=_address(workspace))
    run.sinks = sinks
    run.tags({f"prefect.{name}": value for name, value in record.prefect.items() if value})
    return run


def tell_what_was_made(tracker: Tracker, workspace: Workspace, record: RunRecord) -> None:
    """Figures of every stage, data sets, checkpoint, model and its verdict."""
    if not isinstance(tracker, Run):
        return
    config = PipelineConfig.model_validate(record.config)
    for name, entry in record.stages.items():
        ref = record.ref(name)
        if ref is None:
            continue
        artifact = workspace.store.artifact(ref.key)
        figures = {key: value for key, value in artifact.metrics.items() if isinstance(value, int | float)}
        figures |= {"seconds": entry.seconds, "peak_memory_mib": artifact.manifest.peak_memory_bytes / 2**20}
        tracker.metrics({f"{name}/{key}": float(value) for key, value in figures.items()})
        tracker.tags({f"millrace.stage.{name}": f"{entry.state} {ref.key}"})
        if name in DATASETS:
            _dataset(tracker, artifact, DATASETS[name])
    _models(tracker, workspace, record, config)


def close_tracker(tracker: Tracker, workspace: Workspace, record: RunRecord) -> None:
    """Add the report, end with the true status, and note MLflow's ids in the record."""
    if not isinstance(tracker, Run):
        return
    report = Path(record.report) if record.report else None
    if report and report.exists():
        for path in sorted(report.parent.iterdir()):
            tracker.artifact(path, "report")
    tracker.end(STATUS.get(record.outcome, "FAILED"))
    tracker.close(_patience(record))
    note_address(tracker, workspace, record)


def _patience(record: RunRecord) -> float:
    """Seconds to wait for MLflow: not beyond the run's window, but for the shortest wait; the rest comes with the next start."""
    if not record.deadline:
        return FLUSH_SECONDS
    left = (datetime.fromisoformat(record.deadline) - now()).total_seconds()
    return min(max(left, SHORTEST_FLUSH_SECONDS), FLUSH_SECONDS)


def note_address(tracker: Tracker, workspace: Workspace, record: RunRecord) -> None:
    """Note in the record where MLflow shows the run, and its comparison with the run it repeats or with the champion's."""
    known = tracker.known() if isinstance(tracker, Run) else {}
    if "run_id" not in known:
        return
    base = tracking_uri(PipelineConfig.model_validate(record.config).tracking, workspace, running=_address(workspace))
    if base.startswith("http"):
        known["url"] = run_link(base, known["experiment_id"], known["run_id"])
        if (other := _compared_with(workspace, record, known["experiment_id"])) and other != known["run_id"]:
            known["compare_url"] = comparison_link(base, known["experiment_id"], [other, known["run_id"]])
    record.mlflow = {**record.mlflow, **known}
    RunBook(workspace.runs_folder).save(record)


def _compared_with(workspace: Workspace, record: RunRecord, experiment_id: str) -> str:
    """MLflow's id of the run that this one repeats, else of the champion's."""
    state = read_champion(workspace)
    for name in (record.parent, *((state.get(alias) or {}).get("run_id", "") for alias in ("champion", "previous"))):
        try:
            other = RunBook(workspace.runs_folder).load(name) if name and name != record.run_id else None
        except MillraceError:  # removed since
            continue
        if other and other.mlflow.get("experiment_id") == experiment_id:
            return str(other.mlflow["run_id"])
    return ""


def _dataset(tracker: Run, artifact: Artifact, table: str) -> None:
    digest = artifact.manifest.tables.get(table, "")
    counts = {key: value for key, value in artifact.metrics.items() if isinstance(value, int)}
    tracker.dataset(
        f"{artifact.manifest.stage}.{table}", digest, artifact.key, context=artifact.manifest.stage, profile=json.dumps(counts)
    )


def _models(tracker: Run, workspace: Workspace, record: RunRecord, config: PipelineConfig) -> None:
    trained, validated = record.ref("train"), record.ref("validate")
    if trained is None:
        return
    train = workspace.store.artifact(trained.key)
    maker = None if record.stages["train"].state == "made" else _maker(workspace, record, trained.key)
    made_by = maker.run_id if maker else ""
    if maker:
        theirs = maker.mlflow.get("run_id", "")
        tracker.tags({"millrace.trained_in": maker.run_id, "millrace.trained_in.mlflow_run_id": theirs})
    steps = int(train.details["steps"])
    # the last one, to go on from; earlier ones are gone when a training ends
    if not maker and "checkpoints" in train.manifest.tables:
        loss = {"dev_loss": float(train.metrics["dev_loss"])}
        folder = train.files("checkpoints")[0].parent
        tracker.model(f"step-{steps:08d}", folder, step=steps, metrics=loss, tags={"millrace.artifact": train.key})
    scores = {}
    if validated:
        values = workspace.store.artifact(validated.key).metrics
        scores = {key: float(value) for key, value in values.items() if isinstance(value, int | float)}
    verdict = {"millrace.verdict": record.verdict.get("outcome", "none"), "millrace.artifact": train.key}
    verdict |= {"millrace.decision": record.decided} if record.decided else {}
    final = {"dev_loss": float(train.metrics["dev_loss"]), **scores}
    tracker.model("model", train.files("model")[0].parent, step=steps, metrics=final, tags=verdict, upload=True, made_by=made_by)
    tracker.register(config.tracking.model_name, "model", verdict, made_by=made_by)
    tracker.alias(config.tracking.model_name, "challenger", record.run_id)
    _champion_aliases(tracker, workspace, config)


def _champion_aliases(tracker: Run, workspace: Workspace, config: PipelineConfig) -> None:
    state = read_champion(workspace)
    for alias in ("champion", "previous"):
        if run_id := (state.get(alias) or {}).get("run_id"):
            tracker.alias(config.tracking.model_name, alias, run_id)


def mirror_aliases(workspace: Workspace, record: RunRecord) -> None:
    """After a promotion or a rollback by hand: MLflow's aliases follow `champion.json`."""
    config = PipelineConfig.model_validate(record.config)
    if config.tracking.enabled:
        spool = Spool(workspace.spool_folder / f"{record.run_id}.jsonl")
        _champion_aliases(Run(spool, record.run_id), workspace, config)
        reconcile_tracking(workspace, config, [])


def tell_of_killed(workspace: Workspace, record: RunRecord) -> None:
    """A run that was killed when its model was judged: the model is registered, and aliases follow `champion.json`."""
    spool = workspace.spool_folder / f"{record.run_id}.jsonl"
    if record.verdict and spool.exists():  # without a spool MLflow was never told of the run
        tell_what_was_made(Run(Spool(spool), record.run_id), workspace, record)


def _maker(workspace: Workspace, record: RunRecord, key: str) -> RunRecord | None:
    """The run that made an artifact."""
    for other in reversed(list(RunBook(workspace.runs_folder).all())):
        ref = other.ref("train")
        if other.run_id != record.run_id and ref and ref.key == key and other.stages["train"].state == "made":
            return other
    return None


def reconcile_tracking(workspace: Workspace, config: PipelineConfig, dead: list[RunRecord]) -> None:
    """Close in MLflow what killed runs left open, and deliver what waited for a server."""
    if config.tracking.enabled:
        outcomes = {record.run_id: record.outcome for record in dead}
        reconcile_spools(workspace, config.tracking, outcomes, log=_log, running=_address(workspace))
