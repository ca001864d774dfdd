"""Records that must stay out whatever they hold: documents on the forget list, and licences that are not allowed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline_lib.config.data import IngestConfig
from pipeline_lib.corpus.rights import NOT_ALLOWED, refused
from pipeline_lib.workspace.forgotten import Forgotten
from pipeline_lib.workspace.workspace import Workspace

FORGOTTEN = "forgotten"
BARRED = (FORGOTTEN, NOT_ALLOWED)  # reasons of quarantine rows that are no fault of the source


@dataclass(frozen=True)
class Barred:
    """What a source may not bring.

    `here` are the forgotten documents that are known to lie in the files of a part: they are part of its identity. A file that
    changed since has another digest, and is read with all of `ids` left out.
    """

    ids: frozenset[bytes] = frozenset()
    whole: bool = False
    here: tuple[str, ...] = ()
    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()

    def key(self) -> dict[str, Any]:
        """Identity; nothing where nothing is barred."""
        facts = {"forgotten": list(self.here), "whole": self.whole, "allow": sorted(self.allow), "deny": sorted(self.deny)}
        return {name: value for name, value in facts.items() if value}


def barred(source: str, digests: Sequence[str], forgotten: Forgotten, config: IngestConfig) -> Barred:
    """What a part of a source, files with these digests, may not bring."""
    rows = forgotten.of_source(source)
    here = rows.filter(pc.is_in(rows["file_digest"], value_set=pa.array(digests, pa.string())))["doc_id"].to_pylist()
    return Barred(
        frozenset(rows["doc_id"].to_pylist()),
        source in forgotten.sources,
        tuple(sorted(doc_id.hex() for doc_id in here)),
        tuple(config.allow_licences),
        tuple(config.deny_licences),
    )


def bar(problem: pa.Array, ids: pa.Array, licence: pa.Array, rule: Barred) -> pa.Array:
    """`problem` with the reasons of records that must stay out: forgotten ones before any other, licences after all others."""
    if rule.allow or rule.deny:
        bad = pc.and_(refused(licence, rule.allow, rule.deny), problem.is_null())
        problem = pc.if_else(bad, NOT_ALLOWED, problem)
    if rule.whole:
        return pa.repeat(pa.scalar(FORGOTTEN), len(problem))
    if rule.ids:
        gone = pc.is_in(ids, value_set=pa.array(sorted(rule.ids), ids.type))
        problem = pc.if_else(gone, FORGOTTEN, problem)
    return problem


def forgets(workspace: Workspace, *, ingest: IngestConfig) -> str:
    """Identity of what the forget list says about the sources of a configuration; "": nothing."""
    return Forgotten.read(workspace.root).identity([source.name for source in ingest.sources])
