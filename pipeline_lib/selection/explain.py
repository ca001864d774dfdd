"""Everything a run knows about one document: where it came from, what was measured, what was decided and why."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import duckdb

from pipeline_lib.corpus.documents import named_id
from pipeline_lib.corpus.redact import head
from pipeline_lib.errors import NotFoundError
from pipeline_lib.tables.duck import connect
from pipeline_lib.workspace.artifact import Artifact
from pipeline_lib.workspace.forgotten import Forgotten
from pipeline_lib.workspace.runs import RunRecord
from pipeline_lib.workspace.workspace import Workspace

HEX_DIGITS = 32

# What is looked up, in the order of the stages: key -> (stage, table, query with $id).
_LOOKUPS: Mapping[str, tuple[str, str, str]] = {
    "document": (
        "ingest", "documents",
        """SELECT source, url, kind, domain, licence, created_at, metadata, file, file_digest, record_index, byte_offset,
        byte_length, text_hash, length(text) AS characters, left(text, 300) AS head FROM documents WHERE doc_id = $id""",
    ),
    "edits": ("ingest", "edits", "SELECT * EXCLUDE (doc_id) FROM edits WHERE doc_id = $id ORDER BY start LIMIT 100"),
    "signals": ("score", "signals", "SELECT * EXCLUDE (doc_id) FROM signals WHERE doc_id = $id"),
    "rules": (
        "score", "decisions",
        "SELECT stage, rule, kept, reason, value FROM decisions WHERE doc_id = $id ORDER BY kept, rule",
    ),
    "pairs": (
        "dedup", "pairs",
        """SELECT CASE WHEN doc_id_a = $id THEN doc_id_b ELSE doc_id_a END AS other, jaccard, containment, bands_hit, accepted
        FROM pairs WHERE doc_id_a = $id OR doc_id_b = $id ORDER BY jaccard DESC, other""",
    ),
    "cluster": (
        "dedup", "clusters",
        """SELECT doc_id, cluster_id, survivor, why FROM clusters
        WHERE cluster_id = (SELECT cluster_id FROM clusters WHERE doc_id = $id) ORDER BY doc_id <> $id, survivor DESC, doc_id""",
    ),
    "contamination": (
        "dedup", "contamination",
        """SELECT suite, item, containment, start, "end", cut FROM contamination WHERE doc_id = $id
        ORDER BY containment DESC, suite, item, start""",
    ),
    "duplicates": (
        "dedup", "decisions", "SELECT stage, rule, kept, reason, value FROM decisions WHERE doc_id = $id ORDER BY rule",
    ),
    "cuts": ("dedup", "edits", "SELECT * EXCLUDE (doc_id) FROM edits WHERE doc_id = $id ORDER BY start LIMIT 100"),
    "split": ("split", "splits", "SELECT side FROM splits WHERE doc_id = $id"),
    "importance": ("select", "importance", "SELECT log_importance FROM importance WHERE doc_id = $id"),
    "selection": (
        "select", "selection", "SELECT side, domain, repeats, role, quality, score, est_tokens FROM selection WHERE doc_id = $id",
    ),
    "rejection": ("select", "decisions", "SELECT stage, rule, kept, reason, value FROM decisions WHERE doc_id = $id"),
}  # fmt: skip
_MEASURED = {"quality", "importance", "over_budget", "domain_cap"}  # rules of select whose value says how near it was
_SINGLE = {"document", "signals", "split", "importance", "selection", "rejection"}  # one row at most


def explain(workspace: Workspace, record: RunRecord, doc_id_hex: str, *, source: str = "") -> dict[str, Any]:
    """Look a document up in every table of a run.

    Args:
        workspace: where the artifacts lie.
        record: the run.
        doc_id_hex: 32 hexadecimal digits, or the first of them.
        source: a source that has an `id_column`: then the id is that of its record.

    Returns:
        JSON values: {doc_id, run_id, verdict, document: {…} or None, signals: {…} or None, split, importance, selection,
        rejection: {…} or None, edits, rules, pairs, cluster, contamination, duplicates, cuts: [{…}]}; a stage that the run did
        not reach gives None. `document` says where the source has it (`place`) and how it begins (`head`): redacted, in full or
        not at all, as the run's `report.examples` is set.

    Raises:
        NotFoundError: no id, no document of this run has it, or several begin with it; an earlier version wrote the tables.
    """
    if (read := record.ref("ingest")) is None:
        raise NotFoundError(
            "it did not come as far as documents", where=f"run {record.run_id}", fix="`millrace runs` lists others: --run RUN"
        )
    wanted = named_id(source, doc_id_hex) if source else whole_id(workspace.store.artifact(read.key), doc_id_hex)
    found: dict[str, Any] = {}
    for name, (stage, table, query) in _LOOKUPS.items():
        ref = record.ref(stage)
        rows = _rows(workspace.store.artifact(ref.key), table, query, bytes.fromhex(wanted)) if ref else None
        single = name in _SINGLE
        found[name] = rows if rows is None or not single else next(iter(rows), None)
    if document := found["document"]:
        document["head"] = _head(document["head"], record)
        document["place"] = _place(document)
    if not found["document"] and not found["rejection"]:
        if bytes.fromhex(wanted) in Forgotten.read(workspace.root).ids.to_pylist():
            raise NotFoundError(f"document {wanted} was forgotten", where=f"run {record.run_id}", fix="nothing of it is left")
        raise NotFoundError(
            f"no document {wanted}" + (f" ({doc_id_hex!r} of source {source!r})" if source else ""),
            where=f"run {record.run_id}",
            fix=f"has source {source!r} an `id_column`, and is this its value?"
            if source
            else "it was never there, or has moved: an id stays the same while source and position do",
        )
    return {"doc_id": wanted, "run_id": record.run_id, "verdict": _verdict(found), **found}


def whole_id(ingest: Artifact, beginning: str) -> str:
    """The id of the only document whose id begins so; all 32 digits are taken as they are.

    Raises:
        NotFoundError: no id; none or several begin so.
    """
    wanted = beginning.strip().lower()
    if not re.fullmatch(f"[0-9a-f]{{4,{HEX_DIGITS}}}", wanted):
        raise NotFoundError(
            f"{beginning!r} is not a document id",
            fix="an id has 32 hexadecimal digits, of which the first are enough; with --source it is the id in that source; "
            '`millrace sql "select doc_id, source, left(text, 60) from documents"` lists them',
        )
    if len(wanted) == HEX_DIGITS:
        return wanted
    query = "SELECT doc_id FROM documents WHERE starts_with(lower(hex(doc_id)), $id) LIMIT 2"
    with connect({"documents": ingest.files("documents")}) as db:
        found = db.execute(query, {"id": wanted}).fetchall()
    if len(found) != 1:
        what = "several documents have" if found else "no document has"
        raise NotFoundError(
            f"{what} an id that begins with {wanted}",
            fix="give more of its digits" if found else "`millrace sql` finds documents",
        )
    return str(found[0][0].hex())


def _place(document: Mapping[str, Any]) -> str:
    """Where the source has it, as far as its reader knew: a number of -1 or null says nothing."""
    index, start, size = (document[name] for name in ("record_index", "byte_offset", "byte_length"))
    place = str(document["url"] or document["source"])
    if document["file"]:
        place += f", file {document['file']}"
    if index is not None and index >= 0:
        place += f", record {index}"
    if start is not None and size is not None and min(start, size) >= 0:
        place += f", bytes {start} to {start + size}"
    return place


def _head(text: str, record: RunRecord) -> str:
    shown = record.config.get("report", {}).get("examples", "redacted")
    if shown == "none":
        return ""
    return text if shown == "full" else head(text.encode()).decode("utf-8", "ignore")


def _rows(artifact: Artifact, table: str, query: str, doc_id: bytes) -> list[dict[str, Any]]:
    files: list[Path] = artifact.files(table) if table in artifact.manifest.tables else []
    if not files:
        return []
    with connect({table: files}) as db:
        try:
            cursor = db.execute(query, {"id": doc_id})
        except duckdb.BinderException:  # an artifact outlives the version that made it
            raise NotFoundError(
                f"an earlier version wrote table {table!r}, without columns that are shown here",
                where=artifact.key, fix="run again: the stage makes it anew",
            ) from None  # fmt: skip
        names = [column[0] for column in cursor.description or ()]
        return [{name: _plain(value) for name, value in zip(names, row, strict=True)} for row in cursor.fetchall()]


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dt.datetime):
        return value.isoformat()
    return value


def _verdict(found: Mapping[str, Any]) -> str:
    """One sentence: what became of the document."""
    if chosen := found["selection"]:
        how = {
            "new": "chosen in this run",
            "replay": "chosen on an earlier night and used again",
            "kept": "chosen on an earlier night",
        }
        return f"on the {chosen['side']} side: {how[chosen['role']]}"
    if refused := found["rejection"]:
        value = f"; value {refused['value']:.4g}" if refused["rule"] in _MEASURED else ""
        return f"not used: {refused['rule']} ({refused['reason']}{value})"
    dropped = [row for row in (found["rules"] or []) + (found["duplicates"] or []) if not row["kept"]]
    if dropped:
        return f"dropped by {dropped[0]['stage']}: {dropped[0]['rule']} ({dropped[0]['reason']})"
    return "not dropped by any stage that ran"
