"""What a shingle is: N words or N characters in a row; and the sets of them that decide whether two texts are duplicates."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline_lib.config.data import DedupConfig
from pipeline_lib.dedup import kernels
from pipeline_lib.dedup.texts import buffers_of


@dataclass(frozen=True)
class Shingles:
    """N words, or N characters, in a row."""

    width: int = 5
    characters: bool = False

    @classmethod
    def of(cls, config: DedupConfig) -> Shingles:
        """As configured."""
        characters = config.shingle == "characters"
        return cls(config.shingle_characters if characters else config.shingle_words, characters)

    def sets(self, texts: pa.Array) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        """Sorted distinct shingle hashes of each text, and bounds: the set of text i is `hashes[bounds[i]:bounds[i + 1]]`."""
        data, offsets = buffers_of(texts)
        size = int(offsets[-1] - offsets[0])
        room = np.empty((size if self.characters else size // 2) + len(texts) + 1, dtype=np.uint64)
        bounds = np.empty(len(texts) + 1, dtype=np.int64)
        used = kernels.shingle_sets(data, offsets, self.width, self.characters, room, bounds)
        return room[:used], bounds
