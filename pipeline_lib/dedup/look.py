"""Questions to the evidence of a run: who is in a cluster and how the members differ, what lies near the threshold.

Texts are redacted before they are compared or shown.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline_lib.corpus.redact import redact
from pipeline_lib.errors import ConfigError, NotFoundError
from pipeline_lib.tables.duck import connect
from pipeline_lib.workspace.artifact import Artifact
from pipeline_lib.workspace.runs import RunRecord
from pipeline_lib.workspace.workspace import Workspace

HEX_DIGITS = 32
AROUND = 6  # words shown on both sides of a difference
LONGEST = 4_000  # words between the first and the last difference of two texts; what is longer is shown as replaced
Change = tuple[str, str]  # "same", "gone", "new" or "left out" (a number of words), and the text


@dataclass(frozen=True)
class Member:
    """A document of a cluster."""

    doc_id: str
    survivor: bool
    why: str
    source: str
    url: str
    text: str
    beside: str  # the member it is compared with: who removed it, else the first survivor; "" for that one
    jaccard: float | None  # of the two; None where the pair was not verified


@dataclass(frozen=True)
class Cluster:
    """A duplicate cluster, survivors first."""

    cluster_id: str
    documents: int
    members: list[Member]  # as many as were asked for


@dataclass(frozen=True)
class Pair:
    """A verified pair."""

    doc_id_a: str
    doc_id_b: str
    jaccard: float
    containment: float
    accepted: bool
    text_a: str
    text_b: str


def artifact_of(workspace: Workspace, record: RunRecord, stage: str) -> Artifact:
    """What a stage of a run made.

    Raises:
        NotFoundError: the run did not come so far, or the artifact is gone.
    """
    ref = record.ref(stage)
    if ref is None:
        raise NotFoundError(f"the run has no {stage}", where=f"run {record.run_id}", fix=f"`millrace run --until {stage}`")
    return workspace.store.artifact(ref.key)


def largest(workspace: Workspace, record: RunRecord, *, limit: int = 10) -> list[tuple[str, int, int]]:
    """The largest clusters of several documents: hexadecimal id, documents, survivors among them.

    Raises:
        NotFoundError: the run has no `dedup`.
    """
    with connect(_files(workspace, record)) as db:
        return db.execute(
            """
            SELECT lower(hex(cluster_id)), count(*) AS documents, count(*) FILTER (survivor) FROM clusters
            GROUP BY cluster_id HAVING documents > 1 ORDER BY documents DESC, cluster_id LIMIT $limit
            """,
            {"limit": limit},
        ).fetchall()


def cluster(workspace: Workspace, record: RunRecord, beginning: str, *, limit: int = 10) -> Cluster:
    """The cluster whose id, or one of whose documents' ids, begins with some hexadecimal digits.

    Args:
        workspace: where the artifacts lie.
        record: the run.
        beginning: 1 to 32 hexadecimal digits.
        limit: read so many members.

    Raises:
        NotFoundError: no cluster, or more than one.
    """
    wanted = beginning.strip().lower()
    if not re.fullmatch(f"[0-9a-f]{{1,{HEX_DIGITS}}}", wanted):
        raise NotFoundError(f"{beginning!r} is no id", fix="an id, or the beginning of one, in hexadecimal digits")
    with connect(_files(workspace, record)) as db:
        found = db.execute(
            """
            SELECT DISTINCT cluster_id FROM clusters
            WHERE starts_with(lower(hex(cluster_id)), $id) OR starts_with(lower(hex(doc_id)), $id) LIMIT 2
            """,
            {"id": wanted},
        ).fetchall()
        if len(found) != 1:
            what = (
                f"more than one cluster has an id with {wanted}" if found else f"no cluster has an id that begins with {wanted}"
            )
            largest = "SELECT hex(cluster_id), count(*) FROM clusters GROUP BY 1 ORDER BY 2 DESC LIMIT 20"
            fix = f'`millrace sql "{largest}"` lists the largest'
            raise NotFoundError(what, where=f"run {record.run_id}", fix=fix)
        ((cluster_id,),) = found
        counted = db.execute("SELECT count(*) FROM clusters WHERE cluster_id = $id", {"id": cluster_id}).fetchone()
        rows = db.execute(
            """
            SELECT doc_id, survivor, why, source, url, text
            FROM (SELECT * FROM clusters WHERE cluster_id = $id ORDER BY survivor DESC, doc_id LIMIT $limit)
            JOIN documents USING (doc_id) ORDER BY survivor DESC, doc_id
            """,
            {"id": cluster_id, "limit": limit},
        ).fetchall()
        scores = {
            (a, b): jaccard
            for a, b, jaccard in db.execute(
                """
                SELECT doc_id_a, doc_id_b, jaccard FROM pairs
                WHERE list_contains($ids, doc_id_a) AND list_contains($ids, doc_id_b)
                """,
                {"ids": [row[0] for row in rows]},
            ).fetchall()
        }
    shown = {row[0].hex() for row in rows}
    first = rows[0][0].hex() if rows else ""
    members = []
    for doc_id, survivor, why, source, url, text in rows:
        remover = str(why).rpartition(" ")[2]
        beside = remover if remover in shown else first if doc_id.hex() != first else ""
        ends = sorted((doc_id, bytes.fromhex(beside))) if beside else None
        jaccard = scores.get((ends[0], ends[1])) if ends else None
        members.append(Member(doc_id.hex(), survivor, why, source, url, _shown(text), beside, jaccard))
    return Cluster(cluster_id.hex(), int(counted[0]) if counted else 0, members)


def borderline(workspace: Workspace, record: RunRecord, count: int) -> tuple[float, list[Pair]]:
    """The threshold, and the verified pairs nearest to it on both sides, `count` on each, the most similar first."""
    threshold = float(artifact_of(workspace, record, "dedup").details["threshold"])
    with connect(_files(workspace, record)) as db:
        rows = db.execute(
            """
            WITH near AS (
              SELECT *, row_number() OVER (
                PARTITION BY jaccard >= $threshold ORDER BY abs(jaccard - $threshold), doc_id_a, doc_id_b
              ) AS place FROM pairs WHERE bands_hit > 0 QUALIFY place <= $count
            )
            SELECT doc_id_a, doc_id_b, jaccard, containment, accepted, a.text, b.text
            FROM near JOIN documents a ON a.doc_id = doc_id_a JOIN documents b ON b.doc_id = doc_id_b
            ORDER BY jaccard DESC, doc_id_a, doc_id_b
            """,
            {"threshold": threshold, "count": count},
        ).fetchall()
    return threshold, [
        Pair(a.hex(), b.hex(), jaccard, containment, accepted, _shown(one), _shown(two))
        for a, b, jaccard, containment, accepted, one, two in rows
    ]


def at_another_threshold(workspace: Workspace, record: RunRecord, threshold: float) -> dict[str, Any]:
    """What a run at another threshold would decide, from the pairs that this one verified.

    Returns:
        JSON values: {threshold, now, then: numbers at the run's own and at the asked threshold, proposed: the probability that a
        pair at the asked threshold was looked at, dropped, kept: ids of documents that would be dropped in addition, or kept}.

    Raises:
        ConfigError: no similarity.
        NotFoundError: the run did not come so far.
    """
    from pipeline_lib.dedup.conclude import rethreshold
    from pipeline_lib.dedup.minhash import proposal_probability
    from pipeline_lib.tables.ids import hex_of, ids_of

    if not 0 < threshold <= 1:
        raise ConfigError(f"{threshold:g} is no Jaccard similarity", fix="a number above 0, at most 1")
    dedup, ingest, score = (artifact_of(workspace, record, stage) for stage in ("dedup", "ingest", "score"))
    own = float(dedup.details["threshold"])
    now, then = (rethreshold(dedup, ingest, score, value) for value in (own, threshold))
    before, after = (set(hex_of(ids_of(found.decisions["doc_id"])).tolist()) for found in (now, then))
    return {
        "threshold": own,
        "now": now.numbers,
        "then": then.numbers,
        "proposed": proposal_probability(threshold, int(dedup.details["bands"]), int(dedup.details["rows"])),
        "dropped": sorted(one.decode() for one in after - before),
        "kept": sorted(one.decode() for one in before - after),
    }


def differences(old: str, new: str) -> list[Change]:
    """How `new` differs from `old`, word by word; long runs that are the same are left out but for their ends."""
    a, b = (re.findall(r"\S+\s*|\s+", text) for text in (old, new))
    start = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    most = min(len(a), len(b)) - start
    end = next((i for i, (x, y) in enumerate(zip(reversed(a), reversed(b), strict=False)) if x != y or i == most), most)
    inner_a, inner_b = a[start : len(a) - end], b[start : len(b) - end]
    changes: list[Change] = [("same", "".join(a[:start]))]
    if max(len(inner_a), len(inner_b)) > LONGEST:
        changes += [("gone", "".join(inner_a)), ("new", "".join(inner_b))]
    else:
        for tag, i, j, k, m in difflib.SequenceMatcher(None, inner_a, inner_b, autojunk=False).get_opcodes():
            if tag == "equal":
                changes.append(("same", "".join(inner_a[i:j])))
            else:
                changes += [("gone", "".join(inner_a[i:j])), ("new", "".join(inner_b[k:m]))]
    changes.append(("same", "".join(a[len(a) - end :])))
    changes = [change for change in changes if change[1]]
    return list(_shortened(changes))


def _shortened(changes: Sequence[Change]) -> Iterator[Change]:
    for place, (kind, text) in enumerate(changes):
        words = re.findall(r"\S+\s*|\s+", text)
        first, last = place == 0, place == len(changes) - 1
        if kind != "same" or len(words) <= 2 * AROUND + 1:
            yield kind, text
            continue
        head, tail = [] if first else words[:AROUND], [] if last else words[-AROUND:]
        yield from (
            change
            for change in (
                ("same", "".join(head)), ("left out", str(len(words) - len(head) - len(tail))), ("same", "".join(tail)),
            )
            if change[1]
        )  # fmt: skip


def _files(workspace: Workspace, record: RunRecord) -> Mapping[str, Any]:
    dedup, ingest = (artifact_of(workspace, record, stage) for stage in ("dedup", "ingest"))
    return {
        "clusters": dedup.files("clusters"), "pairs": dedup.files("pairs"), "documents": ingest.files("documents"),
    }  # fmt: skip


def _shown(text: str) -> str:
    return redact(text.encode()).decode("utf-8", "replace")
