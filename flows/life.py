"""The life of a run around its stages: clear up after the dead, open the record, run, decide, report, close."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any
from uuid import UUID

from prefect import get_run_logger
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.exceptions import ObjectNotFound
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL, PREFECT_UI_URL
from prefect.states import Cancelled, Completed, Crashed

from flows.approval import ask
from flows.deploy import deployed_modules
from flows.listener import listener
from flows.options import RunOptions
from flows.processes import no_children_left
from flows.services import make_services
from flows.tracking import close_tracker, note_address, reconcile_tracking, tell_of_killed, tell_what_was_made
from pipeline_lib.config.load import check_secrets
from pipeline_lib.config.paths import allowed_roots, check_paths, refusal
from pipeline_lib.config.pipeline import PipelineConfig
from pipeline_lib.errors import ConfigError, RefusedError
from pipeline_lib.extensions import check_extensions, check_modules
from pipeline_lib.metrics import training_log
from pipeline_lib.planning.graded import grade, in_metrics
from pipeline_lib.promotion import ChampionChangedError, decide, in_office, promote
from pipeline_lib.reporting.report import write_report
from pipeline_lib.run import close_run, open_run, outcome_of, reconcile, resume_run, supply, supply_recorded
from pipeline_lib.secrets import mask, told
from pipeline_lib.stages import STAGES
from pipeline_lib.status import status
from pipeline_lib.tracking.server import shown
from pipeline_lib.workspace.resolve import read_champion
from pipeline_lib.workspace.runs import RunBook, RunRecord
from pipeline_lib.workspace.services import now
from pipeline_lib.workspace.usage import require_disk
from pipeline_lib.workspace.workspace import Workspace
from tasks.live import EMBEDDED, LiveRun
from tasks.show import show_link


@contextlib.contextmanager
def living(config: PipelineConfig, options: RunOptions) -> Iterator[LiveRun]:
    """A run, from its record to its report, around the stages that the flow calls inside.

    Whatever happens inside, the record is closed with the true outcome, child processes are ended and the report is written.
    A person's stop (Ctrl-C, cancellation) leaves everything resumable.

    Raises:
        ConfigError: the configuration or the options are refused; no run is opened.
        RefusedError: the disk is too small; no run is opened.
        MillraceError: what a stage had to tell.
    """
    workspace = Workspace.open()
    clear_up(workspace, config)
    check_paths(config, allowed_roots(None, workspace.root))
    check_secrets(config)
    _check_recorded(options, workspace)
    check_modules(config, deployed_modules)
    check_extensions(config)
    _check_disk(workspace, config, options)
    run = _open(workspace, config, options)
    listener().opened(run.record)
    error = ""
    try:
        with no_children_left():
            _supply(run, options)
            yield run
    except KeyboardInterrupt:  # swallowed: the flow ends as Cancelled, see `ending`
        run.outcome = "cancelled"
    except BaseException as problem:
        mask(problem)
        run.outcome, error = outcome_of(problem), told(problem)
        raise
    finally:
        close_run(workspace, run.record, run.outcome, error=error)
        note_address(run.services.tracker, workspace, run.record)
        with _tracking(workspace, run.record):  # MLflow takes the model in while the report is written
            tell_what_was_made(run.services.tracker, workspace, run.record)
        report(workspace, run.record)
        with _tracking(workspace, run.record):
            if graded := grade(workspace, run.record, until=now()):
                run.services.tracker.metrics(in_metrics(graded))
            close_tracker(run.services.tracker, workspace, run.record)
            if url := run.record.mlflow.get("url"):
                show_link("mlflow", url, f"{run.record.run_id} in MLflow")
        # What comes after the last stage takes seconds that the next plan must know of.
        run.record.graded = grade(workspace, run.record, until=now())
        RunBook(workspace.runs_folder).save(run.record)


def _check_recorded(options: RunOptions, workspace: Workspace) -> None:
    """An exported file may be named in a form: it lies inside the allowed folders, like every configured path."""
    if options.recorded.endswith(".json"):
        what, fix = refusal(options.recorded, allowed_roots(None, workspace.root))
        if what:
            raise ConfigError(what, where=f"recorded = {options.recorded!r}", fix=fix)


def _check_disk(workspace: Workspace, config: PipelineConfig, options: RunOptions) -> None:
    """Refuse what does not fit, whoever starts it; what is there already, or not asked for, is not written.

    Raises:
        RefusedError: less than 1.2 times of the estimate is free.
    """
    unasked = {stage.name for stage in STAGES} - set(options.selection().stages)
    try:
        require_disk(workspace, config, reused=unasked)
    except RefusedError:  # before giving up, look what is there
        there = {stage.stage for stage in status(workspace, config) if stage.state == "reused"} - set(options.force)
        require_disk(workspace, config, reused=unasked | there)


@contextlib.contextmanager
def _tracking(workspace: Workspace, record: RunRecord) -> Iterator[None]:
    """What goes wrong with MLflow is an event of the run, never its end."""
    try:
        yield
    except Exception as problem:
        get_run_logger().exception("MLflow was not told how the run ended")
        record.events.append({"time": now().isoformat(), "kind": "tracking_failed", "detail": {"error": told(problem)}})
        RunBook(workspace.runs_folder).save(record)


def report(workspace: Workspace, record: RunRecord) -> None:
    """Write a run's report and say where it is. A report that cannot be written must not hide how the run ended."""
    try:
        path = write_report(workspace, record, tuple(stage.name for stage in STAGES), training_log)
    except Exception as problem:
        get_run_logger().exception("the report could not be written")
        record.events.append({"time": now().isoformat(), "kind": "report_failed", "detail": {"error": told(problem)}})
    else:
        record.report = str(path)
        show_link("report", path.absolute().as_uri(), f"{record.outcome} · run {record.run_id} · {path.name}")
    RunBook(workspace.runs_folder).save(record)


def ending(run: LiveRun) -> State[Any]:
    """The flow's final state, after `living`."""
    data = {"run_id": run.record.run_id, "outcome": run.outcome}
    if run.outcome == "cancelled":
        return Cancelled(message=f"stopped; `millrace retry {run.record.run_id}` goes on", data=data)
    name = "Nothing new" if run.outcome == "nothing_new" else "Completed"
    return Completed(name=name, message=f"run {run.record.run_id}", data=data)


def settle(run: LiveRun) -> None:
    """After validation: the gate decides once per (candidate, champion), a person is asked where that is switched on."""
    model = run.record.ref("train")
    if "validate" not in run.wanted or model is None:
        return
    if "decision" in run.record.verdict and run.record.verdict.get("candidate_model") == model.key:
        return  # a retry does not ask again
    logger = get_run_logger()
    verdict = decide(run.workspace, run.record, services=run.services)
    run.record.verdict = verdict
    RunBook(run.workspace.runs_folder).save(run.record)
    logger.info("the gate says %s: %s", verdict["outcome"], "; ".join(verdict.get("reasons", [])[:2]))
    if verdict["outcome"] == "same":
        return
    decision, by = ("promote" if verdict["outcome"] == "pass" else "keep"), "gate"
    if entry := in_office(run.workspace, run.record):  # an attempt that was killed here has promoted it
        decision, by = "promote", entry["by"]
    elif run.config.gate.approval:
        decision, by = ask(run, verdict)
    while decision == "promote":
        try:
            promote(run.workspace, run.record, verdict, by=by)
            logger.info("run %s is the champion now (decided by %s)", run.record.run_id, by)
            break
        except ChampionChangedError as error:  # while a person was asked, or at the same moment
            verdict = decide(run.workspace, run.record, services=run.services)
            logger.info("%s; against that one the gate says %s", error.what, verdict["outcome"])
            decision = "promote" if by == "gate" and verdict["outcome"] == "pass" else "keep"  # a person was asked about another
            by = "gate"
    run.record.verdict = {**verdict, "decision": decision, "decided_by": by}


def nothing_new(run: LiveRun) -> bool:
    """Whether a champion exists that has seen all that this run selected: only for runs that continue the last selection."""
    chosen = run.record.ref("select")
    if chosen is None or "select.parent=previous" not in run.record.resolved or not read_champion(run.workspace).get("champion"):
        return False
    return bool(run.workspace.store.manifest(chosen.key).metrics["new_documents"] == 0)


def clear_up(workspace: Workspace, config: PipelineConfig) -> None:
    """Close what killed runs left open: their records, their Prefect and MLflow runs; and write their reports."""
    dead = reconcile(workspace)
    for record in dead:
        get_run_logger().warning("run %s was killed; its record is closed now", record.run_id)
        if flow_run_id := record.prefect.get("flow_run_id"):
            _close_flow_run(UUID(flow_run_id))
        with _tracking(workspace, record):
            tell_of_killed(workspace, record)
        report(workspace, record)
    reconcile_tracking(workspace, config, dead)


def _close_flow_run(flow_run_id: UUID) -> None:
    with (
        get_client(sync_client=True) as client,
        contextlib.suppress(ObjectNotFound),
    ):  # another server's, or a database since deleted
        found = client.read_flow_run(flow_run_id)
        if found.state and not found.state.is_final():
            client.set_flow_run_state(flow_run_id, Crashed(message="its process was killed"), force=True)


def _open(workspace: Workspace, config: PipelineConfig, options: RunOptions) -> LiveRun:
    """Open a new record, or go on with an old one: when asked to, and when Prefect retries this flow run."""
    book = RunBook(workspace.runs_folder)
    if known := book.load(options.resume) if options.resume else _record_of_this_flow_run(book):
        options = RunOptions.model_validate_json(known.prefect.get("options", "{}"))
    chosen = options.selection()
    if known:
        record = resume_run(workspace, known.run_id)
        force = {name for name in chosen.force if record.stage(name).state != "made"}
    else:
        parent = book.load(options.parent).run_id if options.parent else ""
        record = open_run(workspace, config, parent=parent, stages=chosen.stages)
        force = set(chosen.force)
    record.prefect = {"flow_run_id": flow_run.get_id() or "", "url": _address(), "options": options.model_dump_json()}
    book.save(record)
    _name_flow_run(record)
    resolved = PipelineConfig.model_validate(record.config)
    services = make_services(resolved, workspace, record, adaptive=not options.recorded)
    return LiveRun(workspace, record, resolved, services, wanted=chosen.stages, force=force, wait=options.wait)


def _supply(run: LiveRun, options: RunOptions) -> None:
    """Give a new run the stages that it takes from earlier ones as they are."""
    if len(run.record.attempts) > 1:
        return
    if (chosen := options.selection()).supplied:
        supply(run.workspace, run.record, chosen, lender=options.parent)
    if options.recorded:
        supply_recorded(run.workspace, run.record, options.recorded)


def _record_of_this_flow_run(book: RunBook) -> RunRecord | None:
    mine = flow_run.get_id()
    if not mine or int(flow_run.get_run_count() or 0) <= 1:
        return None
    return next((record for record in reversed(list(book.all())) if record.prefect.get("flow_run_id") == mine), None)


def _address() -> str:
    """The flow run's page; "" for an embedded server, which has none and ends with this process."""
    if os.environ.get(EMBEDDED):
        return ""
    base = shown(PREFECT_UI_URL.value() or str(PREFECT_API_URL.value() or "").removesuffix("/api"))
    return f"{base}/runs/flow-run/{flow_run.get_id()}" if base else ""


def _name_flow_run(record: RunRecord) -> None:
    """Name the flow run as its record, so that one can be found from the other."""
    with get_client(sync_client=True) as client:
        client.update_flow_run(UUID(flow_run.get_id()), name=f"{record.pipeline} {record.run_id}")
