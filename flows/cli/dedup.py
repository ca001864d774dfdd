"""`millrace dedup show | borderline | rethreshold | curve`: the evidence about duplicates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli import show
from flows.cli.command import LOOK, Json, command, group, home

if TYPE_CHECKING:
    from pipeline_lib.dedup.look import Change
    from pipeline_lib.workspace.runs import RunRecord
    from pipeline_lib.workspace.workspace import Workspace

Run = Annotated[str, typer.Option("--run", metavar="RUN", help="Run id, the beginning of one, or `latest`.")]
ID_SHOWN = 12  # digits of an id; the beginning of one is enough for every command
NUMBERS = {
    "pairs_accepted": "pairs of duplicates",
    "clusters": "clusters",
    "largest_cluster": "documents in the largest cluster",
    "exact_duplicates": "dropped: same text",
    "near_duplicates": "dropped: near duplicate",
    "contaminated": "dropped: contains a validation item",
    "kept": "documents kept",
}


def register(app: typer.Typer) -> None:
    """Add the commands."""
    dedup = group(app, "dedup", "Look at duplicates and why they are.", example="millrace dedup show", panel=LOOK)
    command(dedup, "show", example="millrace dedup show 3f2a")(show_cluster)
    command(dedup, "borderline", example="millrace dedup borderline --pairs 5")(show_borderline)
    command(dedup, "rethreshold", example="millrace dedup rethreshold 0.75")(show_rethreshold)
    command(dedup, "curve", example="millrace dedup curve")(show_curve)


def show_cluster(
    cluster: Annotated[
        str,
        typer.Argument(metavar="[CLUSTER]", help="The beginning of a cluster's or document's id; none: the largest."),
    ] = "",
    *,
    members: Annotated[int, typer.Option(min=1, help="Show at most this many, survivors first.")] = 10,
    run: Run = "latest",
    as_json: Json = False,
) -> None:
    """Show the largest clusters, or of one who survived and why, and how each member differs from the one that removed it."""
    from pipeline_lib.dedup import look

    if not cluster:
        rows = look.largest(*_run(run), limit=members)
        if as_json:
            show.json_out([dict(zip(("cluster_id", "documents", "survivors"), row, strict=True)) for row in rows])
        else:
            show.table(["cluster", "documents", "survivors"], rows, "The largest clusters")
        return
    found = look.cluster(*_run(run), cluster, limit=members)
    texts = {member.doc_id: member.text for member in found.members}
    changes = {one.doc_id: look.differences(texts[one.beside], one.text) if one.beside else [] for one in found.members}
    if as_json:
        listed = [{**vars(one), "differences": changes[one.doc_id]} for one in found.members]
        show.json_out({"cluster_id": found.cluster_id, "documents": found.documents, "members": listed})
        return
    show.say(f"cluster {found.cluster_id}, {found.documents} documents")
    for one in found.members:
        show.say()
        show.say(f"{'+' if one.survivor else '−'} {one.doc_id}  {one.source}  {one.url}".rstrip())
        show.say(f"  {one.why}" + (f", Jaccard {one.jaccard:.4f}" if one.jaccard is not None else ""))
        if one.beside:
            show.say(f"  beside {one.beside[:ID_SHOWN]}:")
            _changes(changes[one.doc_id])
        else:
            show.say(one.text[:300] + ("…" if len(one.text) > 300 else ""))
    if found.documents > len(found.members):
        show.say(f"\n{found.documents - len(found.members)} more members: --members {found.documents}")


def show_borderline(
    *,
    pairs: Annotated[int, typer.Option(min=1, help="So many on each side of the threshold.")] = 5,
    run: Run = "latest",
    as_json: Json = False,
) -> None:
    """Show the verified pairs nearest to the threshold on both sides: is it where it should be?"""
    from pipeline_lib.dedup import look

    threshold, found = look.borderline(*_run(run), pairs)
    if as_json:
        listed = [{**vars(one), "differences": look.differences(one.text_a, one.text_b)} for one in found]
        show.json_out({"threshold": threshold, "pairs": listed})
        return
    below = False
    for one in found:
        if not below and one.jaccard < threshold:
            show.say(f"\n──── threshold {threshold:g} ────")
            below = True
        verdict = "duplicates" if one.accepted else "not duplicates"
        show.say(f"\n{verdict}: Jaccard {one.jaccard:.4f}, containment {one.containment:.4f}")
        show.say(f"  {one.doc_id_a}\n  {one.doc_id_b}")
        _changes(look.differences(one.text_a, one.text_b))
    if not found:
        show.say("no pairs were looked at in this run")


def show_rethreshold(
    threshold: Annotated[float, typer.Argument(metavar="T", help="Jaccard similarity from which two documents are duplicates.")],
    *,
    run: Run = "latest",
    as_json: Json = False,
) -> None:
    """Show what another threshold would decide, from the pairs that were verified. Changes nothing."""
    from pipeline_lib.dedup import look

    found = look.at_another_threshold(*_run(run), threshold)
    if as_json:
        show.json_out({"asked": threshold, **found})
        return
    now, then = found["now"], found["then"]
    rows: list[Sequence[show.Cell]] = [(words, now[name], then[name]) for name, words in NUMBERS.items()]
    show.table(["what", f"at {found['threshold']:g}", f"at {threshold:g}"], rows)
    for name, words in (("dropped", "dropped in addition"), ("kept", "kept that were dropped")):
        ids = found[name]
        if ids:
            show.say(
                f"{len(ids)} documents {words}: " + ", ".join(one[:ID_SHOWN] for one in ids[:5]) + (" …" if len(ids) > 5 else "")
            )
    if threshold < found["threshold"]:
        show.say(
            f"below the run's own threshold its bands looked at {found['proposed']:.1%} of the pairs at Jaccard {threshold:g}; "
            f"a run with `--set dedup.threshold={threshold:g}` and more bands finds the others"
        )


def show_curve(*, run: Run = "latest", as_json: Json = False) -> None:
    """Show the collision curve: the chance that a pair of a similarity is looked at, with this run's bands."""
    from pipeline_lib.dedup.look import artifact_of

    details: dict[str, Any] = artifact_of(*_run(run), "dedup").details
    if as_json:
        show.json_out({name: details[name] for name in ("threshold", "bands", "rows", "collision_curve")})
        return
    rows = [(similarity, float(value), "█" * round(40 * value)) for similarity, value in details["collision_curve"].items()]
    title = f"{details['bands']} bands × {details['rows']} rows, threshold {details['threshold']:g}"
    show.table(["Jaccard", "looked at", ""], rows, title)


def _run(run: str) -> tuple[Workspace, RunRecord]:
    from pipeline_lib.workspace.runs import RunBook

    workspace = home()
    return workspace, RunBook(workspace.runs_folder).load(run)


def _changes(changes: Sequence[Change]) -> None:
    """Differences in colour in a terminal; elsewhere as `[-gone-]` and `{+new+}`."""
    if not changes or all(kind in {"same", "left out"} for kind, _ in changes):
        show.say("  the same words")
        return
    show.differences([(kind, f"… {text} words … " if kind == "left out" else text) for kind, text in changes])
