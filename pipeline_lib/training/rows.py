"""Packs taken apart: every document of a batch as a row of its own, in groups of similar length.

For models that look back over a document's beginning (most recurrent and convolutional ones). The batch, its place in the order,
its tokens and their labels stay those of the packs, so that nothing else has to know. Padding stands behind a document, where a
causal model does not see it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline_lib.training.loss import IGNORED

SHORTEST = 0.75  # of a group's longest row: at most a quarter of a group is padding


@dataclass(frozen=True)
class Rows:
    """Documents of similar length. All tensors are [rows, length of the longest]."""

    batch: dict[str, Tensor]  # input_ids, labels, position_ids: int64, as in a batch of packs
    places: Tensor  # int64: where a token stands in the flattened packs
    real: Tensor  # bool: not padding


def take_apart(batch: Mapping[str, Tensor]) -> list[Rows]:
    """The documents of a batch of packs, longest first; those in which nothing is predicted are left out.

    Args:
        batch: input_ids, labels, position_ids, each int64[packs, length]; a document begins where the position is 0.
    """
    flat = {name: batch[name].flatten() for name in ("input_ids", "labels", "position_ids")}
    begins = flat["position_ids"] == 0
    starts = begins.nonzero().squeeze(1)
    lengths = torch.diff(starts, append=torch.tensor([len(begins)], device=starts.device))
    inside = (flat["labels"] != IGNORED) & ~begins  # a row's first token is predicted from nothing
    predicted = torch.zeros_like(starts).index_add_(0, begins.cumsum(0) - 1, inside.long())
    starts, lengths = starts[predicted > 0], lengths[predicted > 0]
    lengths, order = torch.sort(lengths, descending=True, stable=True)
    starts, sizes = starts[order], lengths.tolist()
    groups, first = [], 0
    for row in range(1, len(sizes) + 1):
        if row == len(sizes) or sizes[row] < SHORTEST * sizes[first]:
            groups.append(_group(flat, starts[first:row], lengths[first:row], sizes[first]))
            first = row
    return groups


def _group(flat: Mapping[str, Tensor], starts: Tensor, lengths: Tensor, longest: int) -> Rows:
    offsets = torch.arange(longest, device=starts.device).unsqueeze(0)
    real = offsets < lengths.unsqueeze(1)
    places = torch.where(real, starts.unsqueeze(1) + offsets, starts.unsqueeze(1))
    batch = {
        "input_ids": flat["input_ids"][places], "labels": flat["labels"][places].masked_fill(~real, IGNORED),
        "position_ids": offsets.expand_as(places),
    }  # fmt: skip
    return Rows(batch, places, real)
