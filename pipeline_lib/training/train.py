"""The stage `train`: follow the plan on the packed cache, resumable at any instant, and publish the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from pipeline_lib.config.choice import taken
from pipeline_lib.config.model import ModelConfig, TrainConfig
from pipeline_lib.hardware.machine import peak_flops, release_memory, reset_peak_memory, training_device
from pipeline_lib.training.callbacks import DevLoss, Saver, Stop, Tell, Window
from pipeline_lib.training.checkpoints import Checkpoint, Retention, checkpoint_at, newest
from pipeline_lib.training.forks import check_fits, reference_of, source_of
from pipeline_lib.training.journal import Journal
from pipeline_lib.training.keeping import Keeper
from pipeline_lib.training.launch import launch
from pipeline_lib.training.learning import Learning
from pipeline_lib.training.loop import Session, fit
from pipeline_lib.training.material import Growth, Material
from pipeline_lib.training.model import adapt, build_model, flops_per_token
from pipeline_lib.training.monitor import Monitor
from pipeline_lib.training.origins import Origins
from pipeline_lib.training.plan import TrainingPlan
from pipeline_lib.training.recovery import Memory, Recovery, RollBack
from pipeline_lib.training.result import outcome_of, publish_training
from pipeline_lib.training.samples import Prompts
from pipeline_lib.training.saving import CheckpointWriter, restore
from pipeline_lib.training.start import special_ids
from pipeline_lib.training.watch import Watch
from pipeline_lib.training.world import check_share, world
from pipeline_lib.workspace.stage import Outcome, StageRun


def train(run: StageRun, *, train: TrainConfig, model: ModelConfig) -> Outcome:
    """Train, resume, recover, checkpoint, export. Rolling back is an attempt's end; the next one begins further back.

    Raises:
        StageFailedError: the plan cannot be followed, documents leak into each other, too many steps are not finite, or
            the exported model is not the trained one.
        DiskLowError: a checkpoint does not fit, and nothing is left to remove; the earlier ones are intact.
        StoppedError: a stop was asked for; a checkpoint of the step just done is saved.
        ConfigError: the model cannot be built, or cannot be trained by so many processes.
        RefusedError: there is nothing to learn from.
    """
    train, model = as_planned(run, train, model)
    if train.processes > 1:
        check_share(TrainingPlan.from_details(run.input("plan").details), train)
        launch(run, train=train, model=model)  # what it leaves is the last checkpoint; the rest is done here
    return train_rank(run, train=train, model=model)


def train_rank(run: StageRun, *, train: TrainConfig, model: ModelConfig) -> Outcome:
    """`train` in this process, which may be one of several (`world`): then what it leaves is the last checkpoint."""
    train, model = as_planned(run, train, model)
    while True:
        try:
            return _attempt(run, train, model)
        except RollBack as why:
            run.services.log(f"train: {why}")
        release_memory(training_device())


def as_planned(run: StageRun, train: TrainConfig, model: ModelConfig) -> tuple[TrainConfig, ModelConfig]:
    """The sections with what the search has chosen, as the plan says."""
    sections = taken(run.input("plan").details.get("chosen", {}), train=train, model=model)
    return sections["train"], sections["model"]


def _attempt(run: StageRun, train: TrainConfig, model: ModelConfig) -> Outcome:
    # 1. What is trained, on what, and where an earlier attempt got to, or the run that this one goes on from.
    here, material = world(), Material.of(run)
    if material.plan.threads:
        torch.set_num_threads(max(1, material.plan.threads // here.size))
    reset_peak_memory(training_device())  # of a GPU: calibration and trials ran in this process too
    session, merged = _session(run, train, model, material)
    checkpoints, memory = run.keep("checkpoints"), Memory(run.keep("trainer") / "recovery.json")
    found, source = _earlier(run, session, memory, material.identity)
    before = found or source
    journal = Journal(run.keep("journal"), session.step)
    event = _Events(run, journal, session)

    # 2. Who watches, and what follows from what is seen.
    watch, monitor = _watchers(run, session, material, journal, event)
    dev_loss = DevLoss(session, material.dev, run.services.tracker.metrics, watch.evaluated)
    services = run.services
    plan_followed = {**material.planned, "follow": services.follow}
    controller = here.led(run.use("controller")(plan_followed, services.clock, services.deadline, services.adaptive))
    learning = Learning(session, lambda: dev_loss.curve, controller, event)
    if before:
        _resume(before, monitor, dev_loss, learning, event=event, controller=controller if found else None)
    retention = Retention(train.keep_checkpoints, train.milestone_every)
    writer = CheckpointWriter(checkpoints, identity=material.identity, retention=retention)
    recovery = Recovery(
        session, monitor, dev_loss, table=train.recovery.table(), memory=memory, checkpoints=checkpoints, wait=writer.wait,
        quarantine=run.workspace.quarantine_folder, notes=before.notes["recovery"] if before else None, event=event,
        cures=material.planned.get("cures"),
    )  # fmt: skip
    keeper = Keeper(
        session, writer, monitor=monitor, recovery=recovery, dev_loss=dev_loss, controller=controller,
        first=(watch.flush, monitor.look, recovery.look, Growth(material.data, event).look), notes={"learning": learning.state},
        resumed_at=found.step if found else None,
    )  # fmt: skip

    # 3. Train: after every step, in this order.
    callbacks = [
        *watch.callbacks, monitor, recovery, dev_loss, *learning.callbacks, Window(session, controller, event),
        Saver(session, keeper.save, keeper.check),
        Tell(session, monitor, progress=run.progress, metrics=services.tracker.metrics, outlook=controller.outlook),
        Stop(session, here.any(services.should_stop), keeper.leave), *_extensions(),
    ]  # fmt: skip
    with journal, writer:
        fit(session, callbacks)
        keeper.finish()
    if here.size > 1:
        return Outcome()

    # 4. Publish.
    dev_loss.now()
    watch.flush()
    publish_training(run, session, merged, material, checkpoints=checkpoints, retention=retention)
    return outcome_of(session, monitor, dev_loss, material, start=model.start, log=run.keep("journal"))


def _session(run: StageRun, train: TrainConfig, model: ModelConfig, material: Material) -> tuple[Session, Callable[..., Any]]:
    """What is trained, tested before it costs anything; and what gives back the plain model afterwards."""
    plain = build_model(
        model, vocabulary_size=material.vocabulary, sequence_length=material.length, seed=run.seed,
        tokenizer_file=material.tokenizer_json, store_lookup=run.workspace.store.artifact,
        special_ids=special_ids(material.packed),
    )  # fmt: skip
    net, merged = adapt(plain, train.lora)
    return Session(net, material.plan, train, material.data, run.seed, run.keep("trainer")), merged


def _watchers(
    run: StageRun, session: Session, material: Material, journal: Journal, event: Callable[..., None]
) -> tuple[Watch, Monitor]:
    """What writes the log, and what looks at the numbers of every step."""
    config, length = session.config, material.length
    prompts = Prompts.of(
        config.samples.prompts, material.tokenizer_json, end=material.packed["eos_id"], tokens=config.samples.tokens,
        seed=run.seed,
    )  # fmt: skip
    origins = Origins.of(run.workspace, run.input("fill_gaps"))
    watch = Watch(session, origins, prompts, journal, context=length, event=event, metrics=run.services.tracker.metrics)
    monitor = Monitor(
        session, sequence_length=length, flops_per_token=flops_per_token(session.model, length),
        peak=peak_flops(session.device, session.plan.precision), event=event, rows=journal.rows,
        documents=watch.parts.documents,
    )  # fmt: skip
    return watch, monitor


def _earlier(
    run: StageRun, session: Session, memory: Memory, identity: Mapping[str, str]
) -> tuple[Checkpoint | None, Checkpoint | None]:
    """Bring the session to where an earlier attempt got to, or the run that this one goes on from: their checkpoints, or None."""
    checkpoints, plan = run.keep("checkpoints"), session.plan

    def look() -> str:
        memory.settle(checkpoints)
        found = newest(
            checkpoints, data_digest=identity["data"], plan=plan.to_json(), quarantine=run.workspace.quarantine_folder,
            event=run.event,
        )  # fmt: skip
        return found.folder.name if found else ""

    if name := session.world.first(look):
        found = checkpoint_at(checkpoints / name)
        restore(found, session)
        return found, None
    if source := source_of(run.workspace, session.config.parent):
        check_fits(source, identity)
        restore(source, session, schedule=plan.first_schedule())
    return None, source


class _Events:
    """Events go to the artifact's manifest and, with their step, into the table of events."""

    def __init__(self, run: StageRun, journal: Journal, session: Session) -> None:
        self.run, self.journal, self.session = run, journal, session

    def __call__(self, kind: str, **detail: Any) -> None:
        self.run.event(kind, **detail)
        step = int(detail.pop("step", self.session.step))
        self.journal.event(self.run.services.clock().isoformat(), step, kind, detail)


def _resume(
    before: Checkpoint, monitor: Monitor, dev_loss: DevLoss, learning: Learning, *, event: _Events, controller: Any
) -> None:
    """Take up what the checkpoint keeps of the callbacks. A fork (without a controller) has a window of its own."""
    monitor.restore(before.notes["monitor"])
    dev_loss.restore(before.notes["dev"])
    learning.restore(before.notes["learning"])
    if controller is None:
        event("forked", step=before.step, checkpoint=reference_of(before.record))
        return
    if state := before.observed.get("controller"):
        controller.restore(state)
    if monitor.session.finished:  # other processes did the steps: nothing is left to measure here
        monitor.rates = [float(before.observed.get("tokens_per_second", 0.0))]
    event("resumed", step=before.step, checkpoint=before.folder.name)


def _extensions() -> list[Any]:
    from pipeline_lib import extensions

    return [make() for make in extensions.extensions("callback").values()]
