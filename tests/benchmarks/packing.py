"""The packed-sequence cache: how full, how small, how fast it is written, read and healed; beside four other tools."""

from __future__ import annotations

import argparse
import gzip
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline_lib.packing.cache import chunks_table, read_chunks
from pipeline_lib.packing.chunk import ChunkFacts, ChunkSettings, Packed, chunk_table, commit_chunk
from pipeline_lib.packing.ranges import Range
from pipeline_lib.packing.sequences import SequenceReader
from pipeline_lib.tables.parquet import write_table
from pipeline_lib.tokens.train import train_tokenizer
from tests.benchmarks.figures import Book, bench_data
from tests.benchmarks.peers import REPOSITORY, peer, peers_installed

VOCABULARY, LENGTH, RANGE = 32_768, 2048, 1 << 20
LENGTHS = (512, 1024, 2048, 4096, 8192)
PEERS = ("datasets", "mosaicml", "litdata", "datatrove")
MILLION, KILOBYTE = 1_000_000, 1000
SPOIL_LENGTH, SPOIL_RANGE, SPOIL_CHUNKS = 256, 4096, 1000
MANY = 10_000
TIMES = 3


def run(book: Book, arguments: argparse.Namespace) -> None:
    """Own figures first, then the comparison on the same text with the same tokenizer."""
    with tempfile.TemporaryDirectory(prefix="millrace-bench-") as folder:
        home = Path(folder)
        texts = _texts(book)
        _write_texts(home / "corpus", texts)
        train_tokenizer([pa.array(texts, pa.large_string())], VOCABULARY, _made(home / "corpus" / "tokenizer"))
        _child("prepare", home / "work", home / "corpus")
        made = _write(book, home)
        read = _read(book, home, made["key"])
        _utilisation(book, home)
        _open_many(book, home)
        _heal(book, home, texts)
        if arguments.quick:
            book.leave_out("a million documents of 1 kB")
        else:
            _million(book, home, texts)
        _compare(book, home, made, read, texts, quick=arguments.quick)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def _texts(book: Book) -> list[str]:
    """openstax of the bench data; without it, doc strings of this Python."""
    if data := bench_data():
        book.setup = f"{book.setup}; openstax, trained vocabulary {VOCABULARY:,}"
        return _corpus(data, "openstax")
    book.setup = f"{book.setup}; source of the standard library, trained vocabulary {VOCABULARY:,}"
    return [path.read_text("utf-8", "replace") for path in sorted(Path(json.__file__).parents[1].glob("**/*.py"))]


def _corpus(data: Path, name: str) -> list[str]:
    with gzip.open(data / "text" / name / "corpus.jsonl.gz", "rt", encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in lines]


def _write_texts(folder: Path, texts: list[str], name: str = "texts") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    ids = [str(i) for i in range(len(texts))]
    pq.write_table(pa.table({"id": ids, "text": pa.array(texts, pa.large_string())}), folder / f"{name}.parquet")


def _child(mode: str, *words: object) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.benchmarks.packing_child", mode, *map(str, words)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"packing_child {mode} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def _write(book: Book, home: Path) -> dict[str, Any]:
    """Text to disk: read documents, encode, pack, digest, compress, write, sync."""
    made = [_child("pack", home / "work", home / "corpus", LENGTH, 1, RANGE) for _ in range(TIMES)]
    best = max(made, key=lambda one: float(one["tokens_per_second"]))
    rates = ", ".join(f"{one['tokens_per_second'] / 1e6:.1f}" for one in made)
    book.add("text to disk with fsync, one core", best["tokens_per_second"] / 1e6, "Mtok/s", least=11.5, setup=f"best of {rates}")
    setup = f"provenance, headers and all; {best['tokens']:,} tokens of {best['text_bytes']:,} bytes of text"
    book.add("size of the cache", best["bits_per_token"], "bits/token", most=12.2, setup=setup)
    book.add("size of the cache", best["bits_per_text_byte"], "bits/byte", setup="of UTF-8 text")
    for kind in ("uint16", "uint32", "int64"):
        book.add(f"smaller than bare tokens as {kind}", best[f"smaller_than_{kind}_percent"], "%")
    return best


def _read(book: Book, home: Path, key: str) -> dict[str, Any]:
    read = _child("read", home / "work", key)
    book.add("random sequences, one core", read["reads_per_second"], "/s", least=50_000, setup="each chunk verified; best of 7")
    book.add("random sequences as tensors", read["tensors_per_second"], "/s", setup="padded, positions, labels; best of 7")
    book.add("scan with verification, one core", read["scan_tokens_per_second"] / 1e9, "Gtok/s", least=1, setup="best of 15")
    return read


def _utilisation(book: Book, home: Path) -> None:
    for length in LENGTHS:
        made = _child("pack", home / "work", home / "corpus", length, 2, max(RANGE, 256 * length))
        setup = (
            f"range {max(RANGE, 256 * length):,} tokens; {made['cut_documents']:,} documents longer than a sequence; "
            f"no packing of whole documents gets above {100 * made['best_utilisation']:.2f}"
        )
        book.add(f"utilisation at L = {length}", 100 * made["train_utilisation"], "%", least=99.4, setup=setup)
        book.add(f"avoidably cut documents at L = {length}", made["avoidably_cut"], "documents", most=0)


def _open_many(book: Book, home: Path) -> None:
    """Ten thousand chunks of one sequence: one file with as many names."""
    folder = _made(home / "many")
    table = chunk_table(
        np.arange(64, dtype=np.uint32), np.array([0, 64]), np.array([0, 1]), doc_len=np.array([64]), doc_row=np.array([0]),
        doc_off=np.array([0]),
    )  # fmt: skip
    facts = commit_chunk(folder, Range("train", 0, 0, 0), Packed(table, 0, 300), ChunkSettings(64, 100, 0, 1, "lz4"))
    chunks: list[ChunkFacts] = [replace(facts, chunk=number) for number in range(MANY)]
    for one in chunks[1:]:
        one.file(folder).hardlink_to(facts.file(folder))
    write_table(chunks_table(chunks), folder / "chunks.parquet")
    seconds = []
    for _ in range(5):
        begin = time.perf_counter()
        reader = SequenceReader(folder, read_chunks([folder / "chunks.parquet"]), "train")
        reader[len(reader) - 1]
        seconds.append(time.perf_counter() - begin)
    book.add(f"open a cache of {MANY:,} chunks, first sequence", min(seconds), "s", most=1, setup="best of 5")


def _heal(book: Book, home: Path, texts: list[str]) -> None:
    """A thousand small ranges, one bit of one chunk."""
    few, wanted = [], SPOIL_CHUNKS * SPOIL_RANGE * 4.4
    for text in texts:
        few.append(text)
        wanted -= len(text)
        if wanted < 0:
            break
    pieces = [text[i : i + 2000] for text in few for i in range(0, len(text), 2000)]
    _write_texts(home / "few", pieces)
    (home / "few" / "tokenizer").symlink_to(home / "corpus" / "tokenizer")
    found = _child("spoil", home / "spoil", home / "few", SPOIL_LENGTH, SPOIL_RANGE)
    setup = f"{found['chunks']:,} chunks of ~{SPOIL_RANGE:,} tokens; {found['check_seconds']:.3f} s of it to look at all of them"
    book.add("a flipped bit: found, remade, published", found["seconds"], "s", setup=setup)
    book.add("chunks remade", found["filled"], "chunks", least=1)
    book.add("files touched beside the damaged one", found["touched"] - 1, "files", most=0)
    book.add("the chunk made again is bit-identical", found["identical"], "yes", least=1)


def _million(book: Book, home: Path, texts: list[str]) -> None:
    """Windows of 1 kB over the corpus, every one another text."""
    raw = "\n\n".join(texts).encode("ascii", "replace")
    step = (len(raw) - KILOBYTE) // MILLION if len(raw) > 2 * MILLION else 1
    starts = (np.arange(MILLION, dtype=np.int64) * step) % (len(raw) - KILOBYTE)
    for part in range(0, MILLION, 50_000):
        documents = [raw[s : s + KILOBYTE].decode() for s in starts[part : part + 50_000].tolist()]
        _write_texts(home / "million", documents, f"texts-{part:07d}")
    (home / "million" / "tokenizer").symlink_to(home / "corpus" / "tokenizer")
    _child("prepare", home / "million-work", home / "million")
    made = [_child("pack", home / "million-work", home / "million", LENGTH, 2, RANGE) for _ in range(TIMES)]
    best = min(made, key=lambda one: float(one["seconds"]))
    setup = f"the whole stage on two cores, {best['tokens']:,} tokens, windows over {len(raw) / 1e6:.0f} MB of text; best of 3"
    book.add("a million documents of 1 kB", best["seconds"], "s", most=12, setup=setup)
    book.add("a million documents of 1 kB, peak", best["peak_bytes"] / 2**20, "MiB", most=1024, setup="of the whole process")


def _compare(book: Book, home: Path, made: dict[str, Any], read: dict[str, Any], texts: list[str], *, quick: bool) -> None:
    if not peers_installed():
        book.leave_out("the comparison with other tools: `make bench` installs them")
        return
    lengths = _token_lengths(home, texts)
    cut = int(((np.cumsum(lengths) - lengths) // LENGTH != (np.cumsum(lengths) - 1) // LENGTH)[lengths <= LENGTH].sum())
    short = int((lengths <= LENGTH).sum())
    ours = {
        "text to disk": made["tokens_per_second"] / 1e6, "bytes a token": made["size"] / made["tokens"],
        "random sequences": read["reads_per_second"], "start": 1000 * read["open_seconds"],
        "utilisation": 100 * made["train_utilisation"], "documents cut that need not be": made["avoidably_cut"],
    }  # fmt: skip
    units = dict(zip(ours, ("Mtok/s", "bytes", "/s", "ms", "%", "documents"), strict=True))
    for name, value in ours.items():
        book.add(f"millrace: {name}", value, units[name], setup="gigatoken, fsync, digests" if name == "text to disk" else "")
    folder = home / "corpus"
    (folder / "tokenizer.json").symlink_to(folder / "tokenizer" / "tokenizer.json")
    notes = {
        "text to disk": "Hugging Face tokenizers, which it uses", "bytes a token": "no provenance",
        "utilisation": "by construction, not measured: it concatenates",
        "documents cut that need not be": f"computed: of {short:,} that fit in a sequence, those where one ends",
    }  # fmt: skip
    for tool in PEERS:
        found = peer(Path(__file__).with_name("packing_peers.py"), tool, str(folder), str(LENGTH), "3000" if quick else "10000")
        theirs = {
            "text to disk": found["tokens"] / found["write_seconds"] / 1e6, "bytes a token": found["bytes"] / found["tokens"],
            "random sequences": found["reads_per_second"], "start": 1000 * found["open_seconds"], "utilisation": 100.0,
            "documents cut that need not be": cut,
        }  # fmt: skip
        for name, value in theirs.items():
            book.add(f"{tool}: {name}", value, units[name], setup=notes.get(name, ""))


def _token_lengths(home: Path, texts: list[str]) -> np.ndarray:
    """Tokens of every document with its end token."""
    from pipeline_lib.tokens.encode import Encoder

    _, offsets = Encoder(home / "corpus" / "tokenizer" / "tokenizer.json").encode(pa.array(texts, pa.large_string()))
    return np.diff(offsets) + 1
