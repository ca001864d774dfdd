"""Example of a model: OLMo 2, which normalises after each block and normalises queries and keys (arXiv:2501.00656)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline_lib.extensions import extend

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from pipeline_lib.config.model import ModelConfig


@extend.model("olmo_example")
def olmo(model: ModelConfig, vocabulary_size: int, sequence_length: int) -> PreTrainedModel:
    """An untrained model of the configured size."""
    from transformers import Olmo2Config, Olmo2ForCausalLM

    return Olmo2ForCausalLM(
        Olmo2Config(
            vocab_size=vocabulary_size,
            hidden_size=model.width,
            intermediate_size=model.ffn_width,
            num_hidden_layers=model.depth,
            num_attention_heads=model.heads,
            num_key_value_heads=model.kv_heads or model.heads,
            max_position_embeddings=sequence_length,
            tie_word_embeddings=model.tied_embeddings,
            attention_dropout=model.dropout,
        )
    )
