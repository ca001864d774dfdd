"""Packed sequences as other tools make and read them. Runs in the environment of the peers, as a child of `packing`.

    packing_peers.py TOOL FOLDER LENGTH READS

FOLDER holds `texts.parquet` (column `text`) and `tokenizer.json`. Every tool tokenises all texts, puts the end token behind each,
writes sequences of LENGTH tokens, and reads READS of them at random, in one process, as its own documentation shows.
Prints JSON: seconds to write, tokens and bytes written, sequences, seconds from opening to the first one, sequences a second.
"""

from __future__ import annotations

import json
import sys
import time
import types
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import numpy as np

END = "<|endoftext|>"
BATCH = 1000  # texts
Made = tuple[int, int, Callable[[], Any]]  # tokens, sequences, open: gives something to index


def _texts(folder: Path) -> list[str]:
    import pyarrow.parquet as pq

    texts: list[str] = pq.read_table(folder / "texts.parquet", columns=["text"])["text"].to_pylist()
    return texts


def _tokenizer(folder: Path) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def _encoded(folder: Path) -> Iterator[list[int]]:
    """Documents as tokens with their end token, by Hugging Face's `tokenizers`, which all four tools use."""
    tokenizer, texts = _tokenizer(folder), _texts(folder)
    end = tokenizer.token_to_id(END)
    for start in range(0, len(texts), BATCH):
        for found in tokenizer.encode_batch_fast(texts[start : start + BATCH], add_special_tokens=False):
            yield [*found.ids, end]


def _blocks(folder: Path, length: int) -> Iterator[np.ndarray]:
    """All tokens one after the other, cut every `length`; the rest is dropped, as these tools do."""
    held = np.empty(0, np.uint16)
    for ids in _encoded(folder):
        held = np.concatenate([held, np.array(ids, np.uint16)])
        whole = len(held) // length * length
        yield from held[:whole].reshape(-1, length)
        held = held[whole:]


def datasets(folder: Path, out: Path, length: int) -> Made:
    """`map` to tokenise, `map` to concatenate and cut (the recipe of transformers' run_clm), `save_to_disk`."""
    from datasets import Dataset, load_from_disk

    tokenizer = _tokenizer(folder)
    end = tokenizer.token_to_id(END)

    def tokenise(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        found = tokenizer.encode_batch_fast(batch["text"], add_special_tokens=False)
        return {"input_ids": [[*one.ids, end] for one in found]}

    def group(batch: dict[str, list[list[int]]]) -> dict[str, list[list[int]]]:
        joined = [token for ids in batch["input_ids"] for token in ids]
        return {"input_ids": [joined[i : i + length] for i in range(0, len(joined) // length * length, length)]}

    texts = Dataset.from_parquet(str(folder / "texts.parquet"), cache_dir=str(out / "cache"))
    tokens = texts.map(tokenise, batched=True, remove_columns=texts.column_names)
    packed = tokens.map(group, batched=True, batch_size=BATCH)
    packed.save_to_disk(str(out / "packed"))

    def open_() -> Any:
        data = load_from_disk(str(out / "packed")).with_format("numpy")
        return lambda i: data[i]["input_ids"]

    return packed.num_rows * length, packed.num_rows, open_


def mosaicml(folder: Path, out: Path, length: int) -> Made:
    """MDSWriter of uint16 arrays; its default: no compression."""
    for name in ("torchvision", "torchvision.datasets", "torchvision.transforms", "torchvision.transforms.functional"):
        module = types.ModuleType(name)  # imported for image data sets that nobody uses here
        module.__dict__.update({"VisionDataset": object, "to_tensor": None})
        module.__spec__ = ModuleSpec(name, None)
        sys.modules[name] = module
    from streaming import LocalDataset, MDSWriter

    count = 0
    with MDSWriter(out=str(out / "packed"), columns={"tokens": f"ndarray:uint16:{length}"}) as writer:
        for block in _blocks(folder, length):
            writer.write({"tokens": block})
            count += 1

    def open_() -> Any:
        data = LocalDataset(str(out / "packed"))
        return lambda i: data[i]["tokens"]

    return count * length, count, open_


def _as_tensors(documents: list[list[int]]) -> Iterator[Any]:
    import torch

    for ids in documents:
        yield torch.tensor(ids, dtype=torch.uint16)


def litdata(folder: Path, out: Path, length: int) -> Made:
    """`optimize` of documents as tensors with TokensLoader, one worker."""
    from litdata import StreamingDataset, TokensLoader, optimize

    encoded = list(_encoded(folder))
    batches = [encoded[start : start + BATCH] for start in range(0, len(encoded), BATCH)]
    optimize(
        fn=_as_tensors, inputs=batches, output_dir=str(out / "packed"), chunk_bytes="16MB", item_loader=TokensLoader(length),
        num_workers=1, verbose=False,
    )  # fmt: skip

    def open_() -> Any:
        data = StreamingDataset(str(out / "packed"), item_loader=TokensLoader(length), shuffle=False)
        len(data)
        return data.__getitem__

    return sum(map(len, encoded)), sum(map(len, encoded)) // length, open_


def datatrove(folder: Path, out: Path, length: int) -> Made:
    """DocumentTokenizer without shuffling, read by DatatroveFolderDataset."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import ParquetReader
    from datatrove.pipeline.tokens import DocumentTokenizer
    from datatrove.utils.dataset import DatatroveFolderDataset

    source = out / "source"
    source.mkdir(parents=True)
    (source / "texts.parquet").symlink_to((folder / "texts.parquet").resolve())
    steps = [
        ParquetReader(str(source)),
        DocumentTokenizer(str(out / "packed"), str(folder / "tokenizer.json"), eos_token=END, shuffle_documents=False),
    ]
    LocalPipelineExecutor(steps, tasks=1, workers=1, logging_dir=str(out / "logs")).run()
    size = sum(path.stat().st_size for path in (out / "packed").glob("*.ds"))

    def open_() -> Any:
        data = DatatroveFolderDataset(str(out / "packed"), length - 1, token_size=2)  # it gives one token more, as the label
        return lambda i: data[i]["input_ids"]

    return size // 2, size // 2 // length, open_


def main() -> None:
    """Write, open, read."""
    name, folder, length, reads = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    out = folder / name
    tool = {"datasets": datasets, "mosaicml": mosaicml, "litdata": litdata, "datatrove": datatrove}[name]
    import pyarrow  # noqa: F401 - imports are no part of writing

    begin = time.perf_counter()
    tokens, sequences, open_ = tool(folder, out, length)
    write_seconds = time.perf_counter() - begin
    begin = time.perf_counter()
    read = open_()
    read(0)
    open_seconds = time.perf_counter() - begin
    order = np.random.default_rng(0).integers(0, sequences - 1, reads)
    for i in order[: len(order) // 4]:
        read(int(i))
    begin = time.perf_counter()
    used = sum(len(read(int(i))) for i in order)
    read_seconds = time.perf_counter() - begin
    if used != length * reads:
        raise SystemExit(f"{name} gave {used} tokens for {reads} sequences of {length}")
    size = sum(path.stat().st_size for path in (out / "packed").rglob("*") if path.is_file())
    measured = {
        "write_seconds": write_seconds, "tokens": tokens, "bytes": size, "sequences": sequences, "open_seconds": open_seconds,
        "reads_per_second": reads / read_seconds,
    }  # fmt: skip
    print(json.dumps(measured))


if __name__ == "__main__":
    main()
