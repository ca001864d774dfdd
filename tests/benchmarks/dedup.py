"""Duplicates: recall and precision against brute force, labelled families beside other tools, speed, memory, nights."""

from __future__ import annotations

import argparse
import gzip
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline_lib.config.data import DedupConfig
from pipeline_lib.config.pipeline import PipelineConfig
from pipeline_lib.dedup.minhash import band_hashes
from pipeline_lib.dedup.texts import read_texts
from pipeline_lib.run import run_plain
from pipeline_lib.tables.ids import Ids, ids_of
from pipeline_lib.tables.parquet import read_tables
from pipeline_lib.workspace.artifact import Artifact
from pipeline_lib.workspace.runs import RunRecord
from pipeline_lib.workspace.services import Services, thread_mapper
from pipeline_lib.workspace.workspace import Workspace
from tests.benchmarks.brute_force import all_pairs, shingle_sets, words_of
from tests.benchmarks.corpora import WORDS, million, near_copies, skewed
from tests.benchmarks.dedup_texts import planted
from tests.benchmarks.figures import Book, bench_data, timed
from tests.benchmarks.peers import REPOSITORY, peer, peers_installed

BANDS = {0.7: "25x5", 0.8: "21x6", 0.9: "14x9"}  # P(proposed at the threshold): .990, .998, .998
GRID = ("32x4", "25x5", "21x6", "18x7", "16x8", "14x9", "12x10", "10x12")  # what every tool may choose from
QUICK_GRID = ("21x6", "14x9", "12x10")
TOOLS = ("datatrove", "datasketch", "rensa")
PEERS = Path(__file__).with_name("dedup_peers.py")
HALVINGS = 10  # of the families, each used both ways round
LEVELS = np.arange(0.4, 1.0, 0.02)  # thresholds to choose from
Pairs = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]

CHILD = """
import json, os, resource, sys
from pathlib import Path
home, corpus, cores, files = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), json.loads(sys.argv[4])
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
from pipeline_lib.dedup import dedup  # compiled kernels are loaded before the clock runs
from tests.benchmarks.corpora import ready
made = ready(home, corpus, workers=cores, files=files)
begin = sum(os.times()[:2])
artifact = made.dedup()
cpu, peak = sum(os.times()[:2]) - begin, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({"key": artifact.key, "seconds": artifact.manifest.seconds, "cpu": cpu, "peak_mib": peak}))
"""


def options(parser: argparse.ArgumentParser) -> None:
    """What takes long is asked for."""
    parser.add_argument("--ten-million", action="store_true", help="also ten million documents (30 GB of disk, half an hour)")
    parser.add_argument("--only", default="", help="one part: truth, families, speed, sizes")


def run(book: Book, arguments: argparse.Namespace) -> None:
    """All parts, in folders that go away."""
    parts = {"truth": _truth, "families": _families, "speed": _speed, "sizes": _sizes}
    for name, part in parts.items():
        if arguments.only in {"", name}:
            with tempfile.TemporaryDirectory(prefix="millrace-bench-") as folder:
                part(book, Path(folder), arguments)


@dataclass(frozen=True)
class Made:
    """What the pipeline made of a folder of texts."""

    ingest: Artifact
    dedups: list[Artifact]  # one for each setting


def _pipeline(home: Path, documents: Path, settings: Sequence[dict[str, Any]]) -> Made:
    """Run the pipeline up to dedup, once for each setting; what comes before is made once."""
    sources = [{"name": "bench", "kind": "files", "path": str(documents), "id_column": "id", "max_mb": 1e6}]
    workspace, services, records = Workspace.open(home), Services(mapper=thread_mapper(2), workers=2), []
    for chosen in settings:
        sections = {"ingest": {"sources": sources}, "suites": {"names": ["zen"]}, "dedup": {"decontaminate": False, **chosen}}
        records.append(run_plain(workspace, PipelineConfig.model_validate(sections), services=services, until="dedup"))

    def artifact(record: RunRecord, stage: str) -> Artifact:
        ref = record.ref(stage)
        assert ref is not None
        return workspace.store.artifact(ref.key)

    return Made(artifact(records[0], "ingest"), [artifact(record, "dedup") for record in records])


@dataclass(frozen=True)
class Timed:
    """The stage alone, on a made corpus, in a process of its own."""

    artifact: Artifact
    seconds: float
    cpu: float  # processor seconds of the stage
    peak_mib: float


def _alone(home: Path, corpus: Path, *, cores: int, files: Sequence[str] = ()) -> Timed:
    command = [sys.executable, "-c", CHILD, str(home), str(corpus), str(cores), json.dumps(list(files))]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    said = json.loads(done.stdout.strip().splitlines()[-1])
    return Timed(Workspace.open(home).store.artifact(said.pop("key")), **said)


def _setting(threshold: float, name: str) -> dict[str, Any]:
    bands, rows = map(int, name.split("x"))
    return {"threshold": threshold, "bands": bands, "rows": rows}


def _write(texts: Sequence[str], folder: Path) -> Path:
    """Texts as `documents/0.parquet`."""
    (folder / "documents").mkdir(parents=True, exist_ok=True)
    rows = pa.table({"id": [str(number) for number in range(len(texts))], "text": pa.array(texts, pa.large_string())})
    pq.write_table(rows, folder / "documents" / "0.parquet")
    return folder / "documents"


def _looked_at(made: Made, number: int = 0) -> Pairs:
    """Every pair the stage verified, as places of the documents in their one file, with the similarity it found."""
    ids, rows = _documents(made)
    order = np.argsort(ids)
    table = read_tables(made.dedups[number].files("pairs"), ["doc_id_a", "doc_id_b", "jaccard"])
    ends = [rows[order[np.searchsorted(ids[order], ids_of(table[name]))]] for name in ("doc_id_a", "doc_id_b")]
    return np.minimum(*ends), np.maximum(*ends), table["jaccard"].to_numpy()


def _documents(made: Made) -> tuple[Ids, NDArray[np.int64]]:
    """The documents' ids and their places in the source file."""
    table = read_tables(made.ingest.files("documents"), ["doc_id", "record_index"])
    return ids_of(table["doc_id"]), table["record_index"].to_numpy()


# ---------------------------------------------------------------------------------------------- truth


def _truth(book: Book, folder: Path, arguments: argparse.Namespace) -> None:
    """Recall and precision against all pairs of planted and of real texts, at three thresholds with bands of their own."""
    rng = np.random.default_rng(20)
    texts, kinds = planted(rng, 4_000 if arguments.quick else 20_000)
    _compare(book, folder / "planted", texts, kinds, "planted")
    if (data := bench_data()) is None:
        return book.leave_out("real texts ($MILLRACE_BENCH_DATA)")
    real = _real(data, 5_000 if arguments.quick else 20_000)
    _compare(book, folder / "real", [text for text, _ in real], [kind for _, kind in real], "real")
    if arguments.quick:
        book.leave_out("20,000 documents against brute force")
    return None


def _compare(book: Book, folder: Path, texts: Sequence[str], kinds: Sequence[str], name: str) -> None:
    begin = time.perf_counter()
    width = DedupConfig().shingle_words
    left, right, true = all_pairs(shingle_sets(texts, width), 0.5)
    print(f"  {name}: {len(texts):,} documents, brute force over all pairs in {time.perf_counter() - begin:.0f} s", flush=True)
    made = _pipeline(folder / "home", _write(texts, folder), [_setting(*setting) for setting in BANDS.items()])
    kind = np.array(kinds)[left]
    usual = DedupConfig()
    for number, (threshold, bands) in enumerate(BANDS.items()):
        a, b, similarity = _looked_at(made, number)
        wanted, key = true >= threshold, a * len(texts) + b
        found = np.isin(left * len(texts) + right, key[similarity >= threshold])
        recalls = [f"{one} {found[wanted & (kind == one)].mean():.4f}" for one in sorted(set(kind[wanted]))]
        edges = np.linspace(threshold, 1.0, 11)[1:-1]
        of_bin = np.digitize(true[wanted], edges)
        even = float(np.mean([found[wanted][of_bin == one].mean() for one in np.unique(of_bin)]))
        setup = f"bands {bands}, bucket_limit {usual.bucket_limit}, {wanted.sum():,} pairs; {', '.join(recalls)}"
        book.add(f"{name}: recall at Jaccard ≥ {threshold}, evenly spread above", even, "share", least=0.99, setup=setup)
        book.add(f"{name}: recall at Jaccard ≥ {threshold}, all pairs", float(found[wanted].mean()), "share", least=0.99)
        # what was looked at and is no true pair, or was given another similarity than brute force finds
        place = np.searchsorted(left * len(texts) + right, key[similarity >= 0.5])
        inside = place < len(true)
        exact = inside & (np.abs(true[np.minimum(place, len(true) - 1)] - similarity[similarity >= 0.5]) < 1e-12)
        exact &= (left * len(texts) + right)[np.minimum(place, len(true) - 1)] == key[similarity >= 0.5]
        book.add(f"{name}: accepted pairs that are none, at {threshold}", int((~exact).sum()), "pairs", most=0)


def _real(data: Path, count: int) -> list[tuple[str, str]]:
    """Real texts, no two equal: licences, chapters of books in several editions, then other corpora in turn."""
    found: dict[str, str] = {}
    with gzip.open(data / "neardup" / "neardup_licences" / "docs.jsonl.gz", "rt", encoding="utf-8") as lines:
        for line in lines:
            found.setdefault(_plain(json.loads(line)["text"]), "licences")
    for path in sorted((data / "neardup" / "gutenberg_editions").rglob("*.txt.gz")):
        book = gzip.decompress(path.read_bytes()).decode("utf-8", "replace")
        for chapter in re.split(r"\n\s*(?:CHAPTER|Chapter|LETTER|Letter) [^\n]*\n", book):
            if len(chapter) > 1500:
                found.setdefault(_plain(chapter), "editions")
    for path in sorted((data / "text").rglob("corpus.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for line in lines:
                if len(found) >= count:
                    break
                if (text := _plain(json.loads(line)["text"])).strip():
                    found.setdefault(text[:100_000], path.parent.name)
    return list(found.items())[:count]


def _plain(text: str) -> str:
    """Without what ingestion would change or refuse, and folded as it folds to know equal texts."""
    return " ".join(re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", unicodedata.normalize("NFC", text)).lower().split())


# ---------------------------------------------------------------------------------------------- labelled families


def _families(book: Book, folder: Path, arguments: argparse.Namespace) -> None:
    """Licence texts in labelled families; a pair is right when both texts are of one family."""
    if (data := bench_data()) is None:
        return book.leave_out("labelled families ($MILLRACE_BENCH_DATA)")
    with gzip.open(data / "neardup" / "neardup_licences" / "docs.jsonl.gz", "rt", encoding="utf-8") as lines:
        labelled = [json.loads(line) for line in lines]
    family = np.unique([one["family"] for one in labelled], return_inverse=True)[1]
    grid = QUICK_GRID if arguments.quick else GRID
    documents = _write([" ".join(words_of(one["text"])) for one in labelled], folder)
    made = _pipeline(folder / "home", documents, [_setting(LEVELS[0], name) for name in grid])
    choices = [_all_members(made, number) for number in range(len(grid))]
    ours = _chosen(family, choices)
    book.add("licence families: macro F1", ours.f1, "share", setup=ours.told(grid))
    config = DedupConfig()
    usual = _scores(family, choices[grid.index(f"{config.bands}x{config.rows}")], config.threshold)[2].mean()
    book.add(
        "licence families: macro F1 as configured by default", float(usual), "share", setup=f"at {config.threshold}, all families"
    )
    if not peers_installed():
        return book.leave_out("labelled families by other tools (`make bench` installs them)")
    for tool in TOOLS:
        peer(PEERS, "pairs", tool, str(folder), *grid)
        found = [np.load(folder / f"{tool}-{name}.npz") for name in grid]
        theirs = _chosen(family, [(one["left"], one["right"], one["estimate"]) for one in found])
        name = f"licence families: macro F1, ours over {tool}'s"
        book.add(name, ours.f1 / theirs.f1, "times", least=1.0001, setup=theirs.told(grid))
    if arguments.quick:
        book.leave_out(f"families with {len(GRID)} settings of bands to choose from")
    return None


def _all_members(made: Made, number: int) -> Pairs:
    """The pairs with every copy of a text in the place of the one that was compared."""
    left, right, similarity = _looked_at(made, number)
    table = read_tables(made.ingest.files("documents"), ["text_hash", "record_index"])
    order = np.argsort(table["record_index"].to_numpy())
    group = np.unique(ids_of(table["text_hash"])[order], return_inverse=True)[1]
    members = [np.flatnonzero(group == one) for one in range(group.max() + 1)]
    pairs = {(group[a], group[b]): s for a, b, s in zip(left, right, similarity, strict=True) if group[a] != group[b]}
    pairs |= {(one, one): 1.0 for one in range(len(members)) if len(members[one]) > 1}
    rows = [
        (a, b, s) for (x, y), s in pairs.items() for a in members[x] for b in members[y] if x != y or a < b
    ]  # fmt: skip
    a, b, s = np.array(rows, dtype=np.float64).reshape(-1, 3).T
    return a.astype(np.int64), b.astype(np.int64), s


@dataclass(frozen=True)
class Choice:
    """Macro scores on the families that did not choose: means over all halvings, and what was chosen most often."""

    precision: float
    recall: float
    f1: float
    setting: int
    threshold: float

    def told(self, grid: Sequence[str]) -> str:
        """In words."""
        chosen = f"mostly {grid[self.setting]} at {self.threshold:.2f}"
        return f"P {self.precision:.4f} R {self.recall:.4f} F1 {self.f1:.4f}, {chosen}"


def _chosen(family: NDArray[np.int64], choices: Sequence[Pairs]) -> Choice:
    """Choose bands and threshold by F1 on half of the families, report on the other half."""
    scores = np.array([_scores(family, pairs, level) for pairs in choices for level in LEVELS])  # [choices, 3, families]
    rng, picked, reported = np.random.default_rng(0), [], []
    for _ in range(HALVINGS):
        half = rng.permutation(scores.shape[2]) % 2 == 0
        for known in (half, ~half):
            picked.append(int(scores[:, 2, known].mean(axis=1).argmax()))
            reported.append(scores[picked[-1]][:, ~known].mean(axis=1))
    precision, recall, f1 = np.mean(reported, axis=0)
    setting, level = divmod(int(np.bincount(picked).argmax()), len(LEVELS))
    return Choice(precision, recall, f1, setting, float(LEVELS[level]))


def _scores(family: NDArray[np.int64], pairs: Pairs, level: float) -> NDArray[np.float64]:
    """Precision, recall and F1 of each family: a wrong pair counts against the families of both texts; no pairs, no precision."""
    left, right = (family[end[pairs[2] >= level]] for end in pairs[:2])
    sizes = np.bincount(family)
    right_ones = np.bincount(left[left == right], minlength=len(sizes))
    wrong = sum(np.bincount(end[left != right], minlength=len(sizes)) for end in (left, right))
    wanted = sizes * (sizes - 1) // 2
    precision = right_ones / np.maximum(right_ones + wrong, 1)
    return np.stack([precision, right_ones / wanted, 2 * right_ones / np.maximum(right_ones + wrong + wanted, 1)])


# ---------------------------------------------------------------------------------------------- speed


def _speed(book: Book, folder: Path, arguments: argparse.Namespace) -> None:
    """Signatures in memory; the whole stage on one core, beside datatrove's four steps on the same documents."""
    count = 60_000 if arguments.quick else 200_000
    size = million(folder / "corpus", count) / 1e6
    _signatures(book, folder / "corpus", size)
    alone = [_alone(folder / f"home-{turn}", folder / "corpus", cores=1) for turn in range(3)]
    seconds, cpu = (float(np.median([getattr(made, name) for made in alone])) for name in ("seconds", "cpu"))
    setup = f"{count:,} documents of 1 kB, {size:.0f} MB, median of {len(alone)}; {cpu:.1f} s of processor time"
    book.add("the whole stage, one core", size / seconds, "MB/s", least=60, setup=setup)
    index = sum(path.stat().st_size for path in alone[0].artifact.files("bands"))
    book.add("index on disk", index / count, "B/document", setup=f"{DedupConfig().bands} bands")
    if not peers_installed():
        return book.leave_out("datatrove's speed (`make bench` installs it)")
    few = 20_000 if arguments.quick else 100_000
    million(folder / "fewer", few, 1, files=1)
    ours = min(_alone(folder / "fewer" / f"home-{turn}", folder / "fewer", cores=1).seconds for turn in range(2))
    texts = pq.read_table(folder / "fewer" / "documents", columns=["text"])["text"]
    _write(texts.to_pylist(), folder / "peer")
    took = peer(PEERS, "four_steps", str(folder / "peer"))
    setup = f"{few:,} documents, ours {ours:.2f} s; " + ", ".join(f"{name} {value:.1f} s" for name, value in took.items())
    book.add("the whole stage over datatrove's four steps", sum(took.values()) / ours, "times", least=80, setup=setup)
    return None


def _signatures(book: Book, corpus: Path, megabytes: float) -> None:
    pieces = [texts for path in sorted((corpus / "documents").iterdir()) for texts in read_texts(path)]
    config = DedupConfig()
    seconds, note = timed(lambda: [band_hashes(texts, config) for texts in pieces], times=5)
    setup = f"{config.bands}×{config.rows}, documents of 1 kB, {note}"
    book.add("signatures with bands, one core", megabytes / seconds, "MB/s", least=200, setup=setup)


# ---------------------------------------------------------------------------------------------- sizes


def _names(corpus: Path) -> list[str]:
    """The files of a corpus, named so that files that come later are another setting."""
    return sorted(path.name for path in (corpus / "documents").iterdir())


def _one_per_cent_more(book: Book, folder: Path, corpus: Path, whole: Timed, size: str, most: float | None, count: int) -> None:
    """Add a file of one per cent to a corpus that was deduplicated in `folder / "home"`."""
    million(folder / "more", count // 100, 1, files=1, words=WORDS * int(size[0]))
    for table in ("documents", "signals"):
        shutil.move(folder / "more" / table / "000.parquet", corpus / table / "more.parquet")
    shutil.rmtree(folder / "more")
    more = _alone(folder / "home", corpus, cores=2)
    for what, part, full in (("time", more.seconds, whole.seconds), ("processor time", more.cpu, whole.cpu)):
        name = f"one per cent more documents of {size}, share of a full run's {what}"
        book.add(name, 100 * part / full, "%", most=most, setup=f"{part:.2f} of {full:.2f} s, {count:,} documents")


def _sizes(book: Book, folder: Path, arguments: argparse.Namespace) -> None:
    """Many documents, on two cores: seconds and memory; one per cent more; a skewed corpus."""
    count = 100_000 if arguments.quick else 1_000_000
    corpus = folder / "corpus"
    million(corpus, count)
    plain = _alone(folder / "home", corpus, cores=2, files=_names(corpus))
    goals = (None, None, None) if arguments.quick else (20.0, 5.0, 2.0)  # of few documents the fixed costs say nothing
    setup = f"{plain.cpu:.1f} s of processor time"
    book.add(f"{count:,} documents of 1 kB, two cores", plain.seconds, "s", most=goals[0], setup=setup)
    book.add(f"{count:,} documents: peak of the process", plain.peak_mib, "MiB", most=2048)
    _one_per_cent_more(book, folder, corpus, plain, "1 kB", goals[1], count)
    for name in ("corpus", "home"):
        shutil.rmtree(folder / name)
    longer = folder / "longer"
    million(longer, count // 4, words=4 * WORDS)
    whole = _alone(folder / "home", longer, cores=2, files=_names(longer))
    _one_per_cent_more(book, folder, longer, whole, "4 kB", goals[1], count // 4)
    for name in ("longer", "home"):
        shutil.rmtree(folder / name)
    skewed(corpus, count, bucket=count // 10)
    made = _alone(folder / "home", corpus, cores=2)
    setup = f"a bucket of {count // 10:,}, boilerplate in half of them; {made.seconds:.1f} s, {made.cpu:.1f} s of processor time"
    book.add("a skewed corpus, cost a document", made.seconds / plain.seconds, "times", most=goals[2], setup=setup)
    book.add("a skewed corpus: peak of the process", made.peak_mib, "MiB", most=2048)
    for name in ("corpus", "home"):
        shutil.rmtree(folder / name)
    near_copies(corpus, count)
    made = _alone(folder / "home", corpus, cores=2)
    setup = f"{made.seconds:.1f} s, {made.cpu:.1f} s of processor time, {made.artifact.metrics['pairs_proposed']:,} pairs"
    book.add("each text 500 times: peak of the process", made.peak_mib, "MiB", most=2048, setup=setup)
    if arguments.quick:
        book.leave_out("a million documents, one per cent more; a bucket of 100,000")
    if not arguments.ten_million:
        return book.leave_out("ten million documents (--ten-million)")
    for name in ("corpus", "home"):
        shutil.rmtree(folder / name)
    million(corpus, 10_000_000, files=40)
    ten = _alone(folder / "home", corpus, cores=2)
    setup = f"{ten.cpu:.0f} s of processor time"
    book.add("10,000,000 documents of 1 kB, two cores", ten.seconds, "s", setup=setup)
    book.add("10,000,000 documents: peak of the process", ten.peak_mib, "MiB", most=2048)
    return None
