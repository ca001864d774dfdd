"""What is trained on, by source and licence."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from pipeline_lib.selection.rights import rights_of
from pipeline_lib.tables.parquet import write_table
from pipeline_lib.tables.schemas import DOC_ID, SELECTION

ROWS = [  # source, licence, side, role, repeats, tokens
    ("web", "MIT", "train", "new", 2, 10),
    ("web", "MIT", "train", "replay", 1, 7),
    ("web", "MIT", "train", "kept", 1, 1000),  # learned on an earlier night, not tonight
    ("web", "", "train", "new", 1, 5),
    ("books", "CC-BY-4.0", "dev", "new", 1, 50),
    ("books", "CC-BY-4.0", "train", "new", 1, 3),
]


def test_tokens_of_the_training_side_repeats_counted(tmp_path: Path) -> None:
    ids = pa.array([number.to_bytes(16, "big") for number in range(len(ROWS))], DOC_ID)
    source, licence, side, role, repeats, tokens = zip(*ROWS, strict=True)
    write_table(pa.table({"doc_id": ids, "source": source, "licence": licence}), tmp_path / "documents.parquet")
    given = {"doc_id": ids, "side": side, "role": role, "repeats": repeats, "est_tokens": tokens}
    columns = [pa.array(given.get(field.name, [None] * len(ROWS)), field.type) for field in SELECTION]
    assert rights_of(pa.table(columns, schema=SELECTION), [tmp_path / "documents.parquet"]) == [
        {"source": "books", "licence": "CC-BY-4.0", "documents": 1, "tokens": 3},
        {"source": "web", "licence": "", "documents": 1, "tokens": 5},
        {"source": "web", "licence": "MIT", "documents": 2, "tokens": 27},
    ]
