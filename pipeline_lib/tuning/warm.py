"""Warm start: what similar past searches found. Points are factors around the law, which rescales them to this size."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from pipeline_lib.errors import MillraceError
from pipeline_lib.memory.frame import TableFrame, believed
from pipeline_lib.memory.keep import caught_up
from pipeline_lib.memory.recall import nearest_in
from pipeline_lib.memory.record import POINT
from pipeline_lib.tuning.space import Space, Value, default_point
from pipeline_lib.tuning.verdict import SEED_NOISE
from pipeline_lib.workspace.runs import RunBook
from pipeline_lib.workspace.workspace import Workspace

LIKE = 12  # nearest runs that are looked at
FAR = 1.5  # standard deviations, the root mean square over what is compared: further away, nothing is taken over
# How far the best factor usually is from the law's, and how much further from that of a search one standard deviation away.
SPREAD = math.log(2.0)
FINEST = 0.2  # of a factor's log: a search of a few trials tells its best no finer
SAME = 0.02  # … and a factor this near to the law's is the law's


@dataclass(frozen=True)
class Past:
    """A point that was good in past searches. `run_id`: of the nearest of them."""

    run_id: str
    distance: float
    point: dict[str, Value]
    why: str


@dataclass(frozen=True)
class Found:
    """What one past search found best, brought into this space, and how sure that is."""

    run_id: str
    distance: float
    point: dict[str, Value]
    doubt: float  # noise / gain: 1 where it is just better than luck; the default's does not count

    def weight(self, log_factor: float) -> float:
        """1 / variance of what it says of a factor, in units of the law's own (`SPREAD`).

        Near its best a loss is a parabola: where a gain g lies x away from the law, a loss that is known to n tells the place of
        the best to x·√(n / g).
        """
        own = max(abs(log_factor) * math.sqrt(self.doubt), FINEST) / SPREAD if log_factor else 1.0
        return 1.0 / (own**2 + self.distance**2)


def past_points(workspace: Workspace, space: Space, asked: Mapping[str, float | str], most: int) -> list[Past]:
    """At most so many points: first what all similar searches say together, then what the nearest ones found, each alone; none
    that is the default here, none twice.

    Args:
        workspace: whose memory is asked: runs that ended here or were taken over, however long ago.
        space: what is searched now; a factor outside is brought to its edge, a choice that is not offered is left out.
        asked: features of this training (`planning.recalled.features_asked`).
        most: points.
    """
    if not most:
        return []
    table = caught_up(workspace).table()
    searched = TableFrame(_searched(table))
    tuned = {row["run_id"]: dict(row["tuned"] or ()) for row in searched.table.select(["run_id", "tuned"]).to_pylist()}
    told: list[Found] = []
    alone: list[Past] = []
    for like in nearest_in(searched, asked, LIKE):
        if like.distance > FAR:
            break
        gain, noise = tuned[like.run_id]["gain"], tuned[like.run_id].get("noise", SEED_NOISE)
        noise = noise if math.isfinite(noise) and noise >= 0 else SEED_NOISE
        points = [fitted(point, space) for point in _best_points(workspace, like.run_id, tuned[like.run_id])]
        told += [Found(like.run_id, like.distance, point, noise / gain if gain > 0 else 1.0) for point in points[:1]]
        alone += [Past(like.run_id, round(like.distance, 4), point, "; ".join(like.reasons[:3])) for point in points]
    found: list[Past] = []
    default = default_point(space)
    for past in ([_together(told, space)] if told else []) + alone:
        if past.point not in (default, *(earlier.point for earlier in found)):
            found.append(past)
    return found[:most]


def _searched(table: pa.Table) -> pa.Table:
    """Runs that searched, and whose record may be believed."""
    if not len(table):
        return table
    gain = pc.map_lookup(table["tuned"], "gain", "first")
    return table.filter(pc.and_(pc.fill_null(pc.is_finite(gain), False), believed(table)))


def _together(told: Sequence[Found], space: Space) -> Past:
    """The mean of what searches found, by weight, with the law as one more of weight 1; of choices the one with most weight."""
    point = default_point(space)
    for name, one in space.items():
        if one.options:
            votes = dict.fromkeys(one.options, 0.0) | {one.start: 1.0}
            for found in told:
                votes[found.point[name]] += found.weight(SPREAD if found.point[name] != one.start else 0.0)
            point[name] = max(votes, key=lambda option: votes[option])  # of equal ones the first that is offered
            continue
        logs = [math.log(float(found.point[name])) for found in told]
        weights = [found.weight(log) for found, log in zip(told, logs, strict=True)]
        mean = math.fsum(w * log for w, log in zip(weights, logs, strict=True)) / (1.0 + math.fsum(weights))
        point[name] = 1.0 if abs(mean) < SAME else float(f"{math.exp(mean):.4g}")
    many = f"{len(told)} searches like this one" if len(told) > 1 else "one search like this one"
    return Past(told[0].run_id, round(told[0].distance, 4), point, f"{many}, drawn to the law by how sure they are")


def fitted(point: Mapping[str, Value], space: Space) -> dict[str, Value]:
    """A point of another space in this one."""
    found = default_point(space)
    for name, one in space.items():
        value = point.get(name, one.start)
        if one.holds(value):
            found[name] = next((option for option in one.options if option == value), value)  # 64, not the 64.0 of a table
        elif not one.options and isinstance(value, int | float) and math.isfinite(value):
            found[name] = min(max(float(value), one.low), one.high)
    return found


def _best_points(workspace: Workspace, run_id: str, tuned: Mapping[str, float]) -> list[Mapping[str, Value]]:
    """What won a search (the default, where nothing was surely better), then what else was better than the default: from its
    artifact; where that is gone, or never was here, the winner alone is remembered."""
    with contextlib.suppress(MillraceError):
        ref = RunBook(workspace.runs_folder).load(run_id).ref("tune")
        if ref and (won := (details := workspace.store.manifest(ref.key).details).get("best", {}).get("point")):
            limit = details["baseline"].get("dev_loss", math.inf) if details["gain"] > details["noise"] else -math.inf
            others = [top["point"] for top in details["top"] if top["dev_loss"] < limit and top["point"] != won]
            return [won, *others]
    point: dict[str, Value] = {}
    for key, number in tuned.items():
        if key.startswith(POINT):
            name, _, word = key.removeprefix(POINT).partition("=")
            point[name] = word or number
    return [point] if point else []
