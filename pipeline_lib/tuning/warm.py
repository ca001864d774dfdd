"""Warm start: the best points of similar past searches. They are factors around the law, which rescales them to this size."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline_lib.errors import MillraceError
from pipeline_lib.memory.recall import nearest
from pipeline_lib.tuning.space import Space, Value, default_point
from pipeline_lib.workspace.runs import RunBook, RunRecord
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
    """At most so many points, those of the nearest search first; none that is the default here.

    Args:
        workspace: whose run records are recalled.
        space: what is searched now; a factor outside is brought to its edge, a choice that is not offered is left out.
        asked: features of this training (`planning.recalled.features_asked`).
        most: points.
    """
    records = {record.run_id: record for record in _searched(RunBook(workspace.runs_folder).all())}
    found: list[Past] = []
    default, looked = default_point(space), set()
    for like in nearest(asked, LIKE, records.values()) if most else []:
        ref = records[like.run_id].ref("tune")
        if like.distance > FAR or ref is None or ref.key in looked:
            continue
        looked.add(ref.key)
        try:
            tops: Sequence[Mapping[str, Any]] = workspace.store.manifest(ref.key).details.get("top", [])
        except MillraceError:  # the artifact is gone
            continue
        for top in tops:
            point = fitted(top["point"], space)
            if point not in (default, *(past.point for past in found)):
                found.append(Past(like.run_id, round(like.distance, 4), point, "; ".join(like.reasons[:3])))
    return found[:most]


def fitted(point: Mapping[str, Value], space: Space) -> dict[str, Value]:
    """A point of another space in this one."""
    found = default_point(space)
    for name, one in space.items():
        value = point.get(name, one.start)
        if one.holds(value):
            found[name] = value
        elif not one.options and isinstance(value, int | float):
            found[name] = min(max(float(value), one.low), one.high)
    return found


def _searched(records: Iterable[RunRecord]) -> list[RunRecord]:
    return [record for record in records if record.outcome != "running" and record.ref("tune") is not None]
