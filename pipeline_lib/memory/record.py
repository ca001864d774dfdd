"""What is remembered of one run, as a row: taken from its record when it ends, never changed afterwards.

Format 2 is this file. Format 1 is the run record itself (`runs/<run_id>.json`), which workspaces from before this memory have:
`from_json` makes a row of it.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from pipeline_lib.errors import ConfigError, DamagedError
from pipeline_lib.memory.possible import doubts
from pipeline_lib.secrets import hide_passwords
from pipeline_lib.workspace.runs import RunRecord

if TYPE_CHECKING:
    from pipeline_lib.workspace.workspace import Workspace

FORMAT = 2
# Features with a column of their own; what else a run reports stands in the map `more`.
NUMBERS = (
    "documents", "selected_documents", "tokens", "sequences", "parameters", "width", "depth", "sequence_length",
    "vocabulary_size", "batch_tokens", "steps", "tokens_per_second", "mfu", "train_loss", "dev_loss", "test_loss", "cores",
    "memory_gib", "memory_limit_gib", "window_hours", "peak_memory_bytes", "work_seconds", "run_seconds", "train_seconds",
)  # fmt: skip
PLAIN = ("run_id", "pipeline", "goal", "preset", "started", "ended", "outcome", "error", "data_fingerprint")
WORDS = ("family", "optimizer", "cpu", "gpu", "task")
POINT = "point/"  # in `tuned`: a factor or number of the point that won; a word as `point/optimizer=muon`, with the value 1
_EVENT = pa.struct([("signal", pa.string()), ("action", pa.string()), ("cured", pa.bool_()), ("detail", pa.string())])
_VALUES = pa.map_(pa.string(), pa.float64())
SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in PLAIN),  # data_fingerprint: of the packed data; "" where nothing was packed
        ("config", pa.string()),  # JSON of the settings that differ from the defaults
        *((name, pa.string()) for name in WORDS),
        *((name, pa.float64()) for name in NUMBERS),
        ("more", _VALUES),  # further features
        ("scores", _VALUES),  # of validation
        ("tuned", _VALUES),  # what a search found best, its gain, and what luck of the seed may be of that
        ("failures", pa.list_(_EVENT)),  # what went wrong, what was done, and whether that was enough
        ("doubts", pa.list_(pa.string())),  # what of it cannot be true
        ("format", pa.int64()),
    ]
)  # fmt: skip


@dataclass(frozen=True)
class Remembered:
    """One run. `features` are numbers and words under the names of `workspace.features`."""

    run_id: str
    pipeline: str = ""
    goal: str = ""
    preset: str = ""
    started: str = ""
    ended: str = ""
    outcome: str = ""
    error: str = ""
    data_fingerprint: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    features: dict[str, float | str] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)
    tuned: dict[str, float] = field(default_factory=dict)
    failures: list[dict[str, Any]] = field(default_factory=list)
    format: int = FORMAT

    @property
    def month(self) -> str:
        """`2026-11`, of its end; `0000-00` where that is unknown."""
        try:
            return f"{datetime.fromisoformat(self.ended or self.started).astimezone(UTC):%Y-%m}"
        except ValueError:
            return "0000-00"

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values; what is not a number is written as text, so that it stays visible."""
        return json.loads(json.dumps(asdict(self), default=str), parse_constant=str)  # type: ignore[no-any-return]

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Remembered:
        """From `to_json`'s output, or from a run record.

        Raises:
            ConfigError: a newer version wrote it.
            DamagedError: it is neither.
        """
        try:
            if "attempts" in value:
                return remembered(RunRecord.from_json({"format": 1, **value}))
            if value["format"] > FORMAT:
                raise ConfigError(
                    f"the memory of run {value['run_id']} has format {value['format']}, this version knows up to {FORMAT}",
                    fix="install the version of millrace that wrote it, or newer",
                )
            made = cls(**value)
            _check_kinds(made.row)
        except (TypeError, KeyError, AttributeError, ValueError, pa.ArrowException) as error:  # ValueError: also of text
            raise DamagedError(f"no memory of a run ({type(error).__name__}: {error})") from None
        if not made.run_id or not all(c.isalnum() or c == "-" for c in made.run_id):
            raise DamagedError(f"{made.run_id!r} is no run id")
        return made

    @functools.cached_property
    def row(self) -> dict[str, Any]:
        """As a row of `SCHEMA`; a value that is of another kind than its column is left out, and doubted."""
        numbers = {name: _float(value) for name, value in self.features.items() if not isinstance(value, str) and _number(value)}
        words = {name: value for name, value in self.features.items() if isinstance(value, str)}
        wrong = [f"{n} = {words[n]} is not a number" for n in sorted(words) if n in NUMBERS]
        wrong += [f"{n} = {self.features[n]} is not a word" for n in sorted(numbers) if n in WORDS]
        wrong += [f"{n} is neither number nor word" for n in sorted(self.features.keys() - numbers.keys() - words.keys())]
        return {
            **{name: getattr(self, name) for name in (*PLAIN, "format")},
            "config": json.dumps(self.config, ensure_ascii=False, sort_keys=True),
            **{name: words.get(name) for name in WORDS},
            **{name: numbers.get(name) for name in NUMBERS},
            "more": [(name, value) for name, value in numbers.items() if name not in NUMBERS],
            "scores": [(name, float(value)) for name, value in self.scores.items()],
            "tuned": [(name, float(value)) for name, value in self.tuned.items()],
            "failures": [{**failure, "detail": str(failure.get("detail", ""))} for failure in self.failures],
            "doubts": [*doubts({**numbers, **{n: v for n, v in words.items() if n not in NUMBERS}}), *wrong],
        }


def from_row(row: Mapping[str, Any]) -> Remembered:
    """The memory of which `Remembered.row` made this."""
    features: dict[str, float | str] = {name: row[name] for name in (*WORDS, *NUMBERS) if row[name] is not None}
    features |= dict(row["more"] or ())
    plain = {name: row[name] or "" for name in PLAIN}
    return Remembered(
        **plain, config=json.loads(row["config"] or "{}"), features=features, scores=dict(row["scores"] or ()),
        tuned=dict(row["tuned"] or ()), failures=list(row["failures"] or ()), format=row["format"] or FORMAT,
    )  # fmt: skip


def remembered(record: RunRecord, workspace: Workspace | None = None) -> Remembered:
    """What a run taught.

    Args:
        record: closed; failed and killed runs teach, too.
        workspace: where its artifacts lie, for scores and what a search found; None: the record alone tells.
    """
    window = _hours(record.window_from or record.started, record.deadline)
    limit = _part(record.config, "resources").get("memory_gib") or record.machine.get("memory_gib")
    features: dict[str, Any] = {
        **record.features,
        "task": _task(record.config),
        "window_hours": window,
        "memory_limit_gib": limit,
    }
    packed = record.ref("fill_gaps")
    return Remembered(
        run_id=record.run_id,
        pipeline=record.pipeline,
        goal=record.goal,
        preset=str(record.config.get("preset", "")),
        started=record.started,
        ended=record.ended,
        outcome=record.outcome,
        error=record.error[:2000],
        data_fingerprint=packed.digest if packed else "",
        config=_changed(record.config),
        features={name: value for name, value in features.items() if value is not None},
        scores=_scores(record, workspace),
        tuned=_tuned(record, workspace),
        failures=_failures(record, workspace),
    )


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _float(value: float) -> float:
    """A number; JSON may hold a larger integer than there are floats."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _check_kinds(row: Mapping[str, Any]) -> None:
    """One row of a wrong kind would spoil the table of all.

    Raises:
        TypeError: text is none, or an event is not one.
        UnicodeEncodeError: text cannot be written.
    """
    texts = [row[name] for name in (*PLAIN, "config")]
    for failure in row["failures"]:
        texts += [failure.get(name) for name in ("signal", "action", "detail")]
        if not isinstance(failure.get("cured"), bool):
            raise TypeError(f"cured = {failure.get('cured')!r}")
    for text in texts:
        if text is not None and not isinstance(text, str):
            raise TypeError(f"{text!r} is no text")
        (text or "").encode()
    if not isinstance(row["format"], int):
        raise TypeError(f"format = {row['format']!r}")


def _part(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = config.get(name)
    return part if isinstance(part, Mapping) else {}


def _task(config: Mapping[str, Any]) -> str:
    """What kind of training it was: `pretrain`, `continue` (a checkpoint, all weights) or `fine-tune` (adapters, or answers)."""
    sources = _part(config, "ingest").get("sources") or []
    answers = any(source.get("records") == "instruct" for source in sources)
    if answers or _part(_part(config, "train"), "lora").get("rank"):
        return "fine-tune"
    return "pretrain" if _part(config, "model").get("start", "scratch") == "scratch" else "continue"


def _hours(begin: str, end: str) -> float | None:
    try:
        return (datetime.fromisoformat(end) - datetime.fromisoformat(begin)).total_seconds() / 3600
    except (ValueError, TypeError):
        return None


def _changed(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that differ from the defaults; all of them where this version does not know one. Without passwords."""
    from pydantic import ValidationError

    from pipeline_lib.config.pipeline import PipelineConfig

    try:
        kept = PipelineConfig.model_validate(config).model_dump(mode="json", exclude_defaults=True)
    except ValidationError:
        kept = dict(config)
    return json.loads(hide_passwords(json.dumps(kept)))  # type: ignore[no-any-return]


def _details(record: RunRecord, workspace: Workspace | None, stage: str) -> Mapping[str, Any]:
    from pipeline_lib.errors import MillraceError

    ref = record.ref(stage)
    if workspace is None or ref is None:
        return {}
    try:
        return workspace.store.manifest(ref.key).details
    except MillraceError:  # collected since
        return {}


def _scores(record: RunRecord, workspace: Workspace | None) -> dict[str, float]:
    told = _details(record, workspace, "validate").get("scores", {})
    return {name: float(score["value"]) for name, score in told.items() if "/" not in name and _finite(score["value"])}


def _tuned(record: RunRecord, workspace: Workspace | None) -> dict[str, float]:
    told = _details(record, workspace, "tune")
    if not (best := told.get("best")):
        return {}
    found = {**best, "gain": told.get("gain", 0.0), "noise": told.get("noise", 0.0)}
    for name, value in best.get("point", {}).items():
        found[f"{POINT}{name}={value}" if isinstance(value, str) else f"{POINT}{name}"] = 1.0 if isinstance(value, str) else value
    return {name: float(value) for name, value in found.items() if _finite(value)}


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _failures(record: RunRecord, workspace: Workspace | None) -> list[dict[str, Any]]:
    """What went wrong and what was done about it. The last action on a signal cured it where the run ended well."""
    events = [*record.events, *_training_events(record, workspace)]
    found: list[dict[str, Any]] = []
    for event in events:
        detail = event.get("detail") or {}
        if not (signal := detail.get("signal")) and event.get("kind") != "training_failed":
            continue
        action = str(detail.get("action") or detail.get("policy") or "")
        words = json.dumps({name: value for name, value in detail.items() if name not in {"signal", "action"}}, default=str)
        found.append({"signal": str(signal or event["kind"]), "action": action, "cured": False, "detail": words[:1000]})
    if record.outcome in {"completed", "nothing_new"}:
        last = {failure["signal"]: failure for failure in found if failure["action"]}
        for failure in last.values():
            failure["cured"] = True
    for name, stage in record.stages.items():
        if stage.state == "failed":
            found.append({"signal": f"{name}_failed", "action": "", "cured": False, "detail": stage.error[:1000]})
    return found


def _training_events(record: RunRecord, workspace: Workspace | None) -> list[dict[str, Any]]:
    from pipeline_lib.errors import MillraceError
    from pipeline_lib.tables.parquet import read_tables

    ref = record.ref("train")
    if workspace is None or ref is None:
        return []
    try:
        files = [path for path in workspace.store.artifact(ref.key).files("observed") if path.name == "events.parquet"]
    except (MillraceError, OSError, KeyError):  # KeyError: it has no log
        return []
    rows = read_tables(files).to_pylist() if files else []
    return [{"kind": row["kind"], "detail": json.loads(row["detail"])} for row in rows]
