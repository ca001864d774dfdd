"""Arrow schemas, Parquet and DuckDB."""
