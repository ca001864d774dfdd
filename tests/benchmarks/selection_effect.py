"""Does a selection teach more than as many random documents? The same small model on the same number of tokens, on held-out text.

The corpus is good text and three times as much planted junk: documents of shuffled words, of random letters, menus and
advertisements made of the same few phrases, lists of numbers. The pipeline's own stages (suites to select) choose a budget of it.
Against it stand two random choices of the same budget: of all documents for training, and of those that rules and dedup let pass.
Every model is trained once over exactly the same number of tokens and measured in bits a byte on good documents of the test side,
which no training has seen. The difference is paired by seed (start of the model, random choice, order).
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import statistics
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline_lib.config.pipeline import PipelineConfig
from pipeline_lib.corpus.machine_text import doc_strings
from pipeline_lib.stages import BY_NAME
from pipeline_lib.tables.parquet import read_tables
from pipeline_lib.workspace.artifact import ArtifactRef
from pipeline_lib.workspace.stage import execute
from pipeline_lib.workspace.workspace import Workspace
from tests.benchmarks.figures import Book, bench_data

PIECE = 1500  # characters of a document
GOOD = 2400  # documents
JUNK = 3  # planted documents for each good one
BUDGET = 400_000  # tokens that a model is trained on; after half as many it knows little more than letters
VOCABULARY, WIDTH, HEADS, DEPTH, CONTEXT, BATCH = 1024, 64, 2, 2, 64, 16
RATE = 3e-3  # learning rate at its highest
TEST_TOKENS = 30_000
STUDENT_95 = {2: 4.303, 4: 2.776}  # two-sided, by degrees of freedom: seeds − 1
STAGES = ("suites", "ingest", "score", "dedup", "split", "select")


@dataclass(frozen=True)
class Corpus:
    """Texts by role; `passed` is what rules and dedup let pass."""

    everything: list[str]
    passed: list[str]
    chosen: list[str]
    test: list[str]
    junk_share: dict[str, float]  # of characters


def options(parser: argparse.ArgumentParser) -> None:
    """None of its own."""


def run(book: Book, arguments: argparse.Namespace) -> None:
    """The figure alone; the benchmark `curation` prints it among its own."""
    add_figures(book, quick=arguments.quick)


def add_figures(book: Book, *, quick: bool = False) -> None:
    """Train, measure, print: losses, and both differences with their 95 % intervals."""
    seeds = 3 if quick else 5
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="millrace-effect-") as folder:
        corpus = build(Path(folder), seed=0)
    for name, share in corpus.junk_share.items():
        book.add(f"planted junk in {name}", 100 * share, "% of text")
    sides = {"selected": corpus.chosen, "random of all": corpus.everything, "random of what passed": corpus.passed}
    if quick:
        sides.pop("random of what passed")
        book.leave_out("selected against random documents of those that rules and dedup let pass")
    encode = tokenizer(corpus.everything)
    losses: dict[str, list[float]] = {name: [] for name in sides}
    for seed in range(seeds):
        for name, texts in sides.items():
            losses[name].append(test_loss(encode, texts, corpus.test, seed))
    for name, values in losses.items():
        each = ", ".join(f"{value:.4f}" for value in values)
        book.add(f"test loss, {name}", statistics.mean(values), "bits/byte", setup=f"seeds: {each}")
    for name in list(sides)[1:]:
        gains = [other - own for own, other in zip(losses["selected"], losses[name], strict=True)]
        half = STUDENT_95[seeds - 1] * statistics.stdev(gains) / math.sqrt(seeds)
        low, high = statistics.mean(gains) - half, statistics.mean(gains) + half
        setup = f"95 % interval {low:.4f} to {high:.4f}, {seeds} seeds, paired; {BUDGET:,} tokens each"
        book.add(f"test loss: {name} minus selected", statistics.mean(gains), "bits/byte", least=0, setup=setup)
        book.add("  lower end of its interval", low, "bits/byte", least=0 if name == "random of all" else None)
    book.add("time of this comparison", time.perf_counter() - begin, "s", most=180 if quick else 600)


def build(folder: Path, seed: int) -> Corpus:
    """Write the corpus as two sources, run the stages, and read back who is on which side."""
    rng = np.random.default_rng(seed)
    good = good_documents(rng)
    junk = [text for _ in range(JUNK) for text in junk_documents(rng, good)]
    for name, texts in (("good", good), ("junk", junk)):
        rows = (json.dumps({"id": f"{name}-{i}", "text": text}) for i, text in enumerate(texts))
        (folder / f"{name}.jsonl").write_text("\n".join(rows) + "\n", "utf-8")
    sources = [
        {"name": name, "kind": "files", "path": str(folder / f"{name}.jsonl"), "domain": "web", "id_column": "id", "max_mb": 100}
        for name in ("good", "junk")
    ]
    config = PipelineConfig.model_validate(
        {
            "ingest": {"sources": sources},
            "split": {"test_share": 0.08},
            # a token of the tokenizer below is about three characters, an estimated one four
            "select": {"target_tokens": int(BUDGET * 0.9), "diversity_weight": 0.3},
        }
    )
    workspace = Workspace.open(folder / "workspace")
    refs: dict[str, ArtifactRef] = {}
    for name in STAGES:
        refs[name] = execute(workspace, BY_NAME[name], config, refs)
    table = {
        name: read_tables(workspace.store.artifact(refs[stage].key).files(name), columns)
        for stage, name, columns in (
            ("ingest", "documents", ["doc_id", "text", "source"]),
            ("split", "splits", ["doc_id", "side"]),
            ("select", "selection", ["doc_id", "side"]),
            ("select", "decisions", ["doc_id", "rule"]),
        )
    }
    side = dict(zip(*(table["splits"][name].to_pylist() for name in ("doc_id", "side")), strict=True))
    chosen = set(table["selection"]["doc_id"].to_pylist())
    budget_alone = {"over_budget", "domain_cap"}
    left = {row["doc_id"] for row in table["decisions"].to_pylist() if row["rule"] in budget_alone}
    rows = table["documents"].to_pylist()
    train = [row for row in rows if side[row["doc_id"]] == "train"]
    groups = {
        "everything": train,
        "what passed": [row for row in train if row["doc_id"] in chosen | left],
        "the selection": [row for row in train if row["doc_id"] in chosen],
    }
    everything, passed, selected = ([str(row["text"]) for row in group] for group in groups.values())
    test = [row["text"] for row in rows if side[row["doc_id"]] == "test" and row["source"] == "good"]
    return Corpus(everything, passed, selected, test, {name: _junk(group) for name, group in groups.items()})


def _junk(rows: list[dict[str, Any]]) -> float:
    characters = [len(row["text"]) for row in rows]
    return sum(n for n, row in zip(characters, rows, strict=True) if row["source"] == "junk") / max(1, sum(characters))


def good_documents(rng: np.random.Generator, most: int = GOOD) -> list[str]:
    """Textbook sections where the real data is; else the doc strings of the standard library. At most so many."""
    pages: Iterator[str]
    if data := bench_data():
        with gzip.open(data / "text" / "openstax" / "corpus.jsonl.gz", "rt", encoding="utf-8") as lines:
            pages = iter([json.loads(line)["text"] for line in lines])
    else:
        files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
        pages = (doc_strings(path.read_bytes())[0].decode("utf-8", "replace") for path in files)
    pieces = [piece for page in pages for piece in _pieces(page)]
    return [pieces[i] for i in sorted(rng.permutation(len(pieces))[:most].tolist())]


def _pieces(page: str) -> Iterator[str]:
    """Whole paragraphs, about 1,500 characters together."""
    held: list[str] = []
    for paragraph in page.split("\n\n"):
        held.append(paragraph)
        if sum(map(len, held)) >= PIECE:
            yield "\n\n".join(held)
            held = []


def junk_documents(rng: np.random.Generator, good: list[str]) -> list[str]:
    """As many documents as the good ones, of five kinds in turn. The last one passes every rule: half its words are good ones."""
    phrases = [" ".join(text.split()[:7]) for text in good[:12]]

    def shuffled(text: str) -> str:
        return _lines([words[i] for i in rng.permutation(len(words))]) if (words := text.split()) else ""

    def letters(text: str) -> str:
        return _lines(["".join(chr(97 + c) for c in rng.integers(0, 26, n)) for n in rng.integers(2, 12, len(text) // 8)])

    def menu(text: str) -> str:
        return " ".join(f"{phrases[i]}. Click here to buy it now!" for i in rng.integers(0, len(phrases), len(text) // 70))

    def numbers(text: str) -> str:
        return _lines([str(n) for n in rng.integers(0, 10**6, len(text) // 7)])

    def mixed(text: str) -> str:
        words = text.split()
        strange = [words[i] if k else f"{words[i][::-1]}" for i, k in enumerate(rng.integers(0, 2, len(words)))]
        return _lines(strange)

    kinds: list[Callable[[str], str]] = [shuffled, letters, menu, numbers, mixed]
    return [kinds[i % len(kinds)](text) for i, text in enumerate(good)]


def _lines(words: list[str]) -> str:
    """Words in sentences of twelve."""
    return "\n".join(" ".join(words[i : i + 12]) + "." for i in range(0, len(words), 12))


Encode = Callable[[list[str]], list[NDArray[np.int64]]]


def tokenizer(texts: list[str]) -> Encode:
    """A byte-level BPE of 1,024 entries, trained on everything, the same for all models."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=["<end>"], initial_alphabet=alphabet, show_progress=False),
    )
    return lambda some: [np.array([*encoded.ids, 0], dtype=np.int64) for encoded in made.encode_batch(some)]


def stream(encode: Encode, texts: list[str], tokens: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Documents in a random order, one behind the other, exactly so many tokens; all again where they are too few."""
    parts: list[NDArray[np.int64]] = []
    have = 0
    while have < tokens:
        order = rng.permutation(len(texts))
        for start in range(0, len(texts), 256):
            found = encode([texts[i] for i in order[start : start + 256]])
            parts += found
            have += sum(map(len, found))
            if have >= tokens:
                break
    return np.concatenate(parts)[:tokens]


def test_loss(encode: Encode, texts: list[str], test: list[str], seed: int) -> float:
    """Train a small transformer once over the budget; its loss on the test texts in bits a byte."""
    import torch

    torch.manual_seed(seed)
    model = make_model()
    data = torch.from_numpy(stream(encode, texts, BUDGET, np.random.default_rng(seed)))
    rows = data[: len(data) // CONTEXT * CONTEXT].view(-1, CONTEXT)
    steps = len(rows) // BATCH
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.95), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.1)
    for step in range(steps):
        loss = model(rows[step * BATCH : (step + 1) * BATCH]).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    held = encode(test)
    size, kept = 0, 0
    while kept < len(held) and size < TEST_TOKENS:
        size += len(held[kept])
        kept += 1
    flat = torch.from_numpy(np.concatenate(held[:kept]))
    tokens: Any = flat[: len(flat) // CONTEXT * CONTEXT].view(-1, CONTEXT)
    with torch.no_grad():
        nats = sum(float(model(part).sum()) for part in tokens.split(BATCH))
    share: float = tokens.numel() / size  # of the bytes, as of the tokens
    bits: float = nats / math.log(2)
    return bits / (share * sum(len(text.encode()) for text in test[:kept]))


def make_model() -> Any:
    """A pre-norm transformer of 170 thousand parameters, output tied to the embedding; gives the loss of each next token."""
    from torch import nn
    from torch.nn import functional

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.before, self.between = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
            self.mixes, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
            self.wide, self.narrow = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

        def forward(self, hidden: Any) -> Any:
            query, key, value = self.mixes(self.before(hidden)).view(*hidden.shape[:2], 3, HEADS, -1).permute(2, 0, 3, 1, 4)
            seen = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
            hidden = hidden + self.out(seen.transpose(1, 2).reshape(hidden.shape))
            return hidden + self.narrow(functional.gelu(self.wide(self.between(hidden))))

    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.places = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(CONTEXT, WIDTH)
            for table in (self.tokens, self.places):
                nn.init.normal_(table.weight, std=0.02)
            self.blocks = nn.Sequential(*(Block() for _ in range(DEPTH)))
            self.norm = nn.LayerNorm(WIDTH)

        def forward(self, rows: Any) -> Any:
            hidden = self.norm(self.blocks(self.tokens(rows) + self.places.weight[: rows.shape[1]]))
            logits = hidden[:, :-1].reshape(-1, WIDTH) @ self.tokens.weight.T
            return functional.cross_entropy(logits, rows[:, 1:].reshape(-1), reduction="none")

    return Small()
