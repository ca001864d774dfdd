"""Who is champion and who was, here and in MLflow, after a pass, a fail, a rollback, and a kill in the middle of a promotion."""

import functools
import os
import signal
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from flows.tracking import mirror_aliases, reconcile_tracking, tell_of_killed, tell_what_was_made
from pipeline_lib.config.pipeline import PipelineConfig
from pipeline_lib.errors import NotFoundError, RefusedError
from pipeline_lib.promotion import ChampionChangedError, decide, in_office, promote, rollback
from pipeline_lib.stages import BY_NAME
from pipeline_lib.tables.schemas import DOCUMENTS, SELECTION
from pipeline_lib.tracking.run import Run
from pipeline_lib.tracking.server import database
from pipeline_lib.tracking.spool import Spool
from pipeline_lib.validation.items import Item, items_table
from pipeline_lib.workspace.resolve import read_champion, write_champion
from pipeline_lib.workspace.runs import RunBook, RunRecord, StageRecord
from pipeline_lib.workspace.stage import execute
from pipeline_lib.workspace.workspace import Workspace
from tests.benchmarks.small_models import taught, tokenizer_of, untrained
from tests.published import packed, publish

TEXTS = [f"The mill number {n} stands by the river and grinds {n * 7 % 50} sacks of oats a day." for n in range(120)]
PAIR = ("The mill number {} stands by the river.", "number The {} mill by stands river the.")
ITEMS = [Item("order", str(n), "minimal_pair", "", tuple(text.format(n) for text in PAIR), 0, "order") for n in range(40)]
CONFIG = PipelineConfig()
RUNS = {name: f"2026010{number}-000000-aaaaaa" for number, name in enumerate(("little", "better", "nothing"), start=1)}


@pytest.fixture(scope="module")
def nights(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, dict[str, RunRecord]]:
    """Runs of three models: one that knows little, a better one, and one that knows nothing."""
    home = tmp_path_factory.mktemp("nights")
    small = CONFIG.model.model_copy(update={"width": 32, "depth": 1, "heads": 2, "kv_heads": 2, "ffn_width": 64})
    tokenizer = tokenizer_of(TEXTS, 300, home / "tokenizer")
    models = {
        "little": taught(tokenizer, TEXTS[:60], home / "little", steps=12, model=small),
        "better": taught(tokenizer, TEXTS[:60], home / "better", steps=60, model=small),
        "nothing": untrained(tokenizer, home / "nothing", small, context=128),
    }
    workspace = Workspace.open(home / "w")
    ids = [n.to_bytes(16, "big") for n in range(len(TEXTS))]
    rows = [{"doc_id": i, "text": text, "domain": "prose", "kind": "text"} for i, text in zip(ids, TEXTS, strict=True)]
    sides = [{"doc_id": i, "side": "train" if n < 60 else "test", "domain": "prose"} for n, i in enumerate(ids)]
    chosen = pa.Table.from_pylist(sides, schema=SELECTION)
    same = {
        "ingest": publish(workspace, "ingest", {"documents": pa.Table.from_pylist(rows, schema=DOCUMENTS)}),
        "select": publish(workspace, "select", {"selection": chosen}),
        "pack": publish(workspace, "pack", {"rows": packed(chosen)}),
        "suites": publish(workspace, "suites", {"suite_items": items_table(ITEMS)}, {"not_built": []}),
    }
    records = {}
    for name, model in models.items():
        inputs = {**same, "train": publish(workspace, "train", {"model": model}, {"steps": 60}, {"dev_loss": 3.0})}
        inputs["validate"] = execute(workspace, BY_NAME["validate"], CONFIG, inputs)
        record = RunRecord(RUNS[name], "nights", config=CONFIG.model_dump(mode="json"))
        record.stages = {stage: StageRecord("made", ref=ref.to_json()) for stage, ref in inputs.items()}
        RunBook(workspace.runs_folder).save(record)
        records[name] = record
    return workspace, records


def begun(workspace: Workspace, record: RunRecord) -> Run:
    """A run that MLflow is told of, delivered by this process: a courier of its own takes two seconds to start."""
    spool = Spool(workspace.spool_folder / f"{record.run_id}.jsonl")
    spool.append("start", record.run_id, name=record.run_id, parent="", tags={})
    return Run(spool, record.run_id)


def told(workspace: Workspace, record: RunRecord, verdict: dict[str, Any]) -> None:
    """What a run tells MLflow when it ends."""
    record.verdict, record.outcome = verdict, "completed"
    tracker = begun(workspace, record)
    tell_what_was_made(tracker, workspace, record)
    tracker.end()
    reconcile_tracking(workspace, CONFIG, [])


@functools.cache
def registry(uri: str) -> MlflowClient:
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def aliases(workspace: Workspace) -> tuple[str, ...]:
    """Champion, previous and challenger of MLflow."""
    client = registry(f"sqlite:///{database(workspace)}")
    found = []
    for alias in ("champion", "previous", "challenger"):
        try:
            version = client.get_model_version_by_alias(CONFIG.tracking.model_name, alias)
        except MlflowException:
            found.append("")
            continue
        name = next(name for name, run_id in RUNS.items() if run_id == version.tags["millrace.id"])
        found.append(f"{name}: {version.tags['millrace.verdict']}")
    return tuple(found)


def roles(workspace: Workspace) -> tuple[str, str]:
    state = read_champion(workspace)
    names = {run_id: name for name, run_id in RUNS.items()}
    champion, previous = (names.get(state.get(role, {}).get("run_id", ""), "") for role in ("champion", "previous"))
    return champion, previous


def promoted(workspace: Workspace, record: RunRecord, fault: str = "") -> int:
    """Decide and promote in a process of its own, that dies at a point; the signal that ended it."""
    child = os.fork()
    if not child:
        os.environ["MILLRACE_FAULT"] = fault
        promote(workspace, record, decide(workspace, record))
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_pass_fail_rollback_and_a_kill_in_between(
    nights: tuple[Workspace, dict[str, RunRecord]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MILLRACE_MLFLOW_URI", raising=False)
    workspace, records = nights
    with pytest.raises(NotFoundError, match="no previous champion"):
        rollback(workspace)
    verdict = decide(workspace, records["nothing"])
    assert verdict["outcome"] == "fail", "the first model must beat chance"
    told(workspace, records["nothing"], verdict)
    assert aliases(workspace) == ("", "", "nothing: fail")
    verdict = decide(workspace, records["little"])
    assert verdict["outcome"] == "pass"
    promote(workspace, records["little"], verdict)
    told(workspace, records["little"], verdict)
    assert roles(workspace) == ("little", "")
    assert aliases(workspace) == ("little: pass", "", "little: pass")

    verdict = decide(workspace, records["better"])
    assert verdict["outcome"] == "pass", verdict
    assert verdict["forgotten"]["share"] == 0
    assert verdict["difference"]["attempt"] == 1
    for point, after in (("promote.before_champion", ("little", "")), ("promote.after_champion", ("better", "little"))):
        assert promoted(workspace, records["better"], point) == -signal.SIGKILL
        assert roles(workspace) == after, point
        assert aliases(workspace)[0] == "little: pass", "a killed process tells nothing"
    died = records["better"]
    died.verdict, died.outcome = verdict, "killed"
    begun(workspace, died)
    tell_of_killed(workspace, died)
    reconcile_tracking(workspace, CONFIG, [died])
    assert aliases(workspace) == ("better: pass", "little: pass", "better: pass"), "MLflow follows at the next start"
    assert promoted(workspace, records["better"]) == 0
    assert roles(workspace) == ("better", "little"), "again is not twice"
    assert len(read_champion(workspace)["history"]) == 1
    assert in_office(workspace, records["better"])["by"] == "gate"
    assert decide(workspace, records["better"]) == verdict, "what a person reads is why it was promoted"
    told(workspace, records["better"], decide(workspace, records["better"]))
    assert aliases(workspace) == ("better: pass", "little: pass", "better: pass")

    verdict = decide(workspace, records["nothing"])
    assert verdict["outcome"] == "fail"
    assert verdict["forgotten"]["share"] > 0
    with pytest.raises(RefusedError):
        promote(workspace, records["nothing"], verdict)
    told(workspace, records["nothing"], verdict)
    assert roles(workspace) == ("better", "little")
    assert aliases(workspace) == ("better: pass", "little: pass", "nothing: fail")
    for after in (("little", "better"), ("better", "little")):
        rollback(workspace)
        mirror_aliases(workspace, records[after[0]])
        assert roles(workspace) == after
        left = decide(workspace, records[after[1]])
        assert left["outcome"] == "fail", "no later night undoes a person's decision"
        assert "a person went back from this model" in left["reasons"][0]
        assert aliases(workspace) == (f"{after[0]}: pass", f"{after[1]}: pass", "nothing: fail")
    promote(workspace, records["nothing"], verdict, by="a person")
    mirror_aliases(workspace, records["nothing"])
    assert roles(workspace) == ("nothing", "better")
    assert aliases(workspace) == ("nothing: fail", "better: pass", "nothing: fail")
    assert read_champion(workspace)["champion"]["forgot"] == verdict["forgotten"]["share"]
    assert decide(workspace, records["little"])["difference"]["attempt"] == 1
    assert decide(workspace, records["better"])["difference"]["attempt"] == 2, "the second that is tried against this champion"


def test_a_new_champion_does_not_lose_to_the_one_thirty_nights_back(nights: tuple[Workspace, dict[str, RunRecord]]) -> None:
    workspace, records = nights
    better, before = records["better"].ref("train"), datetime.now(UTC) - timedelta(days=40)
    assert better is not None
    entry = {"train": better.key, "digest": better.digest, "run_id": RUNS["better"], "promoted": before.isoformat(), "by": "gate"}
    write_champion(workspace, {"champion": entry})
    promote(workspace, records["nothing"], {}, by="a person")
    nothing, (former,) = (read_champion(workspace)[name] for name in ("champion", "history"))
    assert timedelta(days=29) < datetime.fromisoformat(former["compared_until"]) - datetime.now(UTC) <= timedelta(days=30)

    def judged(lookback: int, **gate: Any) -> dict[str, Any]:
        changed = {"gate": CONFIG.gate.model_copy(update={"lookback_nights": lookback, **gate})}
        candidate = RunRecord("later", "nights", config=CONFIG.model_copy(update=changed).model_dump(mode="json"))
        candidate.stages = records["little"].stages
        return decide(workspace, candidate)

    assert judged(0)["outcome"] == judged(41)["outcome"] == "pass", "better than the champion; 41 nights ago there was none"
    lost = judged(39)
    assert lost["outcome"] == "fail"
    assert "39 nights ago: rule on bits_per_byte" in lost["reasons"][-1], lost["reasons"]
    won = judged(0)
    write_champion(workspace, {"champion": entry})
    with pytest.raises(ChampionChangedError, match="since the verdict"):
        promote(workspace, records["little"], won)
    gone = {"champion": nothing, "history": [{**former, "train": "train/" + "0" * 64}]}
    write_champion(workspace, gone)
    kept = judged(38)
    assert kept["outcome"] == "pass"
    assert "no longer here" in kept["reasons"][-1]
