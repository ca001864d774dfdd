"""Train a byte-level BPE tokenizer: the same texts give the same bytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline_lib.workspace.files import write_json

EOS, PAD = "<|endoftext|>", "<|pad|>"
SAMPLE_BYTES = 30_000_000  # more text changes a small vocabulary little; 10 MB train in about a second


def spread(weights: np.ndarray, budget: float) -> np.ndarray:
    """Indices spread evenly over `weights` (int64[n], any unit) that sum to about `budget`; all of them when they fit."""
    total = float(weights.sum())
    share = 1.0 if total <= budget else budget / total
    marks = np.floor(np.arange(len(weights) + 1, dtype=np.float64) * share)
    return np.flatnonzero(np.diff(marks) > 0)


def _capped(batches: Iterable[pa.LargeStringArray], budget: int) -> Iterator[list[str]]:
    spent = 0
    for batch in batches:
        ends = spent + np.cumsum(pc.binary_length(batch).to_numpy())
        keep = int(np.searchsorted(ends, budget, side="right"))
        yield batch.slice(0, max(keep, 1 if spent == 0 else 0)).to_pylist()
        if keep < len(batch):
            return
        spent = int(ends[-1]) if len(ends) else spent


def train_tokenizer(
    batches: Iterable[pa.LargeStringArray], vocabulary_size: int, folder: Path, *, special_tokens: Sequence[str] = ()
) -> None:
    """Train on batches of texts and write `tokenizer.json` and `tokenizer_config.json`, loadable by `AutoTokenizer`.

    Args:
        batches: texts without nulls, in a fixed order; what lies beyond `SAMPLE_BYTES` is not read.
        vocabulary_size: entries wanted, all special tokens among them; a small corpus may give fewer.
        folder: existing folder to write into.
        special_tokens: more of them, after the end and the padding token.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=[EOS, PAD, *special_tokens],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_capped(batches, SAMPLE_BYTES), trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": EOS,
            "eos_token": EOS,
            "pad_token": PAD,
            "clean_up_tokenization_spaces": False,
            "model_max_length": 1_000_000,
        },
    )
