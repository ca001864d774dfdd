"""Ingest, score and select: throughput of the signals, agreement with datatrove's filters, a million documents on two cores."""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline_lib.config.data import ScoreConfig
from pipeline_lib.quality.rule_kernel import measure_rules
from pipeline_lib.quality.rules import RULE_SETS, rules_of, verdicts
from pipeline_lib.quality.signals import NAMES, signal_table
from pipeline_lib.tables.buffers import text_buffers
from tests.benchmarks.figures import Book, bench_data
from tests.benchmarks.peers import peer, peers_installed
from tests.benchmarks.selection_effect import add_figures

REPOSITORY = Path(__file__).parents[2]
KINDS = ("prose", "code", "mixed")
MEGABYTES, QUICK_MEGABYTES = 13.0, 2.0  # of each kind
LONGEST = 200_000  # characters: beyond, datatrove's splitter takes minutes for a text
REPETITION = ("repeated_lines", "repeated_paragraphs", "top_ngrams", "repeated_ngrams")
PEER_SETS = {  # datatrove's filter → rules here
    "gopher_repetition": {name: RULE_SETS["gopher"][name] for name in REPETITION},
    "gopher_quality": {name: rule for name, rule in RULE_SETS["gopher"].items() if name not in REPETITION},
    "c4": RULE_SETS["c4"],
    "fineweb": RULE_SETS["fineweb"],
}
MILLION, QUICK_MILLION = 1_000_000, 100_000
BATCH = 4096
SHOWN = 3  # disagreements of a kind


def options(parser: argparse.ArgumentParser) -> None:
    """Ten million documents take 20 GB of disk and some ten minutes."""
    parser.add_argument("--documents", type=int, default=0, metavar="N", help="also so many documents, to see what each costs")


def run(book: Book, arguments: argparse.Namespace) -> None:
    """Speed on one core, agreement, two workers, a million documents, and what a selection teaches."""
    texts = _texts(QUICK_MEGABYTES if arguments.quick else MEGABYTES)
    setup = ", ".join(f"{len(texts[kind])} {kind}" for kind in KINDS)
    everything = [text for kind in KINDS for text in texts[kind]]
    short = [text[i : i + 1000] for text in texts["prose"] for i in range(0, len(text), 1000)]
    rates = {}
    for name, some in {"all kinds": everything, **texts, "1 kB documents": short}.items():
        goals = (80.0, 30.0) if name == "all kinds" else (None, None)
        size = sum(len(text.encode()) for text in some) / 1e6
        for label, work, goal in (("rule", _rules_only, goals[0]), ("all", _everything, goals[1])):
            seconds = _core_seconds(work, some)
            rates[label, name] = size / seconds
            note = f"{size:.1f} MB, {setup if name == 'all kinds' else len(some)} documents, CPU time, best of 5"
            book.add(f"{label} signals, {name}", size / seconds, "MB/s/core", least=goal, setup=note)
    with tempfile.TemporaryDirectory(prefix="millrace-bench-") as folder:
        if peers_installed():
            _beside_datatrove(book, Path(folder), texts, rates["rule", "all kinds"])
        else:
            book.leave_out("datatrove, in an environment that `make bench` makes")
        _workers(book, Path(folder), short, arguments.quick)
        _documents(book, Path(folder), short, arguments)
    add_figures(book, quick=arguments.quick)


def _texts(megabytes: float) -> dict[str, list[str]]:
    """Texts of each kind: real data where there is some, else what this Python installation holds."""
    library = Path(sysconfig.get_paths()["stdlib"])
    data = bench_data()
    sources: dict[str, Callable[[], Iterator[str]]] = {"code": lambda: _files(library, "*.py")}
    if data:
        names = {
            "prose": ("openstax", "digitalgov", "rust_blog", "nltk_corpora"),
            "mixed": ("python_docs", "peps", "nodejs_blog"),
        }
        for kind, folders in names.items():
            sources[kind] = lambda folders=folders: _corpora([data / "text" / name for name in folders])  # type: ignore[misc]
    else:
        site = Path(sysconfig.get_paths()["purelib"])
        sources |= {"prose": lambda: _files(site, "*.md"), "mixed": lambda: _files(site, "*.rst")}
    found = {}
    for kind in KINDS:
        texts = [text for text in sources[kind]() if 200 <= len(text) <= LONGEST]
        random.Random(0).shuffle(texts)
        sizes = np.cumsum([len(text.encode()) for text in texts])
        found[kind] = texts[: int(np.searchsorted(sizes, megabytes * 1e6)) + 1]
    return found


def _files(folder: Path, pattern: str) -> Iterator[str]:
    for path in sorted(folder.rglob(pattern)):
        yield path.read_text("utf-8", errors="ignore").strip()


def _corpora(folders: list[Path]) -> Iterator[str]:
    for folder in folders:
        with gzip.open(folder / "corpus.jsonl.gz", "rt", encoding="utf-8") as lines:
            yield from (json.loads(line)["text"].strip() for line in lines)


def _batches(texts: list[str]) -> list[pa.Array]:
    return [pa.array(texts[i : i + BATCH], pa.large_string()) for i in range(0, len(texts), BATCH)]


def _rules_only(batch: pa.Array) -> None:
    measure_rules(*text_buffers(batch))


def _everything(batch: pa.Array) -> None:
    signal_table(pa.nulls(len(batch), pa.binary(16)), batch)


def _core_seconds(work: Callable[[pa.Array], None], texts: list[str], times: int = 5) -> float:
    """CPU seconds of this thread: what other programs do on the machine is not counted."""
    batches = _batches(texts)
    found = []
    for _ in range(times):
        begin = time.thread_time()
        for batch in batches:
            work(batch)
        found.append(time.thread_time() - begin)
    return min(found)


def _beside_datatrove(book: Book, folder: Path, texts: dict[str, list[str]], rate: float) -> None:
    everything = [text for kind in KINDS for text in texts[kind]]
    kinds = np.array([kind for kind in KINDS for _ in texts[kind]])
    (folder / "texts.json").write_text(json.dumps(everything), "utf-8")
    script = Path(__file__).with_name("curation_peer.py")
    found = peer(script, str(folder / "texts.json"), str(folder / "kept.json"))
    theirs = sum(len(text.encode()) for text in everything) / 1e6 / found["seconds"]
    setup = f"datatrove {found['version']}, CPU time, Gopher, C4 and FineWeb filters in one pipeline that stops at the first drop"
    book.add("datatrove, the same documents", theirs, "MB/s/core", setup=setup)
    book.add("rule signals against datatrove", rate / theirs, "times", least=100)
    kept = json.loads((folder / "kept.json").read_text("utf-8"))
    signals = signal_table(pa.nulls(len(everything), pa.binary(16)), pa.array(everything, pa.large_string()))
    for name, rules in PEER_SETS.items():
        config = ScoreConfig(rules={"*": "none"}, instruct_rules="none", extra_rules=dict(rules))
        holds = verdicts(signals, rules_of(config, NAMES).rules)
        ours, peers = holds.all(axis=1), np.array(kept[name])
        same = ours == peers
        book.add(f"agreement, {name}", 100 * same.mean(), "%", least=98, setup=f"{100 * peers.mean():.0f} % kept by datatrove")
        for kind in KINDS:
            book.add(f"agreement, {name}, {kind}", 100 * same[kinds == kind].mean(), "%", least=95)
            _disagreements(everything, list(rules), holds, peers, np.flatnonzero(~same & (kinds == kind)), kind)


def _disagreements(texts: list[str], rules: list[str], holds: Any, peers: Any, where: Any, kind: str) -> None:
    """What disagrees, by the rules that drop here; and the beginnings of some."""
    why = Counter(", ".join(np.array(rules)[~holds[i]]) if peers[i] else "dropped by datatrove only" for i in where)
    for reason, count in why.most_common():
        print(f"    {kind}: {count} × {'dropped here only by ' if 'datatrove' not in reason else ''}{reason}")
    for i in where[:SHOWN]:
        print(f"        {texts[i][:90]!r}")


def _write(folder: Path, texts: list[str], count: int, files: int) -> None:
    """`count` documents of about 1 kB: pieces of real text, each with a number of its own, so that no two are equal."""
    folder.mkdir()
    for number in range(files):
        with (folder / f"{number:03}.jsonl").open("w", encoding="utf-8") as out:
            for i in range(number, count, files):
                text = texts[i % len(texts)]
                words = text.split(" ")
                turn = (i // len(texts)) * 7919 % max(len(words), 1)  # from another place on the next time round
                out.write(json.dumps({"text": f"{i} " + " ".join(words[turn:] + words[:turn])}) + "\n")


def _start(home: Path, folder: Path, workers: int, last: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.benchmarks.curation_child", str(home), str(folder), str(workers), last]
    return subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _ended(child: subprocess.Popen[str]) -> dict[str, dict[str, float]]:
    said, complained = child.communicate()
    if child.returncode:
        raise SystemExit(complained[-3000:])
    found: dict[str, dict[str, float]] = json.loads(said.strip().splitlines()[-1])
    return found


def _child(home: Path, folder: Path, workers: int, last: str) -> dict[str, dict[str, float]]:
    return _ended(_start(home, folder, workers, last))


def _workers(book: Book, folder: Path, short: list[str], quick: bool) -> None:
    """The stage as a whole, reading and writing included, on as much text with one worker as with two; and what the machine gives
    to two processes that have nothing to do with each other, each with half of the text."""
    count = 60_000 if quick else 300_000
    _write(folder / "some", short, count, 16)
    for number, file in enumerate(sorted((folder / "some").iterdir())):
        (folder / f"half{number % 2}").mkdir(exist_ok=True)
        os.link(file, folder / f"half{number % 2}" / file.name)
    seconds: dict[str, list[float]] = {"one": [], "two": [], "apart": []}
    for i in range(3):
        for name, workers in (("one", 1), ("two", 2)):
            seconds[name].append(_child(folder / f"{name}{i}", folder / "some", workers, "score")["score"]["seconds"])
        halves = [_start(folder / f"apart{i}-{half}", folder / f"half{half}", 1, "score") for half in (0, 1)]
        seconds["apart"].append(max(_ended(child)["score"]["seconds"] for child in halves))
    one, two, apart = (min(tries) for tries in seconds.values())
    setup = f"{count:,} documents in 16 files, {one:.1f} and {two:.1f} s, best of 3; two processes apart {one / apart:.2f} times"
    book.add("score, two workers against one", one / two, "times", least=1.8, setup=setup)


def _documents(book: Book, folder: Path, short: list[str], arguments: argparse.Namespace) -> None:
    """Ingest, score and select of a million documents, each stage with what it reads and writes."""
    per_document = {}
    sizes = [QUICK_MILLION] if arguments.quick else [QUICK_MILLION, MILLION]
    if arguments.documents:
        sizes.append(arguments.documents)
    for count in sizes:
        _write(folder / str(count), short, count, max(count // 50_000, 4))
        found = _child(folder / f"home{count}", folder / str(count), 2, "select")
        seconds = sum(found[name]["seconds"] for name in ("ingest", "score", "select"))
        peak = max(found[name]["peak"] for name in ("ingest", "score"))
        stages = ", ".join(f"{name} {part['seconds']:.1f} s" for name, part in found.items())
        is_goal = count == MILLION
        name = f"{count:,} documents of 1 kB: "
        book.add(name + "ingest, score, select", seconds, "s", most=30 if is_goal else None, setup=stages + "; two workers")
        book.add(name + "peak memory of ingest and score", peak / 2**30, "GiB", most=2 if is_goal else None)
        book.add(
            name + "peak memory to select", found["select"]["peak"] / 2**30, "GiB", setup="dedup and split in the same process"
        )
        per_document[count] = sum(found[name]["cpu"] for name in ("ingest", "score", "select")) / count
    if arguments.documents:
        ratio = per_document[arguments.documents] / per_document[QUICK_MILLION]
        name = f"cost of a document, {arguments.documents:,} against {QUICK_MILLION:,}"
        book.add(name, ratio, "times", most=1.1, setup="CPU time of ingest, score and select, all that each stage does")
    else:
        book.leave_out("ten million documents (--documents 10000000)")
    if arguments.quick:
        book.leave_out("a million documents")
