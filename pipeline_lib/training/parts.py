"""Losses by source, domain and document, from the positions that a forward pass has scored anyway.

A part is (source, domain, tokens, loss): its tokens add up to those of the whole, and so does tokens × loss. Parts of the
training side cover a window of steps, so that their number does not grow with the length of a training; a window never crosses a
checkpoint, so nothing of it has to be saved.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor
from transformers import TrainerCallback

from pipeline_lib.training.loop import Session
from pipeline_lib.training.loss import IGNORED, shifted
from pipeline_lib.training.monitor import GPU_STEPS
from pipeline_lib.training.origins import Origins

WINDOWS = 500  # of a training: points of a curve
NAMED = 5  # documents of a step
LEAST_TOKENS = 8  # a document of which less was predicted is not named: a single rare word is no news

Row = dict[str, Any]


@dataclass
class Sums:
    """Tokens and losses by cell."""

    tokens: np.ndarray  # int64[cells]
    losses: np.ndarray  # float64[cells], nats

    @classmethod
    def none(cls, cells: int) -> Sums:
        """Nothing yet."""
        return cls(np.zeros(cells, np.int64), np.zeros(cells))

    def add(self, cells: np.ndarray, losses: np.ndarray) -> None:
        """Predicted positions: the cell and the loss of each."""
        self.tokens += np.bincount(cells, minlength=len(self.tokens))
        self.losses += np.bincount(cells, weights=losses, minlength=len(self.losses))

    def rows(self, origins: Origins) -> list[Row]:
        """A part for every cell that has tokens."""
        return [
            {"source": origins.cells[cell][0], "domain": origins.cells[cell][1], "tokens": int(self.tokens[cell]),
             "loss": float(self.losses[cell] / self.tokens[cell])}
            for cell in np.flatnonzero(self.tokens).tolist()
        ]  # fmt: skip


def predicted(batch: Mapping[str, Tensor], losses: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """(row of the table `rows`, loss) of every position of a batch that was predicted, as numpy arrays on the host."""
    rows, values, counted = batch["rows"], losses, shifted(batch["labels"]) != IGNORED
    keep = counted.flatten().cpu().numpy()
    return rows.flatten().cpu().numpy()[keep], values.flatten().double().cpu().numpy()[keep]


def by_document(rows: np.ndarray, losses: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(rows, tokens, mean loss) of the documents that positions belong to, worst first, what is not a number before all; short
    ones are left out."""
    found, place = np.unique(rows, return_inverse=True)
    tokens = np.bincount(place)
    means = np.bincount(place, weights=losses) / tokens
    order = np.lexsort((found, -np.nan_to_num(means, nan=np.inf, posinf=np.inf)))
    order = order[tokens[order] >= LEAST_TOKENS]
    return found[order], tokens[order], means[order]


def by_name(rows: Sequence[Mapping[str, Any]], name: str) -> dict[str, float]:
    """Mean loss by `source` or `domain`, from parts."""
    sums: dict[str, list[float]] = {}
    for row in rows:
        entry = sums.setdefault(row[name], [0.0, 0.0])
        entry[0] += row["tokens"] * row["loss"]
        entry[1] += row["tokens"]
    return {key: loss / tokens for key, (loss, tokens) in sorted(sums.items())}


@dataclass
class _Step:
    """A step's predicted positions."""

    rows: list[np.ndarray] = field(default_factory=list)
    losses: list[np.ndarray] = field(default_factory=list)


class PartLosses(TrainerCallback):
    """Watches the objective; first of all callbacks, so that others find the step's positions looked at."""

    def __init__(self, session: Session, origins: Origins, write: Callable[[str, Sequence[Row]], None]) -> None:
        self.session, self.origins, self.write = session, origins, write
        self.look_every = GPU_STEPS if session.device.type == "cuda" else 1
        self.window = max(1, session.plan.steps // WINDOWS)
        self.sums, self.begin = Sums.none(len(origins.cells)), session.step
        self.latest: list[Row] = []  # of the last window
        self._pending: list[tuple[int, dict[str, Tensor], Tensor]] = []
        self._steps: dict[int, _Step] = {}
        session.objective.watch, session.objective.restart = self._watch, self._forget

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The first window begins."""
        self.begin = self.session.step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look where it is due."""
        if self.session.step % self.look_every == 0:
            self.look()
        if self.session.step % self.window == 0 or self.session.finished:
            self.flush()

    def look(self) -> None:
        """Bring what the device still holds to the host."""
        pending, self._pending = self._pending, []
        if pending:  # the monitor may ask for every step of its latest block
            self._steps = {step: entry for step, entry in self._steps.items() if step > pending[0][0] - 2 * self.look_every}
        for step, batch, losses in pending:
            rows, values = predicted(batch, losses)
            finite = np.isfinite(values)
            self.sums.add(self.origins.cell_of[rows[finite]], values[finite])
            entry = self._steps.setdefault(step, _Step())
            entry.rows.append(rows)
            entry.losses.append(values)

    def flush(self) -> None:
        """End the window: write its parts."""
        self.look()
        for values in (self.sums.tokens, self.sums.losses):
            self.session.world.sum_array(values)
        if self.sums.tokens.any():
            self.latest = [
                {"side": "train", "first_step": self.begin + 1, "step": self.session.step, **row}
                for row in self.sums.rows(self.origins)
            ]
            self.write("losses", self.latest)
        self.sums, self.begin = Sums.none(len(self.origins.cells)), self.session.step

    def documents(self, step: int) -> list[Row]:
        """The documents of a step that were learned worst (see `worst`); [] for a step that is long past."""
        self.look()
        entry = self._steps.get(step)
        return worst(self.origins, np.concatenate(entry.rows), np.concatenate(entry.losses), NAMED) if entry else []

    def _forget(self) -> None:
        step = self.session.step + 1
        self._pending = [noted for noted in self._pending if noted[0] != step]

    def _watch(self, batch: Mapping[str, Tensor], losses: Tensor) -> None:
        if "rows" in batch:
            kept = {name: batch[name] for name in ("rows", "labels")}
            self._pending.append((self.session.step + 1, kept, losses))


def worst(origins: Origins, rows: np.ndarray, losses: np.ndarray, most: int) -> list[Row]:
    """The documents with the highest mean loss: {doc_id, source, domain, tokens, loss (None: not a number)}."""
    found, tokens, means = (values[:most].tolist() for values in by_document(rows, losses))
    return [
        {**name, "tokens": count, "loss": loss if math.isfinite(loss) else None}
        for name, count, loss in zip(origins.named(found), tokens, means, strict=True)
    ]
