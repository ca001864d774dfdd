"""Scores are arithmetic: batches, order and windows do not change them."""

import numpy as np
import pyarrow as pa
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from pipeline_lib.validation.landscape import sections
from pipeline_lib.validation.language import language
from pipeline_lib.validation.scorer import Scorer
from pipeline_lib.validation.trees import Span, grown


@pytest.fixture(scope="module")
def scorer(tmp_path_factory):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("model")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(["<|endoftext|>", *alphabet])}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "llama", vocab_size=257, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=64, bos_token_id=None, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(folder, safe_serialization=True)
    return Scorer(folder, batch_tokens=512)


def test_a_score_does_not_depend_on_its_batch(scorer):
    draw = np.random.default_rng(0)
    spans = [Span(draw.integers(1, 257, n).astype(np.int64), int(draw.integers(1, n))) for n in draw.integers(2, 60, 80)]
    together = scorer.log_probs(spans)
    alone = np.concatenate([scorer.log_probs([span]) for span in spans])
    backwards = scorer.log_probs(spans[::-1])[::-1]
    assert np.abs(together - alone).max() < 1e-5
    assert np.abs(together - backwards).max() < 1e-5
    assert (together < 0).all()


def test_what_options_share_is_computed_once_and_changes_no_score(scorer):
    draw = np.random.default_rng(1)
    spans = []
    for item in range(30):
        stem = draw.integers(1, 257, int(draw.integers(3, 25))).astype(np.int64)
        scored_from = 1 if item % 2 else len(stem)  # a pair of sentences, or a prompt with options
        spans += [Span(np.concatenate([stem, draw.integers(1, 257, n)]), scored_from) for n in draw.integers(1, 9, item % 3 + 2)]
    spans.append(spans[-1])  # a branch may be empty
    assert scorer.branches, "a llama takes trees"
    trees = grown(spans, range(len(spans)), scorer.context)
    assert len(trees) < 0.6 * len(spans)
    assert sum(len(tree.tokens) for tree in trees) < 0.8 * sum(len(span.tokens) for span in spans)
    assert sorted(index for tree in trees for index in tree.members) == list(range(len(spans)))
    alone = np.concatenate([scorer.log_probs([span]) for span in spans])
    assert np.abs(scorer.log_probs(spans) - alone).max() < 1e-5
    assert scorer.greedy(spans).tolist() == [scorer.greedy([span])[0] for span in spans]


def test_the_score_is_the_models_own(scorer):
    import torch

    tokens = np.arange(5, 25, dtype=np.int64)
    with torch.no_grad():
        shares = scorer.model(torch.from_numpy(tokens)[None]).logits[0].log_softmax(dim=-1).numpy()
    own = sum(shares[place - 1, tokens[place]] for place in range(7, 20))
    assert scorer.log_probs([Span(tokens, 7)])[0] == pytest.approx(own, abs=1e-4)


def test_windows_score_every_token_once_with_context(scorer):
    for length in (1, 63, 64, 65, 200, 333):
        tokens = np.arange(length, dtype=np.int64) % 256 + 1
        spans = scorer.windows(tokens)
        scored = np.concatenate([span.tokens[span.scored_from :] for span in spans])
        assert scored.tolist() == tokens.tolist()
        assert all(len(span.tokens) <= 64 for span in spans)
        assert all(span.scored_from >= 31 for span in spans[1:])


def test_a_continuation_scores_the_option_only(scorer):
    (span,) = scorer.continuations(["ab"], ["cde"])
    assert len(span.tokens) - span.scored_from == 3
    (bare,) = scorer.continuations([""], ["cde"])
    assert len(bare.tokens) - bare.scored_from == 3


def test_an_item_longer_than_the_context_is_not_scored(scorer):
    assert np.isnan(scorer.log_probs([Span(np.ones(65, np.int64), 1)])).all()


def test_greedy_is_what_the_model_itself_would_say(scorer):
    import torch

    (start,) = scorer.continuations(["ab"], ["c"])
    tokens = start.tokens[:-1]
    with torch.no_grad():
        logits = scorer.model(torch.from_numpy(tokens)[None]).logits[0, -1]
    likeliest, second = logits.topk(2).indices.tolist()
    spans = [Span(np.append(tokens, token), len(tokens)) for token in (likeliest, second)]
    assert scorer.greedy(spans).tolist() == [1.0, 0.0]


def test_the_landscape_has_the_model_in_its_middle_and_leaves_it_as_it_is(scorer):
    texts = pa.table(
        {"item": ["a", "b"], "domain": ["x", "x"], "year": pa.nulls(2, pa.int32()), "text": ["some text " * 9, "other " * 12]}
    )
    before = language(texts, scorer, 1000)[0]["score"].to_pylist()
    rows = sections(scorer, texts, directions=2, distances=(-0.5, 0.0, 0.5), tokens=1000, seed=0)
    again = sections(scorer, texts, directions=2, distances=(-0.5, 0.0, 0.5), tokens=1000, seed=0)
    assert rows == again
    assert language(texts, scorer, 1000)[0]["score"].to_pylist() == before
    own = sum(before) / sum(len(text) for text in texts["text"].to_pylist())
    assert [row["bits_per_byte"] for row in rows if row["distance"] == 0] == pytest.approx([own, own])
    assert len({round(row["bits_per_byte"], 6) for row in rows}) == 5
