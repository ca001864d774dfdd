"""A run from start to end, without any server: open the record, step through the table of stages, close the record.

Flows call the same functions (`open_run`, `step`, `close_run`) from Prefect tasks; `run_plain` is the loop without Prefect. Which
stages run is a `selection`; what comes before them is supplied by an earlier run (`supply`), recorded stages also by a file.
"""

from __future__ import annotations

import contextlib
import difflib
import signal
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from pipeline_lib.config.pipeline import PipelineConfig
from pipeline_lib.config.window import deadline
from pipeline_lib.errors import ConfigError, MillraceError, NotFoundError, StoppedError
from pipeline_lib.memory.keep import remember
from pipeline_lib.planning.graded import grade, slowed_down
from pipeline_lib.planning.replay import course_of, exported_course
from pipeline_lib.possible import check_possible
from pipeline_lib.secrets import hide_passwords, mask, told
from pipeline_lib.stages import BY_NAME, STAGES
from pipeline_lib.workspace.artifact import ArtifactRef
from pipeline_lib.workspace.features import features_of
from pipeline_lib.workspace.identity import fingerprint_of
from pipeline_lib.workspace.machine import machine_identity
from pipeline_lib.workspace.recorded import import_recorded
from pipeline_lib.workspace.recover import reconcile, resume_run
from pipeline_lib.workspace.resolve import resolve
from pipeline_lib.workspace.runs import RunBook, RunRecord, StageRecord, new_run_id, this_attempt
from pipeline_lib.workspace.services import Services
from pipeline_lib.workspace.stage import execute
from pipeline_lib.workspace.workspace import Workspace

__all__ = [
    "RECORDED",
    "Selection",
    "close_run",
    "open_run",
    "reconcile",
    "resume_run",
    "run_plain",
    "selection",
    "step",
    "supply",
    "supply_recorded",
]

RECORDED = tuple(stage.name for stage in STAGES if stage.kind == "recorded")


@dataclass(frozen=True)
class Selection:
    """Which stages a run goes through, which earlier ones it takes as they are, and which it makes again."""

    stages: tuple[str, ...]
    supplied: tuple[str, ...]
    force: frozenset[str]


def selection(
    *, from_stage: str = "", only: str = "", until: str = "", force: bool | Collection[str] = (), recorded: bool = False
) -> Selection:
    """What `--from`, `--only`, `--until`, `--force` and `--recorded` mean together.

    Args:
        from_stage: start here; earlier stages are supplied by an earlier run. Forces nothing by itself.
        only: this stage alone, on supplied inputs.
        until: stop after this stage.
        force: True: make every selected stage again; or the names of the stages to make again.
        recorded: calibrate, tune and plan are supplied too.

    Raises:
        ConfigError: a name is unknown, or the choice contradicts itself.
    """
    names = [stage.name for stage in STAGES]
    forced = () if isinstance(force, bool) else tuple(force)
    for option, value in [("--from", from_stage), ("--only", only), ("--until", until), *(("--force", name) for name in forced)]:
        if value and value not in names:
            near = difflib.get_close_matches(value, names, 1)
            fix = f"did you mean {near[0]}?" if near else f"stages: {', '.join(names)}"
            raise ConfigError(f"there is no stage {value!r}", where=option, fix=fix)
    if only and (from_stage or until):
        raise ConfigError("--only is one stage; --from and --until are a range", fix="use one or the other")
    first = names.index(only or from_stage) if only or from_stage else 0
    last = names.index(only or until) if only or until else len(names) - 1
    if last < first:
        raise ConfigError(f"{until} comes before {from_stage}", where="--from, --until", fix="the order is: " + ", ".join(names))
    asked = names[first : last + 1]
    stages = tuple(name for name in asked if not (recorded and name in RECORDED))
    if not stages:
        raise ConfigError(f"--recorded supplies {', '.join(asked)}; nothing is left to run", where="--recorded")
    if outside := [name for name in forced if name not in stages]:
        raise ConfigError(
            f"{outside[0]} is not among the stages that run", where="--force", fix=f"these run: {', '.join(stages)}"
        )
    return Selection(stages, tuple(names[:first]), frozenset(stages if force is True else forced))


def supply(workspace: Workspace, record: RunRecord, chosen: Selection, *, lender: str = "") -> None:
    """Take the stages before the selection as they are: from `lender`, or from the newest run whose outputs are intact.

    All come from one run, so that they fit each other.

    Raises:
        NotFoundError: no run has what is needed.
    """
    _lend(workspace, record, lent(workspace, chosen, lender=lender, besides=record.run_id))


def lent(workspace: Workspace, chosen: Selection, *, lender: str = "", besides: str = "") -> dict[str, ArtifactRef]:
    """What `supply` would take, without taking it; `besides`: a run that cannot lend.

    Raises:
        NotFoundError: no run has what is needed.
    """
    needed = {name for stage in chosen.stages for name in BY_NAME[stage].reads} & set(chosen.supplied)
    book = RunBook(workspace.runs_folder)
    candidates: Sequence[RunRecord] = [book.load(lender)] if lender else list(reversed(list(book.all())))
    reason = "no earlier run is known"
    for candidate in candidates:
        refs = {name: ref for name in chosen.supplied if (ref := candidate.ref(name))}
        if candidate.run_id == besides:
            continue
        if missing := sorted(needed - refs.keys()):
            reason = f"run {candidate.run_id} has no finished {missing[0]}"
        elif gone := _not_intact(workspace, {name: refs[name] for name in needed}):
            reason = f"run {candidate.run_id}: {gone}"
        else:
            return refs
    raise NotFoundError(
        reason, where=f"inputs of {chosen.stages[0]}", fix="run without --from and --only: what is intact is reused"
    )


def supply_recorded(workspace: Workspace, record: RunRecord, source: str) -> None:
    """Take the outputs of calibrate, tune and plan from an earlier run, or from a file (`millrace show RUN --recorded`).

    The run then needs `services.adaptive = False`: training follows the plan to the step, and makes the other run's re-plans,
    which go into the record (`follows`), at the steps at which that one made them.

    Raises:
        NotFoundError: no such run, or it did not finish these stages.
        DamagedError, ConfigError: the file is not what it should be.
    """
    if Path(source).suffix == ".json":
        record.follows = exported_course(Path(source))
        _lend(workspace, record, import_recorded(workspace, Path(source), RECORDED))
    else:
        record.follows = course_of(workspace, RunBook(workspace.runs_folder).load(source))
        _lend(workspace, record, recorded_of(workspace, source))


def recorded_of(workspace: Workspace, source: str) -> dict[str, ArtifactRef]:
    """The outputs of calibrate, tune and plan of a run, if they are intact.

    Raises:
        NotFoundError: no such run, or it did not finish these stages, or they are not intact.
    """
    lender = RunBook(workspace.runs_folder).load(source)
    refs = {name: ref for name in RECORDED if (ref := lender.ref(name))}
    if missing := [name for name in RECORDED if name not in refs]:
        raise NotFoundError(f"run {lender.run_id} has no finished {missing[0]}", where="--recorded", fix="name a run that has")
    if gone := _not_intact(workspace, refs):
        raise NotFoundError(f"run {lender.run_id}: {gone}", where="--recorded", fix="name another run")
    return refs


def _not_intact(workspace: Workspace, refs: dict[str, ArtifactRef]) -> str:
    there = workspace.use(*(ref.key for ref in refs.values()))
    for name, ref in refs.items():
        if ref.key not in there:
            return f"its {name} was removed"
        try:
            damages = workspace.store.artifact(ref.key).damages()
        except MillraceError as error:
            return f"its {name} is damaged ({error.what})"
        if damages:
            return f"its {name} is damaged ({'; '.join(damages.values())})"
    return ""


def _lend(workspace: Workspace, record: RunRecord, refs: dict[str, ArtifactRef]) -> None:
    for name, ref in refs.items():
        record.stages[name] = StageRecord(state="supplied", ref=replace(ref, reused=True).to_json(), attempt=len(record.attempts))
    RunBook(workspace.runs_folder).save(record)


def open_run(
    workspace: Workspace,
    config: PipelineConfig,
    *,
    parent: str = "",
    started: datetime | None = None,
    stages: Collection[str] = (),
) -> RunRecord:
    """Start a run of these stages: mutable names are resolved, the deadline is fixed, the record is written.

    Raises:
        ConfigError: one of the stages could not be done here, whatever comes before it (`possible.py`).
    """
    started = started or datetime.now(UTC)
    resolved_config, resolved = resolve(config, workspace)
    check_possible(resolved_config, stages)
    record = RunRecord(
        run_id=new_run_id(),
        pipeline=config.name,
        goal=config.goal,
        config=resolved_config.model_dump(mode="json"),
        config_digest=fingerprint_of(resolved_config.model_dump(mode="json")),
        resolved=resolved,
        parent=parent,
        started=started.isoformat(),
        deadline=deadline(config.resources, started).isoformat(),
        attempts=[this_attempt()],
        machine=machine_identity(),
    )
    book = RunBook(workspace.runs_folder)
    book.hold(record.run_id)
    book.save(record)
    return record


def step(
    workspace: Workspace,
    record: RunRecord,
    name: str,
    *,
    services: Services,
    force: bool = False,
    wait: bool = True,
) -> ArtifactRef:
    """Reuse or run one stage of a run and write what happened into the record.

    Raises:
        MillraceError: whatever the stage has to tell. The record says `failed`, or `cancelled` when it was stopped.
    """
    book, stage, entry = RunBook(workspace.runs_folder), BY_NAME[name], record.stage(name)
    config = PipelineConfig.model_validate(record.config)
    inputs = {}
    for needed in stage.reads:
        ref = record.ref(needed)
        if ref is None:
            raise NotFoundError(f"{name} needs {needed}, which has not run", fix=f"run from {needed} on")
        inputs[needed] = ref
    entry.state, entry.ref, entry.attempt, entry.error = "running", None, len(record.attempts), ""
    book.save(record)
    begin = time.monotonic()
    timed = replace(
        services,
        started=datetime.fromisoformat(record.window_from or record.started),
        deadline=datetime.fromisoformat(record.deadline) if record.deadline else None,
        follow=None if record.follows is None else tuple(record.follows),
    )
    try:
        ref = execute(workspace, stage, config, inputs, services=timed, force=force, wait=wait)
    except BaseException as error:
        entry.state = outcome_of(error)
        mask(error)
        entry.error = told(error)
        entry.seconds = round(time.monotonic() - begin, 3)
        book.save(record)
        raise
    entry.state, entry.ref = "reused" if ref.reused else "made", ref.to_json()
    entry.seconds = round(time.monotonic() - begin, 3)
    book.save(record)
    return ref


def outcome_of(error: BaseException) -> str:
    """`failed`, or `cancelled` for what is no error: Ctrl-C, SIGTERM, a cancelled flow (`BaseException` only), a wished stop."""
    return "failed" if isinstance(error, Exception) and not isinstance(error, StoppedError) else "cancelled"


def close_run(workspace: Workspace, record: RunRecord, outcome: str, *, error: str = "") -> RunRecord:
    """End a run with its true outcome; note what memory will recall it by and how the plan's promises were kept."""
    record.outcome, record.error, record.ended = outcome, hide_passwords(error), datetime.now(UTC).isoformat()
    if record.attempts:
        record.attempts[-1].ended, record.attempts[-1].state = record.ended, outcome
    record.features, record.graded = features_of(workspace, record), grade(workspace, record)
    if slowed_down(record.graded):  # its speed says what else was at work then, not what this machine does
        record.features.pop("tokens_per_second", None)
    remember(workspace, record)
    book = RunBook(workspace.runs_folder)
    book.save(record)
    book.let_go(record.run_id)
    return record


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """SIGTERM ends the work inside like Ctrl-C does, so that the record is closed (main thread only)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt("SIGTERM")

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def run_plain(
    workspace: Workspace,
    config: PipelineConfig,
    *,
    services: Services | None = None,
    from_stage: str = "",
    only: str = "",
    until: str = "",
    force: bool | Collection[str] = (),
    recorded: str = "",
    parent: str = "",
    resume: str = "",
    wait: bool = True,
) -> RunRecord:
    """The whole pipeline as a plain loop, for tests, benchmarks and people's own scripts.

    Args:
        workspace: where everything lies.
        config: the configuration; not looked at when `resume` is given.
        services: what is injected into the stages.
        from_stage: see `selection`.
        only: see `selection`.
        until: see `selection`.
        force: see `selection`.
        recorded: a run or file that supplies calibrate, tune and plan.
        parent: the run that this one repeats; it supplies what comes before the selection.
        resume: continue this run as its next attempt, instead of opening a new one.
        wait: see `step`.

    Raises:
        MillraceError: what a stage or the selection had to tell; the record is closed with the true outcome.
    """
    services = services or Services()
    chosen = selection(from_stage=from_stage, only=only, until=until, force=force, recorded=bool(recorded))
    reconcile(workspace)
    record = resume_run(workspace, resume) if resume else open_run(workspace, config, parent=parent, stages=chosen.stages)
    try:
        with _stoppable():
            if chosen.supplied:
                supply(workspace, record, chosen, lender=parent)
            if recorded:
                supply_recorded(workspace, record, recorded)
                services = replace(services, adaptive=False)
            for name in chosen.stages:
                step(workspace, record, name, services=services, force=name in chosen.force, wait=wait)
    except BaseException as error:
        close_run(workspace, record, outcome_of(error), error=told(error))
        raise
    return close_run(workspace, record, "completed")
