"""An extension as a user writes it: a model class and a callback."""

from __future__ import annotations

from typing import Any

from pipeline_lib.extensions import extend

SEEN: list[int] = []


@extend.model("small-gpt2")
def small_gpt2(model: Any, vocabulary_size: int, sequence_length: int) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(vocab_size=vocabulary_size, n_positions=sequence_length, n_embd=model.width, n_layer=1, n_head=2)
    )


@extend.callback("steps")
def steps() -> Any:
    from transformers import TrainerCallback

    class Steps(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            SEEN.append(state.global_step)

    return Steps()
