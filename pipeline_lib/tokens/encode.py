"""The one way from text to tokens: gigatoken where it agrees with `tokenizers`, `tokenizers` otherwise."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline_lib.tokens.load import with_unspellable_special_tokens, without_special_tokens
from pipeline_lib.workspace.identity import file_digest

# Where tokenizers disagree when they do: spaces, line ends, digits, contractions, marks, scripts, spelled special tokens.
PROBE = (
    "", " ", "  \n\n\t x  ", "a\r\nb\rc", "it's I'LL we’ve don't", "12 1234567 3.14e-10 ½ ²", "naïve café é A\u030a",
    "\u00a0\u2003\u200b|", "日本語のテキスト。漢字", "Привет, мир", "नमस्ते दुनिया", "مرحبا", "👍🏽 👩‍👩‍👧 🏳️‍🌈",
    "def f(x):\n    return x**2  # ok\n", "<|endoftext|> <|pad|> </s>", "x" * 300, "ab" * 200, "\x00\x01\x7f", "…—“q”",
    "http://a.b/c?d=e&f#g", "CamelCase snake_case kebab-case",
)  # fmt: skip


class Encoder:
    """Encodes texts; a text that spells a special token stays text, and none is added.

    Attributes:
        name: "gigatoken" or "tokenizers".
        reason: why gigatoken is not used; "" when it is.
    """

    def __init__(self, tokenizer_json: Path, *, fast: bool = True) -> None:
        from tokenizers import Tokenizer

        self._slow = Tokenizer.from_str(with_unspellable_special_tokens(tokenizer_json))
        self._slow.encode_special_tokens = True
        self._slow.no_truncation()
        self._slow.no_padding()
        self._fast: Any = None
        self.name, self.reason = "tokenizers", "not asked for"
        if fast:
            self.reason = self._try_fast(tokenizer_json)

    def _try_fast(self, tokenizer_json: Path) -> str:
        try:
            import gigatoken

            self._fast = gigatoken.Tokenizer.from_json(without_special_tokens(tokenizer_json))
            probe = pa.array(PROBE, pa.large_string())
            same = all(np.array_equal(a, b) for a, b in zip(self._encode_fast(probe), self._encode_slow(probe), strict=True))
        except BaseException as error:  # a panic of the extension is no Exception, and none of its kinds is documented
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            self._fast = None
            return f"gigatoken cannot load this tokenizer: {error}"
        if not same:
            self._fast = None
            return "gigatoken and tokenizers disagree on the probe texts"
        self.name = "gigatoken"
        return ""

    def encode(self, texts: pa.LargeStringArray) -> tuple[np.ndarray, np.ndarray]:
        """Tokens of all texts, one after the other: (uint32[total], int64[len(texts) + 1] offsets). Nulls are not allowed."""
        if len(texts) == 0:
            return np.empty(0, np.uint32), np.zeros(1, np.int64)
        return self._encode_fast(texts) if self._fast is not None else self._encode_slow(texts)

    def _encode_fast(self, texts: pa.LargeStringArray) -> tuple[np.ndarray, np.ndarray]:
        from awkward.contents import ListOffsetArray, NumpyArray
        from awkward.highlevel import Array
        from awkward.index import Index64

        _, offsets_buffer, data_buffer = texts.buffers()
        offsets = np.frombuffer(offsets_buffer, np.int64)[texts.offset : texts.offset + len(texts) + 1]
        data = np.frombuffer(data_buffer, np.uint8) if data_buffer is not None and data_buffer.size else np.zeros(1, np.uint8)
        characters = NumpyArray(data, parameters={"__array__": "char"})
        layout = ListOffsetArray(Index64(offsets), characters, parameters={"__array__": "string"})
        found = self._fast.encode_batch(Array(layout), parallel=False).layout
        starts = np.asarray(found.offsets.data, np.int64)
        return np.asarray(found.content.data, np.uint32)[starts[0] : starts[-1]], starts - starts[0]

    def _encode_slow(self, texts: pa.LargeStringArray) -> tuple[np.ndarray, np.ndarray]:
        encoded = [item.ids for item in self._slow.encode_batch_fast(texts.to_pylist(), add_special_tokens=False)]
        offsets = np.zeros(len(encoded) + 1, np.int64)
        np.cumsum([len(ids) for ids in encoded], out=offsets[1:])
        return np.fromiter((token for ids in encoded for token in ids), np.uint32, int(offsets[-1])), offsets


_local = threading.local()


def encoder_for(tokenizer_json: Path) -> Encoder:
    """An encoder of this thread, kept for as long as the file's bytes stay the same."""
    digest = file_digest(tokenizer_json)
    if getattr(_local, "digest", "") != digest:
        _local.encoder, _local.digest = Encoder(tokenizer_json), digest
    encoder: Encoder = _local.encoder
    return encoder
