"""Canonical JSON and fingerprints, by properties."""

import json
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline_lib.workspace.artifact import FileEntry, table_digests
from pipeline_lib.workspace.identity import IdentityError, bytes_digest, canonical_json, file_digest, fingerprint_of

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(VALUES)
def test_what_is_read_back_has_the_same_fingerprint(value):
    assert fingerprint_of(json.loads(canonical_json(value))) == fingerprint_of(value)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(TEXT, VALUES, min_size=2, max_size=5), st.randoms())
def test_order_of_keys_does_not_matter(value, random):
    names = list(value)
    random.shuffle(names)
    assert canonical_json({name: value[name] for name in names}) == canonical_json(value)


@settings(max_examples=150, deadline=None)
@given(VALUES, VALUES)
def test_equal_bytes_mean_equal_values(one, other):
    same = canonical_json(one) == canonical_json(other)
    assert same == (json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True))


@pytest.mark.parametrize("value", [{1, 2}, object(), Path("x"), b"x", math.nan, math.inf, {1: 2}, lambda: 0, [{"a": {"b": {3}}}]])
def test_what_has_no_stable_identity_is_refused(value):
    with pytest.raises(IdentityError):
        fingerprint_of(value)


def test_known_values():
    assert canonical_json({"b": [1, 2.5, None, True], "a": "ü"}) == '{"a":"ü","b":[1,2.5,null,true]}'.encode()
    assert fingerprint_of(1) != fingerprint_of(1.0) != fingerprint_of("1")


@settings(max_examples=30, deadline=None)
@given(st.binary(max_size=200))
def test_a_file_is_known_by_its_bytes(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("f") / "x"
    path.write_bytes(data)
    assert file_digest(path) == bytes_digest(data)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(TEXT, TEXT, TEXT), max_size=6))
def test_names_and_homes_are_not_content_and_order_is(rows):
    entries = [FileEntry(path, "t", 1, digest, home=home) for path, digest, home in rows]
    plain = [FileEntry(str(n), "t", 1, entry.digest) for n, entry in enumerate(entries)]
    assert table_digests(entries) == table_digests(plain)
    if [e.digest for e in entries] != [e.digest for e in reversed(entries)]:
        assert table_digests(list(reversed(entries))) != table_digests(entries)
