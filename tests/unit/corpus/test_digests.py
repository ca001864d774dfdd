"""The kernel's BLAKE3 is that of the library."""

from __future__ import annotations

import numpy as np
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from pipeline_lib.corpus.digests import SHORT, digests

EDGES = [n + by for n in (0, 4, 64, 1024, SHORT, 3 * SHORT) for by in (-1, 0, 1) if n + by >= 0]


def found(texts: list[bytes]) -> list[bytes]:
    offsets = np.cumsum([0, *map(len, texts)], dtype=np.int64)
    return [row.tobytes() for row in digests(np.frombuffer(b"".join(texts), np.uint8), offsets)]


def test_sizes_at_the_edges_of_blocks_and_chunks() -> None:
    texts = [np.random.default_rng(size).bytes(size) for size in EDGES]
    assert found(texts) == [blake3(text).digest(16) for text in texts]


@given(st.lists(st.binary(max_size=300), min_size=1, max_size=5))
def test_texts_do_not_touch_each_other(texts: list[bytes]) -> None:
    assert found(texts) == [blake3(text).digest(16) for text in texts]
