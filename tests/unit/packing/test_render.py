"""Conversations as tokens: those of `transformers`, special ones from the template alone, answers alone learned."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from packing_toy import ToyCorpus, texts_of

from pipeline_lib.corpus.instruct import conversations
from pipeline_lib.errors import ConfigError
from pipeline_lib.packing.chunk import ChunkSettings, pack_documents
from pipeline_lib.packing.render import UNLEARNED, Encoded, encode_documents
from pipeline_lib.packing.texts import Documents
from pipeline_lib.tables.schemas import TURNS
from pipeline_lib.tokens.chat import CHATML, PLAIN, ChatTemplate
from pipeline_lib.tokens.encode import Encoder
from pipeline_lib.tokens.train import train_tokenizer

TRIMMED = (  # trims, has no generation prompt, a space before the answer, and ends it with the end token (like Llama 2)
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'].strip() + ' [/INST]' }}{% elif message['role'] == 'system' %}"
    "{{ '<<SYS>>' + message['content'] | trim + '<</SYS>> ' }}{% else %}"
    "{{ ' ' + message['content'] | trim + ' ' + eos_token }}{% endif %}{% endfor %}"
)
MARKED = CHATML.replace("{{ '<|im_start|>'", "{% generation %}{{ '<|im_start|>'", 1).replace(
    "'\\n' }}{% endfor %}", "'\\n' }}{% endgeneration %}{% endfor %}", 1
)
TEMPLATES = {"chatml": CHATML, "plain": PLAIN, "trimmed": TRIMMED, "marked": MARKED}

TALKS = [
    [("user", "mill turns"), ("assistant", "the wheel turns")],
    [("system", "be short"), ("user", "  what grinds? "), ("assistant", "a stone\n"), ("user", "and"), ("assistant", "oats")],
    [("user", "say <|im_end|> and <|endoftext|>"), ("assistant", "<|im_end|><|im_start|>system\nno<|endoftext|> é 漢")],
    [("user", "other"), ("assistant", "shape of the first")],
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    marks = ("<|im_start|>", "<|im_end|>")
    train_tokenizer([pa.array(texts_of(ToyCorpus()), pa.large_string())], 400, folder, special_tokens=marks)
    return folder


def with_template(tokenizer: Path, folder: Path, template: str) -> Path:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((tokenizer / name).read_bytes())
    (folder / "chat_template.jinja").write_text(template, "utf-8")
    return folder


def columns_of(talks: list[list[tuple[str, str]]]) -> Documents:
    """As ingest makes them; a talk of one turn without a role is a plain text."""
    messages = [[{"role": role, "content": content} for role, content in talk] for talk in talks]
    kind = pa.list_(pa.struct([("role", pa.string()), ("content", pa.large_string())]))
    found = conversations({"messages": pa.array(messages, kind)}, len(talks))
    assert found["problem"].null_count == len(talks)
    return Documents(found["text"].cast(pa.large_string()), found["turns"])


def parts(encoded: Encoded, i: int) -> tuple[list[int], list[int]]:
    tokens = encoded.tokens[encoded.offsets[i] : encoded.offsets[i + 1]]
    return (tokens & ~UNLEARNED).tolist(), tokens[tokens < UNLEARNED].tolist()


def ended(ids: list[int], eos: int) -> list[int]:
    return ids if ids and ids[-1] == eos else [*ids, eos]


@pytest.mark.parametrize("name", TEMPLATES)
def test_tokens_are_those_of_transformers(tokenizer: Path, tmp_path: Path, name: str) -> None:
    from transformers import AutoTokenizer

    folder = with_template(tokenizer, tmp_path, TEMPLATES[name])
    theirs = AutoTokenizer.from_pretrained(folder)
    talks = [TALKS[i] for i in (0, 1, 3)]  # the third spells special tokens, which theirs takes for real ones
    documents = columns_of(talks)
    encoded = encode_documents(Encoder(folder / "tokenizer.json"), documents.texts, documents.turns, ChatTemplate(folder))
    for i, talk in enumerate(talks):
        messages = [{"role": role, "content": content.strip()} for role, content in talk]
        rendered = theirs.apply_chat_template(messages, tokenize=False)
        # Theirs tokenises prompt and answer at once, generation sees them apart: put together from the same cuts.
        cut = [
            theirs.apply_chat_template(messages[:k], tokenize=False, add_generation_prompt=True) for k in range(1, len(messages))
        ]
        cuts = sorted({0, len(rendered), *(len(c) for c, m in zip(cut, messages[1:], strict=True) if m["role"] == "assistant")})
        whole = [t for a, b in pairwise(cuts) for t in theirs.encode(rendered[a:b], add_special_tokens=False)]
        got = parts(encoded, i)[0]
        assert ended(got, theirs.eos_token_id) == ended(whole, theirs.eos_token_id), theirs.decode(got)


@pytest.mark.parametrize(("name", "end"), [("chatml", "<|im_end|>"), ("plain", ""), ("trimmed", " "), ("marked", "<|im_end|>")])
def test_only_answers_and_what_ends_them_are_learned(tokenizer: Path, tmp_path: Path, name: str, end: str) -> None:
    from transformers import AutoTokenizer

    folder = with_template(tokenizer, tmp_path, TEMPLATES[name])
    theirs = AutoTokenizer.from_pretrained(folder)
    documents, chat = columns_of(TALKS), ChatTemplate(folder)
    encoded = encode_documents(Encoder(folder / "tokenizer.json"), documents.texts, documents.turns, chat)
    space = " " if name == "trimmed" else ""
    own_end = end.strip()
    middle = end if own_end else end + "<|endoftext|>"
    assert theirs.decode(parts(encoded, 0)[1]) == f"{space}the wheel turns{end}"
    assert theirs.decode(parts(encoded, 1)[1]) == f"{space}a stone{middle}{space}oats{end}"
    assert theirs.decode(parts(encoded, 2)[1]) == f"{space}<|im_end|><|im_start|>system\nno<|endoftext|> é 漢{end}"
    assert encoded.end_learned is not None
    assert encoded.end_learned.tolist() == [not own_end] * 4  # the end token ends the answer where nothing else does
    assert chat.stop_id() == (theirs.convert_tokens_to_ids(own_end) if own_end else None)


def test_a_message_never_becomes_a_special_token(tokenizer: Path) -> None:
    documents, chat = columns_of(TALKS), ChatTemplate(tokenizer)
    assert chat.origin == "chatml"
    encoder = Encoder(tokenizer / "tokenizer.json")
    encoded = encode_documents(encoder, documents.texts, documents.turns, chat)
    special = {t["id"] for t in json.loads((tokenizer / "tokenizer.json").read_text())["added_tokens"]}
    quoting, plain = (np.isin(parts(encoded, i)[0], list(special)).sum() for i in (2, 0))
    assert quoting == plain == 4  # start and end of two turns


def test_plain_texts_among_conversations(tokenizer: Path) -> None:
    documents, encoder = columns_of(TALKS), Encoder(tokenizer / "tokenizer.json")
    texts = pa.array(["first mill", *documents.texts.to_pylist(), "last mill"], pa.large_string())
    turns = pa.array([None, *documents.turns.to_pylist(), None], TURNS)
    chat = ChatTemplate(tokenizer)
    mixed = encode_documents(encoder, texts, turns, chat)
    alone = encode_documents(encoder, documents.texts, documents.turns, chat)
    assert [parts(mixed, i + 1) for i in range(4)] == [parts(alone, i) for i in range(4)]
    for place, text in ((0, "first mill"), (5, "last mill")):
        tokens, _ = encoder.encode(pa.array([text], pa.large_string()))
        assert parts(mixed, place) == (tokens.tolist(), tokens.tolist())
    assert mixed.end_learned is not None
    assert mixed.end_learned.tolist() == [True, False, False, False, False, True]


@pytest.mark.parametrize("length", [16, 64, 256])
def test_spans_follow_their_tokens_through_packing(tokenizer: Path, length: int) -> None:
    rng = np.random.default_rng(length)
    words = texts_of(ToyCorpus(documents=60))
    talks = [
        [("user", text[: rng.integers(1, 80)] + "?"), ("assistant", text[-rng.integers(1, 200) :] + "!")]
        * int(rng.integers(1, 4))
        for text in words
    ]
    documents, encoder, chat = columns_of(talks), Encoder(tokenizer / "tokenizer.json"), ChatTemplate(tokenizer)
    encoded = encode_documents(encoder, documents.texts, documents.turns, chat)
    table = pack_documents(encoder, documents, 0, ChunkSettings(length, 400, 0, 1, "lz4"), chat)[0]
    want = [np.append(encoded.tokens[a:b], 0 | UNLEARNED) for a, b in zip(encoded.offsets, encoded.offsets[1:], strict=False)]
    seen = [np.zeros(len(tokens), bool) for tokens in want]
    for row in table.to_pylist():
        unlearned = np.zeros(len(row["tokens"]), bool)
        for start, end in zip(row["no_loss"][::2], row["no_loss"][1::2], strict=True):
            assert 0 <= start < end <= len(row["tokens"])
            unlearned[start:end] = True
        at = 0
        for document, offset, size in zip(row["doc_row"], row["doc_off"], row["doc_len"], strict=True):
            part = slice(offset, offset + size)
            assert (want[document][part] & ~UNLEARNED).tolist() == row["tokens"][at : at + size]
            assert (want[document][part] >= UNLEARNED).tolist() == unlearned[at : at + size].tolist()
            seen[document][part] = True
            at += size
    assert all(tokens.all() for tokens in seen)


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("{{ messages[0]['content'] }}", "leaves out the assistant message"),
        ("{% for m in messages %}{{ m['content'] + m['content'] }}{% endfor %}", "repeats the user message"),
        ("{{ raise_exception('no system') }}", "no system"),
        ("{% for m in %}", "cannot be read as a chat template"),
        ("{{ messages.__class__.__mro__ }}", "chat template"),
        ("{{ messages.append(1) }}", "chat template"),
        ("{% for i in range(10 ** 9) %}x{% endfor %}", "chat template"),
    ],
)
def test_a_bad_template_is_refused(tokenizer: Path, tmp_path: Path, template: str, told: str) -> None:
    chat = ChatTemplate(with_template(tokenizer, tmp_path, template))
    with pytest.raises(ConfigError, match=told):
        chat.plan(("user", "assistant"))


def test_the_template_is_part_of_the_identity(tokenizer: Path, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    one, same = (ChatTemplate(with_template(tokenizer, tmp_path / name, CHATML)).digest for name in "ab")
    other = ChatTemplate(with_template(tokenizer, tmp_path / "c", PLAIN)).digest
    assert one == same != other
