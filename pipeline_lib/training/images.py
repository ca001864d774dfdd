"""A safetensors file in memory: state is copied into it at once, and goes to disk later, digested on the way.

The layout is https://huggingface.co/docs/safetensors (8 bytes of header length, JSON header, tensors without gaps). The buffer is
used again for the next checkpoint: its pages are there already, so that copying costs no more than the copying.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from blake3 import blake3
from torch import Tensor

DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
}  # fmt: skip
BLOCK = 4 << 20  # bytes digested and written at a time: what was digested is still in the processor's cache


class Image:
    """One file's tensors, laid out as they will be written."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.shape = _shape(tensors)
        # Widest first, so that every tensor lies aligned for its type.
        order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name in order:
            begin, end = end, end + tensors[name].nbytes
            header[name] = {
                "dtype": DTYPES[tensors[name].dtype],
                "shape": list(tensors[name].shape),
                "data_offsets": [begin, end],
            }
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        self.header = len(text).to_bytes(8, "little") + text
        pinned = any(tensor.is_cuda for tensor in tensors.values())
        self.buffer = torch.empty(end, dtype=torch.uint8, pin_memory=pinned)
        self.views = {}
        for name in order:
            begin, stop = header[name]["data_offsets"]
            self.views[name] = self.buffer[begin:stop].view(tensors[name].dtype).view(tensors[name].shape)

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return len(self.header) + self.buffer.nbytes

    def fits(self, tensors: Mapping[str, Tensor]) -> bool:
        """Whether these tensors have the names, types and shapes this image was made for."""
        return self.shape == _shape(tensors)

    @torch.no_grad()
    def take(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy the tensors' values. From a GPU the copies only begin: `torch.cuda.synchronize` ends them."""
        for name, view in self.views.items():
            view.copy_(tensors[name], non_blocking=True)

    def write(self, path: Path) -> dict[str, Any]:
        """Write the file, unsynced; its size and digest. The digest is of what was meant: a fault on the way to disk shows."""
        digest = blake3(self.header)
        data = memoryview(self.buffer.numpy())  # type: ignore[arg-type] # numpy's arrays are buffers
        with path.open("wb", buffering=0) as handle:
            _write(handle, self.header)
            for begin in range(0, len(data), BLOCK):
                block = data[begin : begin + BLOCK]
                digest.update(block)
                _write(handle, block)
        return {"size": self.size, "digest": digest.hexdigest()}


def _write(handle: Any, data: bytes | memoryview) -> None:
    """All of it: an unbuffered write may take less."""
    view = memoryview(data)
    while view:
        view = view[handle.write(view) :]


def _shape(tensors: Mapping[str, Tensor]) -> list[tuple[str, torch.dtype, torch.Size]]:
    return [(name, tensors[name].dtype, tensors[name].shape) for name in sorted(tensors)]
