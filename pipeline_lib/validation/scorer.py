"""Log-probabilities of token sequences under a model: the one place where validation touches torch."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline_lib.pretrained import read_model
from pipeline_lib.tokens.encode import Encoder
from pipeline_lib.validation.trees import Batch, Span, grown, laid_out

AGREEMENT = 1e-4  # of a shortcut with the whole model, absolute and relative; rounding is a tenth of it
CHUNK_LOGITS = {"cpu": 1 << 21, "cuda": 1 << 26}  # logits held at once; as in training/loss.py
GPU_BATCH = 32  # times the tokens that a CPU gets at once

Measure = Callable[[Any, Any, Any], Any]  # logits [places, vocabulary], place and id of each scored token → a number each


class Scorer:
    """A model folder (safetensors, tokenizer) ready to score, in float32 on the best device here.

    Sequences are padded on the right, which a causal model cannot see, so a score does not depend on the batch it was in. Options
    of one item are one sequence with branches (trees.py) where the model takes such, so that their common beginning is computed
    once; the output matrix is applied only where a token is scored.
    """

    def __init__(self, folder: Path, *, batch_tokens: int) -> None:
        import torch

        self.folder = folder
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = read_model(folder).to(self.device)
        self.encoder = Encoder(folder / "tokenizer.json")
        config = self.model.config
        self.context = int(config.max_position_embeddings)
        self.end = config.eos_token_id
        self.start = int(config.bos_token_id if config.bos_token_id is not None else config.eos_token_id)
        self.batch_tokens = batch_tokens * (GPU_BATCH if self.device == "cuda" else 1)
        self.vocabulary = int(self.model.get_input_embeddings().weight.shape[0])
        self.head = self._plain_head()
        self.branches = False
        self.branches = self._knows_branches()

    def encode(self, texts: Sequence[str]) -> list[NDArray[np.int64]]:
        """Token ids of each text, without special tokens."""
        tokens, offsets = self.encoder.encode(pa.array(texts, pa.large_string()))
        return [tokens[a:b].astype(np.int64) for a, b in itertools.pairwise(offsets.tolist())]

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of token ids."""
        from tokenizers import Tokenizer

        return str(Tokenizer.from_file(str(self.folder / "tokenizer.json")).decode(list(tokens)))

    def continuations(self, prompts: Sequence[str], options: Sequence[str]) -> list[Span]:
        """One span a (prompt, option): the option's tokens are scored, the prompt's are context.

        The text is encoded as a whole, as in training; the tokens that the prompt alone has are taken for context.
        """
        whole = self.encode([prompt + option for prompt, option in zip(prompts, options, strict=True)])
        alone = self.encode(list(prompts))
        start = np.array([self.start], np.int64)
        return [
            Span(np.concatenate([start, both]), 1 + min(len(prompt), len(both) - 1))
            for both, prompt in zip(whole, alone, strict=True)
        ]

    def windows(self, tokens: NDArray[np.int64]) -> list[Span]:
        """Overlapping windows over a document: every token is scored once, with half a context before it where there is one."""
        full = np.concatenate([np.array([self.start], np.int64), tokens])
        if len(full) <= self.context:
            return [Span(full, 1)]
        spans = [Span(full[: self.context], 1)]
        stride = self.context // 2
        scored = self.context
        while scored < len(full):
            end = min(scored + stride, len(full))
            begin = max(0, end - self.context)
            spans.append(Span(full[begin:end], scored - begin))
            scored = end
        return spans

    def log_probs(self, spans: Sequence[Span]) -> NDArray[np.float64]:
        """Summed natural log-probabilities of each span's scored tokens, float64 [spans]; NaN where the context is too short."""
        return self._scored(spans, _log_shares, np.add)

    def greedy(self, spans: Sequence[Span]) -> NDArray[np.float64]:
        """1 where each of a span's scored tokens is the likeliest there, else 0, float64 [spans]; NaN as above."""
        return self._scored(spans, _likeliest, np.minimum)

    def _scored(self, spans: Sequence[Span], measure: Measure, together: np.ufunc) -> NDArray[np.float64]:
        """A number a span: what is measured of each of its scored tokens, put together."""
        import torch

        result = np.full(len(spans), np.nan)
        fits = [index for index, span in enumerate(spans) if len(span.tokens) <= self.context]
        trees = grown(spans, fits, self.context if self.branches else 0)
        for first, last in _batches([len(tree.tokens) for tree in trees], self.batch_tokens):
            batch = laid_out(trees[first:last], spans, self.start)
            with torch.inference_mode():
                found = self._measured(batch, measure)
            starts = np.flatnonzero(np.append(True, batch.span[1:] != batch.span[:-1]))
            result[batch.span[starts]] = together.reduceat(found, starts)
        return result

    def _measured(self, batch: Batch, measure: Measure) -> NDArray[np.float64]:
        """What is measured of each scored token, float64 [scored]: the head sees only the places that predict one."""
        import torch

        ids, places = torch.from_numpy(batch.ids).to(self.device), torch.from_numpy(batch.places).to(self.device)
        options: dict[str, Any] = {"input_ids": ids, "use_cache": False}
        if batch.branches is not None:
            options |= {"position_ids": torch.from_numpy(batch.positions).to(self.device), "attention_mask": self._mask(batch)}
        if self.head is not None:
            states = self.model.base_model(**options).last_hidden_state.flatten(0, 1)[places]
        else:
            states = self.model(**options).logits.flatten(0, 1)[places]
        found = np.empty(len(batch.target))
        targets = torch.from_numpy(batch.target).to(self.device)
        size = max(64, CHUNK_LOGITS[self.device] // self.vocabulary)
        for begin in range(0, len(places), size):  # scored tokens are in the order of the places that predict them
            low, high = np.searchsorted(batch.place, (begin, begin + size))
            logits = states[begin : begin + size]
            logits = (logits if self.head is None else self.head(logits)).float()
            rows = torch.from_numpy(batch.place[low:high] - begin).to(self.device)
            found[low:high] = measure(logits, rows, targets[low:high]).double().cpu().numpy()
        return found[batch.by_span]

    def _mask(self, batch: Batch) -> Any:
        """[rows, 1, length, length], added to a token's attention: 0 for earlier ones of its own branch and of the trunk."""
        import torch

        branch = torch.from_numpy(batch.branches).to(self.device)
        earlier = torch.ones(branch.shape[1], branch.shape[1], dtype=torch.bool, device=self.device).tril()
        seen = earlier & ((branch[:, None, :] == 0) | (branch[:, None, :] == branch[:, :, None]))
        mask = torch.zeros(seen.shape, dtype=torch.float32, device=self.device)
        return mask.masked_fill_(~seen, torch.finfo(torch.float32).min)[:, None]

    def _plain_head(self) -> Any:
        """The output matrix where the model is a backbone with nothing else on top, else None."""
        import torch

        head = self.model.get_output_embeddings()
        if type(head) is not torch.nn.Linear or getattr(self.model, "base_model", self.model) is self.model:
            return None
        tokens = torch.arange(16, device=self.device)[None] % self.vocabulary
        with torch.inference_mode():
            whole = self.model(input_ids=tokens, use_cache=False).logits.float()
            apart = head(self.model.base_model(input_ids=tokens, use_cache=False).last_hidden_state).float()
        return head if bool(torch.isclose(whole, apart, atol=AGREEMENT, rtol=AGREEMENT, equal_nan=True).all()) else None

    def _knows_branches(self) -> bool:
        """Whether the model takes the places and the mask of a tree: it says of two branches what it says of each alone."""
        stem, ends = np.arange(12) % self.vocabulary, (np.array([3, 1, 4]), np.array([1, 5, 9, 2]))
        spans = [Span(np.concatenate([stem, end % self.vocabulary]).astype(np.int64), 12) for end in ends]
        try:
            self.branches = True
            shared = self.log_probs(spans)
        except (TypeError, ValueError, RuntimeError, NotImplementedError):  # each family refuses in its own way
            return False
        finally:
            self.branches = False
        return bool(np.allclose(shared, self.log_probs(spans), atol=AGREEMENT, rtol=AGREEMENT, equal_nan=True))


def _log_shares(logits: Any, rows: Any, targets: Any) -> Any:
    return logits[rows, targets] - logits.logsumexp(dim=1)[rows]


def _likeliest(logits: Any, rows: Any, targets: Any) -> Any:
    return (logits.argmax(dim=1)[rows] == targets).float()


def _batches(lengths: Sequence[int], budget: int) -> Iterator[tuple[int, int]]:
    """Slices of rows in the order of their lengths that take at most `budget` tokens padded, or are one row."""
    first = 0
    for last in range(1, len(lengths) + 1):
        if last == len(lengths) or lengths[last] * (last + 1 - first) > budget:
            yield first, last
            first = last
