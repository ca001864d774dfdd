"""Spans with a common beginning as one sequence: a trunk and its branches, so that what they share is computed once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SHARED = 0.4  # of a span's tokens must be in the trunk: below that a longer row with a mask costs more than it saves


@dataclass(frozen=True)
class Span:
    """Tokens of which only those from `scored_from` on are scored (those before are context)."""

    tokens: NDArray[np.int64]
    scored_from: int


@dataclass(frozen=True)
class Tree:
    """One row: the tokens of the trunk, then those of each branch.

    `members` are the numbers of the spans, a branch each; `trunk` is the trunk's length.
    """

    members: list[int]
    trunk: int
    tokens: NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """Trees as arrays, padded on the right.

    `place` says for each scored token which of `places` (indices into the flattened rows) predicts it, in ascending order;
    `target` is its id. `by_span` brings what is measured into the order of `span`, the number of each one's span.
    """

    ids: NDArray[np.int64]  # [rows, length]
    positions: NDArray[np.int64]  # [rows, length]: distance from the root
    branches: NDArray[np.int64] | None  # [rows, length]: 0 trunk, 1 … its branches, −1 padding; None: there are only trunks
    places: NDArray[np.int64]
    place: NDArray[np.int64]
    target: NDArray[np.int64]
    span: NDArray[np.int64]
    by_span: NDArray[np.int64]


def grown(spans: Sequence[Span], chosen: Sequence[int], longest: int) -> list[Tree]:
    """Trees of the chosen spans, short ones first; neighbours share a tree where most of them is the same.

    Args:
        spans: all of them.
        chosen: their numbers, in ascending order.
        longest: tokens of a tree with branches, at most; 0: none has any.
    """
    trees = []
    for members, trunk in _neighbours(spans, chosen, longest):
        parts = [spans[members[0]].tokens[:trunk], *(spans[index].tokens[trunk:] for index in members)]
        trees.append(Tree(members, trunk, np.concatenate(parts)))
    return sorted(trees, key=lambda tree: len(tree.tokens))


def _neighbours(spans: Sequence[Span], chosen: Sequence[int], longest: int) -> Iterator[tuple[list[int], int]]:
    members: list[int] = []
    trunk, size = 0, 0  # size: of all members together, without what they share
    for index in chosen:
        tokens = spans[index].tokens
        if members:
            common = _common(spans[members[0]].tokens[:trunk], tokens)
            grown_size = size + len(tokens) - common + (len(members) - 1) * (trunk - common)
            if common >= SHARED * len(tokens) and common >= SHARED * trunk and grown_size <= longest:
                members, trunk, size = [*members, index], common, grown_size
                continue
            yield members, trunk
        members, trunk, size = [index], len(tokens), len(tokens)
    if members:
        yield members, trunk


def _common(one: NDArray[np.int64], other: NDArray[np.int64]) -> int:
    """Length of the common beginning."""
    shorter = min(len(one), len(other))
    differs = one[:shorter] != other[:shorter]
    return int(differs.argmax()) if differs.any() else shorter


def laid_out(trees: Sequence[Tree], spans: Sequence[Span], padding: int) -> Batch:
    """Trees as the rows of a batch; `padding` is a token id."""
    shape = len(trees), max(len(tree.tokens) for tree in trees)
    ids, positions, branches = np.full(shape, padding), np.zeros(shape, np.int64), np.full(shape, -1)
    predicts, targets, owners = [], [], []
    for row, tree in enumerate(trees):
        ids[row, : len(tree.tokens)] = tree.tokens
        branches[row, : tree.trunk], positions[row, : tree.trunk] = 0, np.arange(tree.trunk)
        begin = tree.trunk
        for branch, index in enumerate(tree.members, start=1):
            span = spans[index]
            end = begin + len(span.tokens) - tree.trunk
            branches[row, begin:end], positions[row, begin:end] = branch, np.arange(tree.trunk, len(span.tokens))
            before = np.arange(span.scored_from - 1, len(span.tokens) - 1)  # the place that predicts a token is the one before it
            predicts.append(row * shape[1] + np.where(before < tree.trunk, before, before + begin - tree.trunk))
            targets.append(span.tokens[span.scored_from :])
            owners.append(np.full(len(before), index))
            begin = end
    places, place = np.unique(np.concatenate(predicts), return_inverse=True)
    order = np.argsort(place, kind="stable")
    owner = np.concatenate(owners)
    only_trunks = all(len(tree.members) == 1 for tree in trees)
    return Batch(
        ids, positions, None if only_trunks else branches, places, place[order], np.concatenate(targets)[order], owner,
        np.argsort(order, kind="stable"),
    )  # fmt: skip
