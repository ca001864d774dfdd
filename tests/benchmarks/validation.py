"""Validation: speed and agreement with lm-eval, what the suites see in models of known behaviour, honesty of the intervals."""

from __future__ import annotations

import argparse
import json
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline_lib.config.data import SuitesConfig
from pipeline_lib.config.model import ModelConfig
from pipeline_lib.config.pipeline import PipelineConfig
from pipeline_lib.corpus.machine_text import doc_strings
from pipeline_lib.stages import BY_NAME
from pipeline_lib.tables.parquet import read_tables
from pipeline_lib.tables.schemas import DOCUMENTS, SELECTION
from pipeline_lib.validation.answers import answer
from pipeline_lib.validation.gate import level_of
from pipeline_lib.validation.intervals import Estimate, estimate, linearised, paired_change, relative_difference, wilson
from pipeline_lib.validation.items import Item
from pipeline_lib.validation.scorer import Scorer
from pipeline_lib.validation.suites import Level
from pipeline_lib.workspace.artifact import ArtifactRef
from pipeline_lib.workspace.stage import execute
from pipeline_lib.workspace.workspace import Workspace
from tests.benchmarks import validation_known as known
from tests.benchmarks.figures import Book
from tests.benchmarks.peers import peer, peers_installed
from tests.benchmarks.small_models import tokenizer_of, untrained
from tests.published import packed, publish

QUICKSTART = ModelConfig(width=192, depth=4, heads=4, ffn_width=512)
TEN_MILLION = ModelConfig(width=320, depth=6, heads=5, ffn_width=1024)  # and 8,192 entries: 11.0 M parameters
CONTEXT = 512
CORES = 2
AGREE = 1e-4  # of log-probabilities, nats
COVERED = (0.93, 0.97)


def options(parser: argparse.ArgumentParser) -> None:
    """Parts can be measured alone."""
    parser.add_argument("--part", choices=("speed", "known", "intervals"), default=None, help="only this part")


def run(book: Book, arguments: argparse.Namespace) -> None:
    """All parts."""
    with tempfile.TemporaryDirectory(prefix="millrace-validation-") as name:
        folder = Path(name)
        if arguments.part in (None, "intervals"):
            intervals(book, 1000 if arguments.quick else 4000)
        if arguments.part in (None, "speed"):
            speed(book, folder, quick=arguments.quick)
        if arguments.part in (None, "known"):
            known_models(book, folder, quick=arguments.quick)


def speed(book: Book, folder: Path, *, quick: bool) -> None:
    """The stage on the models that its limits are stated for, and the same items under lm-eval."""
    import torch

    torch.set_num_threads(CORES)
    stdlib = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    texts = [text for text in (doc_strings(path.read_bytes())[0].decode() for path in stdlib) if text]
    cases: list[tuple[Level, str, ModelConfig, int, int]] = [("smoke", "the quickstart's model", QUICKSTART, 4096, 30)]
    if not quick:
        cases.append(("standard", "11.0 M parameters", TEN_MILLION, 8192, 180))
    for level, told, numbers, vocabulary, most in cases:
        workspace = Workspace.open(folder / level)
        config = PipelineConfig(suites=SuitesConfig(level=level))
        suites = execute(workspace, BY_NAME["suites"], config, {})
        items = read_tables(workspace.store.artifact(suites.key).files("suite_items")).to_pylist()
        asked = [item["prompt"] + option for item in items for option in item["options"]]
        tokenizer = tokenizer_of(texts + asked[::4], vocabulary, folder / f"{level}-tokenizer")
        model = untrained(tokenizer, folder / f"{level}-model", numbers, context=CONTEXT)
        inputs = _inputs(workspace, texts) | {"suites": suites, "train": publish(workspace, "train", {"model": model})}
        begin = time.perf_counter()
        validated = workspace.store.artifact(execute(workspace, BY_NAME["validate"], config, inputs).key)
        seconds = time.perf_counter() - begin
        setup = f"{len(items):,} items, {validated.details['test_tokens']:,} tokens of test text, {told}, {CORES} threads"
        book.add(f"stage validate, level {level}", seconds, "s", most=most, setup=setup)
    if quick:
        book.leave_out("level standard on ten million parameters")
    else:
        scored = sum(len(row["log_probs"] or ()) for row in read_tables(validated.files("scores")).to_pylist())
        scored += validated.details["scores"]["bits_per_byte"]["n"]
        book.add("texts that level standard scores", scored, "texts", least=10_000)
    if not peers_installed():
        book.leave_out("the comparison with lm-eval (`make bench` installs it)")
        return
    _oracle(book, folder, model, items + [asdict(item) for item in _endings(texts)])


def _inputs(workspace: Workspace, texts: Sequence[str]) -> dict[str, ArtifactRef]:
    """What `validate` reads beside model and items: each second text is on the test side."""
    ids = [number.to_bytes(16, "big") for number in range(len(texts))]
    documents = [{"doc_id": i, "text": text, "domain": "docs", "kind": "text"} for i, text in zip(ids, texts, strict=True)]
    sides = [{"doc_id": i, "side": ("train", "test")[place % 2], "domain": "docs"} for place, i in enumerate(ids)]
    selection = pa.Table.from_pylist(sides, schema=SELECTION)
    return {
        "ingest": publish(workspace, "ingest", {"documents": pa.Table.from_pylist(documents, schema=DOCUMENTS)}),
        "select": publish(workspace, "select", {"selection": selection}),
        "pack": publish(workspace, "pack", {"rows": packed(selection)}),
    }


def _endings(texts: Sequence[str]) -> Iterator[Item]:
    """Items of the forms that no built-in suite has: what a text goes on with, asked in both."""
    starts = [start for start in (" ".join(text.split()[:20]) for text in texts) if " " in start]
    words = [start.rpartition(" ")[2] for start in starts]
    for number, (start, word) in enumerate(zip(starts, words, strict=True)):
        prompt, options = start.rpartition(" ")[0], (f" {word}", f" {words[number - 1]}.")
        yield Item("last_words", str(number), "last_word", prompt, options[:1], 0, "ending")
        yield Item("surprises", str(number), "surprise", prompt, options, 0, "ending")


def _oracle(book: Book, folder: Path, model: Path, items: Sequence[Mapping[str, Any]]) -> None:
    """The same items under lm-eval: largest difference of a log-probability, and time."""
    scorer = Scorer(model, batch_tokens=1024)
    begin = time.perf_counter()
    rows, missing = answer(items, scorer)
    own = time.perf_counter() - begin
    assert not missing
    suites = folder / "suites"
    suites.mkdir()
    for suite in sorted({item["suite"] for item in items}):
        fields = ("item", "prompt", "options", "answer")
        lines = [json.dumps({name: item[name] for name in fields}) for item in items if item["suite"] == suite]
        (suites / f"{suite}.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    answers = folder / "answers.json"
    script = Path(__file__).with_name("validation_peer.py")
    theirs = peer(script, str(model), str(suites), str(answers), str(CORES), cores=CORES)
    said = json.loads(answers.read_text("utf-8"))
    apart = [
        float(np.abs(np.array(said[row["suite"]][row["item"]]) - np.array(row["log_probs"])).max()) for row in rows.to_pylist()
    ]
    forms = ", ".join(sorted(set(rows["form"].to_pylist())))
    setup = f"lm-eval {theirs['version']}, {len(apart):,} items, batches of {theirs['batch_size']}, start-up left out"
    book.add("largest difference of a log-probability to lm-eval", max(apart), "nats", most=AGREE, setup=f"{setup}; {forms}")
    book.add("speed against lm-eval on the same items", theirs["seconds"] / own, "×", least=1.0, setup=f"{own:.1f} s; {setup}")


def known_models(book: Book, folder: Path, *, quick: bool) -> None:
    """What the suites see in models that were taught something known."""
    for domain, true, shuffled in known.earth(folder, steps=450 if quick else 800, per_domain=960):
        _apart(book, f"earth, {domain}: true against shuffled facts", true, shuffled, "right")
    planted, even = known.bias(folder, steps=200)
    _apart(book, "bias: planted against even", planted, even, "stereotyped")
    for name, clean, both in known.robustness(folder, steps=150 if quick else 400):
        _apart(book, f"robustness, {name}: clean against perturbed training", clean, both, "changed")


def _apart(book: Book, name: str, high: Estimate, low: Estimate, what: str) -> None:
    setup = (
        f"{what} {high.value:.3f} ({high.low:.3f} to {high.high:.3f}) against {low.value:.3f} ({low.low:.3f} to {low.high:.3f}), "
        f"{high.n} items; gap of the 95 % intervals"
    )
    book.add(name, high.low - low.high, "share", least=0.0, setup=setup)


def intervals(book: Book, trials: int) -> None:
    """How often intervals hold the truth, and how often a paired comparison of equals finds a difference."""
    draw = np.random.default_rng(0)
    held: dict[str, list[bool]] = {}
    for trial in range(trials):
        for share, n in ((0.5, 400), (0.8, 200), (0.95, 400)):
            found = wilson(float(draw.binomial(n, share)), n)
            held.setdefault(f"share {share} of {n} items", []).append(found.low <= share <= found.high)
        facts = draw.random(150)
        scores = (np.repeat(facts, 2) < draw.choice([0.3, 0.9], 150).repeat(2)).astype(float)  # two wordings, one answer
        found = estimate(scores, np.ones(300), n_resamples=10, groups=np.repeat(np.arange(150), 2))
        held.setdefault("share of 150 facts in two wordings", []).append(found.low <= 0.6 <= found.high)
        weights = np.minimum(draw.lognormal(7.5, 0.9, 300), 8000.0)  # bytes of documents, cut as in the suite `language`
        bits = weights * draw.normal(2.0, 0.4, 300)
        found = estimate(bits, weights, n_resamples=1000, seed=trial)
        held.setdefault("bits per byte of 300 documents", []).append(found.low <= 2.0 <= found.high)
    for name, each in held.items():
        _between(book, f"95 % intervals that hold the truth: {name}", float(np.mean(each)), trials)
    wrong = {"bits per byte, 300 documents": 0, "share, 500 items": 0}
    for trial in range(trials):
        weights = np.minimum(draw.lognormal(7.5, 0.9, 300), 8000.0)  # bytes of documents, cut as in the suite `language`
        one, other = (weights * (2.0 + draw.normal(0, 0.1, 300)) for _ in range(2))
        found_bits = relative_difference(one, other, weights, n_resamples=1000, seed=trial)
        assert found_bits is not None
        wrong["bits per byte, 300 documents"] += not found_bits.low <= 0 <= found_bits.high
        known_items = draw.random(500)
        pair = [(known_items + draw.normal(0, 0.3, 500) > 0.5).astype(float) for _ in range(2)]
        found = paired_change(pair[0] - pair[1], np.ones(500), n_resamples=1000, seed=trial)
        wrong["share, 500 items"] += not found.low <= 0 <= found.high
    for name, count in wrong.items():
        _between(book, f"paired comparison of equals, no difference: {name}", 1 - count / trials, trials)
    lucky = 0
    for _ in range(trials // 4):
        champion = draw.normal(2.0, 0.4, 300)
        nights = (linearised(draw.normal(0, 0.1, 300), champion, level=level_of(attempt)) for attempt in range(1, 31))
        lucky += any(found.low > 0 for found in nights)
    told = f"{trials // 4:,} months of candidates that are no better"
    book.add("months of thirty nights in which one passes by luck", lucky / (trials // 4), "share", most=0.05, setup=told)


def _between(book: Book, name: str, value: float, trials: int) -> None:
    book.add(name, value, "share", least=COVERED[0], setup=f"{trials:,} simulated cases")
    book.add("  and not more than", value, "share", most=COVERED[1])
