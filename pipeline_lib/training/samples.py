"""What the model writes: the same prompts at every evaluation, with the same random numbers, so that samples can be compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

REPEATED_GRAM = 4  # tokens; rep-n of Welleck et al. 2020, https://arxiv.org/abs/1908.04319
TEMPERATURE = 0.8


@dataclass(frozen=True)
class Prompts:
    """Texts to go on from, as tokens."""

    texts: Sequence[str]
    tokenizer: Any  # tokenizers.Tokenizer, or None where there are no texts
    end: int  # the token that ends a document: it begins a prompt and ends a sample
    tokens: int  # to write at most
    seed: int

    @classmethod
    def of(cls, texts: Sequence[str], tokenizer_json: Path | None, *, end: int, tokens: int, seed: int) -> Prompts:
        """Read the tokenizer; without one, nothing is written."""
        from tokenizers import Tokenizer

        if tokenizer_json is None:
            return cls((), None, end, tokens, seed)
        return cls(texts, Tokenizer.from_str(tokenizer_json.read_text("utf-8")), end, tokens, seed)

    @torch.no_grad()
    def write(self, model: Any, context: int) -> list[dict[str, Any]]:
        """One sample a prompt: {prompt, text, tokens, repetition, distinct_2}.

        Random numbers come from a generator of each prompt's own: training's are not touched. The whole text is read anew for
        every token, which every family of models can do; samples are short.

        Args:
            model: in any mode; it is put back.
            context: tokens that the model reads at most.
        """
        training = model.training
        model.eval()
        try:
            written = self._written(model, context)
        finally:
            model.train(training)
        return [
            {"prompt": prompt, "text": self.tokenizer.decode(tokens, skip_special_tokens=False), "tokens": len(tokens),
             "repetition": repetition(tokens, REPEATED_GRAM), "distinct_2": distinct(tokens, 2)}
            for prompt, tokens in zip(self.texts, written, strict=True)
        ]  # fmt: skip

    def _written(self, model: Any, context: int) -> list[list[int]]:
        """The tokens of each sample."""
        begins = [[self.end, *encoded.ids] for encoded in self.tokenizer.encode_batch(list(self.texts), add_special_tokens=False)]
        draws = [torch.Generator().manual_seed(self.seed * 1_000_003 + number) for number in range(len(begins))]
        written: list[list[int]] = [[] for _ in begins]
        going = set(range(len(begins)))
        width = min(context, max(map(len, begins), default=0) + self.tokens)
        for _ in range(self.tokens):
            if not going:
                break
            logits = _next_logits(model, [[*begin, *text][-width:] for begin, text in zip(begins, written, strict=True)], width)
            shares = torch.softmax(logits / TEMPERATURE, dim=1)
            for i in sorted(going):
                finite = bool(torch.isfinite(shares[i]).all())
                token = int(torch.multinomial(shares[i], 1, generator=draws[i])) if finite else self.end
                if token == self.end:
                    going.remove(i)
                else:
                    written[i].append(token)
        return written


def _next_logits(model: Any, texts: Sequence[Sequence[int]], width: int) -> Tensor:
    """fp32[texts, vocabulary] on the host: of the token after each. What is padded stands behind, where no causal model looks.

    Always as wide: a compiled model would be compiled anew for every length.
    """
    read = torch.tensor([[*text, *([0] * (width - len(text)))] for text in texts], device=model.device)
    places = torch.arange(width, device=model.device).expand(len(texts), -1)
    logits = model(input_ids=read, position_ids=places, attention_mask=None, use_cache=False).logits
    last = torch.tensor([len(text) - 1 for text in texts], device=model.device)
    found: Tensor = logits[torch.arange(len(texts), device=model.device), last].float().cpu()
    return found


def repetition(tokens: Sequence[int], gram: int) -> float | None:
    """Share of n-grams that stood there before; None for a text without one."""
    share = distinct(tokens, gram)
    return None if share is None else 1.0 - share


def distinct(tokens: Sequence[int], gram: int) -> float | None:
    """Different n-grams of all n-grams (distinct-n, Li et al. 2016, https://arxiv.org/abs/1510.03055); None without one."""
    grams = [tuple(tokens[start : start + gram]) for start in range(len(tokens) - gram + 1)]
    return len(set(grams)) / len(grams) if grams else None
