"""Who is champion and who was, after a pass, a fail, a rollback, and a kill in the middle of a promotion."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline_lib.config.pipeline import PipelineConfig
from pipeline_lib.errors import NotFoundError, RefusedError
from pipeline_lib.promotion import decide, promote, rollback
from pipeline_lib.stages import BY_NAME
from pipeline_lib.tables.schemas import DOCUMENTS, SELECTION
from pipeline_lib.validation.items import Item, items_table
from pipeline_lib.workspace.resolve import read_champion
from pipeline_lib.workspace.runs import RunBook, RunRecord, StageRecord
from pipeline_lib.workspace.stage import execute
from pipeline_lib.workspace.workspace import Workspace
from tests.benchmarks.small_models import taught, tokenizer_of, untrained
from tests.published import publish

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
    same = {
        "ingest": publish(workspace, "ingest", {"documents": pa.Table.from_pylist(rows, schema=DOCUMENTS)}),
        "select": publish(workspace, "select", {"selection": pa.Table.from_pylist(sides, schema=SELECTION)}),
        "suites": publish(workspace, "suites", {"suite_items": items_table(ITEMS)}, {"not_built": []}),
    }
    records = {}
    for name, model in models.items():
        inputs = {**same, "train": publish(workspace, "train", {"model": model})}
        inputs["validate"] = execute(workspace, BY_NAME["validate"], CONFIG, inputs)
        record = RunRecord(RUNS[name], "nights", config=CONFIG.model_dump(mode="json"))
        record.stages = {stage: StageRecord("made", ref=ref.to_json()) for stage, ref in inputs.items()}
        RunBook(workspace.runs_folder).save(record)
        records[name] = record
    return workspace, records


def roles(workspace: Workspace) -> tuple[str, str]:
    state = read_champion(workspace)
    names = {run_id: name for name, run_id in RUNS.items()}
    champion, previous = (names.get(state.get(role, {}).get("run_id", ""), "") for role in ("champion", "previous"))
    return champion, previous


def test_pass_fail_rollback_and_a_kill_in_between(nights: tuple[Workspace, dict[str, RunRecord]]) -> None:
    workspace, records = nights
    with pytest.raises(NotFoundError, match="no previous champion"):
        rollback(workspace)
    assert decide(workspace, records["nothing"])["outcome"] == "fail", "the first model must beat chance"
    assert decide(workspace, records["little"])["outcome"] == "pass"
    promote(workspace, records["little"], decide(workspace, records["little"]))
    assert roles(workspace) == ("little", "")

    verdict = decide(workspace, records["better"])
    assert verdict["outcome"] == "pass", verdict
    assert verdict["forgotten"]["share"] == 0
    script = "import sys; from tests.unit.validation.test_promotion import promoted; promoted(*sys.argv[1:])"
    for point, after in (("promote.before_champion", ("little", "")), ("promote.after_champion", ("better", "little"))):
        died = subprocess.run(
            [sys.executable, "-c", script, str(workspace.root), records["better"].run_id], check=False, capture_output=True,
            env={**os.environ, "MILLRACE_FAULT": point, "PYTHONPATH": str(Path(__file__).parents[3])},
        )  # fmt: skip
        assert died.returncode == -signal.SIGKILL, died.stderr
        assert roles(workspace) == after, point
    promoted(str(workspace.root), records["better"].run_id)
    assert roles(workspace) == ("better", "little"), "again is not twice"
    assert len(read_champion(workspace)["history"]) == 1

    verdict = decide(workspace, records["nothing"])
    assert verdict["outcome"] == "fail"
    assert verdict["forgotten"]["share"] > 0
    with pytest.raises(RefusedError):
        promote(workspace, records["nothing"], verdict)
    assert roles(workspace) == ("better", "little")
    rollback(workspace)
    assert roles(workspace) == ("little", "better")
    rollback(workspace)
    assert roles(workspace) == ("better", "little")
    promote(workspace, records["nothing"], verdict, by="a person")
    assert roles(workspace) == ("nothing", "better")
    assert read_champion(workspace)["champion"]["forgot"] == verdict["forgotten"]["share"]


def promoted(home: str, run_id: str) -> None:
    """In a process of its own: decide and promote."""
    workspace = Workspace.open(home)
    record = RunBook(workspace.runs_folder).load(run_id)
    verdict = decide(workspace, record)
    promote(workspace, record, verdict if verdict["outcome"] != "same" else {"outcome": "pass"})
