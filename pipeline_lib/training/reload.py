"""`python -m pipeline_lib.training.reload FOLDER EXPECTED`: load an exported model as its user will, and say how it compares.

Nothing of ours is used to load or to generate. EXPECTED holds `expected.json` and `logits.safetensors` of the live model
(`export.expectation`); what was seen goes to `seen.json` beside them.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LogitsProcessor, LogitsProcessorList


class _Force(LogitsProcessor):
    """Makes the next token this one."""

    def __init__(self, token: int) -> None:
        self.token = token

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        forced = torch.full_like(scores, float("-inf"))
        forced[:, self.token] = 0.0
        return forced


def compare(folder: Path, expected: Path) -> dict[str, Any]:
    """What is loaded from a folder beside what is expected; `wrong` names every difference."""
    asked, logits = json.loads((expected / "expected.json").read_text("utf-8")), load_file(expected / "logits.safetensors")
    model: Any = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True, local_files_only=True)
    model.eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    wrong: list[str] = []
    difference = 0.0
    for number, (text, ids) in enumerate(asked["ids"].items()):
        inputs = torch.tensor([ids])
        if tokenizer(text, add_special_tokens=False)["input_ids"] != ids:
            wrong.append(f"the tokenizer splits {text!r} otherwise")
        with torch.no_grad():
            found = model(inputs, use_cache=False).logits[0].float()
        live = logits[str(number)]
        apart = float((found - live).abs().max() / live.abs().max())
        difference = apart if math.isnan(apart) else max(difference, apart)
        mask = torch.ones_like(inputs)
        made = model.generate(inputs, attention_mask=mask, do_sample=False, max_new_tokens=asked["new_tokens"])[
            0, len(ids) :
        ].tolist()
        if made != asked["greedy"][number] or tokenizer.decode(made, skip_special_tokens=False) != asked["text"][number]:
            wrong.append(f"it goes on otherwise after {text!r}")
    ends = model.generation_config.eos_token_id
    ends = [ends] if isinstance(ends, int) else list(ends or [])
    for stop in asked["stops"]:
        if stop not in ends or not _stops(model, stop, next(iter(asked["ids"].values()))):
            wrong.append(f"generation does not end at {tokenizer.convert_ids_to_tokens(stop)!r}")
    return {
        "difference": difference if math.isfinite(difference) else float("inf"),
        "wrong": wrong,
        "prompts": len(asked["ids"]),
        "stops": [str(tokenizer.convert_ids_to_tokens(stop)) for stop in asked["stops"]],
        "chat_template": bool(tokenizer.chat_template),
    }


def _stops(model: Any, stop: int, ids: list[int]) -> bool:
    """Whether generation ends with this token."""
    inputs = torch.tensor([ids])
    made = model.generate(
        inputs, attention_mask=torch.ones_like(inputs), do_sample=False, max_new_tokens=3,
        logits_processor=LogitsProcessorList([_Force(stop)]),
    )  # fmt: skip
    return bool(made.shape[1] == len(ids) + 1)


if __name__ == "__main__":
    seen = compare(Path(sys.argv[1]), Path(sys.argv[2]))
    (Path(sys.argv[2]) / "seen.json").write_text(json.dumps(seen), "utf-8")
