"""Is it worth it? The same model size and seconds of training: the library's defaults, the Step Law, the whole pipeline.

(a) the raw text, a document a row, with the default settings of transformers' Trainer, cut by the clock. (a′) the same text
concatenated, learning rate and batch from the Step Law, a cosine of known length. (b) the whole pipeline; (b) at half the time;
and (b) without its parts. All are measured in bits a byte on good documents that nothing has seen; the tokenizer is each one's
own, of the same size. One corpus has planted junk and near-duplicates, the other has none. Differences are paired by seed.

Without packing there is no (b): the engine packs every family that can keep documents apart. What padding costs is a figure of
the benchmark `packing`.
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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline_lib.config.model import ModelConfig
from pipeline_lib.config.pipeline import PipelineConfig
from pipeline_lib.planning.laws import step_law_batch_tokens, step_law_learning_rate
from pipeline_lib.run import run_plain
from pipeline_lib.tokens.encode import Encoder
from pipeline_lib.tokens.load import read_facts
from pipeline_lib.workspace.runs import RunRecord
from pipeline_lib.workspace.workspace import Workspace
from tests.benchmarks.figures import Book
from tests.benchmarks.selection_effect import good_documents, junk_documents
from tests.benchmarks.small_models import tokenizer_of

MODEL = ModelConfig(width=96, depth=2, heads=4, ffn_width=256)
VOCABULARY, CONTEXT = 1024, 128
TEST_DOCUMENTS = 120  # good ones, set apart before anything else
JUNK_SHARE, COPIES_SHARE = 1.0, 0.5  # of the good documents: so many of junk beside them, so many with a near copy
SECONDS, QUICK_SECONDS = 90.0, 8.0  # of training
SEEDS = 3
STUDENT_95 = {1: 12.706, 2: 4.303}  # two-sided, by degrees of freedom
# transformers.TrainingArguments: learning_rate, per_device_train_batch_size, num_train_epochs, max_grad_norm; AdamW, linear
DEFAULT_RATE, DEFAULT_BATCH, DEFAULT_EPOCHS, DEFAULT_NORM = 5e-5, 8, 3, 1.0
WITHOUT: dict[str, dict[str, Any]] = {  # a part of the pipeline → the settings that take it away
    "selection": {"score": {"rules": {"*": "none"}}, "select": {"domain_balance": "none", "diversity_weight": 0.0}},
    "dedup": {"dedup": {"threshold": 1.0}},
    "tuned settings": {"tune": {"trials": 0}, "train": {"learning_rate": DEFAULT_RATE, "batch_tokens": DEFAULT_BATCH * CONTEXT}},
    "planned schedule": {"train": {"schedule": "linear"}},
}
Tokens = NDArray[np.int64]


@dataclass(frozen=True)
class Arm:
    """One training: bits a byte on the untouched text, seconds of training, seconds of everything else."""

    bits: float
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
        book.leave_out("three seeds and their intervals; the parts on the corpus without junk; trainings of 90 seconds")


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
        setup = f"± {half:.4f} over {len(found)} seeds; {trained:.1f} s of training"
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
    for part in parts:
        worth, half = interval([w - b for b, w in zip(arms.bits("b"), arms.bits(f"b without {part}"), strict=True)])
        book.add(f"{corpus_name}: {part} is worth", worth, "bits/byte", setup=f"± {half:.4f}")
    book.add(f"{corpus_name}: the pipeline beside training", statistics.fmean(arm.beside for arm in arms.found["b"]), "s")


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half width of its 95 % interval; infinite for one value."""
    if len(values) < 2:
        return values[0], math.inf
    return statistics.fmean(values), STUDENT_95[len(values) - 1] * statistics.stdev(values) / math.sqrt(len(values))


def corpus(seed: int, *, junk: bool) -> tuple[list[str], list[str]]:
    """(text to train on, untouched good documents)."""
    draw = np.random.default_rng(seed)
    good = [good for good in good_documents(draw) if good.strip()]
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
    import torch

    rows, draw = [row[:CONTEXT] for row in encoded(tokenizer, texts)], np.random.default_rng(seed)
    model, pad = _model(tokenizer, seed), read_facts(tokenizer).pad_id
    total = DEFAULT_EPOCHS * -(-len(rows) // DEFAULT_BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=DEFAULT_RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=total)
    begin, step, order = time.perf_counter(), 0, list[int]()
    while step < total and time.perf_counter() - begin < seconds:
        if len(order) < DEFAULT_BATCH:
            order = draw.permutation(len(rows)).tolist()
        batch = [rows[order.pop()] for _ in range(min(DEFAULT_BATCH, len(order)))]
        ids = np.full((len(batch), max(map(len, batch))), pad, np.int64)
        labels = np.full_like(ids, -100)
        for place, row in enumerate(batch):
            ids[place, : len(row)] = labels[place, : len(row)] = row
        _learn(model, optimizer, torch.from_numpy(ids), torch.from_numpy(labels))
        schedule.step()
        step += 1
    return Arm(bits_per_byte(model, tokenizer, test), time.perf_counter() - begin)


def step_law(tokenizer: Path, texts: Sequence[str], test: Sequence[str], seconds: float, seed: int) -> Arm:
    """(a′): documents one behind the other; learning rate and batch by the law, a cosine over the steps that fit."""
    import torch

    draw = np.random.default_rng(seed)
    rows = encoded(tokenizer, texts)
    stream = np.concatenate([rows[i] for i in draw.permutation(len(rows))])
    data = torch.from_numpy(stream[: len(stream) // CONTEXT * CONTEXT]).view(-1, CONTEXT)
    trial = _model(tokenizer, seed)
    parameters = sum(p.numel() for p in trial.parameters()) - trial.get_input_embeddings().weight.numel()
    speed = _speed(trial, data[:16])
    tokens = min(speed * seconds, 4.0 * data.numel())  # four passes, as everybody else
    batch = max(round(step_law_batch_tokens(tokens) / CONTEXT), 1)
    steps = max(int(tokens // (batch * CONTEXT)), 1)
    model = _model(tokenizer, seed)
    rate = min(step_law_learning_rate(parameters, tokens), 0.005)  # the law was fitted far above these sizes
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.05)
    begin, places = time.perf_counter(), list[int]()
    for _ in range(steps):
        if time.perf_counter() - begin > 1.2 * seconds:  # the speed was measured for seconds only
            break
        while len(places) < batch:
            places = [*draw.permutation(len(data)).tolist(), *places]
        rows_now = data[[places.pop() for _ in range(batch)]]
        _learn(model, optimizer, rows_now, rows_now)
        schedule.step()
    return Arm(bits_per_byte(model, tokenizer, test), time.perf_counter() - begin)


def _speed(model: Any, rows: Any) -> float:
    """Tokens/s of training, from a second of it."""
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
    _learn(model, optimizer, rows, rows)
    begin, done = time.perf_counter(), 0
    while time.perf_counter() - begin < 1.0:
        _learn(model, optimizer, rows, rows)
        done += rows.numel()
    return done / (time.perf_counter() - begin)


def _learn(model: Any, optimizer: Any, ids: Any, labels: Any) -> None:
    import torch

    model.train()
    optimizer.zero_grad(set_to_none=True)
    model(input_ids=ids, labels=labels).loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), DEFAULT_NORM)
    optimizer.step()


def pipeline(workspace: Workspace, folder: Path, test: Sequence[str], seconds: float, seed: int, changed: dict[str, Any]) -> Arm:
    """(b): everything, with as many steps as the seconds hold by the run's own calibration; the batch is the law's, which the
    plan tells, as in (a′)."""
    from pipeline_lib.pretrained import read_model

    sections: dict[str, dict[str, Any]] = {
        "resources": {"max_hours": 2.0, "margin_minutes": 1.0, "search_share": 0.02},
        "ingest": {"sources": [{"name": "text", "kind": "files", "path": str(folder / "text.jsonl"), "licence": "MIT"}]},
        "tokenizer": {"vocabulary_size": VOCABULARY}, "pack": {"sequence_length": CONTEXT}, "model": MODEL.model_dump(),
        "calibrate": {"seconds": 3.0}, "tune": {"trials": 3, "steps": 20},
        "train": {"samples": {"prompts": []}}, "validation": {"language_tokens": 5000, "bootstrap": 100},
        "tracking": {"enabled": False},
    }  # fmt: skip
    for name, values in changed.items():
        sections[name] = {**sections.get(name, {}), **values}
    begin = time.perf_counter()
    config = {"name": "effect", "seed": seed, **sections}
    measured = run_plain(workspace, PipelineConfig.model_validate(config), until="calibrate")
    speed = float(_manifest(workspace, measured, "calibrate").metrics["tokens_per_second"])
    by_law = max(round(step_law_batch_tokens(seconds * speed) / CONTEXT), 1) * CONTEXT
    train_settings = {"batch_tokens": by_law, **sections["train"]}
    steps = max(int(seconds * speed / train_settings["batch_tokens"]), 2)
    config["train"] = {**train_settings, "max_steps": steps}
    record = run_plain(workspace, PipelineConfig.model_validate(config))
    whole, train = time.perf_counter() - begin, _manifest(workspace, record, "train")
    artifact = workspace.store.artifact(train.key)
    model = read_model(artifact.folder / "model")
    pack = workspace.store.artifact(_manifest(workspace, record, "pack").key)
    bits = bits_per_byte(model, pack.folder / "tokenizer", test)
    trained = steps * train_settings["batch_tokens"] / float(train.metrics["tokens_per_second"])
    return Arm(bits, trained, whole - trained)


def _manifest(workspace: Workspace, record: RunRecord, stage: str) -> Any:
    ref = record.ref(stage)
    assert ref is not None, f"the run has no {stage}"
    return workspace.store.manifest(ref.key)


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
