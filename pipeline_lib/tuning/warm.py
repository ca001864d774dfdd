"""Warm start: the best points of similar past searches. They are factors around the law, which rescales them to this size."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow.compute as pc

from pipeline_lib.errors import MillraceError
from pipeline_lib.memory.frame import TableFrame
from pipeline_lib.memory.keep import caught_up
from pipeline_lib.memory.recall import nearest_in
from pipeline_lib.memory.record import POINT
from pipeline_lib.tuning.space import Space, Value, default_point
from pipeline_lib.workspace.runs import RunBook
from pipeline_lib.workspace.workspace import Workspace

LIKE = 8  # nearest runs that are looked at
FAR = 1.5  # standard deviations, the root mean square over what is compared: further away, nothing is taken over


@dataclass(frozen=True)
class Past:
    """A point that was good in a past search."""

    run_id: str
    distance: float
    point: dict[str, Value]
    why: str


def past_points(workspace: Workspace, space: Space, asked: Mapping[str, float | str], most: int) -> list[Past]:
    """At most so many points, those of the nearest search first; none that is the default here, none twice.

    Args:
        workspace: whose memory is asked: runs that ended here or were taken over, however long ago.
        space: what is searched now; a factor outside is brought to its edge, a choice that is not offered is left out.
        asked: features of this training (`planning.recalled.features_asked`).
        most: points.
    """
    if not most:
        return []
    table = caught_up(workspace).table()
    searched = TableFrame(table.filter(pc.is_valid(pc.map_lookup(table["tuned"], "gain", "first"))) if len(table) else table)
    tuned = {row["run_id"]: dict(row["tuned"]) for row in searched.table.select(["run_id", "tuned"]).to_pylist()}
    found: list[Past] = []
    default = default_point(space)
    for like in nearest_in(searched, asked, LIKE):
        if like.distance > FAR:
            break
        for top in _best_points(workspace, like.run_id, tuned[like.run_id]):
            point = fitted(top, space)
            if point not in (default, *(past.point for past in found)):
                found.append(Past(like.run_id, round(like.distance, 4), point, "; ".join(like.reasons[:3])))
    return found[:most]


def fitted(point: Mapping[str, Value], space: Space) -> dict[str, Value]:
    """A point of another space in this one."""
    found = default_point(space)
    for name, one in space.items():
        value = point.get(name, one.start)
        if one.holds(value):
            found[name] = next((option for option in one.options if option == value), value)  # 64, not the 64.0 of a table
        elif not one.options and isinstance(value, int | float):
            found[name] = min(max(float(value), one.low), one.high)
    return found


def _best_points(workspace: Workspace, run_id: str, tuned: Mapping[str, float]) -> list[Mapping[str, Value]]:
    """The best points of a search: some of them from its artifact; where that is gone, or never was here, the one remembered."""
    with contextlib.suppress(MillraceError):
        ref = RunBook(workspace.runs_folder).load(run_id).ref("tune")
        if ref and (tops := workspace.store.manifest(ref.key).details.get("top")):
            return [top["point"] for top in tops]
    point: dict[str, Value] = {}
    for key, number in tuned.items():
        if key.startswith(POINT):
            name, _, word = key.removeprefix(POINT).partition("=")
            point[name] = word or number
    return [point] if point else []
