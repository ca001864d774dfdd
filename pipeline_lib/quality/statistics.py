"""What a corpus is like: sums, rules and the distribution of every signal, in cells of source, domain, language and licence.

A summary is a table of counts (schema STATISTICS), so that the summary of a corpus is the sum of its files' ones, in any order.
A distribution is kept as a histogram whose buckets grow by 2 %: a quantile is told within 1 % of its value (DDSketch: Masson,
Rim & Lee 2019, section 2). Values nearer to 0 than 1e-9 count as 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline_lib.errors import ConfigError
from pipeline_lib.tables.duck import connect
from pipeline_lib.tables.schemas import STATISTICS

CELLS = ("source", "domain", "language", "licence")
SUMS = ("documents", "bytes", "tokens", "kept_documents", "kept_bytes", "kept_tokens")
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
GROWTH = 1.02  # from one bucket's upper end to the next
SMALLEST = 1e-9
ROOM = 1 << 22  # places that a histogram may count in an array; with more the places that occur are sorted
ZERO = 2000  # added to the steps of a value from 1, which begin at -1046 for SMALLEST: buckets of positive values are positive


def summarise(
    cells: Mapping[str, pa.Array | pa.ChunkedArray], signals: pa.Table, failed: NDArray[np.bool_], rules: Sequence[str]
) -> pa.Table:
    """The summary of some documents, schema STATISTICS.

    Args:
        cells: `source`, `domain` and `licence` of each document; `language` is a signal where there is one.
        signals: a row a document.
        failed: documents × rules: which rules a document fails.
        rules: names of the rules, each once or in several sets; rules of one name are one.
    """
    there = {**cells, "language": signals["language"]} if "language" in signals.column_names else dict(cells)
    names, cell = _cells(there, signals.num_rows)
    parts = [_sums(signals, failed, cell, len(names))]
    parts += [_histogram(name, signals[name], cell) for name in signals.column_names if _is_number(signals.schema.field(name))]
    parts += _rules(failed, rules, cell, len(names))
    rows = pa.concat_tables(parts)
    place = rows["cell"].combine_chunks()
    columns = [pa.array([name[number] for name in names], pa.string()).take(place) for number in range(len(CELLS))]
    return pa.table([*columns, *(rows[name] for name in STATISTICS.names[len(CELLS) :])], schema=STATISTICS)


def _cells(columns: Mapping[str, Any], rows: int) -> tuple[list[tuple[str, ...]], NDArray[np.int64]]:
    """The different cells, and each document's number among them."""
    code = np.zeros(rows, np.int64)
    labels: list[list[str]] = []
    for name in CELLS:
        column = columns.get(name)
        if isinstance(column, pa.ChunkedArray):
            column = column.combine_chunks()
        column = pa.array([""] * rows, pa.string()) if column is None else column.cast(pa.string()).fill_null("")
        coded = column.dictionary_encode()
        labels.append(coded.dictionary.to_pylist() or [""])
        code = code * len(labels[-1]) + coded.indices.to_numpy().astype(np.int64)
    used, cell = np.unique(code, return_inverse=True)
    parts = np.unravel_index(used, [len(label) for label in labels])
    return [tuple(label[int(i)] for label, i in zip(labels, place, strict=True)) for place in zip(*parts, strict=True)], cell


def _is_number(field: pa.Field) -> bool:
    return bool(pa.types.is_integer(field.type) or pa.types.is_floating(field.type))


def _part(kind: str, measure: str, cell: Any, bucket: Any, amount: Any) -> pa.Table:
    rows = len(cell)
    return pa.table(
        {
            "cell": pa.array(cell, pa.int64()),
            "kind": pa.repeat(pa.scalar(kind), rows),
            "measure": pa.repeat(pa.scalar(measure), rows),
            "bucket": pa.array(bucket, pa.int32()),
            "amount": pa.array(amount, pa.int64()),
        }
    )


def _sums(signals: pa.Table, failed: NDArray[np.bool_], cell: NDArray[np.int64], count: int) -> pa.Table:
    kept = ~failed.any(axis=1)
    ones, size, tokens = np.ones(len(cell), np.int64), signals["bytes"].to_numpy(), signals["est_tokens"].to_numpy()
    sizes = {"documents": ones, "bytes": size, "tokens": tokens}
    parts = []
    for name, values in sizes.items():
        for prefix, weights in (("", values), ("kept_", values * kept)):
            amounts = np.zeros(count, np.int64)
            np.add.at(amounts, cell, weights)
            parts.append(_part("sum", prefix + name, np.arange(count), np.zeros(count, np.int32), amounts))
    return pa.concat_tables(parts)


def _histogram(name: str, column: pa.ChunkedArray, cell: NDArray[np.int64]) -> pa.Table:
    values = column.cast(pa.float64(), safe=False).fill_null(np.nan).to_numpy()  # a bucket is wider than what rounding loses
    known = np.isfinite(values)
    buckets = buckets_of(values[known])
    low = int(buckets.min(initial=0))
    width = int(buckets.max(initial=0)) - low + 1
    places = cell[known] * width + (buckets - low)
    if int(places.max(initial=0)) < ROOM:
        counts = np.bincount(places)
        used = np.flatnonzero(counts)
        counts = counts[used]
    else:  # a cell a document, or values from the smallest to the largest
        used, counts = np.unique(places, return_counts=True)
    return _part("signal", name, used // width, (used % width + low).astype(np.int32), counts)


def _rules(failed: NDArray[np.bool_], rules: Sequence[str], cell: NDArray[np.int64], count: int) -> list[pa.Table]:
    """What each rule removes: `failed`, if it were the only one; `only`, after all others."""
    parts = []
    by_name = {
        name: failed[:, [i for i, other in enumerate(rules) if other == name]].any(axis=1) for name in dict.fromkeys(rules)
    }
    number = np.sum(list(by_name.values()), axis=0) if by_name else np.zeros(len(cell), np.int64)
    for name, fails in by_name.items():
        for kind, which in (("failed", fails), ("only", fails & (number == 1))):
            counts = np.bincount(cell[which], minlength=count)
            used = np.flatnonzero(counts)
            parts.append(_part(kind, name, used, np.zeros(len(used), np.int32), counts[used]))
    return parts


def buckets_of(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """The bucket of each value: 0 for 0, growing with the value."""
    found = np.zeros(len(values), np.int64)
    there = np.flatnonzero(np.abs(values) >= SMALLEST)  # most signals are 0 in most documents
    some = values[there]
    steps = np.ceil(np.log(np.abs(some)) / np.log(GROWTH)).astype(np.int64)
    found[there] = np.where(some > 0, steps + ZERO, -(steps + ZERO))
    return found


def value_of(bucket: int) -> float:
    """The value that stands for a bucket: within 1 % of every value in it."""
    if not bucket:
        return 0.0
    middle = 2.0 * GROWTH ** (abs(bucket) - ZERO) / (GROWTH + 1.0)
    return float(np.copysign(middle, bucket))


def merged(files: Sequence[Path], by: str = "") -> pa.Table:
    """The sum of summaries by one of CELLS (""; all together): name, kind, measure, bucket, amount, in this order.

    Raises:
        ConfigError: there is no such division.
    """
    if by and by not in CELLS:
        raise ConfigError(f"there is no division by {by!r}", where="--by", fix="one of " + ", ".join(CELLS))
    name = f'"{by}"' if by else "''"
    with connect({"statistics": files}) as connection:
        return connection.sql(
            f"SELECT {name} AS name, kind, measure, bucket, sum(amount)::BIGINT AS amount FROM statistics "  # noqa: S608
            "GROUP BY ALL ORDER BY ALL"
        ).to_arrow_table()


def told(files: Sequence[Path], by: str = "") -> dict[str, Any]:
    """A summary as JSON values: {"groups": [{"name", sums…}], "rules": [{"name", "rule", "failed", "only"}], "signals": [{"name",
    "signal", "documents", quantiles…}]}; `by` as in `merged`."""
    with connect(loaded={"merged": merged(files, by)}) as connection:
        sums = ", ".join(f"coalesce(sum(amount) FILTER (measure = '{one}'), 0)::BIGINT AS {one}" for one in SUMS)
        groups = connection.sql(
            f"SELECT name, {sums} FROM merged WHERE kind = 'sum' GROUP BY name ORDER BY tokens DESC, name"  # noqa: S608
        )
        rules = connection.sql(
            "SELECT name, measure AS rule, coalesce(sum(amount) FILTER (kind = 'failed'), 0)::BIGINT AS failed, "
            "coalesce(sum(amount) FILTER (kind = 'only'), 0)::BIGINT AS only FROM merged WHERE kind IN ('failed', 'only') "
            "GROUP BY ALL ORDER BY name, failed DESC, rule"
        )
        steps = ", ".join(f"min(bucket) FILTER (running >= {q} * total) AS q{round(100 * q)}" for q in QUANTILES)
        signals = connection.sql(
            "SELECT name, measure AS signal, any_value(total)::BIGINT AS documents, " + steps + " FROM ("  # noqa: S608
            "SELECT *, sum(amount) OVER (PARTITION BY name, measure ORDER BY bucket) AS running, "
            "sum(amount) OVER (PARTITION BY name, measure) AS total FROM merged WHERE kind = 'signal') "
            "GROUP BY name, measure ORDER BY name, signal"
        )
        found = {key: _rows(relation) for key, relation in (("groups", groups), ("rules", rules), ("signals", signals))}
    for row in found["signals"]:
        row.update({name: value_of(bucket) for name, bucket in row.items() if name.startswith("q") and name[1:].isdigit()})
    return found


def _rows(relation: Any) -> list[dict[str, Any]]:
    return [dict(zip(relation.columns, row, strict=True)) for row in relation.fetchall()]
