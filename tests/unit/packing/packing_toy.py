"""Stands in for ingest and select: publishes documents and a selection the way they do, from a small JSON description."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from blake3 import blake3

from pipeline_lib.config.fields import Section, setting
from pipeline_lib.config.model import FillGapsConfig, PackConfig, TokenizerConfig
from pipeline_lib.stages import BY_NAME
from pipeline_lib.tables.parquet import write_table
from pipeline_lib.tables.schemas import DOCUMENTS, SELECTION
from pipeline_lib.workspace.artifact import Artifact
from pipeline_lib.workspace.services import Services
from pipeline_lib.workspace.stage import Outcome, Stage, StageRun, execute
from pipeline_lib.workspace.workspace import Workspace

WORDS = [chr(97 + i % 26) * (1 + i % 3) + chr(97 + (i * 7) % 26) + "ing" * (i % 2) for i in range(300)]


class ToyCorpus(Section):
    """Documents of random words."""

    documents: int = setting(120, "documents")
    words: int = setting(60, "mean words")
    files: int = setting(3, "files")
    repeats: int = setting(1, "every tenth document is repeated so often")
    seed: int = setting(0, "seed")
    special: bool = setting(False, "texts spell special tokens")
    foreign: bool = setting(False, "a text of characters that take several tokens")
    pool: int = setting(0, "texts are drawn for so many documents, so that a corpus can grow")
    drop_every: int = setting(0, "of so many documents one is not selected")


class Toy(Section):
    toy: ToyCorpus = setting(ToyCorpus, "corpus")
    pack: PackConfig = setting(lambda: PackConfig(sequence_length=64, range_tokens=2048), "pack")
    tokenizer: TokenizerConfig = setting(lambda: TokenizerConfig(vocabulary_size=400), "tokenizer")
    fill_gaps: FillGapsConfig = setting(FillGapsConfig, "fill")


def doc_id(i: int) -> bytes:
    return blake3(str(i).encode()).digest(16)


def texts_of(toy: ToyCorpus) -> list[str]:
    rng = np.random.default_rng(toy.seed)
    drawn = max(toy.documents, toy.pool)
    texts = [" ".join(rng.choice(WORDS, size=int(n))) for n in rng.geometric(1 / toy.words, drawn)][: toy.documents]
    if toy.special:
        texts[3] = "before <|endoftext|> between <|pad|> after"
    if toy.foreign:
        texts[4] = "水車小屋 naïve 👍🏽 ок"
    return texts


def toy_ingest(run: StageRun, *, toy: ToyCorpus) -> Outcome:
    texts = texts_of(toy)
    cuts = np.linspace(0, len(texts), toy.files + 1).astype(int)
    for f in range(toy.files):
        ids = range(cuts[f], cuts[f + 1])
        known = {"doc_id": [doc_id(i) for i in ids], "text": [texts[i] for i in ids], "kind": ["text"] * len(ids)}
        known["text_hash"] = [blake3(texts[i].encode()).digest(16) for i in ids]
        columns = [pa.array(known.get(field.name, [None] * len(ids)), field.type) for field in DOCUMENTS]
        write_table(pa.table(columns, schema=DOCUMENTS), run.path("documents", f"part-{f}.parquet"))
    return Outcome()


def toy_select(run: StageRun, *, toy: ToyCorpus) -> Outcome:
    texts = texts_of(toy)
    sides = ["dev" if i % 20 == 7 else "test" if i % 20 == 13 else "train" for i in range(len(texts))]
    columns = {
        "doc_id": [doc_id(i) for i in range(len(texts))],
        "side": sides,
        "domain": ["even" if i % 2 == 0 else "odd" for i in range(len(texts))],
        "repeats": [toy.repeats if i % 10 == 0 and side == "train" else 1 for i, side in enumerate(sides)],
        "role": ["kept" if i == 1 else "replay" if i % 9 == 0 else "new" for i in range(len(texts))],
        "quality": [0.5] * len(texts),
        "score": [0.5] * len(texts),
        "est_tokens": [len(text) // 4 + 1 for text in texts],
    }
    table = pa.table(columns, schema=SELECTION).take(pa.array(np.random.default_rng(1).permutation(len(texts))))
    if toy.drop_every:
        dropped = pa.array([doc_id(i) for i in range(0, len(texts), toy.drop_every)], table["doc_id"].type)
        table = table.filter(pc.invert(pc.is_in(table["doc_id"], value_set=dropped)))
    write_table(table, run.path("selection", "selection.parquet"))
    return Outcome()


INGEST = Stage("ingest", 1, "pure", "packing_toy:toy_ingest", sections=("toy",))
SELECT = Stage("select", 1, "pure", "packing_toy:toy_select", sections=("toy",))


def run_toy(
    root: Path, config: Toy | None = None, *, until: str = "fill_gaps", services: Services | None = None, force: bool = False
) -> tuple[Workspace, dict[str, Artifact]]:
    """Run ingest, select, pack (and fill_gaps) in a workspace; the artifacts by stage. `force`: the last one is made anew."""
    workspace, config = Workspace.open(root), config or Toy()
    refs, found = {}, {}
    for stage in (INGEST, SELECT, BY_NAME["pack"], BY_NAME["fill_gaps"]):
        inputs = {name: refs[name] for name in stage.reads}
        refs[stage.name] = execute(workspace, stage, config, inputs, services=services, force=force and stage.name == until)
        found[stage.name] = workspace.store.artifact(refs[stage.name].key)
        if stage.name == until:
            break
    return workspace, found


def rot(path: Path) -> None:
    """A bit turns and size, time and inode stay, as on a disk that goes bad."""
    stat = path.stat()
    with path.open("r+b") as handle:
        byte = handle.read(1001)[-1]
        handle.seek(1000)
        handle.write(bytes([byte ^ 8]))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
