"""Parquet as it is stored: the same rows are the same bytes, in groups that threads can share."""

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline_lib.tables.parquet import read_tables, write_batches, write_table
from pipeline_lib.tables.schemas import DOC_ID, ROW_GROUP, TABLES


def table(count):
    return pa.table({"n": range(count), "text": [f"row {n}" for n in range(count)]})


def test_the_same_rows_are_the_same_bytes(tmp_path):
    write_table(table(1000), tmp_path / "a.parquet")
    write_table(pa.concat_tables([table(1000).slice(0, 400), table(1000).slice(400)]), tmp_path / "b.parquet")
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_row_groups_and_compression(tmp_path):
    assert write_table(table(2 * ROW_GROUP + 1), tmp_path / "a.parquet") == 2 * ROW_GROUP + 1
    facts = pq.ParquetFile(tmp_path / "a.parquet").metadata
    assert [facts.row_group(n).num_rows for n in range(facts.num_row_groups)] == [ROW_GROUP, ROW_GROUP, 1]
    assert facts.row_group(0).column(0).compression == "ZSTD"


def test_streamed_batches_are_row_groups(tmp_path):
    batches = table(10).to_batches(max_chunksize=4)
    assert write_batches(iter(batches), batches[0].schema, tmp_path / "x" / "a.parquet") == 10
    assert pq.ParquetFile(tmp_path / "x" / "a.parquet").metadata.num_row_groups == 3
    assert read_tables([tmp_path / "x" / "a.parquet"] * 2, columns=["n"]).column_names == ["n"]


def test_an_empty_table_keeps_its_schema(tmp_path):
    for name, schema in TABLES.items():
        write_table(schema.empty_table(), tmp_path / f"{name}.parquet")
        assert pq.read_schema(tmp_path / f"{name}.parquet").names == schema.names


def test_every_doc_id_is_the_same_type():
    fields = [field for schema in TABLES.values() for field in schema if field.name.startswith("doc_id")]
    assert len(fields) >= 8
    assert {field.type for field in fields} == {DOC_ID}
