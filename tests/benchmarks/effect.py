"""Is it worth it? The same model size and seconds of training: the library's defaults, the Step Law, the whole pipeline.

(a) the raw text, a document a row, trained by transformers' Trainer with its default settings, cut by the clock. (a′) the same
text concatenated, by Trainer too, learning rate and batch from the Step Law, a cosine of known length. (b) the whole pipeline,
Muon its optimizer; (b) at half the time; and (b) without its parts. All are measured in bits a byte on good documents that
nothing has seen, and in minimal pairs; the tokenizer is each one's own, of the same size. One corpus has planted junk and
near-duplicates, the other has none. Differences are paired by seed. Trainer's time counts from its first step, the pipeline's is
the time in its steps; what comes before and after is told beside.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline_lib.config.model import ModelConfig
from pipeline_lib.config.pipeline import PipelineConfig
from pipeline_lib.planning.laws import step_law_batch_tokens, step_law_learning_rate
from pipeline_lib.run import run_plain
from pipeline_lib.tokens.encode import Encoder
from pipeline_lib.tokens.load import copy_tokenizer, read_facts
from pipeline_lib.validation.answers import answer
from pipeline_lib.validation.scorer import Scorer
from pipeline_lib.validation.suites import BUILT_IN
from pipeline_lib.workspace.runs import RunRecord
from pipeline_lib.workspace.workspace import Workspace
from tests.benchmarks.figures import Book
from tests.benchmarks.selection_effect import good_documents, junk_documents
from tests.benchmarks.small_models import tokenizer_of

MODEL = ModelConfig(width=96, depth=2, heads=4, ffn_width=256)
VOCABULARY, CONTEXT = 1024, 128
GOOD = 6000  # documents of about 1,500 characters, where there are so many
SUITE = "grammar"  # a model of this size knows grammar long before facts
TEST_DOCUMENTS = 120  # good ones, set apart before anything else
JUNK_SHARE, COPIES_SHARE = 1.0, 0.5  # of the good documents: so many of junk beside them, so many with a near copy
SECONDS, QUICK_SECONDS = 20.0, 8.0  # of training
SEEDS = 3
STUDENT_95 = {1: 12.706, 2: 4.303}  # two-sided, by degrees of freedom
MOST_PASSES = 4.0  # over the data, as everybody else
MOST_RATE = 0.005  # the Step Law was fitted far above these sizes
TRIAL_BATCH, TRIAL_SECONDS = 16, 1.0
PILOT_STEPS = 40
DEFAULT_RATE, DEFAULT_BATCH = 5e-5, 8  # transformers.TrainingArguments: learning_rate, per_device_train_batch_size
WITHOUT: dict[str, dict[str, Any]] = {  # a part of the pipeline → the settings that take it away
    "selection": {"score": {"rules": {"*": "none"}}, "select": {"domain_balance": "none", "diversity_weight": 0.0}},
    "dedup": {"dedup": {"threshold": 1.0}},
    "Muon": {"train": {"optimizer": "adamw"}},
    "Muon and tuned settings": {
        "tune": {"trials": 0},
        "train": {"optimizer": "adamw", "learning_rate": DEFAULT_RATE, "batch_tokens": DEFAULT_BATCH * CONTEXT},
    },
    "packing": {"train": {"isolation": "rows"}},
    "planned schedule": {"train": {"schedule": "linear"}},
}
Tokens = NDArray[np.int64]


@dataclass(frozen=True)
class Arm:
    """One training: what its model is worth on untouched data, seconds of training, seconds of everything else."""

    bits: float  # a byte of the test text
    pairs: float  # share of minimal pairs in which the right sentence is the likelier one
    seconds: float
    beside: float = 0.0


@dataclass
class Arms:
    """Of one corpus: name → an arm a seed."""

    found: dict[str, list[Arm]] = field(default_factory=dict)

    def add(self, name: str, arm: Arm) -> None:
        self.found.setdefault(name, []).append(arm)

    def bits(self, name: str) -> list[float]:
        return [arm.bits for arm in self.found[name]]

    def pairs(self, name: str) -> list[float]:
        return [100 * arm.pairs for arm in self.found[name]]


def run(book: Book, arguments: argparse.Namespace) -> None:
    """Train every arm on both corpora, print bits a byte, and what each part is worth."""
    seconds, seeds = (QUICK_SECONDS, 1) if arguments.quick else (SECONDS, SEEDS)
    for label, junk in (("junk and copies", True), ("no planted junk", False)):
        arms = Arms()
        parts = list(WITHOUT) if junk or not arguments.quick else []
        for seed in range(seeds):
            with tempfile.TemporaryDirectory(prefix="millrace-bench-") as folder:
                _seed(arms, Path(folder), seed, seconds, parts, junk=junk)
        _print(book, arms, label, parts, seconds)
    if arguments.quick:
        book.leave_out("three seeds and their intervals; the parts on the corpus without junk; trainings of 20 seconds")


def _seed(arms: Arms, folder: Path, seed: int, seconds: float, parts: Sequence[str], *, junk: bool) -> None:
    texts, test = corpus(seed, junk=junk)
    tokenizer = tokenizer_of(texts, VOCABULARY, folder / "tokenizer")
    arms.add("a", defaults(tokenizer, texts, test, seconds, seed))
    arms.add("a′", step_law(tokenizer, texts, test, seconds, seed))
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), "utf-8")
    workspace = Workspace.open(folder / "workspace")
    arms.add("b", pipeline(workspace, folder, test, seconds, seed, {}))
    arms.add("b at half the time", pipeline(workspace, folder, test, seconds / 2, seed, {}))
    for part in parts:
        arms.add(f"b without {part}", pipeline(workspace, folder, test, seconds, seed, WITHOUT[part]))


def _print(book: Book, arms: Arms, corpus_name: str, parts: Sequence[str], seconds: float) -> None:
    for name, found in arms.found.items():
        mean, half = interval(arms.bits(name))
        trained = statistics.fmean(arm.seconds for arm in found)
        pairs, spread = interval(arms.pairs(name))
        setup = f"± {half:.4f} over {len(found)} seeds; minimal pairs {pairs:.1f} ± {spread:.1f} %; {trained:.1f} s of training"
        book.add(f"{corpus_name}: ({name})", mean, "bits/byte", setup=setup)
    better = min(("a", "a′"), key=lambda name: statistics.fmean(arms.bits(name)))
    half_time, half = interval([b - a for a, b in zip(arms.bits(better), arms.bits("b at half the time"), strict=True)])
    book.add(
        f"{corpus_name}: (b) in half the time − ({better})",
        half_time,
        "bits/byte",
        most=0,
        setup=f"± {half:.4f}; of {seconds:g} s",
    )
    for name in ("b", "b at half the time"):
        more, half = interval([b - a for a, b in zip(arms.pairs(better), arms.pairs(name), strict=True)])
        book.add(f"{corpus_name}: minimal pairs, ({name}) − ({better})", more, "points", setup=f"± {half:.2f}")
    for part in parts:
        gain, half = interval([w - b for b, w in zip(arms.bits("b"), arms.bits(f"b without {part}"), strict=True)])
        book.add(f"{corpus_name}: {part} is worth", gain, "bits/byte", setup=f"± {half:.4f}")
    book.add(f"{corpus_name}: the pipeline beside training", statistics.fmean(arm.beside for arm in arms.found["b"]), "s")


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half width of its 95 % interval; infinite for one value."""
    if len(values) < 2:
        return values[0], math.inf
    return statistics.fmean(values), STUDENT_95[len(values) - 1] * statistics.stdev(values) / math.sqrt(len(values))


def corpus(seed: int, *, junk: bool) -> tuple[list[str], list[str]]:
    """(text to train on, untouched good documents)."""
    draw = np.random.default_rng(seed)
    good = [good for good in good_documents(draw, GOOD) if good.strip()]
    places = draw.permutation(len(good))
    test, train = ([good[i] for i in some] for some in (places[:TEST_DOCUMENTS], places[TEST_DOCUMENTS:]))
    if not junk:
        return train, test
    copied = [f"{text}\n\nPrinted again." for text in train[: int(COPIES_SHARE * len(train))]]
    planted = [text for text in junk_documents(draw, train)[: int(JUNK_SHARE * len(train))] if text.strip()]
    everything = [*train, *copied, *planted]
    return [everything[i] for i in draw.permutation(len(everything))], test


def encoded(tokenizer: Path, texts: Sequence[str]) -> list[Tokens]:
    """Every text with an end before and behind it."""
    flat, offsets = Encoder(tokenizer / "tokenizer.json").encode(pa.array(texts, pa.large_string()))
    end = np.array([read_facts(tokenizer).eos_id], np.int64)
    return [np.concatenate([end, flat[a:b], end]) for a, b in itertools.pairwise(offsets)]


def _model(tokenizer: Path, seed: int) -> Any:
    from pipeline_lib.training.model import build_model

    facts = read_facts(tokenizer)
    special = {"eos": facts.eos_id, "pad": facts.pad_id}
    return build_model(MODEL, vocabulary_size=facts.vocabulary_size, sequence_length=CONTEXT, seed=seed, special_ids=special)


def defaults(tokenizer: Path, texts: Sequence[str], test: Sequence[str], seconds: float, seed: int) -> Arm:
    """(a): a document a row, cut at the context, padded to the longest of its batch; Trainer's defaults, cut by the clock."""
    rows = [row[:CONTEXT] for row in encoded(tokenizer, texts)]
    model = _model(tokenizer, seed)
    _, took = trained(model, rows, seconds, read_facts(tokenizer).pad_id, seed=seed)
    return Arm(*worth(model, tokenizer, test), took)


def step_law(tokenizer: Path, texts: Sequence[str], test: Sequence[str], seconds: float, seed: int) -> Arm:
    """(a′): Trainer, documents one behind the other; learning rate and batch by the law, a cosine over the steps that fit."""
    draw, pad = np.random.default_rng(seed), read_facts(tokenizer).pad_id
    documents = encoded(tokenizer, texts)
    stream = np.concatenate([documents[i] for i in draw.permutation(len(documents))])
    rows = list(stream[: len(stream) // CONTEXT * CONTEXT].reshape(-1, CONTEXT))
    most = MOST_PASSES * len(rows) * CONTEXT
    batch, trial = TRIAL_BATCH, _model(tokenizer, seed)
    for _ in range(2):  # the speed depends on the batch, the law's batch on the tokens that fit
        done, took = trained(trial, rows, TRIAL_SECONDS, pad, seed=seed, per_device_train_batch_size=batch, learning_rate=0.0)
        tokens = min(done * batch * CONTEXT / took * seconds, most)
        batch = max(round(step_law_batch_tokens(tokens) / CONTEXT), 1)
    parameters = sum(p.numel() for p in trial.parameters()) - trial.get_input_embeddings().weight.numel()
    by_law: dict[str, Any] = {
        "per_device_train_batch_size": batch, "max_steps": max(int(tokens // (batch * CONTEXT)), 1),
        "learning_rate": min(step_law_learning_rate(parameters, tokens), MOST_RATE), "lr_scheduler_type": "cosine",
        "warmup_steps": 0.05, "adam_beta2": 0.95, "weight_decay": 0.1,
    }  # fmt: skip
    model = _model(tokenizer, seed)
    _, took = trained(model, rows, 1.2 * seconds, pad, seed=seed, **by_law)  # the speed was measured for seconds only
    return Arm(*worth(model, tokenizer, test), took)


def trained(model: Any, rows: Sequence[Tokens], seconds: float, pad: int, **settings: Any) -> tuple[int, float]:
    """Train by transformers' Trainer, its defaults but for the settings, at most so many seconds after the first step.

    Nothing is saved, logged to a file or evaluated. Returns the steps after the first one, and the seconds they took.
    """
    import torch
    from torch.nn.utils.rnn import pad_sequence
    from transformers import Trainer, TrainerCallback, TrainingArguments
    from transformers.trainer_callback import PrinterCallback

    marks: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            marks.append(time.perf_counter())
            control.should_training_stop |= marks[-1] - marks[0] >= seconds

    def batch(some: Sequence[Any]) -> dict[str, Any]:
        tensors = [torch.from_numpy(one["input_ids"]) for one in some]
        found = {
            name: pad_sequence(parts, batch_first=True, padding_value=value)
            for name, parts, value in (
                ("input_ids", tensors, pad),
                ("labels", tensors, -100),
                ("attention_mask", [torch.ones_like(one) for one in tensors], 0),
            )
        }
        return found if not bool(found["attention_mask"].all()) else {name: found[name] for name in ("input_ids", "labels")}

    with tempfile.TemporaryDirectory(prefix="millrace-trainer-") as folder:
        arguments = TrainingArguments(
            output_dir=folder, use_cpu=not torch.cuda.is_available(), dataloader_pin_memory=False, report_to="none",
            save_strategy="no", disable_tqdm=True, **settings,
        )  # fmt: skip
        data: Any = [{"input_ids": row} for row in rows]
        trainer = Trainer(model=model, args=arguments, train_dataset=data, data_collator=batch, callbacks=[Clock()])
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return len(marks) - 1, marks[-1] - marks[0]


def pipeline(workspace: Workspace, folder: Path, test: Sequence[str], seconds: float, seed: int, changed: dict[str, Any]) -> Arm:
    """(b): everything, with as many steps as the seconds hold by the speed of a short training before; the batch is the law's, as
    in (a′)."""
    from pipeline_lib.pretrained import read_model

    sections: dict[str, dict[str, Any]] = {
        "resources": {"max_hours": 2.0, "margin_minutes": 1.0, "search_share": 0.02},
        "ingest": {"sources": [{"name": "text", "kind": "files", "path": str(folder / "text.jsonl"), "licence": "MIT"}]},
        "tokenizer": {"vocabulary_size": VOCABULARY}, "pack": {"sequence_length": CONTEXT}, "model": MODEL.model_dump(),
        "calibrate": {"seconds": 3.0}, "tune": {"trials": 6, "steps": 60},
        "train": {"optimizer": "muon", "samples": {"prompts": []}}, "validation": {"language_tokens": 5000, "bootstrap": 100},
        "suites": {"level": "smoke"}, "tracking": {"enabled": False},
    }  # fmt: skip
    for name, values in changed.items():
        sections[name] = {**sections.get(name, {}), **values}
    begin = time.perf_counter()
    config = {"name": "effect", "seed": seed, **sections}
    train = sections["train"]

    def run_it(until: str, **more: Any) -> RunRecord:
        return run_plain(workspace, PipelineConfig.model_validate({**config, **more}), until=until)

    calibrated = _manifest(workspace, run_it("calibrate"), "calibrate").metrics["tokens_per_second"]
    train = {"batch_tokens": max(round(step_law_batch_tokens(seconds * calibrated) / CONTEXT), 1) * CONTEXT, **train}
    pilot = run_it("train", train={**train, "max_steps": PILOT_STEPS}, tune={"trials": 0})
    speed = float(_manifest(workspace, pilot, "train").metrics["tokens_per_second"])
    steps = max(int(seconds * speed / train["batch_tokens"]), 2)
    record = run_it("", train={**train, "max_steps": steps})
    whole, made = time.perf_counter() - begin, _manifest(workspace, record, "train")
    model = read_model(workspace.store.artifact(made.key).folder / "model")
    pack = workspace.store.artifact(_manifest(workspace, record, "pack").key)
    trained = steps * train["batch_tokens"] / float(made.metrics["tokens_per_second"])
    return Arm(*worth(model, pack.folder / "tokenizer", test), trained, whole - trained)


def _manifest(workspace: Workspace, record: RunRecord, stage: str) -> Any:
    ref = record.ref(stage)
    assert ref is not None, f"the run has no {stage}"
    return workspace.store.manifest(ref.key)


def worth(model: Any, tokenizer: Path, test: Sequence[str]) -> tuple[float, float]:
    """Bits a byte of the test text, and the share of minimal pairs in which the right sentence is the likelier one."""
    from pipeline_lib.training.model import export_model

    with tempfile.TemporaryDirectory(prefix="millrace-model-") as name:
        folder = Path(name)
        export_model(model, folder)
        copy_tokenizer(tokenizer, folder)
        rows, _ = answer([asdict(item) for item in BUILT_IN[SUITE]("standard", 0)], Scorer(folder, batch_tokens=2048))
    return bits_per_byte(model, tokenizer, test), float(pc.mean(rows["score"]).as_py())


def bits_per_byte(model: Any, tokenizer: Path, test: Sequence[str]) -> float:
    """Of whole documents, in windows of the context that share one token, so that every token is predicted once."""
    import torch
    from torch.nn import functional

    model.eval()
    nats = 0.0
    with torch.no_grad():
        for row in encoded(tokenizer, test):
            for start in range(0, len(row) - 1, CONTEXT - 1):
                ids = torch.from_numpy(row[start : start + CONTEXT])[None]
                logits = model(input_ids=ids).logits[0, :-1].float()
                nats += float(functional.cross_entropy(logits, ids[0, 1:], reduction="sum"))
    return nats / math.log(2) / sum(len(text.encode()) for text in test)
