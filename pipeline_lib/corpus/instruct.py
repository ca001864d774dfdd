"""Instruction records: messages, or a prompt and its response, become one readable text and the places of its turns.

The text is what the messages say, with an empty line between two of them: it is what is scored, compared and read. `turns` says
who speaks where in it. The chat template is put on when documents are packed: it can change without reading again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline_lib.corpus import kernels
from pipeline_lib.corpus.strings import valid
from pipeline_lib.tables.buffers import text_buffers, text_column
from pipeline_lib.tables.schemas import DOC_ID, TURNS

SEPARATOR = "\n\n"
LISTS = {"messages": ("role", "content"), "conversations": ("from", "value")}  # column → its fields
PROMPTS, INPUT = ("prompt", "instruction", "question"), "input"
RESPONSES = ("response", "output", "answer", "completion")
SYSTEM = "system"
ROLES = {
    "system": "system", "developer": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant",
    "model": "assistant", "tool": "tool",
}  # fmt: skip
_NOTHING, _BETWEEN = pa.scalar("", pa.large_string()), pa.scalar(SEPARATOR, pa.large_string())
_MESSAGE = pa.struct([("role", pa.string()), ("content", pa.large_string())])
_MESSAGES = pa.list_(_MESSAGE)
COLUMNS: Mapping[str, pa.DataType] = {  # what is looked for in a file, with the type that JSON is read as
    **{name: pa.list_(pa.struct([(keys[0], pa.string()), (keys[1], pa.large_string())])) for name, keys in LISTS.items()},
    **dict.fromkeys((SYSTEM, *PROMPTS, INPUT, *RESPONSES), pa.large_string()),
}
NO_PAIR, NO_RESPONSE = "no messages, and no prompt with a response", "no response of an assistant"
NO_CONTENT, UNKNOWN_ROLE = "a message without text", "a message of an unknown role"

Normalise = Callable[[pa.Array, pa.Array, NDArray[np.uint8]], tuple[pa.Array, pa.Table]]


def conversations(columns: Mapping[str, pa.Array], rows: int) -> dict[str, pa.Array]:
    """The columns `text` (large_binary, null where there is a problem), `turns` and `problem` of instruction records.

    Args:
        columns: those of `COLUMNS` that the file has, each with `rows` rows; other columns do not matter. A row's messages go
            before its prompt and response.
        rows: records.
    """
    found = [_listed(columns[name], *keys) for name, keys in LISTS.items() if name in columns]
    found.append(_pairs(columns, rows))
    choice = np.full(rows, -1)
    for number in reversed(range(len(found))):
        choice[found[number].is_valid().to_numpy(zero_copy_only=False)] = number
    places = pa.array(choice * rows + np.arange(rows), pa.int64(), mask=choice < 0)
    spoken = pa.concat_arrays(found).take(places)

    counts = pc.fill_null(pc.list_value_length(spoken), 0).to_numpy().astype(np.int64)
    record = np.repeat(np.arange(rows), counts)
    flat = spoken.flatten()
    names = pc.index_in(pc.utf8_lower(pc.struct_field(flat, "role")), value_set=pa.array(list(ROLES)))
    role = pa.array(list(ROLES.values())).take(names)
    content = pc.struct_field(flat, "content")
    answers = pc.fill_null(pc.and_(pc.equal(role, "assistant"), pc.greater(pc.binary_length(content), 0)), False)
    problem = pa.nulls(rows, pa.string())
    for bad, reason in (
        (choice < 0, NO_PAIR),
        (_any(pc.is_null(content), record, rows), NO_CONTENT),
        (_any(pc.is_null(role), record, rows), UNKNOWN_ROLE),
        (~_any(answers, record, rows), NO_RESPONSE),
    ):
        problem = pc.if_else(pa.array(bad & problem.is_null().to_numpy(zero_copy_only=False)), reason, problem)

    content = pc.fill_null(content, "")
    last = np.append(np.diff(record) != 0, True)[: len(record)]
    ended = pc.binary_join_element_wise(content, pc.if_else(pa.array(last), _NOTHING, _BETWEEN), _NOTHING)
    data, offsets = text_buffers(ended)
    firsts = np.append(0, np.cumsum(counts))
    text = text_column(data, offsets[firsts], pa.large_binary())
    starts = offsets[:-1] - offsets[firsts][record]
    ends = starts + pc.binary_length(content).to_numpy().astype(np.int64)
    return {
        "text": pc.if_else(problem.is_null(), text, None),
        "turns": _turns(firsts, role, starts, ends),
        "problem": problem,
    }


def normalise_turns(texts: pa.Array, turns: pa.Array, ids: pa.Array, normalise: Normalise) -> tuple[pa.Array, pa.Array, pa.Table]:
    """Normalise every message by itself: (texts, turns, edits). A text's messages and separators are its bytes, without a copy.

    Args:
        texts: large_binary, valid UTF-8, no nulls.
        turns: of each text.
        ids: doc_id of each text.
        normalise: (texts, ids, flags of `kernels.inspect`) → (texts, rows of `edits`).
    """
    data, offsets = text_buffers(texts)
    bounds, counts = _bounds(offsets, turns)
    firsts = np.append(0, np.cumsum(2 * counts - 1))
    owner = np.repeat(np.arange(len(counts)), 2 * counts - 1)
    pieces = text_column(data, bounds, pa.large_binary())
    flags, bad_at = np.empty(len(pieces), np.uint8), np.empty(len(pieces), np.int64)
    kernels.inspect(data, bounds, flags, bad_at)
    cleaned, edits = normalise(pieces, _numbers(len(pieces)), flags)
    new_data, new = text_buffers(cleaned)
    said = _said(counts)
    begin = np.repeat(new[firsts[:-1]], counts)
    role = pc.struct_field(turns.flatten(), "role")
    turns = _turns(np.append(0, np.cumsum(counts)), role, new[said] - begin, new[said + 1] - begin)
    return text_column(new_data, new[firsts]), turns, _moved(edits, ids, owner, bounds[:-1] - offsets[owner])


def messages_of(texts: pa.Array, turns: pa.Array) -> pa.Array:
    """What is said in every turn of every text, one after the other (the type of `texts`).

    Args:
        texts: large_string or large_binary, no nulls.
        turns: of each text, no nulls.
    """
    data, offsets = text_buffers(texts)
    bounds, counts = _bounds(offsets, turns)
    return text_column(data, bounds, texts.type).take(pa.array(_said(counts)))


def _bounds(offsets: NDArray[np.int64], turns: pa.Array) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where messages and the separators between them begin in the bytes of all texts (and the end); the turns of each text."""
    counts = pc.list_value_length(turns).to_numpy().astype(np.int64)
    flat = turns.flatten()
    spans = np.stack([pc.struct_field(flat, name).to_numpy() for name in ("start", "end")], axis=1)
    spans = spans + np.repeat(offsets[:-1], counts)[:, None]
    inner = np.ones(2 * len(spans), bool)
    inner[2 * np.cumsum(counts) - 1] = False  # the end of a text is the beginning of the next
    return np.ascontiguousarray(np.append(spans.ravel()[inner], offsets[-1])), counts


def _said(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Which of the pieces between two bounds are messages: every other one of each text."""
    return 2 * np.arange(counts.sum()) - np.repeat(np.arange(len(counts)), counts)


def _numbers(count: int) -> pa.Array:
    """0…count-1 in the shape of ids."""
    wide = np.zeros((count, 2), np.int64)
    wide[:, 0] = np.arange(count)
    return pa.FixedSizeBinaryArray.from_buffers(DOC_ID, count, [None, pa.py_buffer(wide)])


def _moved(edits: pa.Table, ids: pa.Array, owner: NDArray[np.int64], begins: NDArray[np.int64]) -> pa.Table:
    """Edits of numbered pieces as edits of their documents."""
    named = edits.column("doc_id").combine_chunks()
    piece = np.frombuffer(named.buffers()[1], np.int64)[2 * named.offset :: 2][: len(named)]
    columns = {name: edits.column(name) for name in edits.column_names} | {
        "doc_id": ids.take(pa.array(owner[piece])),
        "start": pc.add(edits.column("start"), pa.array(begins[piece])),
        "end": pc.add(edits.column("end"), pa.array(begins[piece])),
    }
    return pa.table(columns, schema=edits.schema)


def _turns(firsts: NDArray[np.int64], role: pa.Array, starts: NDArray[np.int64], ends: NDArray[np.int64]) -> pa.Array:
    fields = [TURNS.value_type.field(i) for i in range(TURNS.value_type.num_fields)]
    flat = pa.StructArray.from_arrays([role, pa.array(starts, pa.int64()), pa.array(ends, pa.int64())], fields=fields)
    return pa.ListArray.from_arrays(pa.array(firsts, pa.int32()), flat, type=TURNS)


def _any(flags: pa.Array, record: NDArray[np.int64], rows: int) -> NDArray[np.bool_]:
    """Whether any of a record's flags is set."""
    return np.bincount(record[flags.to_numpy(zero_copy_only=False)], minlength=rows) > 0


def _listed(column: pa.Array, role: str, content: str) -> pa.Array:
    """A list column of a file as lists of role and content; null where it is none."""
    kind = column.type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)) or not pa.types.is_struct(kind.value_type):
        return pa.nulls(len(column), _MESSAGES)
    flat = column.flatten()
    if {role, content} - {field.name for field in kind.value_type}:
        return pa.nulls(len(column), _MESSAGES)
    both = [_text(pc.struct_field(flat, name)) for name in (role, content)]
    counts = pc.fill_null(pc.list_value_length(column), 0).to_numpy().astype(np.int64)
    message = pa.StructArray.from_arrays([valid(both[0].cast(pa.string())), both[1]], fields=list(_MESSAGE))
    return pa.ListArray.from_arrays(
        pa.array(np.append(0, np.cumsum(counts)), pa.int32()), message, type=_MESSAGES, mask=column.is_null()
    )


def _pairs(columns: Mapping[str, pa.Array], rows: int) -> pa.Array:
    """Prompts with responses as lists of role and content; null where one is missing."""

    def first_of(*names: str) -> pa.Array:
        return pc.coalesce(*(_text(columns[name]) for name in names if name in columns), pa.nulls(rows, pa.large_string()))

    prompt, more, system, response = first_of(*PROMPTS), first_of(INPUT), first_of(SYSTEM), first_of(*RESPONSES)
    asked = pc.coalesce(pc.if_else(_filled(more), pc.binary_join_element_wise(prompt, more, _BETWEEN), prompt), _NOTHING)
    present = np.ones((rows, 3), bool)
    present[:, 0] = _filled(system).to_numpy(zero_copy_only=False)
    place = np.arange(3 * rows).reshape(3, rows).T[present]
    content = pa.concat_arrays([system, asked, response]).take(pa.array(place))
    role = pa.array([SYSTEM, "user", "assistant"]).take(pa.array(place // max(rows, 1)))
    offsets = pa.array(np.append(0, np.cumsum(present.sum(axis=1))), pa.int32())
    mask = pc.or_(pc.is_null(prompt), pc.is_null(response))
    return pa.ListArray.from_arrays(
        offsets, pa.StructArray.from_arrays([role, content], fields=list(_MESSAGE)), type=_MESSAGES, mask=mask
    )


def _filled(column: pa.Array) -> pa.Array:
    return pc.not_equal(pc.fill_null(column, ""), "")


def _text(column: pa.Array) -> pa.Array:
    """A column of strings as large_string; all null where it holds something else."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        return _text(column.dictionary_decode())
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return column.cast(pa.large_string())
    return pa.nulls(len(column), pa.large_string())


def plain(name: str, value: Any) -> Any:
    """A parsed JSON value as the column `name` of `COLUMNS` holds it: null where it is of another type, message by message.

    Raises:
        UnicodeEncodeError: a lone surrogate.
    """
    if name not in LISTS:
        return value.encode().decode() if isinstance(value, str) else None
    if not isinstance(value, list) or not all(one is None or isinstance(one, dict) for one in value):
        return None
    return [{key: plain(key, (one or {}).get(key)) for key in LISTS[name]} for one in value]
