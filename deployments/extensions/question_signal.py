"""Example of a signal: the share of a document's sentences that are questions. Columns in, a column out."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from pipeline_lib.extensions import extend


@extend.signal("question_share")
def question_share(text: pa.LargeStringArray) -> pa.Array:
    """Question marks among sentence ends, 0 to 1 (float32); 0 for a document without sentence ends."""
    questions = pc.count_substring(text, "?")
    others = pc.add(pc.count_substring(text, "."), pc.count_substring(text, "!"))
    ends = pc.cast(pc.add(questions, others), pa.float32())
    share = pc.divide(pc.cast(questions, pa.float32()), pc.max_element_wise(ends, pa.scalar(1.0, pa.float32())))
    return share.combine_chunks() if isinstance(share, pa.ChunkedArray) else share
