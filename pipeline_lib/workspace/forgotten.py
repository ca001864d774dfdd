"""The list of what must be forgotten: documents and whole sources. It only grows; it is written before anything is removed.

`forgotten/documents.parquet` has a row for each document, with the source and the file it was found in; `forgotten/requests.json`
says who was asked for when, which models had learned it, and whether every trace is gone. Ingest reads the list and leaves out
what stands on it, so that a source that still holds a document does not bring it back.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline_lib.errors import DamagedError
from pipeline_lib.workspace.files import read_json, write_atomic, write_json
from pipeline_lib.workspace.identity import bytes_digest, fingerprint_of

FORGOTTEN = pa.schema([("doc_id", pa.binary(16)), ("source", pa.string()), ("file_digest", pa.string())])


@dataclass(frozen=True)
class Request:
    """One wish to forget. `finished` is empty while traces may be left."""

    asked: str  # time, ISO 8601
    documents: int
    sources: list[str] = field(default_factory=list)  # whole sources, also what they bring later
    models: list[str] = field(default_factory=list)  # keys of training artifacts that learned something of it
    tokenizers: list[str] = field(default_factory=list)  # keys of packings whose tokenizer was trained while it was there
    finished: str = ""


@dataclass(frozen=True)
class Forgotten:
    """The list as it is now."""

    documents: pa.Table  # schema FORGOTTEN, each document once
    requests: Sequence[Request]

    @classmethod
    def read(cls, root: Path) -> Forgotten:
        """The list of a workspace; empty when nothing was ever forgotten.

        Raises:
            DamagedError: it cannot be read. Nothing may be ingested then: nobody knows what must stay out.
        """
        folder = root / "forgotten"
        try:
            there = (folder / "documents.parquet").exists()
            documents = pq.read_table(folder / "documents.parquet", schema=FORGOTTEN) if there else FORGOTTEN.empty_table()
            asked = (folder / "requests.json").exists()  # not there: killed between the two files of the first request
            requests = [Request(**request) for request in read_json(folder / "requests.json")["requests"]] if asked else []
            if requests and not there:
                raise ValueError("documents.parquet is missing")
        except (ValueError, TypeError, KeyError, OSError) as error:
            fix = "restore the folder from a backup; it says what must never be read again"
            raise DamagedError(f"the forget list cannot be read ({error})", where=str(folder), fix=fix) from None
        return cls(documents, requests)

    def write(self, root: Path) -> None:
        """Keep the list: the documents first, the requests last."""
        buffer = io.BytesIO()
        pq.write_table(self.documents, buffer, compression="zstd")
        write_atomic(root / "forgotten" / "documents.parquet", buffer.getvalue())
        write_json(root / "forgotten" / "requests.json", {"requests": [asdict(request) for request in self.requests]})

    def asked(self, found: pa.Table, request: Request) -> Forgotten:
        """The list with one more request and its documents (schema FORGOTTEN)."""
        fresh = found.filter(pc.invert(pc.is_in(found["doc_id"], value_set=self.ids)))
        return Forgotten(pa.concat_tables([self.documents, fresh]), [*self.requests, request])

    def finished(self, time: str) -> Forgotten:
        """The list with every request marked as carried out."""
        return Forgotten(self.documents, [r if r.finished else replace(r, finished=time) for r in self.requests])

    @property
    def unfinished(self) -> bool:
        """Whether traces may be left of what was asked."""
        return any(not request.finished for request in self.requests)

    @property
    def ids(self) -> pa.Array:
        """doc_id of all forgotten documents."""
        return self.documents["doc_id"].combine_chunks()

    @property
    def sources(self) -> set[str]:
        """Names of sources that are forgotten as a whole."""
        return {source for request in self.requests for source in request.sources}

    def of_source(self, name: str) -> pa.Table:
        """The forgotten documents of one source."""
        return self.documents.filter(pc.equal(self.documents["source"], name))

    def identity(self, names: Sequence[str]) -> str:
        """Digest of what the list says about sources of these names; "" when it says nothing about them."""
        ids = self.documents.filter(pc.is_in(self.documents["source"], value_set=pa.array(names, pa.string())))["doc_id"]
        whole = sorted(self.sources & set(names))
        if not len(ids) and not whole:
            return ""
        return fingerprint_of({"documents": bytes_digest(b"".join(sorted(ids.to_pylist()))), "sources": whole})
