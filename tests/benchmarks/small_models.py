"""Small models that a benchmark teaches within a minute: from scratch, on the sentences it is given, each on its own."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline_lib.config.model import ModelConfig
from pipeline_lib.tokens.encode import Encoder
from pipeline_lib.tokens.load import copy_tokenizer, read_facts
from pipeline_lib.tokens.train import train_tokenizer

CONTEXT = 128
BATCH_TOKENS = 2048
NEAR = 2000  # texts among which those of a batch are of about equal length
SMALL = ModelConfig(width=96, depth=2, heads=4, ffn_width=288)


def tokenizer_of(texts: Sequence[str], vocabulary_size: int, folder: Path) -> Path:
    """A tokenizer of these texts, in a new folder."""
    folder.mkdir(parents=True)
    train_tokenizer([pa.array(texts, pa.large_string())], vocabulary_size, folder)
    return folder


def untrained(tokenizer: Path, folder: Path, model: ModelConfig, *, context: int = CONTEXT, seed: int = 0) -> Path:
    """A model as it comes from its initial weights, with its tokenizer."""
    from pipeline_lib.training.model import build_model, export_model

    facts = read_facts(tokenizer)
    special = {"eos": facts.eos_id, "pad": facts.pad_id}
    built = build_model(model, vocabulary_size=facts.vocabulary_size, sequence_length=context, seed=seed, special_ids=special)
    folder.mkdir(parents=True)
    export_model(built, folder)
    copy_tokenizer(tokenizer, folder)
    return folder


def batches(lengths: Sequence[int], draw: np.random.Generator) -> Iterator[list[int]]:
    """Texts of at least `BATCH_TOKENS` tokens together, for ever: each once, then each again. Those of a batch are about equally
    long, so that little is padded, and drawn from `NEAR` texts; batches come in random order.
    """
    while True:
        order = draw.permutation(len(lengths))
        made: list[list[int]] = []
        for start in range(0, len(order), NEAR):
            held: list[int] = []
            for place in sorted(order[start : start + NEAR].tolist(), key=lengths.__getitem__):
                held.append(place)
                if sum(lengths[one] for one in held) >= BATCH_TOKENS:
                    made.append(held)
                    held = []
            if held:
                made.append(held)
        for number in draw.permutation(len(made)).tolist():
            yield made[number]


def taught(
    tokenizer: Path,
    texts: Sequence[str],
    folder: Path,
    *,
    steps: int,
    rate: float = 4e-3,
    model: ModelConfig = SMALL,
    seed: int = 0,
    start: Path | None = None,
) -> Path:
    """A model trained for so many steps of about `BATCH_TOKENS` tokens on texts in random order, with its tokenizer.

    A text longer than the context is cut. AdamW, warm-up over a twentieth and linear decay. With `start` the model of that folder
    goes on learning.
    """
    import torch

    from pipeline_lib.training.loss import IGNORED, counted_tokens
    from pipeline_lib.training.model import build_model, export_model
    from pipeline_lib.training.objective import Objective

    facts = read_facts(tokenizer)
    special = {"eos": facts.eos_id, "pad": facts.pad_id}
    model = model.model_copy(update={"start": str(start)}) if start else model
    built = build_model(model, vocabulary_size=facts.vocabulary_size, sequence_length=CONTEXT, seed=seed, special_ids=special)
    flat, offsets = Encoder(tokenizer / "tokenizer.json").encode(pa.array(texts, pa.large_string()))
    end = np.array([facts.eos_id], np.int64)
    rows = [np.concatenate([end, flat[a:b], end])[:CONTEXT] for a, b in itertools.pairwise(offsets)]
    draw = np.random.default_rng(seed)
    objective = Objective(built, "fp32")
    optimizer = torch.optim.AdamW(built.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.05, anneal_strategy="linear")
    for places in itertools.islice(batches([len(row) for row in rows], draw), steps):
        batch = [rows[place] for place in places]
        longest = max(map(len, batch))
        ids = np.full((len(batch), longest), facts.pad_id, np.int64)
        labels = np.full_like(ids, IGNORED)
        for place, row in enumerate(batch):
            ids[place, : len(row)] = labels[place, : len(row)] = row
        given = {
            "input_ids": torch.from_numpy(ids), "labels": torch.from_numpy(labels),
            "position_ids": torch.arange(longest).expand(len(batch), longest),
        }  # fmt: skip
        loss = objective(given) / counted_tokens(given["labels"])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(built.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    folder.mkdir(parents=True)
    export_model(built.eval(), folder)
    copy_tokenizer(tokenizer, folder)
    return folder
