"""Data sets of the library `datasets` in a local folder, as record batches. No loading script of theirs runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from pipeline_lib.config.data import SourceConfig
from pipeline_lib.errors import NotFoundError

BATCH_ROWS = 1000
SPLIT = "train"


def dataset_batches(source: SourceConfig) -> Iterator[pa.RecordBatch]:
    """The rows of a saved data set (`save_to_disk`), or of a folder of data files; of several splits `train`.

    Raises:
        NotFoundError: the path is no folder, or holds no split `train`.
    """
    folder = Path(source.path)
    if not folder.is_dir():
        raise NotFoundError(f"source {source.name!r} is no folder", where=source.path, fix="name a local folder")
    import datasets

    if (folder / "state.json").exists() or (folder / "dataset_dict.json").exists():
        data = datasets.load_from_disk(str(folder))
    else:
        data = datasets.load_dataset(str(folder), streaming=True)
    if isinstance(data, dict):
        if SPLIT not in data:
            raise NotFoundError(f"no split {SPLIT!r}", where=source.path, fix=f"name the folder of one of {', '.join(data)}")
        data = data[SPLIT]
    for table in data.with_format("arrow").iter(batch_size=BATCH_ROWS):
        yield from table.combine_chunks().to_batches()
