"""Tokens of documents: a text as it is, a conversation through its chat template, with a mark on what is not learned."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline_lib.tokens.chat import ChatTemplate, Plan
from pipeline_lib.tokens.encode import Encoder

UNLEARNED = np.uint32(1 << 31)  # beside a token's id: it is read but not learned
_BETWEEN_ROLES = "\x1f"


@dataclass(frozen=True)
class Encoded:
    """Documents as tokens, one after the other, without their end tokens."""

    tokens: np.ndarray  # uint32[total]; the highest bit is `UNLEARNED`
    offsets: np.ndarray  # int64[documents + 1]
    end_learned: np.ndarray | None  # bool[documents], of the end token that will follow; None: everything is learned


def encode_documents(encoder: Encoder, texts: pa.LargeStringArray, turns: pa.Array | None, chat: ChatTemplate | None) -> Encoded:
    """Tokenise documents, all of them in one call of the encoder.

    Args:
        encoder: of the tokenizer.
        texts: without nulls.
        turns: of conversations, null for a plain text; None: there are no conversations.
        chat: the template of the tokenizer; needed where there are conversations. A message is written without the white space
            around it, as most templates do themselves.

    Raises:
        ConfigError: the template cannot write a conversation.
    """
    if turns is None or chat is None or turns.null_count == len(turns):
        return Encoded(*encoder.encode(texts), None)
    spoken = turns.is_valid().to_numpy(zero_copy_only=False)
    work = _Work(len(texts))
    work.add_texts(np.flatnonzero(~spoken), texts.filter(pa.array(~spoken)))
    _add_conversations(work, np.flatnonzero(spoken), texts.filter(pa.array(spoken)), turns.filter(pa.array(spoken)), chat)
    return work.done(encoder)


def _add_conversations(work: _Work, documents: np.ndarray, texts: pa.Array, turns: pa.Array, chat: ChatTemplate) -> None:
    from pipeline_lib.corpus.instruct import messages_of  # compiled code, which a text-only cache does not wait for

    messages = pc.utf8_trim_whitespace(messages_of(texts, turns))
    counts = pc.list_value_length(turns).to_numpy().astype(np.int64)
    firsts = np.cumsum(counts) - counts
    roles = pa.ListArray.from_arrays(
        pa.array(np.append(0, np.cumsum(counts)), pa.int32()), pc.struct_field(turns.flatten(), "role")
    )
    shapes = pc.binary_join(roles, _BETWEEN_ROLES).dictionary_encode()
    shape_of = shapes.indices.to_numpy()
    for number, shape in enumerate(shapes.dictionary.to_pylist()):
        rows = np.flatnonzero(shape_of == number)
        plan = chat.plan(tuple(shape.split(_BETWEEN_ROLES)))
        said = [messages.take(pa.array(firsts[rows] + turn)) for turn in range(shape.count(_BETWEEN_ROLES) + 1)]
        work.add_plan(documents[rows], plan, said)


@dataclass
class _Work:
    """Collects the segments of all documents: strings to encode, and which of them (or which special token) goes where."""

    documents: int
    strings: list[pa.Array] = field(default_factory=list)
    specials: dict[int, int] = field(default_factory=dict)  # id → its place among the specials
    count: int = 0  # strings so far
    owner: list[np.ndarray] = field(default_factory=list)  # of each segment: the document …
    order: list[np.ndarray] = field(default_factory=list)  # … its place in it …
    source: list[np.ndarray] = field(default_factory=list)  # … the string, or -1 - the place of the special token …
    unlearned: list[np.ndarray] = field(default_factory=list)  # … and whether it is not learned
    end_learned: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.end_learned = np.ones(self.documents, bool)

    def add_texts(self, documents: np.ndarray, texts: pa.Array) -> None:
        """Documents that are one string each."""
        self._add(documents, 0, self._strings(texts), learned=True)

    def add_plan(self, documents: np.ndarray, plan: Plan, said: list[pa.Array]) -> None:
        """Documents of one shape; `said[t]` is what is said in their turn t."""
        self.end_learned[documents] = plan.end_learned
        for order, segment in enumerate(plan.segments):
            if segment.special >= 0:
                place = self.specials.setdefault(segment.special, len(self.specials))
                source = np.full(len(documents), -1 - place)
            else:
                parts = [pa.scalar(p, pa.large_string()) if isinstance(p, str) else said[p] for p in segment.parts]
                if any(isinstance(part, pa.Array) for part in parts):
                    source = self._strings(pc.binary_join_element_wise(*parts, pa.scalar("", pa.large_string())))
                else:  # the same for all: encoded once
                    text = "".join(part.as_py() for part in parts)
                    source = np.repeat(self._strings(pa.array([text], pa.large_string())), len(documents))
            self._add(documents, order, source, learned=segment.learned)

    def _strings(self, strings: pa.Array) -> np.ndarray:
        self.strings.append(strings)
        self.count += len(strings)
        return np.arange(self.count - len(strings), self.count)

    def _add(self, documents: np.ndarray, order: int, source: np.ndarray, *, learned: bool) -> None:
        self.owner.append(documents)
        self.order.append(np.full(len(documents), order))
        self.source.append(source)
        self.unlearned.append(np.full(len(documents), not learned))

    def done(self, encoder: Encoder) -> Encoded:
        """Encode all strings and put the segments together."""
        from pipeline_lib.packing.bestfit import gather

        tokens, offsets = encoder.encode(pa.concat_arrays(self.strings))
        pool = np.concatenate([tokens, np.array(list(self.specials), np.uint32)])
        owner, order, source, unlearned = (
            np.concatenate(parts) for parts in (self.owner, self.order, self.source, self.unlearned)
        )
        sorting = np.lexsort((order, owner))
        owner, source, unlearned = owner[sorting], source[sorting], unlearned[sorting]
        special = source < 0
        start = np.where(special, len(tokens) - 1 - source, offsets[np.where(special, 0, source)])
        length = np.where(special, 1, np.diff(offsets)[np.where(special, 0, source)])
        out = np.empty(int(length.sum()), np.uint32)
        pieces = np.ascontiguousarray(np.stack((start, length, np.cumsum(length) - length), axis=1))
        gather(pool, pieces, np.zeros(len(pieces), bool), 0, out)
        out[np.repeat(unlearned, length)] |= UNLEARNED
        lengths = np.bincount(owner, weights=length, minlength=self.documents).astype(np.int64)
        return Encoded(out, np.append(0, np.cumsum(lengths)), self.end_learned)


def spans_without_loss(unlearned: np.ndarray, starts: np.ndarray) -> pa.ListArray:
    """Runs of tokens that are not learned, list<int32> of start, end, start, end … inside each sequence.

    Args:
        unlearned: bool[tokens], all sequences one after the other.
        starts: int32[sequences + 1]; no sequence is empty.
    """
    begins = np.zeros(len(unlearned) + 1, bool)
    begins[starts] = True
    first = unlearned & (begins[:-1] | ~np.append(False, unlearned[:-1]))
    last = unlearned & (begins[1:] | ~np.append(unlearned[1:], False))
    spans = np.stack((np.flatnonzero(first), np.flatnonzero(last) + 1), axis=1)
    sequence = np.searchsorted(starts, spans[:, 0], side="right") - 1
    counts = np.bincount(sequence, minlength=len(starts) - 1)
    offsets = np.append(0, np.cumsum(2 * counts))
    values = (spans - starts[sequence][:, None]).astype(np.int32).ravel()
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(values, pa.int32()))
