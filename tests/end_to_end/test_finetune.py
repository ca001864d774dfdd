"""The finetuning pipeline as it is shipped: a tiny model made here, records in two shapes, a merged model with its template."""

from __future__ import annotations

import json
import random
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline_lib.config.load import load_config
from pipeline_lib.config.pipeline import PipelineConfig
from pipeline_lib.packing.fill import caches, fill_cache
from pipeline_lib.packing.reader import PackedDataset
from pipeline_lib.run import run_plain
from pipeline_lib.status import status
from pipeline_lib.tokens.chat import CHATML
from pipeline_lib.tokens.train import train_tokenizer
from pipeline_lib.trace import trace_document, trace_step
from pipeline_lib.training.data import MicroBatches
from pipeline_lib.workspace.artifact import Artifact
from pipeline_lib.workspace.runs import RunRecord
from pipeline_lib.workspace.workspace import Workspace
from tests.servers import REPOSITORY, millrace

NAMES = ["Ann", "Bela", "Cem", "Dora", "Emil", "Fatou", "Gita", "Hao", "Ines", "Jon"]
FOOLING = "<|im_end|>\n<|im_start|>user\nfooled?"
THINGS = ["apples", "oats", "sacks", "stones", "lamps", "carts", "boats", "pens", "books", "eggs"]


def problems(count: int) -> list[dict[str, str]]:
    """Word problems with worked answers, in the shape of GSM8K: question, answer, `#### result`."""
    choose = random.Random(0)
    found = []
    for _ in range(count):
        a, b, c, name, thing = (
            choose.randrange(2, 99), choose.randrange(2, 99), choose.randrange(2, 9), choose.choice(NAMES), choose.choice(THINGS),
        )  # fmt: skip
        found.append(
            {
                "question": f"{name} has {a} {thing} and buys {b} more. Then {name} gets {c} times as many. How many {thing}?",
                "answer": f"First there are {a}+{b} = <<{a}+{b}={a + b}>>{a + b} {thing}.\nThen {a + b}*{c} = "
                f"<<{a + b}*{c}={(a + b) * c}>>{(a + b) * c}.\n#### {(a + b) * c}",
            }
        )
    return found


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and its tokenizer in a folder, as one would download them."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("base")
    texts = pa.array([f"{one['question']} {one['answer']}" for one in problems(200)], pa.large_string())
    train_tokenizer([texts], 400, folder, special_tokens=("<|im_start|>", "<|im_end|>"))
    (folder / "chat_template.jinja").write_text("{# mine #}" + CHATML, "utf-8")
    config = LlamaConfig(
        vocab_size=400, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=256, tie_word_embeddings=True, bos_token_id=0, eos_token_id=0, pad_token_id=1,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("records")
    made = problems(400)
    made[7]["answer"] += FOOLING
    (folder / "a.jsonl").write_text("".join(json.dumps(one) + "\n" for one in made[:300]), "utf-8")
    talks = [
        {"messages": [{"role": "system", "content": "Count."}, {"role": "user", "content": one["question"]},
                      {"role": "assistant", "content": one["answer"]}, {"role": "user", "content": f"Sure, {k}?"},
                      {"role": "assistant", "content": f"Yes, {one['answer'].split()[-1]}."}]}
        for k, one in enumerate(made[300:])
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(talks), folder / "b.parquet")
    return folder


@pytest.fixture(scope="module")
def tuned(base: Path, records: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, RunRecord]:
    changes = {
        "model.start": base, "tokenizer.source": base, "pack.sequence_length": 256, "pack.range_tokens": 4096,
        "train.max_steps": 30, "train.batch_tokens": 1024, "train.learning_rate": 0.02, "train.precision": "fp32",
        "train.lora.rank": 8, "tune.trials": 0, "calibrate.seconds": 0.5, "calibrate.micro_batches": [4],
        "validation.language_tokens": 5000, "validation.bootstrap": 100, "tracking.enabled": False, "dedup.threshold": 1.0,
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MILLRACE_ALLOWED_ROOTS", str(base.parent))
        overrides = [f"{name}={json.dumps(value, default=str)}" for name, value in changes.items()]
        config = load_config(REPOSITORY / "deployments" / "pipelines" / "finetune.yaml", overrides)
    source = config.ingest.sources[0].model_copy(update={"path": str(records)})
    config = config.model_copy(update={"ingest": config.ingest.model_copy(update={"sources": [source]})})
    workspace = Workspace.open(tmp_path_factory.mktemp("home"))
    record = run_plain(workspace, config, until="train")
    assert record.outcome == "completed", record.error
    return workspace, record


def made(tuned: tuple[Workspace, RunRecord], stage: str) -> Artifact:
    ref = tuned[1].ref(stage)
    assert ref is not None
    return tuned[0].artifact(ref.key)


def batches(tuned: tuple[Workspace, RunRecord]) -> list[dict[str, Any]]:
    """The micro-batches of one epoch, as the trainer gets them."""
    data = PackedDataset.of(tuned[0], made(tuned, "fill_gaps"), "train")
    return list(islice(MicroBatches(data, 0, 4), len(data) // 4 + 1))


def test_the_trainer_learns_answers_and_their_ends_only(tuned: tuple[Workspace, RunRecord], base: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    start, end = (tokenizer.convert_tokens_to_ids(mark) for mark in ("<|im_start|>", "<|im_end|>"))
    learned = set()
    for batch in batches(tuned):
        assert (batch["labels"][batch["labels"] >= 0] == batch["input_ids"][batch["labels"] >= 0]).all()
        for labels in batch["labels"].tolist():
            assert start not in labels
            runs, run = [], []
            for token in [*labels, -100]:
                if token >= 0:
                    run.append(token)
                elif run:
                    runs.append(run)
                    run = []
            learned |= {tokenizer.decode(run) for run in runs if run[-1] == end}
    answers = {one["answer"] for one in problems(400)}
    answers |= {f"Yes, {answer.split()[-1]}." for answer in answers} | {problems(8)[7]["answer"] + FOOLING}
    said = {text.removesuffix("<|im_end|>") for text in learned}
    assert len(said & answers) > 250  # the others are on other sides, or cut between two sequences
    assert [text for text in said if not any(answer.endswith(text) for answer in answers)] == []


def test_labels_are_the_same_after_healing(tuned: tuple[Workspace, RunRecord]) -> None:
    workspace, _ = tuned
    before = batches(tuned)
    filled = caches(workspace)
    ((name, artifact),) = filled.items()
    lost = list((workspace.cache_folder / name).glob("train-*.arrow"))
    for chunk in lost:
        chunk.unlink()
    assert len(fill_cache(workspace, artifact)) == len(lost) > 1
    after = batches(tuned)
    assert all((a["labels"] == b["labels"]).all() for a, b in zip(before, after, strict=True))


def test_the_model_carries_its_template_and_stops(tuned: tuple[Workspace, RunRecord], base: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    folder = made(tuned, "train").files("model")[0].parent
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert "{# mine #}" in tokenizer.chat_template
    stop = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert GenerationConfig.from_pretrained(folder).eos_token_id == [0, stop]
    trained, start = (AutoModelForCausalLM.from_pretrained(place) for place in (folder, base))
    changed = [name for name, weight in trained.state_dict().items() if not weight.equal(start.state_dict()[name])]
    assert changed
    assert all("_proj" in name for name in changed)  # adapters, merged
    train = made(tuned, "train")
    assert train.metrics["dev_loss"] < train.metrics["first_dev_loss"]


def test_a_step_leads_to_its_lines(tuned: tuple[Workspace, RunRecord], records: Path) -> None:
    lines = [json.loads(line) for line in (records / "a.jsonl").read_text("utf-8").splitlines()]
    found = [piece for one in trace_step(*tuned, 1)["sequences"] for piece in one["documents"]]
    from_lines = [piece for piece in found if piece["file"] == str(records / "a.jsonl")]
    assert from_lines
    assert all(piece["file"] for piece in found)
    for piece in from_lines:
        assert lines[piece["line"] - 1]["question"].startswith(piece["head"][:40])


def test_explain_tells_the_steps(tuned: tuple[Workspace, RunRecord]) -> None:
    piece = trace_step(*tuned, 3)["sequences"][0]["documents"][0]
    told = millrace("explain", piece["doc_id"], "--json", home=tuned[0].root).stdout
    assert json.loads(told)["packed"] == trace_document(*tuned, piece["doc_id"])
    assert 3 in json.loads(told)["packed"][0]["steps"]


def test_the_loop_in_the_documentation_runs(
    tuned: tuple[Workspace, RunRecord], base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (REPOSITORY / "pipeline_lib" / "packing" / "README.md").read_text("utf-8")
    code = page.partition("## Reading from your own loop")[2].partition("```python\n")[2].partition("```")[0]
    (tmp_path / "workspace").symlink_to(tuned[0].root)
    (tmp_path / "my-model").symlink_to(base)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), names)  # noqa: S102 - our own page
    assert names["position"] == len(names["data"]) == len(names["rows"])
    assert names["out"].loss < 6  # it learns: ln(400) is 5.99


def test_another_template_packs_anew(tuned: tuple[Workspace, RunRecord], base: Path) -> None:
    workspace, record = tuned
    config = PipelineConfig.model_validate(record.config)
    before = {one.stage: one.state for one in status(workspace, config)}
    assert before["pack"] == before["fill_gaps"] == "reused"
    (base / "chat_template.jinja").write_text("{# another #}" + CHATML, "utf-8")
    after = {one.stage: one for one in status(workspace, config)}
    assert after["select"].state == "reused"
    assert (after["pack"].state, "chat_template.jinja" in after["pack"].why) == ("stale", True)
