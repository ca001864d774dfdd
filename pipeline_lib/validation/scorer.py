"""Log-probabilities of token sequences under a model: the one place where validation touches torch."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline_lib.pretrained import read_model
from pipeline_lib.tokens.encode import Encoder


@dataclass(frozen=True)
class Span:
    """Tokens of which only those from `scored_from` on are scored (those before are context)."""

    tokens: NDArray[np.int64]
    scored_from: int


class Scorer:
    """A model folder (safetensors, tokenizer) ready to score, in float32 on the best device here.

    Sequences are padded on the right, which a causal model cannot see, so a score does not depend on the batch it was in.
    """

    def __init__(self, folder: Path, *, batch_tokens: int) -> None:
        import torch

        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = read_model(folder).to(self.device)
        self.encoder = Encoder(folder / "tokenizer.json")
        config = self.model.config
        self.context = int(config.max_position_embeddings)
        self.start = int(config.bos_token_id if config.bos_token_id is not None else config.eos_token_id)
        self.batch_tokens = batch_tokens

    def encode(self, texts: Sequence[str]) -> list[NDArray[np.int64]]:
        """Token ids of each text, without special tokens."""
        tokens, offsets = self.encoder.encode(pa.array(texts, pa.large_string()))
        return [tokens[a:b].astype(np.int64) for a, b in itertools.pairwise(offsets.tolist())]

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
        return self._scored(spans, lambda logits, targets, counted: -(_losses(logits, targets) * counted).sum(dim=1))

    def greedy(self, spans: Sequence[Span]) -> NDArray[np.float64]:
        """1 where each of a span's scored tokens is the likeliest there, else 0, float64 [spans]; NaN as above."""
        return self._scored(spans, lambda logits, targets, counted: ((logits.argmax(dim=-1) == targets) | ~counted).all(dim=1))

    def _scored(self, spans: Sequence[Span], measure: Callable[[Any, Any, Any], Any]) -> NDArray[np.float64]:
        """A number a span from the logits [spans, tokens, vocabulary], the tokens they predict and which of these count."""
        import torch

        result = np.full(len(spans), np.nan)
        order = sorted((i for i in range(len(spans)) if len(spans[i].tokens) <= self.context), key=lambda i: len(spans[i].tokens))
        first = 0
        while first < len(order):
            last, longest = first, len(spans[order[first]].tokens)
            while last < len(order) and max(longest, len(spans[order[last]].tokens)) * (last - first + 1) <= self.batch_tokens:
                longest = len(spans[order[last]].tokens)
                last += 1
            last = max(last, first + 1)
            batch = [spans[i] for i in order[first:last]]
            longest = len(batch[-1].tokens)
            ids = torch.full((len(batch), longest), self.start, dtype=torch.long)
            scored = torch.zeros((len(batch), longest), dtype=torch.bool)
            for row, span in enumerate(batch):
                ids[row, : len(span.tokens)] = torch.from_numpy(span.tokens)
                scored[row, span.scored_from : len(span.tokens)] = True
            with torch.inference_mode():
                logits = self.model(input_ids=ids.to(self.device), use_cache=False).logits[:, :-1].float()
                targets, counted = ids[:, 1:].to(self.device), scored[:, 1:].to(self.device)
                result[order[first:last]] = measure(logits, targets, counted).cpu().numpy()
            first = last
        return result


def _losses(logits: Any, targets: Any) -> Any:
    import torch

    return (
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape).double()
    )
