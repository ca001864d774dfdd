"""Texts that the model writes, for people to read: the same for the same seed."""

from __future__ import annotations

from pipeline_lib.validation.scorer import Scorer

BEGINNINGS = ("", "The", "In the year", "Water is", "This function", "She said", "The difference between", "First,")
TEMPERATURE = 0.8


def samples(scorer: Scorer, count: int, tokens: int, seed: int) -> list[dict[str, str]]:
    """So many texts of at most so many tokens, after beginnings in turn, drawn at a temperature: {"prompt", "text"}."""
    import torch

    found = []
    prompts = [BEGINNINGS[number % len(BEGINNINGS)] for number in range(count)]
    for number, (prompt, begun) in enumerate(zip(prompts, scorer.encode(prompts), strict=True)):
        draw = torch.Generator(device=scorer.device).manual_seed(1_000_003 * (seed % 1_000_003) + number)
        told = [scorer.start, *begun.tolist()]
        with torch.inference_mode():
            while len(told) - 1 - len(begun) < tokens and len(told) < scorer.context:
                ids = torch.tensor([told], device=scorer.device)
                logits = scorer.model(input_ids=ids, use_cache=False).logits[0, -1].float()
                shares = (logits / TEMPERATURE).softmax(dim=0)
                if not bool(torch.isfinite(shares).all()):
                    break  # scores say so, too
                told.append(int(torch.multinomial(shares, 1, generator=draw)))
                if told[-1] == scorer.end:
                    told.pop()
                    break
        found.append({"prompt": prompt, "text": scorer.decode(told[1 + len(begun) :])})
    return found
