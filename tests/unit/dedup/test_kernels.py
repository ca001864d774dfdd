"""The compiled kernels against plain Python."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline_lib.dedup import kernels
from pipeline_lib.dedup.minhash import constants, proposal_probability
from pipeline_lib.dedup.shingles import Shingles
from pipeline_lib.dedup.texts import buffers_of


def words_of(text: str) -> list[int]:
    data, offsets = buffers_of(pa.array([text], pa.large_string()))
    out = np.empty(len(data) // 2 + 1, dtype=np.uint64)
    return out[: kernels.words_into(data, offsets[0], offsets[1], out)].tolist()


def signature(texts: list[str], width: int = 5, bands: int = 16, rows: int = 8) -> np.ndarray:
    data, offsets = buffers_of(pa.array(texts, pa.large_string()))
    out = np.empty((bands, len(texts)), dtype=np.uint64)
    kernels.band_hashes(data, offsets, width, False, bands, rows, *constants(bands * rows), out)
    return out


def sets_of(texts: list[str], width: int, *, characters: bool = False) -> list[set[int]]:
    out, bounds = Shingles(width, characters).sets(pa.array(texts, pa.large_string()))
    return [set(out[bounds[i] : bounds[i + 1]].tolist()) for i in range(len(texts))]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Hello, World", "hello world"),
        ("ÄRGER über ÇA", "ärger über ça"),
        ("ΑΒΓ ПРИВЕТ Ѐ", "αβγ привет ѐ"),
        ("a\u2014b \u201cquoted\u201d", "a b quoted"),
        ("x\u00a0y", "x y"),
        ("日本語", "日 本 語"),
        ("v1日x", "v1 日 x"),
    ],
)
def test_same_words(one: str, other: str) -> None:
    assert words_of(one) == words_of(other)
    assert len(set(words_of(one))) == len(words_of(one))


@pytest.mark.parametrize(("one", "other"), [("ab c", "a bc"), ("abc", "abd"), ("é", "e"), ("日", "本")])
def test_different_words(one: str, other: str) -> None:
    assert words_of(one) != words_of(other)


@given(st.binary(max_size=60))
def test_any_bytes_are_words_within_bounds(data: bytes) -> None:
    out = np.full(len(data) // 2 + 3, 7, dtype=np.uint64)
    n = kernels.words_into(np.frombuffer(data, dtype=np.uint8), 0, len(data), out)
    assert n <= (len(data) + 1) // 2
    assert (out[-2:] == 7).all()  # nothing is written beyond the promised length


@given(st.lists(st.sampled_from("abc"), max_size=20), st.integers(1, 6))
def test_shingles_are_the_runs_of_words(letters: list[str], width: int) -> None:
    runs = {tuple(letters[i : i + width]) for i in range(max(1, len(letters) - width + 1))} if letters else set()
    (found,) = sets_of([" ".join(letters)], width)
    assert len(found) == len(runs)


def test_short_text_is_one_shingle_and_no_text_is_none() -> None:
    texts = ["", "!?", "one two", "one two three four five six", "one two"]
    hashes = signature(texts)
    assert [len(found) for found in sets_of(texts, 5)] == [0, 0, 1, 2, 1]
    assert (hashes == 0).all(axis=0).tolist() == (hashes == 0).any(axis=0).tolist() == [True, True, False, False, False]
    assert (hashes[:, 2] == hashes[:, 4]).all()
    assert (hashes[:, 2] != hashes[:, 3]).any()


def test_short_texts_are_not_all_equal() -> None:
    hashes = signature([f"short {i}" for i in range(200)])
    assert all(len(set(row.tolist())) == 200 for row in hashes)


def mixed(x: int) -> int:
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) % 2**64
    return x ^ (x >> 31)


@pytest.mark.parametrize("count", [1, 3, 4, 5, 8, 41])
def test_band_hashes_equal_plain_python(count: int) -> None:
    """Compiled signed arithmetic once lost the addends here; whole numbers of any size cannot."""
    shingles = list(sets_of([" ".join(f"w{i}" for i in range(count))], 1)[0])
    multipliers, addends = (column.tolist() for column in constants(6))
    smallest = [min((a * x + b) % 2**64 for x in shingles) >> 32 for a, b in zip(multipliers, addends, strict=True)]
    step, expected = 0x9E3779B97F4A7C15, []
    for band in range(3):
        h = (band + 1) * step % 2**64
        for value in smallest[2 * band : 2 * band + 2]:
            h = (mixed(h ^ value) + step) % 2**64
        expected.append(h)
    hashes = signature([" ".join(f"w{i}" for i in range(count))], width=1, bands=3, rows=2)
    assert hashes[:, 0].tolist() == expected


def test_share_of_equal_bands_follows_the_curve() -> None:
    """With one row a band, P(equal) is the Jaccard similarity: an unbiased estimate, for several similarities."""
    rng = np.random.default_rng(0)
    for wanted in (0.2, 0.5, 0.8, 0.95):
        pairs, errors = 60, []
        for _ in range(pairs):
            shared = [f"s{n}" for n in rng.integers(0, 10**9, round(400 * wanted))]
            rest = [[f"r{n}" for n in rng.integers(0, 10**9, (400 - len(shared)) // 2)] for _ in range(2)]
            hashes = signature([" ".join(shared + part) for part in rest], width=1, bands=128, rows=1)
            true = len(shared) / (len(shared) + len(rest[0]) + len(rest[1]))
            errors.append((hashes[:, 0] == hashes[:, 1]).mean() - true)
        assert abs(np.mean(errors)) < 4 * np.sqrt(wanted * (1 - wanted) / 128 / pairs)


def test_probability_of_a_proposal() -> None:
    published = {(14, 8): 0.924, (20, 13): 0.677, (16, 8): 0.947, (26, 11): 0.903}  # at s = .8
    for (bands, rows), value in published.items():
        assert proposal_probability(0.8, bands, rows) == pytest.approx(value, abs=0.001)


def test_constants_of_a_smaller_signature_are_the_first_ones() -> None:
    few, many = constants(10), constants(128)
    assert (few[0] == many[0][:10]).all()
    assert (few[1] == many[1][:10]).all()
    assert (many[0] % 2 == 1).all()


@settings(max_examples=50)
@given(st.lists(st.tuples(st.text("ab ", max_size=40), st.text("ab ", max_size=40)), min_size=1, max_size=5))
def test_shared_shingles_equal_python_sets(pairs: list[tuple[str, str]]) -> None:
    texts = [text for pair in pairs for text in pair]
    sets = sets_of(texts, 2)
    hashes = np.array([h for s in sets for h in sorted(s)], dtype=np.uint64)
    bounds = np.cumsum([0, *map(len, sets)])
    left, right = np.arange(0, len(texts), 2), np.arange(1, len(texts), 2)
    found = np.empty(len(pairs), dtype=np.int64)
    kernels.shared_shingles(hashes, bounds, left, right, found)
    assert found.tolist() == [len(sets[a] & sets[b]) for a, b in zip(left, right, strict=True)]
    kernels.shared_shingles(hashes, bounds, right, left, other := np.empty_like(found))
    assert other.tolist() == found.tolist()


def test_sliced_columns_are_read_from_their_place() -> None:
    column = pa.array(["zero", "one", None, "three"], pa.string()).slice(1)
    data, offsets = buffers_of(column)
    assert [bytes(data[offsets[i] : offsets[i + 1]]).decode() for i in range(3)] == ["one", "", "three"]


NUMBERS = st.lists(st.integers(0, 5) | st.integers(0, 5).map(lambda n: n << 40) | st.integers(0, 2**64 - 1), max_size=60)


@given(NUMBERS)
def test_no_repeated_number_is_missed(numbers: list[int]) -> None:
    found = kernels.repeated(np.array(numbers, dtype=np.uint64)).tolist()
    assert found == sorted(found)
    assert {i for i, n in enumerate(numbers) if numbers.count(n) > 1} <= set(found)


def test_few_numbers_are_taken_for_repeated() -> None:
    numbers = np.random.default_rng(0).integers(0, 2**64, 100_000, dtype=np.uint64)
    assert len(kernels.repeated(numbers)) < 100_000 / 8


@given(NUMBERS, NUMBERS)
def test_numbers_are_found_where_they_are(numbers: list[int], known: list[int]) -> None:
    hashes, wanted = np.array(numbers, dtype=np.uint64), np.sort(np.array(known, dtype=np.uint64))
    out = np.full(len(numbers) + 1, -7)
    count = kernels.places_among(hashes, wanted, kernels.filter_of(wanted), out)
    assert out[:count].tolist() == [i for i, n in enumerate(numbers) if n in known]
    assert (out[count:] == -7).all()
