"""Training speed beside a bare PyTorch loop and plain Trainer, packed and padded; loss at equal tokens, memory, overhead."""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from pipeline_lib.config.model import ModelConfig, TrainConfig
from pipeline_lib.hardware.machine import peak_flops
from pipeline_lib.packing.order import sequences_at
from pipeline_lib.planning.controller import WindowController
from pipeline_lib.pretrained import quiet
from pipeline_lib.training.callbacks import Tell, Window
from pipeline_lib.training.data import collate, spread
from pipeline_lib.training.evaluate import evaluate
from pipeline_lib.training.journal import Journal
from pipeline_lib.training.loop import Session, fit
from pipeline_lib.training.loss import chunked_cross_entropy, counted_tokens
from pipeline_lib.training.model import build_model, count_parameters, flops_per_token
from pipeline_lib.training.monitor import Monitor
from pipeline_lib.training.optimizers import parameter_groups
from pipeline_lib.training.origins import Origins
from pipeline_lib.training.plan import TrainingPlan
from pipeline_lib.training.samples import Prompts
from pipeline_lib.training.watch import Watch
from pipeline_lib.workspace.peak import process_peak_bytes
from tests.benchmarks.figures import Book

PAIRS, QUICK_PAIRS = 5, 3
VOCABULARY, LENGTH, MICRO_BATCH = 8192, 256, 8
RATE, DECAY, BETA2, CLIP = 1e-3, 0.1, 0.95, 1.0
MODELS = {
    "1 M": ModelConfig(width=96, depth=2, heads=3, ffn_width=256),
    "3 M": ModelConfig(width=192, depth=4, heads=4, ffn_width=512),
    "10 M": ModelConfig(width=320, depth=6, heads=5, ffn_width=896),
    "50 M": ModelConfig(width=640, depth=9, heads=10, ffn_width=1792),
}
LEAST_OF_BARE = {"1 M": 0.95, "10 M": 0.98, "50 M": 0.98}
STEPS = {"1 M": 12, "3 M": 10, "10 M": 5, "50 M": 3}  # timed, in one turn of a pair


class Packs:
    """Documents of random length (log-normal, mean about 90 tokens) out of a Zipfian vocabulary, packed one after the other."""

    def __init__(self, sequences: int, seed: int = 0) -> None:
        draw = np.random.default_rng(seed)
        shares = 1.0 / np.arange(1, VOCABULARY + 1) ** 1.1
        self.tokens = draw.choice(VOCABULARY, size=(sequences, LENGTH), p=shares / shares.sum())
        self.lengths: list[np.ndarray] = []
        for _ in range(sequences):
            lengths = np.clip(draw.lognormal(4.2, 0.8, LENGTH // 8).astype(int), 8, LENGTH)
            ends = np.minimum(np.cumsum(lengths), LENGTH)
            self.lengths.append(np.diff(np.unique(ends), prepend=0))
        self.first_row = np.cumsum([0, *(len(lengths) for lengths in self.lengths)])

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        lengths = self.lengths[index]
        positions = np.arange(LENGTH) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        rows = self.first_row[index] + np.arange(len(lengths))
        arrays = {"input_ids": self.tokens[index], "labels": self.tokens[index], "position_ids": positions,
                  "document_rows": rows, "document_lengths": lengths}  # fmt: skip
        return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}

    @property
    def origins(self) -> Origins:
        cells = [("benchmark", name) for name in ("a", "b", "c")]
        return Origins([], cells, (np.arange(self.first_row[-1]) % len(cells)).astype(np.int32))

    def documents(self) -> list[np.ndarray]:
        """Every document by itself."""
        return [part for row, lengths in zip(self.tokens, self.lengths, strict=True)
                for part in np.split(row, np.cumsum(lengths)[:-1])]  # fmt: skip


class _Clock(TrainerCallback):
    """Ends a turn after some steps; its first step is not timed, since a Trainer begins with it."""

    def __init__(self, steps: int) -> None:
        self.steps, self.marks = steps, [0.0]
        self.marks.clear()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.marks.append(time.perf_counter())
        control.should_training_stop = len(self.marks) > self.steps

    @property
    def seconds(self) -> float:
        return self.marks[-1] - self.marks[0]


def _build(size: str) -> Any:
    return build_model(MODELS[size], vocabulary_size=VOCABULARY, sequence_length=LENGTH, seed=0)


@dataclass
class Ours:
    """The product's loop with all that the stage `train` switches on."""

    size: str
    data: Packs
    precision: str
    folder: Path
    session: Session = field(init=False)
    callbacks: list[TrainerCallback] = field(init=False)

    def __post_init__(self) -> None:
        plan: dict[str, Any] = {
            "steps": 10_000, "warmup_steps": 0, "decay_steps": 100, "schedule": "wsd", "learning_rate": RATE,
            "weight_decay": DECAY, "batch_sequences": MICRO_BATCH, "micro_batch": MICRO_BATCH, "precision": self.precision,
            "evaluate_every": 0, "save_every": 0, "seconds_per_step": 0.1,
        }  # fmt: skip
        self.folder.mkdir()
        config = TrainConfig(beta2=BETA2, max_grad_norm=CLIP)
        session = Session(_build(self.size), TrainingPlan.from_details(plan), config, self.data, 0, self.folder)
        journal = Journal(self.folder, 0)
        watch = Watch(
            session, self.data.origins, Prompts((), None, 0, 1, 0), journal, context=LENGTH,
            event=_nothing, metrics=_nothing,
        )  # fmt: skip
        monitor = Monitor(
            session, sequence_length=LENGTH, flops_per_token=flops_per_token(session.model, LENGTH),
            peak=peak_flops(session.device, self.precision), event=_nothing, rows=journal.rows, documents=watch.parts.documents,
        )  # fmt: skip
        tell = Tell(session, monitor, progress=_nothing, metrics=_nothing, outlook=dict)
        window = Window(session, WindowController(plan, _now, None), _nothing)
        self.session, self.callbacks = session, [*watch.callbacks, monitor, window, tell]

    def turn(self, steps: int) -> float:
        """Tokens a second over some steps, after one that is not timed."""
        clock = _Clock(steps)
        fit(self.session, [*self.callbacks, clock])
        return steps * MICRO_BATCH * LENGTH / clock.seconds

    @property
    def model(self) -> Any:
        return self.session.model


@dataclass
class Bare:
    """The same arithmetic in as few lines as PyTorch needs: autocast, chunked loss, clipping, fused AdamW."""

    size: str
    data: Packs
    precision: str
    step: int = 0
    model: Any = field(init=False)

    def __post_init__(self) -> None:
        self.model = _build(self.size)
        groups = parameter_groups(self.model, DECAY)
        self.optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, BETA2), eps=1e-8, fused=True)

    def turn(self, steps: int) -> float:
        """Tokens a second over some steps, after one that is not timed."""
        begin = 0.0
        for number in range(steps + 1):
            if number == 1:
                begin = time.perf_counter()
            chosen = sequences_at(len(self.data), 0, self.step * MICRO_BATCH, MICRO_BATCH)
            batch = collate([self.data[int(one)] for one in chosen])
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.precision == "bf16"):
                hidden = self.model.base_model(
                    input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False
                ).last_hidden_state
                loss = chunked_cross_entropy(hidden, self.model.lm_head.weight, None, batch["labels"])[0]
            (loss / counted_tokens(batch["labels"])).backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.step += 1
        return steps * MICRO_BATCH * LENGTH / (time.perf_counter() - begin)


class _InOrder(Trainer):
    """Plain Trainer; only the order of the data is given, so that losses can be compared."""

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        return torch.utils.data.SequentialSampler(self.train_dataset)  # type: ignore[arg-type]


@dataclass
class Plain:
    """Trainer with the library's defaults, on the same packs or on the same documents padded."""

    size: str
    data: Packs
    precision: str
    folder: Path
    padded: bool = False
    step: int = 0
    useful: float = 1.0  # share of the positions that are no padding, in the latest turn
    model: Any = field(init=False)

    def __post_init__(self) -> None:
        quiet()
        self.model = _build(self.size)
        self.documents = [{"input_ids": torch.from_numpy(one)} for one in self.data.documents()]
        self.rows = round(MICRO_BATCH * len(self.documents) / len(self.data)) if self.padded else MICRO_BATCH

    def turn(self, steps: int) -> float:
        """Useful tokens a second over some steps, after one that is not timed."""
        clock = _Clock(steps)
        seen: list[tuple[int, int]] = []
        arguments = TrainingArguments(
            output_dir=str(self.folder),
            max_steps=steps + 1,
            per_device_train_batch_size=self.rows,
            bf16=self.precision == "bf16",
            use_cpu=not torch.cuda.is_available(),
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            learning_rate=RATE,
            lr_scheduler_type="constant",
            weight_decay=DECAY,
            adam_beta2=BETA2,
            dataloader_pin_memory=False,
        )
        first = self.step * self.rows
        places = [(first + place) % len(self._source) for place in range((steps + 1) * self.rows)]
        trainer = _InOrder(
            model=self.model, args=arguments, train_dataset=[self._source[place] for place in places], callbacks=[clock],
            data_collator=lambda items: self._batch(items, seen),
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        self.step += steps + 1
        timed = seen[1 : steps + 1]
        tokens, positions = (sum(values) for values in zip(*timed, strict=True))
        self.useful = tokens / positions
        return tokens / clock.seconds

    @property
    def _source(self) -> Any:
        if self.padded:
            return self.documents
        return _Ordered(self.data)

    def _batch(self, items: list[dict[str, torch.Tensor]], seen: list[tuple[int, int]]) -> dict[str, torch.Tensor]:
        if not self.padded:
            batch = {name: value for name, value in collate(items).items() if name != "rows"}
            seen.append((batch["input_ids"].numel(), batch["input_ids"].numel()))
            return batch
        ids = torch.nn.utils.rnn.pad_sequence([item["input_ids"] for item in items], batch_first=True)
        sizes = torch.tensor([len(item["input_ids"]) for item in items])
        mask = (torch.arange(ids.shape[1]) < sizes[:, None]).long()
        seen.append((int(mask.sum()), mask.numel()))
        return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}


class _Ordered:
    """Packs in the order in which the product reads them."""

    def __init__(self, data: Packs) -> None:
        self.data = data

    def __len__(self) -> int:
        return 1 << 30

    def __getitem__(self, position: int) -> dict[str, torch.Tensor]:
        return self.data[int(sequences_at(len(self.data), 0, position, 1)[0])]


def _nothing(*args: Any, **kwargs: Any) -> None:
    """Where the stage would tell others."""


def _now() -> datetime:
    return datetime.now(UTC)


def _pairs(first: Callable[[int], float], second: Callable[[int], float], steps: int, pairs: int) -> tuple[float, str]:
    """Median ratio of two speeds, one pair after the other, and how they lay apart. One pair before is not counted."""
    ratios, speeds = [], []
    for number in range(pairs + 1):
        ours, theirs = first(steps), second(steps)
        if number:
            ratios.append(ours / theirs)
            speeds.append((ours, theirs))
    middle = [statistics.median(values) for values in zip(*speeds, strict=True)]
    spread = f"{min(ratios):.3f}–{max(ratios):.3f}"
    return statistics.median(ratios), f"{middle[0]:,.0f} against {middle[1]:,.0f} tokens/s; {pairs} pairs: {spread}"


def run(book: Book, arguments: argparse.Namespace) -> None:
    """Print every figure."""
    pairs = QUICK_PAIRS if arguments.quick else PAIRS
    threads = torch.get_num_threads()
    book.setup += f", {threads} threads, {VOCABULARY} entries, {MICRO_BATCH} × {LENGTH} tokens a step"
    data = Packs(512)
    with tempfile.TemporaryDirectory(prefix="millrace-bench-") as text:
        folder = Path(text)
        _against_plain(book, data, folder, pairs)  # first: larger models teach malloc to keep pages, which helps it
        for size in LEAST_OF_BARE:
            _against_bare(book, size, data, folder, pairs)
        _memory(book)
    if arguments.quick:
        book.leave_out("five pairs")


def _against_bare(book: Book, size: str, data: Packs, folder: Path, pairs: int) -> None:
    ours, bare = Ours(size, data, "bf16", folder / f"bare-{size}"), Bare(size, data, "bf16")
    steps = STEPS[size]
    ratio, note = _pairs(ours.turn, bare.turn, steps, pairs)
    millions = count_parameters(ours.model) / 1e6
    book.add(
        f"tokens/s of a bare loop, {size}", ratio, "share", least=LEAST_OF_BARE[size], setup=f"{millions:.1f} M, bf16; {note}"
    )
    book.add(f"loss beside the bare loop's, {size}", _loss(ours, data) / _loss(bare, data) - 1, "share", most=0.01,
             setup=f"dev loss after the same {ours.session.step} steps")  # fmt: skip


def _against_plain(book: Book, data: Packs, folder: Path, pairs: int) -> None:
    size, steps = "3 M", STEPS["3 M"]
    ours, plain = Ours(size, data, "bf16", folder / "packed"), Plain(size, data, "bf16", folder)
    ratio, note = _pairs(ours.turn, plain.turn, steps, pairs)
    book.add("tokens/s of plain Trainer, same packs", ratio, "times", least=1.4, setup=f"3 M, bf16; {note}")
    book.add("loss beside plain Trainer's, same packs", _loss(ours, data) / _loss(plain, data) - 1, "share", most=0.01,
             setup=f"dev loss after the same {ours.session.step} steps")  # fmt: skip
    padded = Plain(size, data, "bf16", folder, padded=True)
    ratio, note = _pairs(ours.turn, padded.turn, steps, pairs)
    book.add("useful tokens/s of plain Trainer, documents padded", ratio, "times", least=1.4 / padded.useful,
             setup=f"{padded.useful:.0%} of its positions are no padding; {note}")  # fmt: skip


def _loss(one: Any, data: Packs) -> float:
    """Dev loss in fp32 of a trained model, over whole logits: the same measure for all."""
    from pipeline_lib.training.objective import Objective

    return evaluate(one.model, Objective(one.model, "fp32"), spread(Packs(16, seed=9), 16, 4)).loss


def _memory(book: Book) -> None:
    """Peak of a process of its own a kind: imports, model, a few steps."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
        for kind in ("ours", "bare", "plain"):
            peak = pool.submit(_peak, kind).result()
            book.add(f"peak memory, 3 M, {kind}", peak / 2**20, "MiB", setup="process of its own, three steps in bf16")


def _peak(kind: str) -> int:
    data = Packs(64)
    with tempfile.TemporaryDirectory(prefix="millrace-bench-") as text:
        make: dict[str, Callable[[], Any]] = {
            "ours": lambda: Ours("3 M", data, "bf16", Path(text) / "ours"), "bare": lambda: Bare("3 M", data, "bf16"),
            "plain": lambda: Plain("3 M", data, "bf16", Path(text)),
        }  # fmt: skip
        make[kind]().turn(2)
    return process_peak_bytes()
