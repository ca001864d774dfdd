"""Instruction records: one text with its turns, whatever the columns and the format; what is none goes to quarantine."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ingest_toy import files, ingest, jsonl, reasons, table

from pipeline_lib.corpus.instruct import conversations, messages_of
from pipeline_lib.errors import StageFailedError
from pipeline_lib.workspace.artifact import Artifact

USER, ASSISTANT, SYSTEM = "user", "assistant", "system"


def message(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


GOOD: list[tuple[dict[str, Any], list[tuple[str, str]]]] = [
    ({"question": "How many?", "answer": "Two\nor three"}, [(USER, "How many?"), (ASSISTANT, "Two\nor three")]),
    ({"instruction": "Mend", "input": "He go", "output": "He goes"}, [(USER, "Mend\n\nHe go"), (ASSISTANT, "He goes")]),
    ({"instruction": "Say a", "input": "", "output": "a"}, [(USER, "Say a"), (ASSISTANT, "a")]),
    ({"system": "Be kind", "prompt": "p", "response": "r"}, [(SYSTEM, "Be kind"), (USER, "p"), (ASSISTANT, "r")]),
    ({"prompt": "x", "completion": " y"}, [(USER, "x"), (ASSISTANT, " y")]),
    ({"messages": [message("system", "s"), message("user", "é漢"), message("assistant", "👍🏽"), message("user", "u"),
                   message("assistant", "v")]},
     [(SYSTEM, "s"), (USER, "é漢"), (ASSISTANT, "👍🏽"), (USER, "u"), (ASSISTANT, "v")]),
    ({"conversations": [{"from": "human", "value": "h"}, {"from": "gpt", "value": "g"}]}, [(USER, "h"), (ASSISTANT, "g")]),
    ({"messages": [message("User", "a"), message("ASSISTANT", "b")], "prompt": "not", "response": "me"},
     [(USER, "a"), (ASSISTANT, "b")]),
    ({"messages": None, "prompt": "but", "response": "me"}, [(USER, "but"), (ASSISTANT, "me")]),
]  # fmt: skip
BAD: list[tuple[Any, str]] = [
    ({"prompt": "alone"}, "no messages, and no prompt with a response"),
    ({"response": "alone"}, "no messages, and no prompt with a response"),
    ({"text": "a text"}, "no messages, and no prompt with a response"),
    ({"messages": "not a list"}, "no messages, and no prompt with a response"),
    ({"messages": [1, 2]}, "no messages, and no prompt with a response"),
    ({"prompt": 3, "response": "x"}, "no messages, and no prompt with a response"),
    ({"messages": []}, "no response of an assistant"),
    ({"messages": [message("user", "u")]}, "no response of an assistant"),
    ({"prompt": "p", "response": ""}, "no response of an assistant"),
    ({"messages": [message("user", None), message("assistant", "x")]}, "a message without text"),
    ({"messages": [message("user", [{"type": "image"}]), message("assistant", "x")]}, "a message without text"),
    ({"messages": [message("user", "u"), {"role": "assistant", "tool_calls": []}]}, "a message without text"),
    ({"messages": [message("narrator", "u"), message("assistant", "x")]}, "a message of an unknown role"),
    ({"messages": [{"content": "u"}, message("assistant", "x")]}, "a message of an unknown role"),
]


def spoken(artifact: Artifact) -> list[list[tuple[str, str]]]:
    found = []
    for row in table(artifact, "documents").to_pylist():
        text = row["text"].encode()
        assert row["kind"] == "instruct"
        found.append([(turn["role"], text[turn["start"] : turn["end"]].decode()) for turn in row["turns"]])
        assert row["text"] == "\n\n".join(content for _, content in found[-1])
    return found


def read(home: Path, path: Path, **more: Any) -> Artifact:
    return ingest(home, files(path, records="instruct", **more), quarantine_limit=1.0)


def test_every_shape_of_record(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(jsonl(*[record for record, _ in GOOD]))
    assert spoken(read(tmp_path / "w", tmp_path / "a.jsonl")) == [said for _, said in GOOD]


@pytest.mark.parametrize("spoilt", [False, True])
def test_what_is_no_conversation_goes_to_quarantine(tmp_path: Path, spoilt: bool) -> None:
    """Among plain lines by the fast reader; among broken ones by the tolerant one."""
    fast = [0, 1, 2, 6, 7, 8, 9, 11, 12, 13]
    bad = BAD if spoilt else [BAD[i] for i in fast]
    data = jsonl(*[record for record, _ in GOOD], *[record for record, _ in bad]) + b"{broken\n" * spoilt
    (tmp_path / "a.jsonl").write_bytes(data)
    made = read(tmp_path / "w", tmp_path / "a.jsonl")
    assert spoken(made) == [said for _, said in GOOD]
    assert reasons(made) == Counter([reason for _, reason in bad] + ["broken JSON"] * spoilt)
    heads = table(made, "quarantine").column("head").to_pylist()
    assert all(heads)


def test_parquet_and_csv(tmp_path: Path) -> None:
    told = [pair for pair in GOOD if "messages" in pair[0] and pair[0]["messages"]]
    rows = [{"messages": [{**one, "weight": 1} for one in record["messages"]]} for record, _ in told] + [{"messages": None}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    made = read(tmp_path / "w", tmp_path / "a.parquet")
    assert spoken(made) == [said for _, said in told]
    assert reasons(made) == {"no messages, and no prompt with a response": 1}
    (tmp_path / "a.csv").write_text('question,answer\n"a, b","c\nd"\nx,\n', "utf-8")
    made = read(tmp_path / "w", tmp_path / "a.csv")
    assert spoken(made) == [[(USER, "a, b"), (ASSISTANT, "c\nd")]]
    pq.write_table(pa.table({"text": ["x"]}), tmp_path / "b.parquet")
    with pytest.raises(StageFailedError, match="'messages' or"):
        read(tmp_path / "w", tmp_path / "b.parquet")


def test_a_text_file_in_the_folder_is_no_conversation(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl").write_bytes(jsonl(GOOD[0][0]))
    (tmp_path / "in" / "README.md").write_text("A read me.", "utf-8")
    made = read(tmp_path / "w", tmp_path / "in")
    assert spoken(made) == [GOOD[0][1]]
    assert reasons(made) == {"no messages, and no prompt with a response": 1}


def test_messages_are_normalised_one_by_one(tmp_path: Path) -> None:
    record = {"messages": [message("user", "a\r\nb\r"), message("assistant", "cafe\u0301\x07"), message("user", "ok")]}
    (tmp_path / "a.jsonl").write_bytes(jsonl(record))
    made = read(tmp_path / "w", tmp_path / "a.jsonl")
    assert spoken(made) == [[(USER, "a\nb\n"), (ASSISTANT, "café"), (USER, "ok")]]
    raw = "\n\n".join(one["content"] for one in record["messages"]).encode()
    edits = {(edit["kind"], edit["start"], raw[edit["start"] : edit["end"]]) for edit in table(made, "edits").to_pylist()}
    changes = [("line_ends", b"\r\n"), ("line_ends", b"\r\n\n"), ("nfc", b"e\xcc\x81"), ("control", b"\x07")]
    assert {(kind, start) for kind, start, _ in edits} == {(kind, raw.index(piece)) for kind, piece in changes}
    assert all(
        piece.startswith(found) for (_, piece), (_, _, found) in zip(changes, sorted(edits, key=lambda e: e[1]), strict=True)
    )


def test_the_same_bytes_from_any_reader(tmp_path: Path) -> None:
    """A broken line changes the reader, not what comes of the others."""
    plain = jsonl(*[record for record, _ in GOOD])
    for name, data in (("a", plain), ("b", plain + b"{\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.jsonl").write_bytes(data)
    one, other = (table(read(tmp_path / f"w{name}", tmp_path / name), "documents").drop(["file_digest"]) for name in "ab")
    assert one.equals(other)


@settings(max_examples=60, deadline=None)
@given(
    talks=st.lists(
        st.lists(st.tuples(st.sampled_from([SYSTEM, USER, ASSISTANT]), st.text(max_size=8)), min_size=1, max_size=5), max_size=8
    )
)
def test_columns_agree_with_plain_python(talks: list[list[tuple[str, str]]]) -> None:
    kind = pa.list_(pa.struct([("role", pa.string()), ("content", pa.large_string())]))
    column = pa.array([[message(*one) for one in talk] for talk in talks], kind)
    found = conversations({"messages": column}, len(talks))
    good = [any(role == ASSISTANT and content for role, content in talk) for talk in talks]
    assert [problem is None for problem in found["problem"].to_pylist()] == good
    texts = ["\n\n".join(content for _, content in talk) for talk in talks]
    assert found["text"].to_pylist() == [text.encode() if fine else None for text, fine in zip(texts, good, strict=True)]
    keep = pa.array(good, pa.bool_())
    said = messages_of(found["text"].filter(keep), found["turns"].filter(keep)).to_pylist()
    assert said == [content.encode() for talk, fine in zip(talks, good, strict=True) if fine for _, content in talk]
    json.dumps(found["turns"].to_pylist())


def test_a_role_that_is_not_utf8_costs_its_record_only(tmp_path: Path) -> None:
    said = [
        pa.array(column, pa.binary()).view(pa.string())
        for column in ([b"\xff", b"user", b"assistant", b"user", b"assistant"], [b"a", b"How?", b"So.", b"Why?", b"\xfe"])
    ]
    messages = pa.ListArray.from_arrays(pa.array([0, 1, 3, 5], pa.int32()), pa.StructArray.from_arrays(said, ["role", "content"]))
    pq.write_table(pa.table({"messages": messages}), tmp_path / "a.parquet")
    made = ingest(tmp_path / "w", files(tmp_path / "a.parquet", records="instruct"), quarantine_limit=1.0)
    assert spoken(made) == [[(USER, "How?"), (ASSISTANT, "So.")]]
    assert reasons(made) == {"a message of an unknown role": 1, "not UTF-8": 1}
