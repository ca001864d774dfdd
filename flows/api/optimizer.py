"""The verbs: data, search, training, a look at it, validation. Each is a run of the pipeline."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from flows.api import settings as asked
from flows.api.jobs import Job, find, result_of, start, stop
from flows.api.models import made_by, run_of_model
from flows.api.monitor import MONITORED, look
from flows.api.results import Monitored, Optimized, PreparedData, Training, Validated
from flows.api.scores import VALIDATION, validated
from flows.api.words import count, known, number, several
from pipeline_lib.errors import ConfigError, NotFoundError
from pipeline_lib.memory.keep import store_of
from pipeline_lib.memory.record import remembered
from pipeline_lib.memory.store import MemoryStore
from pipeline_lib.workspace.artifact import Artifact
from pipeline_lib.workspace.runs import RunRecord
from pipeline_lib.workspace.workspace import Workspace

OPTIMIZATION = ("validation_loss", "training_speed", "memory_efficiency")


class LLMTrainingOptimizer:
    """Data, search, training and validation of a language model, wiser with every run.

    Args of `__init__`:
        memory_store: what past runs taught; None: the workspace's own. Every run ends up in both.
        model_type: transformer, moe, recurrent or convolutional.
        embedding_model: folder of a sentence-embedding model with which goals are compared; None: hashed n-grams.
        optimization_strategy: speed, balanced or quality.
        max_training_resources: `gpu_memory` ("16GB"), `max_time` ("48h"), `max_cost` and `price_per_hour` (100.0), `currency`.
        workspace: folder of artifacts and runs; None: $MILLRACE_HOME, else ./workspace.
        settings: further settings of the pipeline by their dotted names; they go before everything else.
        goal: what the model is for, in words; found again by recall.

    Raises:
        ConfigError: a name is unknown (the nearest is told) or a size cannot be read.
    """

    def __init__(
        self,
        memory_store: MemoryStore | None = None,
        *,
        model_type: str = "transformer",
        embedding_model: Path | str | None = None,
        optimization_strategy: str = "balanced",
        max_training_resources: Mapping[str, Any] | None = None,
        workspace: Path | str | None = None,
        settings: Mapping[str, Any] | None = None,
        goal: str = "",
    ) -> None:
        self.family = asked.MODEL_TYPES[known(model_type, asked.MODEL_TYPES, "model_type")]
        self.size = "small"
        self.strategy = known(optimization_strategy, asked.STRATEGIES, "optimization_strategy")
        limits, notes = asked.resources(max_training_resources or {})
        self.notes = tuple(notes)
        self.settings: dict[str, Any] = {"name": "optimizer", "goal": goal, **limits}  # by what the verbs were asked
        self.own = dict(settings or {})
        self.files: list[Path] = []  # that a run may read
        self.workspace = Workspace.open(workspace)
        self.store = store_of(self.workspace) if memory_store is None else memory_store
        if embedding_model:
            self.store = MemoryStore(replace(self.store.config, embedding_model=str(embedding_model)))
        self._jobs: dict[str, Job] = {}

    async def prepare_training_data(
        self,
        data_sources: Sequence[str | Path | Mapping[str, Any]] = ("machine",),
        selection_criteria: Mapping[str, Any] | None = None,
        target_size: int | str | None = None,
    ) -> PreparedData:
        """Read, score, deduplicate, choose and pack.

        Args:
            data_sources: folders, files, globs, `machine` (the text that is on this machine), or mappings of source settings.
            selection_criteria: `quality_threshold` (0 to 1), `diversity_score` (weight of diversity against quality, 0 to 1),
                `recency_weight` (0 to 1; a half: a document of a year ago counts half), `domain_balance` (whether small domains
                get more than their share).
            target_size: documents (10_000), or tokens ("5M tokens"); None: everything that is good enough.

        Raises:
            ConfigError: a criterion is unknown or a size cannot be read.
            MillraceError: what the run had to tell.
        """
        self.settings |= asked.selection(selection_criteria or {}) | asked.target(target_size)
        self.read_from(data_sources)
        record = await self._run("run", "--config", "CONFIG", "--until", "fill_gaps")
        chosen, packed = self._output(record, "select"), self._output(record, "fill_gaps")
        domains = chosen.details["shares"]["domain"]
        return PreparedData(
            record.run_id, record.report, self.notes,
            total_examples=int(chosen.manifest.metrics["train_documents"]),
            total_tokens=int(packed.details["tokens"]["train"]),
            quality_score=float(chosen.manifest.metrics["mean_quality"]),
            diversity_score=float(chosen.manifest.metrics["diversity"]),
            domains={name: int(told["documents"][-1]) for name, told in domains.items()},
        )  # fmt: skip

    async def optimize_hyperparameters(
        self,
        model_config: Mapping[str, Any] | None = None,
        optimization_metrics: Sequence[str] = ("validation_loss",),
        max_trials: int = 4,
    ) -> Optimized:
        """Measure this machine, search around the scaling law's values, plan.

        Args:
            model_config: `model_size` (small, medium, large), `architecture` (as `model_type`), `base_learning_rate`,
                `batch_size_range` ([least, most] sequences in a step), `start` (a checkpoint folder, or `champion`).
            optimization_metrics: validation_loss, training_speed, memory_efficiency. Trials are compared by loss; the first
                named decides the profile by which the machine is used.
            max_trials: trials at most; the window may allow fewer.

        Raises: as `prepare_training_data`.
        """
        wanted = [known(name, OPTIMIZATION, "optimization_metrics") for name in several(optimization_metrics)]
        self._model(model_config or {})
        self.settings |= {"tune.trials": count(max_trials, "max_trials"), "plan.profile": asked.profile(wanted)}
        record = await self._run("run", "--config", "CONFIG", "--until", "plan")
        tuned, plan = self._output(record, "tune").details, self._output(record, "plan").details
        best = {
            name: v for name, v in tuned["best"].items() if name not in {"dev_loss", "trial"} and isinstance(v, int | float | str)
        }
        planned = ("learning_rate", "batch_sequences", "micro_batch", "precision", "steps", "profile")
        measured = {
            "validation_loss": tuned["best"].get("dev_loss"),
            "training_speed": plan.get("tokens_per_second"),
            "memory_efficiency": plan["promises"]["peak_memory_bytes"]["value"],
        }
        return Optimized(
            record.run_id, record.report, self.notes,
            optimal_config={**best, **{name: plan[name] for name in planned if name in plan}},
            best_metrics={name: None if (value := measured[name]) is None else float(value) for name in wanted},
            trials=sum(tuned["trials"].values()),
            gain=float(tuned["gain"]),
        )  # fmt: skip

    async def train(self, model_config: Mapping[str, Any] | None = None, *, from_checkpoint: str = "") -> Training:
        """Start a training and return at once; it goes on when this process ends. What the verbs before made is reused.

        Args:
            model_config: as in `optimize_hyperparameters`, where that was not called.
            from_checkpoint: `RUN@STEP`, or a run that stopped: go on from there.

        Raises:
            ConfigError: see `optimize_hyperparameters`.
        """
        self._model(model_config or {})
        if from_checkpoint:
            job = self._start("train", "--from" if "@" in from_checkpoint else "--resume", from_checkpoint)
        else:
            job = self._start("run", "--config", "CONFIG")
        self._jobs[job.id] = job
        return Training("", id=job.id, notes=self.notes)

    async def monitor_training(self, training_id: str, metrics: Sequence[str] = ("loss", "estimated_completion")) -> Monitored:
        """Look at a training that was started here, in another process, or has ended.

        Args:
            training_id: `Training.id`.
            metrics: loss, accuracy (share of dev tokens predicted, at the last evaluation), learning_rate, training_speed,
                resource_usage, estimated_completion.

        Raises:
            NotFoundError: there is no such training; names the nearest.
            ConfigError: a metric is unknown.
        """
        wanted = [known(name, MONITORED, "metrics") for name in several(metrics)]
        return look(self.workspace, self._job(training_id), wanted, rows=self.store.config.hot_memory_size)

    async def wait(self, training_id: str) -> Training:
        """Wait for a training's end.

        Raises:
            NotFoundError: there is no such training.
            MillraceError: what the run had to tell.
        """
        job = self._job(training_id)
        record = await result_of(self.workspace, job)
        self._remember(record)
        return made_by(self.workspace, record, job.id)

    async def stop(self, training_id: str) -> Training:
        """Stop a training as Ctrl-C does: what it has learned is saved, `train(from_checkpoint=RUN)` goes on.

        Returns:
            The training; its notes say where it did not listen and was ended by force.

        Raises:
            NotFoundError: there is no such training.
        """
        job = self._job(training_id)
        how = await asyncio.to_thread(stop, job)
        record = job.record(self.workspace)
        if record is None:
            return Training("", id=job.id, state="cancelled", notes=(*how, "it had not opened a run yet"))
        ended = made_by(self.workspace, record, job.id)
        return replace(ended, state="killed" if ended.state == "running" else ended.state, notes=how)

    async def validate_model(
        self,
        model_path: Path | str = "latest",
        validation_data: Mapping[str, Path | str] | None = None,
        validation_metrics: Sequence[str] = ("accuracy",),
    ) -> Validated:
        """Score a model on a person's own files and on built-in suites, in a run of its own.

        Args:
            model_path: a run's id, `latest`, or the folder of a model that this workspace trained.
            validation_data: category → file (pipeline_lib/validation/README.md has the form of a line).
            validation_metrics: accuracy, factuality, earth_grounding, grammar, syntax, reasoning.

        Raises:
            NotFoundError: there is no such file, or the model is not one of this workspace.
            ConfigError: a metric is unknown, or accuracy has nothing to be measured on.
            MillraceError: what the run had to tell.
        """
        wanted = [known(name, VALIDATION, "validation_metrics") for name in several(validation_metrics)]
        files = {name: Path(path).expanduser().absolute() for name, path in (validation_data or {}).items()}
        if gone := [path for path in files.values() if not path.exists()]:
            raise NotFoundError("there is no such file", where=str(gone[0]), fix="correct validation_data")
        if len({path.stem for path in files.values()}) < len(files):
            raise ConfigError(
                "two files have one name: their scores could not be told apart", where="validation_data", fix="rename one of them"
            )
        if "accuracy" in wanted and not files:
            raise ConfigError(
                "accuracy needs files to measure it on", where="validation_data", fix='{"general": "general.jsonl"}'
            )
        parent = run_of_model(self.workspace, model_path)
        words = [word for path in files.values() for word in ("--file", str(path))]
        words += [word for suite in sorted({VALIDATION[name] for name in wanted} - {""}) for word in ("--suite", suite)]
        record = await self._run("score", parent.run_id, *words, files=list(files.values()))
        return validated(self._output(record, "validate"), record, files, wanted)

    def read_from(self, data_sources: Sequence[str | Path | Mapping[str, Any]], **more: Any) -> None:
        """Name what is read from now on; `more` are further settings of every source."""
        named = [asked.source(source, at) for at, source in enumerate(several(data_sources))]
        self.settings["ingest.sources"] = [{**row, **more} for row, _ in named]
        self.files += [path for _, path in named if path]

    def start_from(self, model: str) -> None:
        """Go on from a checkpoint's folder, or from the workspace's `champion`."""
        self.settings["model.start"] = model
        if Path(model).is_dir():
            self.files.append(Path(model))

    def config(self) -> dict[str, Any]:
        """The pipeline that the next verb runs: settings by their dotted names."""
        return {"preset": asked.preset(self.family, self.strategy, self.size), **self.settings, **self.own}

    def _start(self, *words: str, files: Sequence[Path] = ()) -> Job:
        config = asked.as_yaml(self.config()) if "CONFIG" in words else ""
        return start(self.workspace, words, files=[*self.files, *files], config=config)

    async def _run(self, *words: str, files: Sequence[Path] = ()) -> RunRecord:
        record = await result_of(self.workspace, self._start(*words, files=files))
        self._remember(record)
        return record

    def _remember(self, record: RunRecord) -> None:
        """The workspace's own memory is written by the run itself."""
        if self.store.root != self.workspace.root / "memory":
            self.store.add(remembered(record, self.workspace))
            self.store.tidy()

    def _job(self, training_id: str) -> Job:
        return self._jobs.get(str(training_id)) or find(self.workspace, str(training_id))

    def _output(self, record: RunRecord, stage: str) -> Artifact:
        ref = record.ref(stage)
        if ref is None:
            raise NotFoundError(f"run {record.run_id} has no {stage}", fix=f"`millrace show {record.run_id}` says why")
        return self.workspace.artifact(ref.key)

    def _model(self, told: Mapping[str, Any]) -> None:
        told = {known(name, asked.MODEL, "model_config"): value for name, value in told.items()}
        if "model_size" in told:
            self.size = known(str(told["model_size"]), asked.SIZES, "model_config.model_size")
        if "architecture" in told:
            self.family = asked.MODEL_TYPES[known(str(told["architecture"]), asked.MODEL_TYPES, "model_config.architecture")]
        if "start" in told:
            self.start_from(str(told["start"]))
        if "base_learning_rate" in told:
            self.settings["train.learning_rate"] = number(told["base_learning_rate"], "model_config.base_learning_rate")
        if "batch_size_range" in told:
            preset = asked.preset(self.family, self.strategy, self.size)
            self.settings |= asked.batches(told["batch_size_range"], preset, self.own)
