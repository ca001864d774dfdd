"""The stage `train`: follow the plan on the packed cache, resumable at any instant, and publish the model."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pipeline_lib.config.choice import taken
from pipeline_lib.config.model import ModelConfig, TrainConfig
from pipeline_lib.errors import RefusedError
from pipeline_lib.hardware.machine import peak_flops, peak_memory_bytes, release_memory, reset_peak_memory, training_device
from pipeline_lib.packing.reader import PackedDataset
from pipeline_lib.training.callbacks import DevLoss, Saver, Stop, Tell, Window
from pipeline_lib.training.checkpoints import (
    Checkpoint,
    Retention,
    checkpoint_at,
    committed,
    kept,
    newest,
    publish_checkpoint,
    record_of,
)
from pipeline_lib.training.data import Batch, spread
from pipeline_lib.training.evaluate import DEV_SEQUENCES
from pipeline_lib.training.export import publish_model
from pipeline_lib.training.forks import check_fits, reference_of, source_of
from pipeline_lib.training.journal import Journal, publish
from pipeline_lib.training.keeping import Keeper
from pipeline_lib.training.launch import launch
from pipeline_lib.training.learning import Learning
from pipeline_lib.training.loop import Session, fit
from pipeline_lib.training.model import adapt, build_model, count_parameters, flops_per_token
from pipeline_lib.training.monitor import Monitor
from pipeline_lib.training.origins import Origins
from pipeline_lib.training.plan import TrainingPlan
from pipeline_lib.training.recovery import Memory, Recovery, RollBack
from pipeline_lib.training.samples import Prompts
from pipeline_lib.training.saving import CheckpointWriter, restore
from pipeline_lib.training.start import special_ids
from pipeline_lib.training.watch import Watch, evaluations_in
from pipeline_lib.training.world import check_share, world
from pipeline_lib.workspace.artifact import SummaryTable
from pipeline_lib.workspace.identity import fingerprint_of
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
        check_share(TrainingPlan.from_details(run.input("plan").details), train.processes, train.parallel, train.optimizer)
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
    # 1. What the plan and the data say.
    planned, packed, here = run.input("plan").details, run.input("fill_gaps").details, world()
    plan = TrainingPlan.from_details(planned)
    if plan.threads:
        torch.set_num_threads(max(1, plan.threads // here.size))
    reset_peak_memory(training_device())  # of a GPU: calibration and trials ran in this process too
    data, dev_batches = _sides(run, plan)
    length, vocabulary = int(packed["sequence_length"]), int(packed["vocabulary_size"])
    data_digest = fingerprint_of({name: run.input(name).manifest.tables for name in ("fill_gaps", "pack")})

    # 2. The model, tested before it costs anything.
    tokenizer_files = run.input("pack").files("tokenizer")
    tokenizer_json = next((path for path in tokenizer_files if path.name == "tokenizer.json"), None)
    plain = build_model(
        model, vocabulary_size=vocabulary, sequence_length=length, seed=run.seed, tokenizer_file=tokenizer_json,
        store_lookup=run.workspace.store.artifact, special_ids=special_ids(packed),
    )  # fmt: skip
    net, merged = adapt(plain, train.lora)
    session = Session(net, plan, train, data, run.seed, run.keep("trainer"))

    # 3. Where an earlier attempt got to, or the run that this one goes on from.
    identity = {"data": data_digest, "tokenizer": run.input("pack").manifest.tables["tokenizer"]}
    checkpoints, memory = run.keep("checkpoints"), Memory(run.keep("trainer") / "recovery.json")
    found, source = _earlier(run, session, memory, identity)
    before = found or source
    journal = Journal(run.keep("journal"), session.step)
    event = _Events(run, journal, session)
    peak = peak_flops(session.device, plan.precision)
    flops = flops_per_token(net, length)

    # 4. What happens after every step.
    metrics = run.services.tracker.metrics
    prompts = Prompts.of(
        train.samples.prompts, tokenizer_json, end=packed["eos_id"], tokens=train.samples.tokens,
        seed=run.seed,
    )  # fmt: skip
    origins = Origins.of(run.workspace, run.input("fill_gaps"))
    watch = Watch(session, origins, prompts, journal, context=length, event=event, metrics=metrics)
    monitor = Monitor(
        session, sequence_length=length, flops_per_token=flops, peak=peak, event=event, rows=journal.rows,
        documents=watch.parts.documents,
    )  # fmt: skip
    dev_loss = DevLoss(session, dev_batches, metrics, watch.evaluated)
    plan_followed, services = {**planned, "follow": run.services.follow}, run.services
    controller = here.led(run.use("controller")(plan_followed, services.clock, services.deadline, services.adaptive))
    learning = Learning(session, lambda: dev_loss.curve, controller, event)
    if before:
        _resume(before, monitor, dev_loss, learning, event=event, controller=controller if found else None)
    growth = _Growth(data, event)
    retention = Retention(train.keep_checkpoints, train.milestone_every)
    writer = CheckpointWriter(checkpoints, identity=identity, retention=retention)

    recovery = Recovery(
        session, monitor, table=train.recovery.table(), memory=memory, checkpoints=checkpoints, wait=writer.wait,
        quarantine=run.workspace.quarantine_folder, notes=before.notes["recovery"] if before else None, event=event,
    )  # fmt: skip

    keeper = Keeper(
        session, writer, monitor=monitor, recovery=recovery, dev_loss=dev_loss, controller=controller,
        first=(watch.flush, monitor.look, recovery.look, growth.look), notes={"learning": learning.state},
        resumed_at=found.step if found else None,
    )  # fmt: skip
    tell = Tell(session, monitor, progress=run.progress, metrics=metrics, outlook=controller.outlook)
    callbacks = [
        *watch.callbacks, monitor, recovery, dev_loss, *learning.callbacks, Window(session, controller, event),
        Saver(session, keeper.save, keeper.check), tell, Stop(session, here.any(run.services.should_stop), keeper.save),
        *_extensions(),
    ]  # fmt: skip

    # 5. Train.
    with journal, writer:
        fit(session, callbacks)
        keeper.finish()

    if here.size > 1:
        return Outcome()

    # 6. Publish: model, last checkpoint, log.
    last = dev_loss.at_end()
    watch.flush()
    inputs = {name: dev_batches[0][name][:1].to(session.device) for name in ("input_ids", "position_ids")}
    folder, adapter = run.path("model", "config.json").parent, run.out / "adapter"
    publish_model(session.model, merged, tokenizer_files, inputs, folder=folder, adapter=adapter)
    _publish_checkpoints(run, checkpoints, retention)
    publish(run.keep("journal"), run.observed)
    return _outcome(
        session,
        monitor,
        dev_loss,
        last,
        flops=flops,
        length=length,
        vocabulary=vocabulary,
        start=model.start,
        evaluations=evaluations_in(run.keep("journal")),
    )


def _sides(run: StageRun, plan: TrainingPlan) -> tuple[PackedDataset, list[Batch]]:
    """What is learned from, and the dev sequences that every evaluation reads.

    Raises:
        RefusedError: one of the two is empty.
    """
    data, dev = open_side(run, "train"), open_side(run, "dev")
    if not len(data) or not len(dev):
        raise RefusedError(
            f"{len(data)} training and {len(dev)} dev sequences: nothing to learn from or to be judged by",
            where="stage train", fix="give the pipeline more text, or raise split.dev_share until dev has a document",
        )  # fmt: skip
    return data, spread(dev, DEV_SEQUENCES, plan.micro_batch)


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


def open_side(run: StageRun, side: str) -> PackedDataset:
    """The packed sequences of a side; a chunk that is damaged meanwhile is made again."""
    return PackedDataset.of(run.workspace, run.input("fill_gaps"), side)


class _Growth:
    """Says when a later selection has added to the cache; the training keeps its snapshot, which its plan was made for."""

    def __init__(self, data: PackedDataset, event: Callable[..., None]) -> None:
        self.data, self.event, self.told = data, event, 0

    def look(self) -> None:
        """Report each later era once."""
        eras = self.data.later_eras()
        for era in eras[self.told :]:
            self.event("cache_grew", era=era["era"], sequences=era["sequences"], tokens=era["tokens"])
        self.told = len(eras)


def _publish_checkpoints(run: StageRun, checkpoints: Path, retention: Retention) -> None:
    """The last one, promised; and beside it, to go on from, the others that are not kept for their newness alone."""
    *earlier, last = committed(checkpoints)
    publish_checkpoint(last, lambda name: run.path("checkpoints", name))
    reasons = kept([record for folder in (*earlier, last) if (record := record_of(folder))], retention)
    for folder in earlier:
        if reasons.get(int(folder.name.partition("-")[2]), "newest") != "newest":
            publish_checkpoint(folder, partial(_observed_checkpoint, run, folder.name))


def _observed_checkpoint(run: StageRun, folder: str, name: str) -> Path:
    return run.observed(f"checkpoints/{folder}/{name}")


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


def _outcome(
    session: Session,
    monitor: Monitor,
    dev_loss: DevLoss,
    last: float,
    *,
    flops: float,
    length: int,
    vocabulary: int,
    start: str,
    evaluations: Mapping[int, Mapping[str, Any]],
) -> Outcome:
    plan, rate = session.plan, monitor.tokens_per_second
    tokens = session.step * plan.batch_sequences * length
    first = dev_loss.curve[0][1]
    details: Mapping[str, Any] = {
        "steps": session.step,
        "dev_loss": last,
        "parameters": count_parameters(session.model),
        "vocabulary_size": vocabulary,
        "sequence_length": length,
        "tokens_seen": tokens,
        "start": start,
        "dev_curve": dev_loss.curve,
        "schedule": session.schedule.to_json(),
        "isolation": session.isolation.to_json(),
    }
    metrics = {
        "dev_loss": last,
        "first_dev_loss": first,
        "perplexity": math.exp(min(last, 700.0)),
        "dev_loss_of_uniform": last / math.log(vocabulary),
        "tokens_per_second": rate,
        "mfu": rate * flops / monitor.peak.flops,
        "mfu_peak_flops": monitor.peak.flops,
        "mfu_peak_source": monitor.peak.source,
        "steps": session.step,
        "epochs": session.step * plan.batch_sequences / len(session.data),
        "tokens": tokens,
        "skipped_steps": monitor.skipped,
        "peak_memory_bytes": peak_memory_bytes(session.device),
        "packing_leak": session.isolation.leak,
        "chunked_loss": int(session.objective.chunked),
    }
    rows = []
    for step, loss in _some(dev_loss.curve):
        told = evaluations.get(int(step), {})
        extra = [told.get(name, "") for name in ("perplexity", "accuracy", "worst_domain")]
        rows.append([int(step), round(loss, 4), round(loss / math.log(vocabulary), 3), *extra])
    columns = ("step", "dev loss", "share of ln(vocabulary)", "perplexity", "accuracy", "worst domain")
    summary = SummaryTable(columns, rows, f"Training: {session.step:,} steps")
    return Outcome(metrics=metrics, summary=summary, details=dict(details))


def _some(curve: list[list[float]], most: int = 10) -> list[list[float]]:
    """At most `most` points, first and last among them."""
    places = sorted({round(i * (len(curve) - 1) / (most - 1)) for i in range(most)})
    return [curve[place] for place in places]
