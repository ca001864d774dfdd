"""Whose text is trained on, under which licence: what the model card must say."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline_lib.tables.duck import connect


def rights_of(selection: pa.Table, documents: Sequence[Path]) -> list[dict[str, Any]]:
    """Documents and estimated tokens (repeats counted) of the training side by source and licence; licence "" is unknown.

    Args:
        selection: schema SELECTION. Documents with the role `kept` are not trained on, and not counted.
        documents: files of the documents table.
    """
    with connect({"documents": documents}, loaded={"selection": selection}) as connection:
        rows = connection.sql(
            "SELECT source, coalesce(licence, '') AS licence, count(*), sum(est_tokens * repeats)::BIGINT FROM selection "
            "JOIN documents USING (doc_id) WHERE side = 'train' AND role <> 'kept' GROUP BY ALL ORDER BY ALL"
        ).fetchall()
    return [dict(zip(("source", "licence", "documents", "tokens"), row, strict=True)) for row in rows]
