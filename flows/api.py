"""The pipeline as a Python API, for scripts and notebooks.

```python
store = MemoryStore(Config(storage_path="memory"))
optimizer = LLMTrainingOptimizer(memory_store=store, model_type="transformer", optimization_strategy="balanced")
data = await optimizer.prepare_training_data(data_sources=["texts/"], target_size=10_000)
```
Every verb is a run of the command line in a process of its own (`flows/api_runs.py`): the same stages, artifacts, MLflow runs and
reports, found by `millrace runs`. What one verb made, the next one reuses.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import re
import statistics
import threading
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import psutil

from flows.api_results import Monitored, Optimized, PreparedData, Training, Validated
from flows.api_runs import Job, as_yaml, find, result_of, start, stop
from pipeline_lib.config.explain import nearest
from pipeline_lib.config.presets import amount_for, built_in, nested
from pipeline_lib.errors import ConfigError, NotFoundError
from pipeline_lib.memory.hot import Hot
from pipeline_lib.memory.keep import store_of
from pipeline_lib.memory.record import remembered
from pipeline_lib.memory.store import Config, MemoryStore
from pipeline_lib.metrics import training_log
from pipeline_lib.workspace.artifact import Artifact
from pipeline_lib.workspace.runs import RunBook, RunRecord
from pipeline_lib.workspace.workspace import Workspace

__all__ = ["Config", "FineTuner", "LLMTrainingOptimizer", "MemoryStore"]

T = TypeVar("T")

# What people call a kind of model → the family that stands for it.
MODEL_TYPES = {"transformer": "llama", "moe": "mixtral", "recurrent": "mamba", "convolutional": "lfm2"}
STRATEGIES = {"speed": "highspeed", "balanced": "quality", "quality": "bestaccuracy"}  # strategy → goal of a preset
SIZES = ("small", "medium", "large")
SELECTION = ("quality_threshold", "diversity_score", "recency_weight", "domain_balance")
RESOURCES = ("gpu_memory", "max_time", "max_cost", "price_per_hour", "currency")
MODEL = ("model_size", "architecture", "base_learning_rate", "batch_size_range", "start")
OPTIMIZATION = ("validation_loss", "training_speed", "memory_efficiency")
MONITORED = ("loss", "accuracy", "learning_rate", "training_speed", "resource_usage", "estimated_completion")
# Metric of a validation → built-in suite that measures it; accuracy: the mean over the files that were named.
VALIDATION = {
    "accuracy": "", "factuality": "knowledge", "earth_grounding": "earth", "grammar": "grammar", "syntax": "syntax",
    "reasoning": "zen",
}  # fmt: skip
_BYTES = {"b": 1.0, "kb": 1e3, "mb": 1e6, "gb": 1e9, "tb": 1e12, "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}
_HOURS = {"s": 1 / 3600, "m": 1 / 60, "min": 1 / 60, "h": 1.0, "d": 24.0, "w": 168.0}
_COUNTS = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9}
CONVERSATIONS = {"messages", "conversations", "prompt", "instruction", "question"}  # fields of `config.data.SourceConfig.records`
HALF_LIFE_DAYS = 365.0  # of a recency weight of a half


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
        self.family = MODEL_TYPES[_known(model_type, MODEL_TYPES, "model_type")]
        self.strategy = _known(optimization_strategy, STRATEGIES, "optimization_strategy")
        self.workspace = Workspace.open(workspace)
        self.store = store_of(self.workspace) if memory_store is None else memory_store
        if embedding_model:
            self.store = MemoryStore(replace(self.store.config, embedding_model=str(embedding_model)))
        self.notes: list[str] = []
        self._size = "small"
        self._files: list[Path] = []
        self._settings: dict[str, Any] = {"name": "optimizer", "goal": goal, **self._resources(max_training_resources or {})}
        self._own = dict(settings or {})

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
        criteria = {_known(name, SELECTION, "selection_criteria"): value for name, value in (selection_criteria or {}).items()}
        self._settings["ingest.sources"] = [self._source(source, at) for at, source in enumerate(data_sources)]
        self._settings |= _selection(criteria) | _target(target_size)
        record = await self._run("run", "--config", "CONFIG", "--until", "fill_gaps")
        chosen, packed = self._output(record, "select"), self._output(record, "fill_gaps")
        domains = chosen.details["shares"]["domain"]
        return PreparedData(
            record.run_id, record.report, self._told(),
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
            optimization_metrics: validation_loss, training_speed, memory_efficiency. Trials are compared by loss; the others
                decide the profile by which the machine is used.
            max_trials: trials at most; the window may allow fewer.

        Raises: as `prepare_training_data`.
        """
        wanted = [_known(name, OPTIMIZATION, "optimization_metrics") for name in optimization_metrics]
        self._model(model_config or {})
        self._settings |= {"tune.trials": int(max_trials), "plan.profile": _profile(wanted)}
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
            record.run_id, record.report, self._told(),
            optimal_config={**best, **{name: plan[name] for name in planned if name in plan}},
            best_metrics={name: _float(measured[name]) for name in wanted},
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
        if model_config is not None:
            self._model(model_config)
        if from_checkpoint:
            job = self._start("train", "--from" if "@" in from_checkpoint else "--resume", from_checkpoint)
        else:
            job = self._start("run", "--config", "CONFIG")
        self._jobs = {**getattr(self, "_jobs", {}), job.id: job}
        return Training("", id=job.id, notes=self._told())

    async def monitor_training(self, training_id: str, metrics: Sequence[str] = ("loss", "estimated_completion")) -> Monitored:
        """Look at a training that was started here, in another process, or has ended.

        Args:
            training_id: `Training.id`.
            metrics: loss, accuracy (measured by `validate_model` only: None here), learning_rate, training_speed,
                resource_usage, estimated_completion.

        Raises:
            NotFoundError: there is no such training; names the nearest.
            ConfigError: a metric is unknown.
        """
        wanted = [_known(name, MONITORED, "metrics") for name in metrics]
        job = self._job(training_id)
        record = job.record(self.workspace)
        if record is None:
            state = "starting" if job.alive() else "failed"
            return Monitored("", id=job.id, state=state, notes=() if state == "starting" else (str(job.failure()),))
        hot = Hot(record, lambda run, table: training_log(self.workspace, run, table), self.store.config.hot_memory_size)
        steps = hot.steps()
        last, planned = (steps[-1] if steps else {}), self._planned_steps(record)
        done = min(last.get("step", 0) / planned, 1.0) if planned else 0.0
        over = record.outcome != "running"
        known = {"loss": last.get("loss"), "learning_rate": last.get("lr"), "training_speed": last.get("tokens_per_second")}
        current = {name: _float(known.get(name)) for name in wanted if name not in {"resource_usage", "estimated_completion"}}
        return Monitored(
            record.run_id, record.report, ("accuracy is measured by validate_model",) if "accuracy" in wanted else (),
            id=job.id,
            state="killed" if not over and not job.alive() else record.outcome,
            stage=next((name for name, stage in record.stages.items() if stage.state == "running"), ""),
            progress=1.0 if record.outcome in {"completed", "nothing_new"} else done,
            current_metrics=current,
            estimated_completion="" if over or "estimated_completion" not in wanted else _completion(record, steps, planned),
            resource_utilization=_usage(job, last) if "resource_usage" in wanted else {},
            events=hot.events()[-20:],
        )  # fmt: skip

    async def wait(self, training_id: str) -> Training:
        """Wait for a training's end.

        Raises:
            NotFoundError: there is no such training.
            MillraceError: what the run had to tell.
        """
        job = self._job(training_id)
        record = await result_of(self.workspace, job)
        self._remember(record)
        return _trained(self.workspace, record, job.id)

    async def stop(self, training_id: str) -> None:
        """Stop a training as Ctrl-C does: what it has learned is saved, `train(from_checkpoint=RUN)` goes on."""
        await asyncio.to_thread(stop, self._job(training_id))

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
            ConfigError: a metric is unknown.
            MillraceError: what the run had to tell.
        """
        wanted = [_known(name, VALIDATION, "validation_metrics") for name in validation_metrics]
        files = {name: Path(path).expanduser().absolute() for name, path in (validation_data or {}).items()}
        if gone := [path for path in files.values() if not path.exists()]:
            raise NotFoundError("there is no such file", where=str(gone[0]), fix="correct validation_data")
        if "accuracy" in wanted and not files:
            raise ConfigError(
                "accuracy needs files to measure it on", where="validation_data", fix='{"general": "general.jsonl"}'
            )
        parent = self._of_model(model_path)
        suites = sorted({VALIDATION[name] for name in wanted} - {""})
        words = [word for path in files.values() for word in ("--file", str(path))]
        words += [word for suite in suites for word in ("--suite", suite)]
        record = await self._run("score", parent.run_id, *words, files=list(files.values()))
        return _validated(self._output(record, "validate"), record, files, wanted)

    # how it is done

    def config(self) -> dict[str, Any]:
        """The pipeline that the next verb runs, as a mapping of sections."""
        preset = f"{self.family}-{STRATEGIES[self.strategy]}-{self._size}"
        return nested({"preset": preset, **self._settings, **self._own})

    def _start(self, *words: str, files: Sequence[Path] = ()) -> Job:
        config = as_yaml(self.config()) if "CONFIG" in words else ""
        return start(self.workspace, words, files=[*self._files, *files], config=config)

    async def _run(self, *words: str, files: Sequence[Path] = ()) -> RunRecord:
        job = self._start(*words, files=files)
        record = await result_of(self.workspace, job)
        self._remember(record)
        return record

    def _remember(self, record: RunRecord) -> None:
        if self.store.root != self.workspace.root / "memory":
            self.store.add(remembered(record, self.workspace))
            self.store.tidy()

    def _job(self, training_id: str) -> Job:
        return getattr(self, "_jobs", {}).get(training_id) or find(self.workspace, training_id)

    def _output(self, record: RunRecord, stage: str) -> Artifact:
        ref = record.ref(stage)
        if ref is None:
            raise NotFoundError(f"run {record.run_id} has no {stage}", fix=f"`millrace show {record.run_id}` says why")
        return self.workspace.artifact(ref.key)

    def _planned_steps(self, record: RunRecord) -> int:
        try:
            return int(self._output(record, "plan").details["steps"])
        except (NotFoundError, KeyError):
            return 0

    def _told(self) -> tuple[str, ...]:
        return tuple(self.notes)

    def _resources(self, limits: Mapping[str, Any]) -> dict[str, Any]:
        told = {_known(name, RESOURCES, "max_training_resources"): value for name, value in limits.items()}
        found: dict[str, Any] = {}
        if "gpu_memory" in told:
            found["resources.memory_gib"] = (
                size_in(told["gpu_memory"], _BYTES, "max_training_resources.gpu_memory", "16GB") / 2**30
            )
        if "max_time" in told:
            hours = size_in(told["max_time"], _HOURS, "max_training_resources.max_time", "48h")
            found |= {"resources.max_hours": hours, "resources.margin_minutes": min(30.0, 3 * hours)}
        if "price_per_hour" in told:
            found["resources.price_per_hour"] = float(told["price_per_hour"])
        if "currency" in told:
            found["resources.currency"] = str(told["currency"])
        if "max_cost" in told:
            if "price_per_hour" in told:
                found["resources.money"] = float(told["max_cost"])
            else:
                self.notes.append(f"max_cost = {told['max_cost']:g} limits nothing: no price_per_hour was named")
        return found

    def _source(self, source: str | Path | Mapping[str, Any], at: int) -> dict[str, Any]:
        if isinstance(source, Mapping):
            told = dict(source)
        elif str(source) == "machine":
            told = {"kind": "machine"}
        else:
            told = {"kind": "files", "path": str(source)}
        if told.get("path") and "://" not in str(told["path"]):
            path = Path(str(told["path"])).expanduser().absolute()
            told["path"] = str(path)
            self._files.append(path if path.exists() else Path(re.split(r"[*?\[]", str(path))[0]).parent)
        path = Path(str(told.get("path", "")))
        names = (re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-.") for name in (path.stem, path.parent.name))
        stem = next(filter(None, names), str(told.get("kind", "source")))
        return {"name": f"{stem[:50]}-{at}" if at else stem[:50], **told}

    def _model(self, told: Mapping[str, Any]) -> None:
        told = {_known(name, MODEL, "model_config"): value for name, value in told.items()}
        if "model_size" in told:
            self._size = _known(str(told["model_size"]), SIZES, "model_config.model_size")
        if "architecture" in told:
            self.family = MODEL_TYPES[_known(str(told["architecture"]), MODEL_TYPES, "model_config.architecture")]
        if "start" in told:
            self._settings["model.start"] = str(told["start"])
        if "base_learning_rate" in told:
            self._settings["train.learning_rate"] = float(told["base_learning_rate"])
        if "batch_size_range" in told:
            self._settings |= self._batches(told["batch_size_range"])

    def _batches(self, told: Sequence[float]) -> dict[str, Any]:
        try:
            least, most = sorted(int(value) for value in told)
        except (TypeError, ValueError):
            least = most = 0
        if least < 1:
            raise ConfigError(
                f"{told!r} is no range", where="model_config.batch_size_range", fix="[16, 128]: sequences in a step"
            )
        preset = built_in()[f"{self.family}-{STRATEGIES[self.strategy]}-{self._size}"].values()
        length = int(self._own.get("pack.sequence_length", preset.get("pack.sequence_length", 256)))
        middle = round(math.sqrt(least * most))
        return {
            "train.batch_tokens": middle * length,
            "tune.space": {"learning_rate": [0.5, 2.0], "batch_tokens": [least / middle, most / middle]},
        }

    def _of_model(self, model: Path | str) -> RunRecord:
        """The run that made a model."""
        book, text = RunBook(self.workspace.runs_folder), str(model)
        if "/" not in text:
            record = (
                next((r for r in reversed(list(book.all())) if r.ref("train")), None) if text == "latest" else book.load(text)
            )
        else:
            folder = Path(text).expanduser().resolve()
            made = [(r, ref) for r in book.all() if (ref := r.ref("train"))]
            homes = [(r, self.workspace.store.place(ref.key, "manifest.json").resolve().parent) for r, ref in made]
            record = next((r for r, home in reversed(homes) if folder.is_relative_to(home)), None)
        if record is None or record.ref("train") is None:
            raise NotFoundError(
                f"{text!r} is no model of this workspace", where=str(self.workspace.root),
                fix="name a run, or `Training.model_path`; train on one from elsewhere: model_config={'start': FOLDER}",
            )  # fmt: skip
        return record


class FineTuner:
    """One call from data to a model: the preset names the quality target, family and size follow from model and data.

    Args of `__init__`:
        data_path: folder or file with text or instruction records; "" or `machine`: the text that is on this machine.
        model: `auto` (the champion of the workspace where there is one, else from scratch), a family (llama, mamba …), or a
            folder with a checkpoint.
        preset: highspeed, quality or bestaccuracy.
        workspace: as in `LLMTrainingOptimizer`.
        settings: further settings by their dotted names.

    Raises:
        ConfigError: the preset or model is unknown (the nearest is told), or there is no data.
    """

    def __init__(
        self,
        data_path: Path | str = "",
        model: str | Path = "auto",
        preset: str = "quality",
        *,
        workspace: Path | str | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        from pipeline_lib.config.guided import BYTES_PER_TOKEN, look_at
        from pipeline_lib.workspace.resolve import read_champion

        goal = _known(preset, STRATEGIES.values(), "preset")
        strategy = next(name for name, value in STRATEGIES.items() if value == goal)
        data = "" if str(data_path) in {"", "machine"} else str(Path(data_path).expanduser().absolute())
        tokens = look_at(data) / BYTES_PER_TOKEN
        self._optimizer = LLMTrainingOptimizer(
            optimization_strategy=strategy, workspace=workspace, settings=settings, goal=f"fine-tune on {data or 'this machine'}"
        )
        inner, families = self._optimizer, {known.family for known in built_in().values()}
        self.workspace, self.store = inner.workspace, inner.store
        inner._size = amount_for(tokens)
        source = inner._source(data or "machine", 0)
        inner._settings |= {"name": "finetuner", "ingest.sources": [{**source, "records": _records_in(data)} if data else source]}
        if str(model) == "auto":
            if read_champion(self.workspace).get("champion"):
                inner._settings["model.start"] = "champion"
        elif str(model) in families:
            inner.family = str(model)
        elif Path(model).expanduser().is_dir():
            inner._settings["model.start"] = str(Path(model).expanduser().absolute())
            inner._files.append(Path(model).expanduser().absolute())
        else:
            _known(str(model), ["auto", *sorted(families)], "model")

    def train(self) -> Training:
        """Data, search, training, validation; returns when it is over. Works beside a running event loop, too."""
        return wait_for(self.train_async())

    async def train_async(self) -> Training:
        """`train`, to be awaited."""
        started = await self._optimizer.train()
        return await self._optimizer.wait(started.id)

    def resume(self, checkpoint: str) -> Training:
        """Go on from `RUN@STEP` in a run of its own, or with a run that stopped."""
        return wait_for(self.resume_async(checkpoint))

    async def resume_async(self, checkpoint: str) -> Training:
        """`resume`, to be awaited."""
        started = await self._optimizer.train(from_checkpoint=checkpoint)
        return await self._optimizer.wait(started.id)

    def analyze(self, run: str = "latest") -> dict[str, Any]:
        """What the report of a run finds: troubles and advice with their evidence, numbers by subject, what recovery cost.

        Raises:
            NotFoundError: there is no such run.
        """
        from pipeline_lib.reporting.gather import gather
        from pipeline_lib.stages import ORDER

        record = RunBook(self.workspace.runs_folder).load(run)
        facts = gather(self.workspace, record, ORDER, training_log)
        found = facts.analysis.to_json() if facts.analysis else {"findings": [], "numbers": {}, "recoveries": []}
        near = self.store.recall(record.features, goal=record.goal, k=4)
        like = [one.to_json() for one in near if one.run_id != record.run_id]
        return {"run_id": record.run_id, "outcome": record.outcome, "report": record.report, **found, "similar_runs": like[:3]}


def _records_in(data: str) -> str:
    """`instruct` where the first line of the first JSONL file is a conversation or a prompt with its answer, else `text`."""
    path = Path(data)
    files = [path] if path.is_file() else sorted(path.rglob("*.jsonl"))
    for file in files[:1]:
        if file.suffix == ".jsonl":
            with file.open(encoding="utf-8", errors="replace") as lines, contextlib.suppress(ValueError):
                first = json.loads(lines.readline(1 << 20))
                if isinstance(first, dict) and first.keys() & CONVERSATIONS:
                    return "instruct"
    return "text"


def wait_for(work: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine, from a script or beside a running event loop (in a thread with a loop of its own)."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    found: list[T] = []
    problem: list[BaseException] = []

    def run() -> None:
        try:
            found.append(asyncio.run(work))
        except BaseException as error:
            problem.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if problem:
        raise problem[0]
    return found[0]


def size_in(value: object, units: Mapping[str, float], where: str, example: str) -> float:
    """A size with its unit as a number; a plain number counts in the first unit of the example.

    Raises:
        ConfigError: it cannot be read; the fix shows how.
    """
    if isinstance(value, int | float) and not isinstance(value, bool) and value > 0 and math.isfinite(value):
        return float(value) * units[re.sub(r"[\d.]", "", example).lower()]
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(value))
    if not match or not float(match[1]) or match[2].lower() not in units:
        raise ConfigError(
            f"{value!r} is no size", where=where, fix=f'such as "{example}"; units: {", ".join(u for u in units if u)}'
        )
    return float(match[1]) * units[match[2].lower()]


def _known(name: str, known: Any, where: str) -> str:
    names = list(known)
    if name in names:
        return name
    near = nearest(str(name), names)
    fix = (f"did you mean {near}? " if near else "") + f"There are {', '.join(names)}"
    raise ConfigError(f"{name!r} is not known", where=where, fix=fix)


def _share(criteria: Mapping[str, Any], name: str) -> float:
    value = criteria[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ConfigError(f"{name} = {value!r}", where="selection_criteria", fix="a number from 0 to 1")
    return float(value)


def _selection(criteria: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if "quality_threshold" in criteria:
        found["select.min_quality"] = _share(criteria, "quality_threshold")
    if "diversity_score" in criteria:
        found["select.diversity_weight"] = _share(criteria, "diversity_score")
    if "recency_weight" in criteria:
        weight = min(_share(criteria, "recency_weight"), 0.999)
        found["select.recency_half_life_days"] = HALF_LIFE_DAYS * (1 - weight) / weight if weight else 0.0
    if "domain_balance" in criteria:
        found["select.domain_balance"] = "temperature" if criteria["domain_balance"] else "none"
    return found


def _target(size: int | str | None) -> dict[str, Any]:
    if size is None:
        return {}
    text = str(size).strip().lower()
    for word, setting in (("tokens", "select.target_tokens"), ("token", "select.target_tokens"),
                          ("documents", "select.target_documents"), ("examples", "select.target_documents")):  # fmt: skip
        if text.endswith(word):
            return {setting: int(size_in(text.removesuffix(word), _COUNTS, "target_size", "5M"))}
    if isinstance(size, int) and not isinstance(size, bool) and size > 0:
        return {"select.target_documents": size}
    return {"select.target_documents": int(size_in(text, _COUNTS, "target_size", "10k"))}


def _profile(wanted: Sequence[str]) -> str:
    """How the machine is used, by what is to be optimised first."""
    if wanted[:1] == ["memory_efficiency"]:
        return "memory_efficient"
    return "fast" if wanted[:1] == ["training_speed"] else "auto"


def _float(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _completion(record: RunRecord, steps: Sequence[Mapping[str, Any]], planned: int) -> str:
    """When the training will be over: by its speed once it goes, before that by the window of the run."""
    if steps and planned:
        each = statistics.median(step["seconds"] for step in steps)
        return (datetime.now(UTC) + timedelta(seconds=each * max(planned - steps[-1]["step"], 0))).isoformat()
    return record.deadline


def _usage(job: Job, last: Mapping[str, Any]) -> dict[str, float | None]:
    """Memory of the job's processes now, and what the training last read off the device."""
    memory = 0.0
    if job.alive():
        try:
            process = psutil.Process(job.pid)
            memory = float(sum(one.memory_info().rss for one in [process, *process.children(recursive=True)]))
        except psutil.Error:
            memory = 0.0
    return {
        "process_memory_bytes": memory, "training_memory_bytes": _float(last.get("memory_bytes")),
        "utilisation": _float(last.get("utilisation")), "temperature": _float(last.get("temperature")),
    }  # fmt: skip


def _trained(workspace: Workspace, record: RunRecord, job: str) -> Training:
    trained, scored = record.ref("train"), record.ref("validate")
    scores: dict[str, float] = {}
    if scored:
        told = workspace.artifact(scored.key).details["scores"]
        scores = {name: float(score["value"]) for name, score in told.items() if "/" not in name}
    path, loss = "", None
    if trained:
        artifact = workspace.artifact(trained.key)
        path, loss = str(artifact.files("model")[0].parent), _float(artifact.details.get("dev_loss"))
    return Training(record.run_id, record.report, id=job, state=record.outcome, model_path=path, dev_loss=loss, scores=scores)


def _validated(artifact: Artifact, record: RunRecord, files: Mapping[str, Path], wanted: Sequence[str]) -> Validated:
    scores = artifact.details["scores"]
    own = {name: scores[path.stem] for name, path in files.items() if path.stem in scores}
    categories = {name: float(score["value"]) for name, score in own.items()}
    lost = [f"{name} was not scored: {path.name}" for name, path in files.items() if name not in own]
    lost += [f"not scored: {one['suite']}: {one['reason']}" for one in artifact.details["not_scored"]]
    found: dict[str, float | None] = {}
    for name in wanted:
        if name == "accuracy":
            found[name] = statistics.fmean(categories.values()) if categories else None
        else:
            found[name] = _float(scores.get(VALIDATION[name], {}).get("value"))
    measured = [value for value in found.values() if value is not None]
    return Validated(
        record.run_id, record.report, tuple(lost),
        overall_score=statistics.fmean(measured) if measured else 0.0,
        category_scores=categories,
        metrics=found,
        intervals={name: (float(score["low"]), float(score["high"])) for name, score in own.items()},
    )  # fmt: skip
