"""Forget documents: the list first, then every artifact, packed range and report that holds them.

1. The list (`workspace/forgotten.py`) is written: from here on ingest leaves them out, and a kill is completed by the next call.
2. Files of artifacts that hold them get successors without them (`segments.py`); a manifest names its successors in one step and
   remembers the digest it had. Keys stay, so that runs, pins and champion find their artifacts.
3. Packed ranges that hold them are packed again (`packed.py`).
4. What no manifest names goes, and unfinished work, quarantine and reports (`traces.py`).

Every step looks at what is there, so the whole can be repeated, and is until nothing is found any more. With a run alive nothing
but the list is written; a run that begins meanwhile goes by the list. Model weights stay: the models that learned something of it
are named, and so are tokenizers.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline_lib.errors import BusyError, ConfigError, MillraceError, NotFoundError
from pipeline_lib.forgetting.packed import Packing, pack_again, packings, settle
from pipeline_lib.forgetting.segments import Segment, Wanted, brought, cut, manifests, search
from pipeline_lib.forgetting.traces import remove, rubbish, tell_again, told_of
from pipeline_lib.workspace.artifact import Manifest
from pipeline_lib.workspace.files import remove_tree
from pipeline_lib.workspace.forgotten import FORGOTTEN, Forgotten, Request
from pipeline_lib.workspace.gc import keys_in
from pipeline_lib.workspace.resolve import read_champion
from pipeline_lib.workspace.runs import RunBook
from pipeline_lib.workspace.services import now
from pipeline_lib.workspace.workspace import Workspace

ID_DIGITS = 32
HASHES = ("doc_id", "text_hash", "cluster_id")  # columns of 16 bytes


@dataclass(frozen=True)
class ForgetPlan:
    """What would go, and what cannot."""

    documents: pa.Table  # schema FORGOTTEN: newly asked for
    sources: Sequence[str]
    copies: int  # other documents with the same text, which stay
    near: int  # other documents that dedup put into a cluster with one of them, which stay
    segments: Sequence[Segment]
    packings: Sequence[Packing]
    unreadable: Mapping[str, str]
    rubbish: Sequence[Path]
    reports: Sequence[str]  # run ids
    models: Sequence[str] = field(default_factory=list)
    tokenizers: Sequence[str] = field(default_factory=list)
    champions: Sequence[str] = field(default_factory=list)  # roles whose model is among them

    def to_json(self, root: Path) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "documents": self.documents.num_rows,
            "sources": list(self.sources),
            "copies": self.copies,
            "near_duplicates": self.near,
            "segments": [{"artifact": s.key, "table": s.entry.table, "rows": s.rows} for s in self.segments],
            "packings": [{"artifact": p.key, "ranges": list(p.ranges), "removed": bool(p.empty)} for p in self.packings],
            "unreadable": dict(self.unreadable),
            "removed": [path.relative_to(root).as_posix() for path in self.rubbish],
            "reports": list(self.reports),
            "models": list(self.models),
            "tokenizers": list(self.tokenizers),
            "champions": list(self.champions),
        }


def plan_forget(workspace: Workspace, doc_ids: Sequence[str] = (), *, source: str = "", copies: bool = False) -> ForgetPlan:
    """What `forget` would do. Without documents or source: what is left to do of earlier requests.

    Args:
        workspace: where to look.
        doc_ids: 32 hexadecimal digits each.
        source: a whole source, also what it brings later.
        copies: also documents with the same text, white space and case aside.

    Raises:
        NotFoundError: nothing here has such an id, or comes from such a source.
        ConfigError: no id.
    """
    wanted, fresh, others, near = _wanted(workspace, doc_ids, source, copies=copies)
    found = search(workspace.store, wanted)
    packed = packings(workspace, wanted.ids)
    known = {manifest.key: manifest for manifest in manifests(workspace.store)}
    tokenizers = _heirs({p.key for p in packed if p.trained and _trains_tokenizer(known[p.key])}, known, "pack")
    models = _heirs(_trained_on({p.key for p in packed if p.trained}, known), known, "train")
    champion = read_champion(workspace)
    roles = [role for role in ("champion", "previous") if (champion.get(role) or {}).get("train") in models]
    changed = {segment.key for segment in found.segments} | {packing.key for packing in packed}
    reports = {r.run_id for r in told_of(workspace)} | {r.run_id for r in _runs_with(workspace, changed)}
    return ForgetPlan(
        fresh, [source] if source else [], others, near, found.segments, packed, found.unreadable, rubbish(workspace),
        sorted(reports), models, tokenizers, roles,
    )  # fmt: skip


def forget(workspace: Workspace, plan: ForgetPlan, *, order: tuple[str, ...]) -> Request:
    """Carry a plan out, and whatever earlier requests left undone.

    Args:
        workspace: where it lies.
        plan: of `plan_forget`, looked at a moment ago.
        order: stage names in order of work, for reports.

    Returns:
        The last request, with the models that learned something of it.

    Raises:
        BusyError: a run is alive. The list is written; the rest is done by the next call.
        StageFailedError: a packed range cannot be made again.
    """
    if plan.documents.num_rows or plan.sources:
        request = Request(
            now().isoformat(), plan.documents.num_rows, list(plan.sources), list(plan.models), list(plan.tokenizers)
        )
        Forgotten.read(workspace.root).asked(plan.documents, request).write(workspace.root)
    book = RunBook(workspace.runs_folder)
    if alive := [r.run_id for r in book.all() if r.outcome == "running" and book.alive(r)]:
        raise BusyError(
            f"run {alive[0]} is going on; what is to be forgotten is noted, and nothing was removed yet",
            fix="`millrace forget` completes it when the run has ended",
        )
    with workspace.lease("forget", wait=True):
        wanted = _listed(workspace)
        _pass(workspace, wanted, order)
        while search(workspace.store, wanted).segments or packings(workspace, wanted.ids):  # a run that began meanwhile made more
            _pass(workspace, wanted, order)
        done = Forgotten.read(workspace.root).finished(now().isoformat())
        done.write(workspace.root)
    return done.requests[-1]


def _pass(workspace: Workspace, wanted: Wanted, order: tuple[str, ...]) -> None:
    """Steps 2 to 4 of the module."""
    remove(rubbish(workspace))
    with tempfile.TemporaryDirectory(prefix="forget-", dir=workspace.work_folder) as folder:
        work = Path(folder)
        found = search(workspace.store, wanted)
        for key in found.unreadable:
            if doomed := workspace.store.take_away(key):
                remove_tree(doomed)
        readable = [segment for segment in found.segments if segment.key not in found.unreadable]
        cut(workspace.store, readable, wanted, work / "segments")
        for number, packing in enumerate(packings(workspace, wanted.ids)):
            pack_again(workspace, packing, wanted.ids, work / f"pack-{number}")
        settle(workspace, work)
    for key in {key for m in manifests(workspace.store) for key in (m.key, *(e.home for e in m.files if e.home))}:
        workspace.store.sweep(key)
    remove(rubbish(workspace))  # caches of packings that could not stay
    for record in told_of(workspace):
        tell_again(workspace, record, order)


def _wanted(workspace: Workspace, doc_ids: Sequence[str], source: str, *, copies: bool) -> tuple[Wanted, pa.Table, int, int]:
    """What to look for, with all that is listed already; the new part of it; how many more documents have the same text; and how
    many nearly the same.
    """
    asked = [_id_of(text) for text in doc_ids]
    known = Forgotten.read(workspace.root)
    ids = pa.array(asked, pa.binary(16))
    mine = pc.field("doc_id").isin(ids) | (pc.field("source") == source if source else pc.scalar(False))
    rows = _documents(workspace, ["doc_id", "source", "file_digest", "text_hash"])
    chosen = rows.filter(mine)
    same = rows.filter(pc.is_in(rows["text_hash"], value_set=chosen["text_hash"].combine_chunks()))
    others = len(pc.unique(same["doc_id"])) - len(pc.unique(chosen["doc_id"]))
    if copies:
        chosen, others = same, 0
    chosen = pa.concat_tables([chosen.select(FORGOTTEN.names), _quarantined(workspace).filter(mine)])
    there = pa.concat_arrays([chosen["doc_id"].combine_chunks(), known.ids])
    if missing := [doc_id.hex() for doc_id in asked if not pc.is_in(pa.scalar(doc_id, pa.binary(16)), value_set=there).as_py()]:
        raise NotFoundError(
            f"no document {missing[0]} in this workspace", fix="`millrace sql` finds them: select doc_id, url from documents"
        )
    if source and not chosen.num_rows and source not in known.sources:
        raise NotFoundError(f"no document of a source {source!r} in this workspace", fix="`millrace stats --by source` names all")
    fresh = chosen.filter(pc.invert(pc.is_in(chosen["doc_id"], value_set=known.ids)))
    fresh = fresh.group_by("doc_id", use_threads=False).aggregate([("source", "min"), ("file_digest", "min")])
    fresh = fresh.rename_columns(FORGOTTEN.names).cast(FORGOTTEN)
    listed = known.asked(fresh, Request("", 0, [source] if source else []))
    return (
        _of(listed),
        fresh,
        others,
        _near(workspace, fresh["doc_id"], pa.concat_arrays([same["doc_id"].combine_chunks(), known.ids])),
    )


def _near(workspace: Workspace, ids: pa.ChunkedArray, told: pa.Array) -> int:
    """How many documents are in a cluster with one of `ids`, and not `told` of otherwise."""
    rows = _rows(workspace, "dedup", "clusters", ["doc_id", "cluster_id"])
    theirs = rows.filter(pc.is_in(rows["doc_id"], value_set=ids.combine_chunks()))["cluster_id"]
    near = rows.filter(pc.is_in(rows["cluster_id"], value_set=theirs.combine_chunks()))["doc_id"]
    return len(pc.unique(near.filter(pc.invert(pc.is_in(near, value_set=told)))))


def _id_of(text: str) -> bytes:
    bare = text.strip().lower()
    if len(bare) != ID_DIGITS or set(bare) - set("0123456789abcdef"):
        raise ConfigError(f"{text!r} is not a document id", where="forget", fix="a document id has 32 hexadecimal digits")
    return bytes.fromhex(bare)


def _listed(workspace: Workspace) -> Wanted:
    return _of(Forgotten.read(workspace.root))


def _of(listed: Forgotten) -> Wanted:
    return Wanted(listed.ids, frozenset(pc.unique(listed.documents["source"]).to_pylist()), frozenset(listed.sources))


def _documents(workspace: Workspace, columns: list[str]) -> pa.Table:
    """Columns of the documents tables of all ingest artifacts."""
    return _rows(workspace, "ingest", "documents", columns)


def _quarantined(workspace: Workspace) -> pa.Table:
    """Records that never became documents, as far as they have ids; where they lie is told by their position only."""
    rows = _rows(workspace, "ingest", "quarantine", ["doc_id", "source"])
    named = rows.filter(pc.is_valid(rows["doc_id"]))
    return named.append_column("file_digest", pa.repeat(pa.scalar(""), named.num_rows)).cast(FORGOTTEN)


def _rows(workspace: Workspace, stage: str, table: str, columns: list[str]) -> pa.Table:
    """Columns of a table of all artifacts of a stage; a file that several share counts once."""
    schema = pa.schema([(name, pa.binary(16) if name in HASHES else pa.string()) for name in columns])
    found, seen = [schema.empty_table()], set()
    for manifest in manifests(workspace.store):
        for entry in manifest.files if manifest.stage == stage else ():
            home = entry.home or manifest.key
            if entry.table == table and (home, entry.path) not in seen:
                seen.add((home, entry.path))
                try:
                    path = brought(workspace.store, home, replace(entry, home=""))
                    if set(columns) <= set(pq.read_schema(path).names):
                        found.append(pq.read_table(path, columns=columns).select(columns).cast(schema))
                except (MillraceError, pa.ArrowException, OSError):
                    continue  # `search` says so
    return pa.concat_tables(found)


def _trains_tokenizer(manifest: Manifest) -> bool:
    return bool(manifest.parameters.get("tokenizer", {}).get("source") == "train")


def _trained_on(packs: set[str], known: Mapping[str, Manifest]) -> set[str]:
    """Models whose cache comes from one of these packings."""
    caches = {packing.rpartition("/")[2].partition(".")[0] for packing in packs}
    filled = {key for key, m in known.items() if m.stage == "fill_gaps" and m.details["cache"] in caches}
    return {key for key, m in known.items() if m.stage == "train" and m.inputs["fill_gaps"]["key"] in filled}


def _heirs(keys: set[str], known: Mapping[str, Manifest], stage: str) -> list[str]:
    """These artifacts and those of their stage that started from one of them, and so on."""
    found = set(keys)
    while more := {k for k, m in known.items() if m.stage == stage and found & set(keys_in(m.parameters))} - found:
        found |= more
    return sorted(found)


def _runs_with(workspace: Workspace, keys: set[str]) -> list[Any]:
    from pipeline_lib.reporting.page import report_folder

    return [
        record
        for record in RunBook(workspace.runs_folder).all()
        if report_folder(workspace, record.run_id).exists()
        and any((ref := record.ref(name)) and ref.key in keys for name in record.stages)
    ]
