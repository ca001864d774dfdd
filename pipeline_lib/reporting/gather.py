"""Everything a report says, as plain values: from the run record and whatever artifacts exist; what is missing is named."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import ValidationError

from pipeline_lib.config.pipeline import PipelineConfig
from pipeline_lib.corpus.redact import redact
from pipeline_lib.errors import MillraceError
from pipeline_lib.reporting.analysis import Analysis, analyse
from pipeline_lib.reporting.evidence import Evidence, read_training, schedule_of, training_tables
from pipeline_lib.reporting.landscape import landscape_of
from pipeline_lib.reporting.training import Log, marks_of, read_log
from pipeline_lib.tables.duck import connect
from pipeline_lib.tables.parquet import read_tables
from pipeline_lib.workspace.artifact import Artifact, SummaryTable
from pipeline_lib.workspace.runs import RunBook, RunRecord
from pipeline_lib.workspace.workspace import Workspace

EXAMPLE_CHARACTERS = 160
EXAMPLES_PER_REASON = 2
DUPLICATE_EXAMPLES = 3
WORKED = "made"  # the state of a stage that did its work in this run

TrainingLog = Callable[[Workspace, RunRecord, str], pa.Table]  # a table of a training's log, also of one that never ended


@dataclass(frozen=True)
class StageFacts:
    """A stage's line in the report."""

    name: str
    state: str
    seconds: float
    peak_mib: float
    key: str
    digest: str
    events: Sequence[dict[str, Any]]
    summary: SummaryTable | None
    error: str = ""
    kind: str = ""  # pure | recorded
    versions: Mapping[str, str] = field(default_factory=dict)  # of libraries
    revision: str = ""  # of the code


@dataclass
class Facts:
    """The report's content. Everything is optional but the record: a run that failed early has a report too."""

    record: RunRecord
    config: PipelineConfig = field(default_factory=PipelineConfig)
    analysis: Analysis = field(default_factory=Analysis)
    stages: list[StageFacts] = field(default_factory=list)
    funnel: list[tuple[str, int]] = field(default_factory=list)
    domains: SummaryTable | None = None
    rejections: list[tuple[str, int, list[str]]] = field(default_factory=list)  # reason, documents, examples
    duplicates: list[tuple[float, str, str]] = field(default_factory=list)  # similarity, what was kept, what was dropped
    suites: SummaryTable | None = None  # what decontamination took out of the documents, for which suite
    licences: list[tuple[str, int, int]] = field(default_factory=list)  # licence, documents, estimated tokens
    credits: list[tuple[str, str, int, int, str]] = field(default_factory=list)  # source, licence, documents, tokens, attribution
    curve: pa.Table | None = None
    dev_curve: list[tuple[int, float]] = field(default_factory=list)
    trials: list[dict[str, Any]] = field(default_factory=list)
    search: dict[str, Any] = field(default_factory=dict)  # details of `tune`
    plan: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)
    log: Log = field(default_factory=Log)
    validation: dict[str, Any] = field(default_factory=dict)
    champion: dict[str, Any] = field(default_factory=dict)  # scores of the model that the gate compared this one with
    landscape: list[dict[str, Any]] = field(default_factory=list)  # rows of direction, distance, bits_per_byte
    missing: list[str] = field(default_factory=list)

    @property
    def scores(self) -> dict[str, dict[str, Any]]:
        """Name → score, interval, baselines; {} without validation."""
        return dict(self.validation.get("scores", {}))

    @property
    def seconds(self) -> float:
        """Wall time of the run so far."""
        end = self.record.ended or (self.record.attempts[-1].ended if self.record.attempts else "")
        if not end:
            return sum(stage.seconds for stage in self.stages)
        return (datetime.fromisoformat(end) - datetime.fromisoformat(self.record.started)).total_seconds()

    @property
    def window_seconds(self) -> float:
        """Length of the window, 0 when there was none."""
        if not self.record.deadline:
            return 0.0
        return (datetime.fromisoformat(self.record.deadline) - datetime.fromisoformat(self.record.started)).total_seconds()


def gather(workspace: Workspace, record: RunRecord, order: Sequence[str], log: TrainingLog | None = None) -> Facts:
    """Collect a run's facts.

    Args:
        workspace: where its artifacts lie.
        record: the run.
        order: stage names in order of work.
        log: reads the log of a training that published nothing (`pipeline_lib.metrics.training_log`).
    """
    facts = Facts(record)
    try:
        facts.config = PipelineConfig.model_validate(record.config)
    except ValidationError as error:
        facts.missing.append(
            f"the configuration is of another version ({error.error_count()} settings are unknown or out of range)"
        )
    artifacts: dict[str, Artifact] = {}
    idle: list[str] = []
    for name in order:
        if name == "report":  # this is it
            continue
        entry = record.stages.get(name)
        ref = record.ref(name)
        artifact = None
        if ref:
            try:
                artifact = artifacts[name] = workspace.store.artifact(ref.key)
            except MillraceError as error:
                facts.missing.append(f"{name}: {error.what}")
        if entry is None:
            idle.append(name)
            continue
        manifest = artifact.manifest if artifact else None
        facts.stages.append(
            StageFacts(
                name,
                entry.state,
                entry.seconds,
                manifest.peak_memory_bytes / 2**20 if manifest else 0.0,
                ref.key if ref else "",
                ref.digest if ref else "",
                manifest.events if manifest else (),
                manifest.summary if manifest else None,
                entry.error,
                manifest.kind if manifest else "",
                manifest.versions if manifest else {},
                manifest.code.get("revision", "") if manifest else "",
            )
        )
    if idle:
        facts.missing.append(f"{', '.join(idle)} did not run")
    for part in (_data, _training):
        try:
            part(facts, artifacts, facts.config)
        except (MillraceError, OSError, KeyError, pa.ArrowException) as error:
            facts.missing.append(f"{part.__name__.strip('_')}: {getattr(error, 'what', error)}")
    try:
        facts.landscape = landscape_of(workspace, record.run_id)
        facts.champion = _champion(workspace, record)
    except MillraceError as error:
        facts.missing.append(error.what)
    facts.analysis = analyse(_evidence(facts, artifacts, _training_tables(workspace, facts, artifacts, log)))
    return facts


def _champion(workspace: Workspace, record: RunRecord) -> dict[str, Any]:
    """Name → score of the champion at the time, as its own run validated it; {} where there was none, or its run is gone."""
    train, model = record.ref("train"), record.verdict.get("champion_model")
    if not model or (train and train.key == model):
        return {}
    for other in RunBook(workspace.runs_folder).all():
        made, scored = other.ref("train"), other.ref("validate")
        if made and scored and made.key == model:
            return dict(workspace.store.artifact(scored.key).details.get("scores", {}))
    return {}


def _training_tables(
    workspace: Workspace, facts: Facts, artifacts: Mapping[str, Artifact], log: TrainingLog | None
) -> dict[str, pa.Table]:
    """The log of the training: published, or what a training left that failed or was stopped."""
    entry = facts.record.stages.get("train")
    try:
        if "train" in artifacts:
            return training_tables(artifacts["train"])
        if log and entry and entry.state not in ("pending", "skipped"):
            found = {name: log(workspace, facts.record, name) for name in ("steps", "events", "layers")}
            facts.curve = found["steps"]
            facts.log.marks = marks_of(found["events"])
            return found
    except (MillraceError, OSError, ValueError, pa.ArrowException) as error:  # ValueError: a configuration of another version
        facts.missing.append(f"log of the training: {getattr(error, 'what', type(error).__name__)}")
    return {}


def _evidence(facts: Facts, artifacts: Mapping[str, Artifact], tables: Mapping[str, pa.Table]) -> Evidence:
    """What the analysis looks at; what cannot be read is left out."""
    leaked, repeated = None, {}
    try:
        leaked, repeated = _leaked(artifacts), _repeated(artifacts)
    except (MillraceError, OSError, pa.ArrowException) as error:
        facts.missing.append(f"evidence about the text: {getattr(error, 'what', error)}")
    read = read_training(tables)
    dev = facts.dev_curve or [
        (event.step, float(event.detail["dev_loss"])) for event in read["events"] if event.kind == "evaluated"
    ]
    return Evidence(
        config=facts.config,
        record=facts.record,
        dev=dev,
        parts=facts.log.parts,
        schedule=schedule_of(facts.train, facts.plan),
        metrics={name: artifact.metrics for name, artifact in artifacts.items()},
        details={name: artifact.details for name, artifact in artifacts.items()},
        took={stage.name: stage.seconds for stage in facts.stages if stage.state in (WORKED, "failed")},
        overlap=leaked,
        repeated=repeated,
        **read,
    )


def _leaked(artifacts: Mapping[str, Artifact]) -> tuple[int, int] | None:
    """Test documents that the training text contains, of those that were long enough to tell."""
    if "validate" not in artifacts or "overlap" not in artifacts["validate"].manifest.tables:
        return None
    rows = read_tables(artifacts["validate"].files("overlap"), ["suite", "contaminated"])
    documents = rows.filter(pc.equal(rows["suite"], "language"))
    return (int(pc.sum(documents["contaminated"]).as_py() or 0), len(documents)) if len(documents) else None


def _repeated(artifacts: Mapping[str, Artifact]) -> dict[str, tuple[int, int]]:
    """Source → (dropped as duplicates, documents)."""
    if not {"ingest", "dedup"} <= artifacts.keys():
        return {}
    files = {"documents": artifacts["ingest"].files("documents"), "decisions": artifacts["dedup"].files("decisions")}
    wanted = """
        SELECT source, count(*) FILTER (doc_id IN (SELECT doc_id FROM decisions WHERE NOT kept)), count(*)
        FROM documents GROUP BY source
        """
    with connect(files) as db:
        return {str(source): (int(out), int(of)) for source, out, of in db.sql(wanted).fetchall()}


def _data(facts: Facts, artifacts: dict[str, Artifact], config: PipelineConfig) -> None:
    if "ingest" in artifacts:
        counts = artifacts["ingest"].manifest.counts
        facts.funnel.append(("records read", counts.get("in", 0)))
        facts.funnel.append(("documents", int(artifacts["ingest"].metrics.get("documents", 0))))
        facts.domains = artifacts["ingest"].manifest.summary
    if "dedup" in artifacts and (suites := artifacts["dedup"].details.get("suites")):
        columns = ("suite", "items searched", "found in a document", "documents dropped", "documents cut")
        facts.suites = SummaryTable(columns, [tuple(row.values()) for row in suites], "Validation items in documents")
    if not {"ingest", "score", "dedup", "select"} <= artifacts.keys():
        return
    files = {
        "documents": artifacts["ingest"].files("documents"),
        "decisions": [path for name in ("score", "dedup") for path in artifacts[name].files("decisions")],
        "selection": artifacts["select"].files("selection"),
        "rejected": artifacts["select"].files("decisions"),
    }
    with connect(files) as db:
        for label, stage in (("passed the rules", "score"), ("not duplicates", "dedup")):
            row = db.execute(
                "SELECT count(DISTINCT doc_id) FROM decisions WHERE NOT kept AND stage IN (SELECT unnest(?::VARCHAR[]))",
                [["score"] if stage == "score" else ["score", "dedup"]],
            ).fetchone()
            facts.funnel.append((label, facts.funnel[1][1] - int(row[0] if row else 0)))
        for side in ("train", "dev", "test"):
            row = db.execute("SELECT count(*) FROM selection WHERE side = ? AND role <> 'kept'", [side]).fetchone()
            facts.funnel.append((f"chosen for {side}", int(row[0] if row else 0)))
        facts.licences = [
            (str(name), int(documents), int(tokens))
            for name, documents, tokens in db.execute(
                """
                SELECT CASE WHEN licence = '' THEN 'unknown' ELSE licence END AS name, count(*), sum(est_tokens)
                FROM selection JOIN documents USING (doc_id) GROUP BY name ORDER BY 3 DESC, 1 LIMIT 12
                """
            ).fetchall()
        ]
        credited = {source.name: source.attribution for source in config.ingest.sources}
        facts.credits = [
            (row["source"], row["licence"] or "unknown", row["documents"], row["tokens"], credited.get(row["source"], ""))
            for row in artifacts["select"].details.get("rights", ())
        ]
        reasons = db.execute(
            "SELECT rule, count(DISTINCT doc_id) FROM rejected WHERE NOT kept GROUP BY rule ORDER BY 2 DESC, 1"
        ).fetchall()
        for rule, documents in reasons:
            examples = []
            if config.report.examples != "none":
                found = db.execute(
                    """
                    SELECT left(text, ?) FROM documents JOIN (
                      SELECT DISTINCT doc_id FROM rejected WHERE NOT kept AND rule = ? ORDER BY doc_id LIMIT ?
                    ) USING (doc_id) ORDER BY doc_id
                    """,
                    [2 * EXAMPLE_CHARACTERS, rule, EXAMPLES_PER_REASON],  # so that an address cut by the end is still seen whole
                ).fetchall()
                examples = [_shown(text, config.report.examples) for (text,) in found]
            facts.rejections.append((str(rule), int(documents), examples))
    facts.duplicates = _duplicates(artifacts, config.report.examples)


def _duplicates(artifacts: Mapping[str, Artifact], examples: str) -> list[tuple[float, str, str]]:
    """Some near-duplicate pairs, the least alike of those that were accepted: what decides whether the threshold is right."""
    if examples == "none" or not {"pairs", "decisions"} <= artifacts["dedup"].manifest.tables.keys():
        return []
    files = {
        "documents": artifacts["ingest"].files("documents"),
        "pairs": artifacts["dedup"].files("pairs"),
        "decisions": artifacts["dedup"].files("decisions"),
    }
    wanted = """
        WITH gone AS (SELECT DISTINCT doc_id FROM decisions WHERE NOT kept), shown AS (
          SELECT jaccard, doc_id_a, doc_id_b FROM pairs
          WHERE accepted AND jaccard < 1 AND (doc_id_a IN (FROM gone)) <> (doc_id_b IN (FROM gone))
          ORDER BY jaccard, doc_id_a, doc_id_b LIMIT ?
        )
        SELECT jaccard, doc_id_a IN (FROM gone), left(a.text, ?), left(b.text, ?)
        FROM shown JOIN documents a ON a.doc_id = doc_id_a JOIN documents b ON b.doc_id = doc_id_b
        ORDER BY jaccard, doc_id_a, doc_id_b
        """
    with connect(files) as db:
        rows = db.execute(wanted, [DUPLICATE_EXAMPLES, 2 * EXAMPLE_CHARACTERS, 2 * EXAMPLE_CHARACTERS]).fetchall()
    pairs = [(jaccard, b, a) if a_gone else (jaccard, a, b) for jaccard, a_gone, a, b in rows]
    return [(float(jaccard), _shown(kept, examples), _shown(dropped, examples)) for jaccard, kept, dropped in pairs]


def _shown(text: str, examples: str) -> str:
    return (text if examples == "full" else redact(text.encode()).decode("utf-8", "ignore"))[:EXAMPLE_CHARACTERS]


def _training(facts: Facts, artifacts: dict[str, Artifact], config: PipelineConfig) -> None:
    if "plan" in artifacts:
        facts.plan = artifacts["plan"].details
    if "tune" in artifacts and "trials" in artifacts["tune"].manifest.tables:
        facts.trials = read_tables(artifacts["tune"].files("trials")).to_pylist()
        facts.search = artifacts["tune"].manifest.details
    if "train" in artifacts:
        train = artifacts["train"]
        facts.train = {**train.details, **train.metrics, "seconds": train.manifest.seconds}
        places = {entry.path: train.place(entry) for entry in train.manifest.files if entry.table == "observed"}
        if steps := places.get("observed/steps.parquet"):
            curve = read_tables([steps])
            facts.curve = curve.filter(pc.invert(pc.fill_null(curve["superseded"], False)))
        facts.log = read_log(train, artifacts.get("ingest"), config.report.examples)
        facts.dev_curve = [(int(step), float(loss)) for step, loss in train.details.get("dev_curve", [])]
    if "validate" in artifacts:
        facts.validation = artifacts["validate"].details
