"""What is logged beside the steps: parts that add up, worst documents, samples, layers; the same after a stop."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import packing_toy
import pyarrow.parquet as pq
import pytest
import torch
from packing_toy import ToyCorpus, doc_id, texts_of
from training_toy import Config, planned, run_train
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from pipeline_lib.config.model import SamplesConfig, TrainConfig
from pipeline_lib.config.pipeline import PipelineConfig
from pipeline_lib.errors import StoppedError
from pipeline_lib.metrics import training_log
from pipeline_lib.packing.reader import PackedDataset
from pipeline_lib.reporting.report import write_report
from pipeline_lib.training.origins import Origins
from pipeline_lib.training.samples import distinct, repetition
from pipeline_lib.workspace.artifact import Artifact
from pipeline_lib.workspace.runs import RunBook, RunRecord
from pipeline_lib.workspace.services import Services
from pipeline_lib.workspace.workspace import Workspace

PROMPTS = ["aib", "<script>alert(1)</script> |x|", "aib"]


def config(**changes: Any) -> Config:
    train = TrainConfig(samples=SamplesConfig(prompts=PROMPTS, tokens=12))
    return planned(steps=40, **changes).model_copy(update={"train": train})


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Artifact]:
    root = tmp_path_factory.mktemp("watched")
    return root, run_train(root, config())


def logged(artifact: Artifact, table: str) -> list[dict[str, Any]]:
    (file,) = [path for path in artifact.files("observed") if path.name == f"{table}.parquet"]
    rows: list[dict[str, Any]] = pq.read_table(file).to_pylist()
    return rows


def mean(rows: list[dict[str, Any]]) -> float:
    return math.fsum(row["tokens"] * row["loss"] for row in rows) / sum(row["tokens"] for row in rows)


def test_parts_of_the_dev_loss_add_up_to_it(trained: tuple[Path, Artifact]) -> None:
    _, artifact = trained
    by_step = defaultdict(list)
    for row in logged(artifact, "losses"):
        if row["side"] == "dev":
            by_step[row["step"]].append(row)
    curve = dict(artifact.details["dev_curve"])
    assert list(by_step) == list(curve) == [0, 6, 12, 18, 24, 30, 36, 40]
    for step, rows in by_step.items():
        assert [row["domain"] for row in rows] == ["odd"]  # documents 7, 27, 47 … of the toy are on dev
        assert mean(rows) == pytest.approx(curve[step], rel=1e-12)
    assert len({tuple(row["tokens"] for row in rows) for rows in by_step.values()}) == 1


def test_parts_of_the_training_loss_add_up_to_it_step_by_step(trained: tuple[Path, Artifact]) -> None:
    _, artifact = trained
    losses = {row["step"]: row["loss"] for row in logged(artifact, "steps")}
    parts = defaultdict(list)
    for row in logged(artifact, "losses"):
        if row["side"] == "train":
            assert row["first_step"] == row["step"]
            parts[row["step"]].append(row)
    assert list(parts) == list(losses) == list(range(1, 41))
    domains: set[str] = set()
    for step, rows in parts.items():
        domains.update(row["domain"] for row in rows)
        assert mean(rows) == pytest.approx(losses[step], rel=2e-6)  # the step's own loss is an fp32 sum
    assert domains == {"even", "odd"}


def test_parts_are_what_the_model_says_of_each_document_alone(trained: tuple[Path, Artifact]) -> None:
    """The published model reads every dev document by itself: nothing of the watch is used, packing included."""
    root, artifact = trained
    workspace = Workspace.open(root)
    filled = workspace.artifact(artifact.manifest.inputs["fill_gaps"]["key"])
    data, domains = PackedDataset.of(workspace, filled, "dev"), Origins.of(workspace, filled)
    model = AutoModelForCausalLM.from_pretrained(artifact.files("model")[0].parent)
    losses: dict[str, list[float]] = defaultdict(list)
    documents: dict[bytes, list[float]] = defaultdict(list)
    for sequence in range(len(data)):
        at, tokens = 0, data[sequence]["input_ids"]
        for row, _, length in data.documents(sequence):
            piece = tokens[at : at + length][None]
            at += length
            if length > 1:
                with torch.no_grad():
                    logits = model(piece, use_cache=False).logits[0, :-1]
                found = torch.nn.functional.cross_entropy(logits, piece[0, 1:], reduction="none").tolist()
                losses[domains.cells[domains.cell_of[row]][1]] += found
                documents[bytes.fromhex(domains.named([row])[0]["doc_id"])] += found
    last = [row for row in logged(artifact, "losses") if row["side"] == "dev" and row["step"] == 40]
    assert {row["domain"]: row["tokens"] for row in last} == {name: len(values) for name, values in losses.items()}
    for row in last:
        assert row["loss"] == pytest.approx(math.fsum(losses[row["domain"]]) / len(losses[row["domain"]]), rel=1e-4)
    worst = [row for row in logged(artifact, "worst") if row["step"] == 40]
    means = {name: math.fsum(values) / len(values) for name, values in documents.items() if len(values) >= 8}
    assert [row["doc_id"] for row in worst] == sorted(means, key=lambda name: -means[name])[:10]
    assert worst[0]["loss"] == pytest.approx(max(means.values()), rel=1e-4)
    assert {row["doc_id"] for row in worst} <= {doc_id(i) for i in range(7, 160, 20)}


def test_samples_are_a_matrix_of_prompts_and_evaluations(trained: tuple[Path, Artifact]) -> None:
    _, artifact = trained
    samples = logged(artifact, "samples")
    steps = [step for step, _ in artifact.details["dev_curve"]]
    assert [(row["step"], row["prompt"]) for row in samples] == [(step, prompt) for step in steps for prompt in PROMPTS]
    assert all(row["tokens"] <= 12 for row in samples)
    assert max(row["tokens"] for row in samples) == 12
    first, _, third = samples[-3:]
    assert first["text"] != third["text"]  # the same prompt, other random numbers
    events = [json.loads(row["detail"]) for row in logged(artifact, "events") if row["kind"] == "evaluated"]
    assert [event["dev_loss"] for event in events] == [loss for _, loss in artifact.details["dev_curve"]]
    assert all(0 <= event["accuracy"] <= 1 and event["perplexity"] == math.exp(event["dev_loss"]) for event in events)
    assert events[-1]["accuracy"] > events[0]["accuracy"]


def test_the_report_shows_the_log_as_text(trained: tuple[Path, Artifact]) -> None:
    root, artifact = trained
    workspace = Workspace.open(root)
    pages = {}
    for examples in ("none", "full"):
        config = PipelineConfig.model_validate({"report": {"examples": examples}}).model_dump(mode="json")
        record = RunRecord(
            run_id=f"20260101-000000-{examples}", pipeline="toy", config=config, started="2026-01-01T00:00:00+00:00"
        )
        record.machine = {"cpu": "none", "cores": 1, "memory_gib": 1}
        record.stage("train").ref = artifact.ref().to_json()
        ingest = workspace.artifact(artifact.manifest.inputs["fill_gaps"]["key"]).manifest.inputs["ingest"]["key"]
        record.stage("ingest").ref = workspace.artifact(ingest).ref().to_json()
        pages[examples] = write_report(workspace, record, ("ingest", "train")).read_text("utf-8")
    worst = [row for row in logged(artifact, "worst") if row["step"] == 40]
    texts = {doc_id(i): text for i, text in enumerate(texts_of(ToyCorpus(documents=160)))}
    for page in pages.values():
        assert "Evaluations on the dev side" in page
        assert "Dev loss by domain" in page
        assert worst[0]["doc_id"].hex() in page
        assert "<script" not in page
    assert "&lt;script&gt;" in pages["full"]
    assert texts[worst[0]["doc_id"]][:40] in pages["full"]
    assert texts[worst[0]["doc_id"]][:40] not in pages["none"]
    assert "how the model goes on" not in pages["none"]


def test_measures_of_a_sample() -> None:
    assert repetition([1, 2, 3, 4, 5, 6], 4) == 0.0
    assert repetition([1, 2, 1, 2, 1, 2, 1, 2], 4) == pytest.approx(3 / 5)  # 1212 2121 1212 2121 1212
    assert distinct([7, 7, 7, 8], 2) == pytest.approx(2 / 3)
    assert distinct([7], 2) is repetition([1, 2, 3], 4) is None


def test_layers_and_a_stop_that_changes_nothing_of_the_log(tmp_path: Path, trained: tuple[Path, Artifact]) -> None:
    _, whole = trained
    layers = logged(whole, "layers")
    groups = ["embeddings", "layer 0", "layer 1", "other", "all"]
    assert [(row["step"], row["group"]) for row in layers] == [(step, group) for step in (1, 20, 40) for group in groups]
    by_place = {(row["step"], row["group"]): row for row in layers}
    norms = {row["step"]: row["grad_norm"] for row in logged(whole, "steps")}
    for step in (1, 20, 40):
        assert by_place[step, "all"]["grad_norm"] == pytest.approx(norms[step], rel=1e-5)
        assert 0 < by_place[step, "layer 1"]["update_ratio"] < 1

    left = [15]

    def stop() -> bool:
        left[0] -= 1
        return left[0] <= 0

    with pytest.raises(StoppedError):
        run_train(tmp_path, config(), services=Services(should_stop=stop))
    resumed = run_train(tmp_path, config())
    assert resumed.manifest.digest == whole.manifest.digest
    for table, observed in (
        ("losses", ()),
        ("samples", ()),
        ("worst", ()),
        ("layers", ()),
        ("steps", ("loss", "grad_norm", "lr")),
    ):
        ours, theirs = (
            [{k: v for k, v in row.items() if (k in observed if observed else k != "attempt")} for row in logged(one, table)]
            for one in (resumed, whole)
        )
        assert ours == theirs, table


def test_the_command_exports_every_table(trained: tuple[Path, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flows.cli.main import make_app

    root, artifact = trained
    record = RunRecord(run_id="20260101-000000-abcdef", pipeline="toy", config={})
    record.stage("train").ref = artifact.ref().to_json()
    workspace = Workspace.open(root)
    RunBook(workspace.runs_folder).save(record)
    monkeypatch.setenv("MILLRACE_HOME", str(root))

    def run(*arguments: str) -> Any:
        return CliRunner().invoke(make_app(), ["metrics", "latest", *arguments])

    assert json.loads(run("--format", "json").output)[39]["step"] == 40
    assert len(run("--format", "csv", "--table", "worst").output.splitlines()) == 1 + len(logged(artifact, "worst"))
    out = tmp_path / "losses.parquet"
    assert run("--format", "parquet", "--table", "losses", "--out", str(out)).exit_code == 0
    assert pq.read_table(out).equals(training_log(workspace, record, "losses"))
    shown = run()
    assert "steps: 40 rows" in shown.output, shown.output
    assert run("--table", "stepps").exit_code == 6


def test_a_spike_of_the_loss_names_the_document_that_made_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One document is like nothing that the model has seen; half of step 76, the first to read it. It is withheld and named."""
    plain = packing_toy.texts_of
    odd = "".join(chr(0x4E00 + place * 7919 % 20000) for place in range(10))  # a sequence of bytes that no other text has

    def with_an_odd_one(toy: ToyCorpus) -> list[str]:
        return [odd if place == 40 else text for place, text in enumerate(plain(toy))]

    monkeypatch.setattr(packing_toy, "texts_of", with_an_odd_one)
    made = run_train(tmp_path, planned(steps=80, evaluate_every=0, save_every=0, batch_sequences=2))
    (spike,) = [row for row in logged(made, "events") if row["kind"] == "loss_spike"]
    evidence = json.loads(spike["detail"])
    first, second, *_ = evidence["documents"]
    assert (first["doc_id"], first["domain"], first["tokens"]) == (doc_id(40).hex(), "even", 30)
    assert first["loss"] > 2 * second["loss"]
    assert evidence["loss"] > evidence["mean"] + 6 * evidence["sigma"]
    assert evidence["withheld"]
    assert [row["step"] for row in logged(made, "steps") if row["loss"] == evidence["loss"]] == [spike["step"]]
