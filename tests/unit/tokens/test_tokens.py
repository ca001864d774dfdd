"""Tokenizers: trained bytes are a function of the texts, both encoders agree, spelled special tokens stay text."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from pipeline_lib.config.model import PackConfig, TokenizerConfig
from pipeline_lib.errors import ConfigError
from pipeline_lib.tokens import train
from pipeline_lib.tokens.chat import chat_template
from pipeline_lib.tokens.encode import Encoder, encoder_for
from pipeline_lib.tokens.load import copy_tokenizer, file_digests, read_facts, source_folder
from pipeline_lib.tokens.train import EOS, PAD, spread, train_tokenizer
from pipeline_lib.workspace.workspace import Workspace

TEXTS = [
    f"The mill grinds number {i}, and the miller's {i % 7} sons don't sleep.\n\tdef f_{i % 5}(x): return x + {i}\n"
    for i in range(400)
]


def arrow(texts: list[str]) -> pa.LargeStringArray:
    return pa.array(texts, pa.large_string())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made: Path = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer([arrow(TEXTS[:150]), arrow(TEXTS[150:])], 500, made)
    return made


def test_same_texts_give_the_same_bytes_however_they_are_batched(folder: Path, tmp_path: Path) -> None:
    train_tokenizer([arrow(TEXTS[i : i + 37]) for i in range(0, 400, 37)], 500, tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_transformers_loads_it_without_remote_code(folder: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    facts = read_facts(folder)
    assert (tokenizer.eos_token, tokenizer.pad_token, len(tokenizer)) == (EOS, PAD, 500)
    assert (facts.vocabulary_size, facts.eos_id, facts.pad_id) == (500, tokenizer.eos_token_id, tokenizer.pad_token_id)
    tokens, _ = Encoder(folder / "tokenizer.json").encode(arrow(TEXTS[:1]))
    assert tokenizer.decode(tokens.tolist()) == TEXTS[0]


def test_the_sample_is_capped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "SAMPLE_BYTES", sum(len(text.encode()) for text in TEXTS[:100]))
    digests = []
    for i, texts in enumerate((TEXTS[:100], [*TEXTS[:100], "zzzzzz qqqqqq " * 500])):
        (tmp_path / str(i)).mkdir()
        train_tokenizer([arrow(texts[:60]), arrow(texts[60:]), arrow(["wwww " * 900])], 400, tmp_path / str(i))
        digests.append(read_facts(tmp_path / str(i)).digest)
    assert digests[0] == digests[1]
    (tmp_path / "other").mkdir()
    train_tokenizer([arrow(["zzzzzz qqqqqq " * 20]), arrow(TEXTS[:50])], 400, tmp_path / "other")
    assert read_facts(tmp_path / "other").digest != digests[0]


def test_spread_takes_all_that_fits_and_an_even_share_otherwise() -> None:
    weights = np.full(1000, 10)
    assert len(spread(weights, 10_000)) == 1000
    chosen = spread(weights, 1000)
    assert len(chosen) == 100
    assert set(np.diff(chosen)) == {10}


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(st.text(max_size=80), max_size=8), head=st.integers(0, 3))
def test_encoders_agree_token_for_token(folder: Path, texts: list[str], head: int) -> None:
    fast, slow = encoder_for(folder / "tokenizer.json"), Encoder(folder / "tokenizer.json", fast=False)
    assert (fast.name, slow.name) == ("gigatoken", "tokenizers")
    sliced = arrow(["skipped"] * head + texts + ["after"]).slice(head, len(texts))
    (tokens, offsets), (expected, expected_offsets) = fast.encode(sliced), slow.encode(sliced)
    assert tokens.dtype == np.uint32
    assert offsets.dtype == np.int64
    np.testing.assert_array_equal(tokens, expected)
    np.testing.assert_array_equal(offsets, expected_offsets)


@pytest.mark.parametrize("fast", [True, False])
def test_text_that_spells_a_special_token_stays_text(folder: Path, fast: bool) -> None:
    facts, encoder = read_facts(folder), Encoder(folder / "tokenizer.json", fast=fast)
    tokens, _ = encoder.encode(arrow([f"a{EOS}b{PAD}", EOS]))
    assert len(tokens) > 10
    assert not {facts.eos_id, facts.pad_id} & set(tokens.tolist())


def saved(tokenizer: Tokenizer, special: list[str], folder: Path) -> Path:
    tokenizer.add_special_tokens([AddedToken(content, special=True) for content in special])
    tokenizer.add_tokens([AddedToken("<tool>", special=False)])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


def test_a_special_token_among_the_pieces_of_a_unigram_model_stays_text(tmp_path: Path) -> None:
    pieces = [("</s>", 0.0), ("<unk>", 0.0), *((character, -3.0) for character in "▁abs/<>")]
    unigram = Tokenizer(models.Unigram(pieces, unk_id=1))
    unigram.pre_tokenizer = pre_tokenizers.Metaspace()
    tokens, _ = Encoder(saved(unigram, ["</s>", "<unk>"], tmp_path)).encode(arrow(["</s> ab1<tool>"]))
    place = {piece: place for place, (piece, _) in enumerate(pieces)}
    expected = [place.get(character, place["<unk>"]) for character in "▁</s>▁ab1"]
    assert tokens.tolist() == [*expected, unigram.token_to_id("<tool>")]


def test_a_special_token_among_whole_words_stays_text(tmp_path: Path) -> None:
    words = Tokenizer(models.WordLevel({"[UNK]": 0, "mill": 1, "</s>": 2}, unk_token="[UNK]"))  # noqa: S106 (no secret)
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokens, _ = Encoder(saved(words, ["</s>", "[UNK]"], tmp_path)).encode(arrow(["mill </s> mill <tool>"]))
    assert tokens.tolist() == [1, 0, 1, words.token_to_id("<tool>")]


def test_a_tokenizer_that_gigatoken_cannot_read_falls_back_and_says_so(tmp_path: Path) -> None:
    plain = Tokenizer(models.WordLevel({"[UNK]": 0, "mill": 1, EOS: 2}, unk_token="[UNK]"))  # noqa: S106 (no secret)
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    plain.save(str(tmp_path / "tokenizer.json"))
    encoder = Encoder(tmp_path / "tokenizer.json")
    assert encoder.name == "tokenizers"
    assert "gigatoken" in encoder.reason
    tokens, offsets = encoder.encode(arrow(["mill what mill", ""]))
    assert (tokens.tolist(), offsets.tolist()) == ([1, 0, 1], [0, 3, 3])


def test_padding_falls_back_to_the_end_token_and_a_missing_end_token_is_refused(folder: Path, tmp_path: Path) -> None:
    parsed = json.loads((folder / "tokenizer.json").read_text())
    parsed["added_tokens"] = [token for token in parsed["added_tokens"] if token["content"] == EOS]
    del parsed["model"]["vocab"][PAD]
    (tmp_path / "tokenizer.json").write_text(json.dumps(parsed))
    facts = read_facts(tmp_path)
    assert facts.pad_id == facts.eos_id
    parsed["added_tokens"] = []
    del parsed["model"]["vocab"][EOS]
    (tmp_path / "tokenizer.json").write_text(json.dumps(parsed))
    with pytest.raises(ConfigError, match="no end-of-text token"):
        read_facts(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ConfigError, match="cannot be read as a tokenizer"):
        read_facts(tmp_path)


@pytest.mark.parametrize(("text", "told"), [("{", "cannot be read as JSON"), ("[]", "holds a list")])
def test_a_broken_configuration_of_a_tokenizer_is_named(folder: Path, tmp_path: Path, text: str, told: str) -> None:
    copy_tokenizer(folder, tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(text)
    for read in (read_facts, chat_template):
        with pytest.raises(ConfigError, match=told) as refused:
            read(tmp_path)
        assert "tokenizer_config.json" in str(refused.value)


def test_a_folder_is_known_by_its_content_and_its_code_stays_behind(folder: Path, tmp_path: Path) -> None:
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    theirs.mkdir()
    ours.mkdir()
    copy_tokenizer(folder, theirs)
    (theirs / "tokenization_evil.py").write_text("raise SystemExit")
    config = TokenizerConfig(source=str(theirs))
    before = file_digests(tokenizer=config, pack=PackConfig())
    assert set(before) == {"tokenizer.json", "tokenizer_config.json"}
    copy_tokenizer(source_folder(str(theirs), Workspace.open(tmp_path / "ws")), ours)
    assert sorted(path.name for path in ours.iterdir()) == ["tokenizer.json", "tokenizer_config.json"]
    (theirs / "tokenizer_config.json").write_text("{}")
    assert file_digests(tokenizer=config, pack=PackConfig()) != before
    assert file_digests(tokenizer=TokenizerConfig(source="train"), pack=PackConfig()) == {}
    with pytest.raises(ConfigError, match=r"holds no tokenizer\.json"):
        file_digests(tokenizer=TokenizerConfig(source=str(tmp_path / "nowhere")), pack=PackConfig())


def test_a_file_and_a_tokenizer_of_the_hub_are_known_by_their_bytes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    revision = "0123456789abcdef0123456789abcdef01234567"
    snapshot = tmp_path / "models--mill--toy" / "snapshots" / revision
    snapshot.mkdir(parents=True)
    copy_tokenizer(folder, snapshot)
    workspace = Workspace.open(tmp_path / "ws")
    for source in (f"hf://mill/toy@{revision}", str(folder / "tokenizer.json"), str(folder)):
        assert read_facts(source_folder(source, workspace)).digest == read_facts(folder).digest
        assert file_digests(tokenizer=TokenizerConfig(source=source)) == file_digests(
            tokenizer=TokenizerConfig(source=str(folder))
        )
    with pytest.raises(ConfigError, match="the hub gives no tokenizer 'mill/other'"):
        source_folder(f"hf://mill/other@{revision}", workspace)
    with pytest.raises(ConfigError, match="names no commit of a tokenizer"):
        source_folder("hf://mill/toy@main", workspace)
