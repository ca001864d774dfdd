"""Statistics add up over files, and tell what is there."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline_lib.errors import ConfigError
from pipeline_lib.quality.statistics import GROWTH, buckets_of, summarise, told, value_of
from pipeline_lib.tables.parquet import write_table

ROWS = 3000
RULES = ["long", "plain", "long"]


def corpus(seed: int) -> tuple[dict[str, pa.Array], pa.Table, np.ndarray]:
    rng = np.random.default_rng(seed)
    cells = {
        "source": pa.array(rng.choice(["web", "books"], ROWS)),
        "domain": pa.array(rng.choice(["prose", "code"], ROWS)),
        "licence": pa.array(rng.choice(["MIT", "CC-BY-4.0", ""], ROWS)),
    }
    signals = pa.table(
        {
            "doc_id": pa.array([bytes(16)] * ROWS, pa.binary(16)),
            "bytes": rng.geometric(1e-3, ROWS),
            "est_tokens": rng.geometric(4e-3, ROWS),
            "balance": rng.normal(0, 3, ROWS),
            "share": np.where(rng.random(ROWS) < 0.5, 0.0, rng.random(ROWS)),
            "language": pa.array(rng.choice(["en", "de"], ROWS)),
        }
    )
    return cells, signals, rng.random((ROWS, 3)) < 0.2


def files(folder: Path, parts: int) -> list[Path]:
    cells, signals, failed = corpus(1)
    made = []
    for number, rows in enumerate(np.array_split(np.arange(ROWS), parts)):
        some = {name: column.take(pa.array(rows)) for name, column in cells.items()}
        made.append(folder / f"{parts}-{number}.parquet")
        write_table(summarise(some, signals.take(pa.array(rows)), failed[rows], RULES), made[-1])
    return made


@pytest.mark.parametrize("by", ["", "source", "domain", "language", "licence"])
def test_the_corpus_is_the_sum_of_its_files(tmp_path: Path, by: str) -> None:
    assert told(files(tmp_path, 7), by) == told(files(tmp_path, 1), by)


def test_sums_rules_and_quantiles_are_those_of_the_documents(tmp_path: Path) -> None:
    cells, signals, failed = corpus(1)
    found = told(files(tmp_path, 3), "licence")
    kept = ~failed.any(axis=1)
    licences = np.array(cells["licence"].to_pylist())
    for row in found["groups"]:
        mine = licences == row["name"]
        assert row["documents"] == mine.sum()
        assert row["kept_tokens"] == signals["est_tokens"].to_numpy()[mine & kept].sum()
    assert {row["name"] for row in found["groups"]} == {"MIT", "CC-BY-4.0", ""}
    whole = told(files(tmp_path, 3))
    long, plain = failed[:, 0] | failed[:, 2], failed[:, 1]
    expected = {"long": (long.sum(), (long & ~plain).sum()), "plain": (plain.sum(), (plain & ~long).sum())}
    assert {row["rule"]: (row["failed"], row["only"]) for row in whole["rules"]} == expected
    for row in whole["signals"]:
        values = signals[row["signal"]].to_numpy()
        for name, share in (("q5", 0.05), ("q50", 0.5), ("q95", 0.95)):
            exact = np.quantile(values, share, method="inverted_cdf")
            assert abs(row[name] - exact) <= 0.0101 * abs(exact), (row["signal"], name)


def test_a_bucket_tells_its_values_within_one_per_cent() -> None:
    values = np.concatenate([[0.0, 1.0, -1.0, 1e-12], 10 ** np.random.default_rng(0).uniform(-9, 12, 5000)])
    for value, bucket in zip(values, buckets_of(values), strict=True):
        assert value_of(int(bucket)) == pytest.approx(value, rel=(GROWTH - 1) / 2 + 1e-6, abs=1e-9)
    order = np.sort(np.concatenate([values, -values]))
    assert (np.diff(buckets_of(order)) >= 0).all()


def test_an_unknown_division_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        told(files(tmp_path, 1), "colour")


def test_a_cell_a_document_and_values_of_any_size_take_little_memory(tmp_path: Path) -> None:
    rows = 5000
    values = np.resize([1e-300, 1e300, -1e300, 2.0**60], rows)
    signals = pa.table({"bytes": np.ones(rows, np.int64), "est_tokens": np.ones(rows, np.int64), "wild": values})
    whole = signals.append_column("number", pa.repeat(pa.scalar(2**60), rows))  # no float64 between its neighbours
    tracemalloc.start()
    found = summarise({"licence": pa.array([f"LicenseRef-{n}" for n in range(rows)])}, whole, np.zeros((rows, 0), bool), [])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6
    write_table(found, tmp_path / "a.parquet")
    quantiles = {row["signal"]: row for row in told([tmp_path / "a.parquet"])["signals"]}
    assert quantiles["wild"]["q5"] == pytest.approx(-1e300, rel=0.01)
    assert quantiles["wild"]["q50"] == 0.0
    assert quantiles["number"]["q50"] == pytest.approx(2**60, rel=0.01)
