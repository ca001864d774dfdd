"""From a step to what it read, and back: checked against the batches that training gets."""

from __future__ import annotations

import json
from itertools import islice
from typing import Any

import pyarrow as pa
import pytest
from packing_toy import ToyCorpus, doc_id, texts_of
from training_toy import PLAN, Config, run_train
from typer.testing import CliRunner

from pipeline_lib.config.model import PackConfig
from pipeline_lib.errors import NotFoundError
from pipeline_lib.packing.cache import cache_folder
from pipeline_lib.packing.reader import PackedDataset
from pipeline_lib.tokens.encode import Encoder
from pipeline_lib.trace import trace_document, trace_step
from pipeline_lib.training.data import MicroBatches
from pipeline_lib.workspace.runs import RunBook, RunRecord
from pipeline_lib.workspace.workspace import Workspace

CORPUS = ToyCorpus(documents=60, repeats=2)
SEED, BATCH = 3, 4


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, RunRecord]:
    root = tmp_path_factory.mktemp("home")
    plan = {**PLAN, "steps": 40, "evaluate_every": 0, "save_every": 0}
    artifact = run_train(root, Config(seed=SEED, toy=CORPUS, plan=plan, pack=PackConfig(sequence_length=64, range_tokens=2048)))
    workspace = Workspace.open(root)
    record = RunRecord(run_id="20260101-000000-abcdef", pipeline="toy", config={"seed": SEED})
    keys = {name: told["key"] for name, told in artifact.manifest.inputs.items()} | {"train": artifact.key}
    keys["ingest"] = workspace.artifact(keys["fill_gaps"]).manifest.inputs["ingest"]["key"]
    for name, key in keys.items():
        record.stage(name).ref = workspace.artifact(key).ref().to_json()
    RunBook(workspace.runs_folder).save(record)
    return workspace, record


def batches(workspace: Workspace, record: RunRecord) -> Any:
    filled = workspace.artifact(record.ref("fill_gaps").key)  # type: ignore[union-attr]
    data = PackedDataset(cache_folder(workspace, filled.details["cache"]), filled.file("chunks"), "train")
    return data, MicroBatches(data, SEED, BATCH)


def test_a_step_is_what_its_batch_holds(trained: tuple[Workspace, RunRecord]) -> None:
    workspace, record = trained
    data, stream = batches(workspace, record)
    assert len(data) < 40 * BATCH  # more than one epoch
    pack = workspace.artifact(record.ref("pack").key)  # type: ignore[union-attr]
    encoder = Encoder(next(path for path in pack.files("tokenizer") if path.name == "tokenizer.json"))
    texts = {doc_id(i).hex(): text for i, text in enumerate(texts_of(CORPUS))}
    for step, batch in enumerate(islice(stream, 40), start=1):
        if step not in {1, 17, 40}:
            continue
        found = trace_step(workspace, record, step)
        assert found["loss"] > 0
        for row, one in zip(batch["input_ids"], found["sequences"], strict=True):
            at = 0
            for piece in one["documents"]:
                text = texts[piece["doc_id"]]
                assert text.startswith(piece["head"][:20])
                whole = [*encoder.encode(pa.array([text], pa.large_string()))[0].tolist(), 0]
                assert row[at : at + piece["tokens"]].tolist() == whole[piece["offset"] : piece["offset"] + piece["tokens"]]
                at += piece["tokens"]
            assert at == one["tokens"]


def test_a_document_names_exactly_the_steps_that_read_it(trained: tuple[Workspace, RunRecord]) -> None:
    workspace, record = trained
    steps: dict[str, set[int]] = {}
    for step in range(1, 41):
        for one in trace_step(workspace, record, step)["sequences"]:
            for piece in one["documents"]:
                steps.setdefault(piece["doc_id"], set()).add(step)
    for i in (0, 10, 2, 7, 1):  # repeated, repeated, plain, on dev, not packed
        pieces = trace_document(workspace, record, doc_id(i).hex())
        assert {step for piece in pieces for step in piece["steps"]} == steps.get(doc_id(i).hex(), set())
    assert {piece["pass"] for piece in trace_document(workspace, record, doc_id(10).hex())} == {0, 1}
    assert {piece["side"] for piece in trace_document(workspace, record, doc_id(7).hex())} == {"dev"}
    assert trace_document(workspace, record, doc_id(1).hex()) == []


@pytest.mark.parametrize("step", [0, 41, -1])
def test_a_step_that_was_not_made(trained: tuple[Workspace, RunRecord], step: int) -> None:
    with pytest.raises(NotFoundError, match=f"no step {step}"):
        trace_step(*trained, step)


def test_before_the_training_ends_the_plan_answers(trained: tuple[Workspace, RunRecord]) -> None:
    workspace, record = trained
    early = RunRecord(
        run_id="x", pipeline="toy", config=record.config, stages={k: v for k, v in record.stages.items() if k != "train"}
    )
    assert trace_step(workspace, early, 9) == {**trace_step(workspace, record, 9), "run_id": "x", "loss": None}
    with pytest.raises(NotFoundError, match="no finished fill_gaps"):
        trace_step(workspace, RunRecord(run_id="y", pipeline="toy"), 1)


def test_the_command(trained: tuple[Workspace, RunRecord], monkeypatch: pytest.MonkeyPatch) -> None:
    from flows.cli.main import make_app

    monkeypatch.setenv("MILLRACE_HOME", str(trained[0].root))
    spoken = CliRunner().invoke(make_app(), ["trace", "latest", "2", "--json"])
    assert json.loads(spoken.output) == trace_step(*trained, 2), spoken.output
    shown = CliRunner().invoke(make_app(), ["trace", "latest", "--document", doc_id(10).hex()])
    assert shown.exit_code == 0, shown.output
    assert shown.output.count("train-0") == len(trace_document(*trained, doc_id(10).hex()))
    assert CliRunner().invoke(make_app(), ["trace", "latest"]).exit_code == 2
    assert CliRunner().invoke(make_app(), ["trace", "latest", "99"]).exit_code == 6
