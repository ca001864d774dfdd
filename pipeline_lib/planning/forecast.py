"""What a plan promises: numbers with a 90 % interval, and the forecast of the final dev loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

# Run-to-run drift of training speed on one machine, measured: 8–12 %. A calibration of seconds cannot see it.
SPEED_DRIFT = 0.12
# Slope b of log loss over log tokens for small models in the first epochs; a fitted one outside is noise of a short curve.
SLOPE_RANGE = (0.03, 0.30)
USUAL_SLOPE = 0.12
LOSS_SPREAD = 0.10  # half width at a tenfold extrapolation; grows with the decades extrapolated
EARLIER_SPREAD = 0.04  # half width at least, of a loss that earlier runs on the same data tell: seeds and the plan's own changes
OTHER_DATA_SPREAD = 0.15  # … and on other data, whose entropy nobody knows yet; both judged, graded with every run


@dataclass(frozen=True)
class Promise:
    """A forecast and its 90 % interval."""

    value: float
    low: float
    high: float
    unit: str
    basis: str

    def to_json(self) -> dict[str, float | str]:
        """As plain JSON values, numbers to five digits."""
        return {key: float(f"{v:.5g}") if isinstance(v, float) else v for key, v in asdict(self).items()}


def widened(value: float, relative_low: float, relative_high: float) -> tuple[float, float]:
    """The speed interval of a calibration (relative to 1), widened by `SPEED_DRIFT`, around `value`."""
    return value * max(relative_low * (1 - SPEED_DRIFT), 0.05), value * relative_high * (1 + SPEED_DRIFT)


@dataclass(frozen=True)
class Earlier:
    """How earlier trainings of the same model ended: (tokens seen, final dev loss), and whether their data is this run's."""

    ends: tuple[tuple[float, float], ...]
    same_data: bool


def forecast_from(earlier: Earlier, tokens: float) -> Promise | None:
    """The final dev loss after `tokens`, from how earlier trainings of the same model ended.

    A power law through their ends, anchored at the one with the most similar number of tokens; the slope is fitted where at least
    three ends of different length tell it, kept in `SLOPE_RANGE`. All of them are annealed: the last decay's fall is in it.
    None without an end.
    """
    points = sorted((math.log(t), math.log(loss)) for t, loss in earlier.ends if t > 0 and loss > 0 and math.isfinite(loss))
    if not points:
        return None
    x = math.log(max(tokens, 1.0))
    fitted = _slope(points) if len({at for at, _ in points}) >= 3 else None
    slope = USUAL_SLOPE if fitted is None else fitted
    near_x, near_y = min(reversed(points), key=lambda point: abs(point[0] - x))
    value, decades = math.exp(near_y - slope * (x - near_x)), abs(x - near_x) / math.log(10)
    least = EARLIER_SPREAD if earlier.same_data else OTHER_DATA_SPREAD
    spread = max(LOSS_SPREAD * decades, least)
    runs, whose = f"{len(points)} earlier run{'s' if len(points) > 1 else ''}", "this" if earlier.same_data else "other"
    basis = f"{runs} of this model on {whose} data; slope {slope:.3f}, {'usual' if fitted is None else 'fitted'}"
    return Promise(value, value * (1 - spread), value * (1 + spread), "nats/token", basis)


def _slope(points: Sequence[tuple[float, float]]) -> float:
    """Least squares through (log tokens, log loss), its sign turned, within `SLOPE_RANGE`."""
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    fitted = -sum((x - mean_x) * (y - mean_y) for x, y in points) / sum((x - mean_x) ** 2 for x, _ in points)
    return min(max(fitted, SLOPE_RANGE[0]), SLOPE_RANGE[1])


def forecast_loss(curve: Sequence[tuple[float, float]], tokens: float) -> Promise | None:
    """The dev loss after `tokens`, from a trial's curve of (tokens, dev loss).

    A power law through the curve's last half, its slope kept in `SLOPE_RANGE`; with fewer than three points the usual slope.
    None for an empty curve.
    """
    points = [(math.log(t), math.log(loss)) for t, loss in curve if t > 0 and loss > 0 and math.isfinite(loss)]
    if not points:
        return None
    late = points[len(points) // 2 :] if len(points) >= 4 else points
    slope, basis = USUAL_SLOPE, f"usual slope {USUAL_SLOPE:g} from the search's best trial"
    if len(late) >= 3:
        slope = _slope(late)
        basis = f"slope {slope:.3f} fitted on the search's best trial"
    last_x, last_y = points[-1]
    decades = max(math.log(max(tokens, 1.0)) - last_x, 0.0)
    value = math.exp(last_y - slope * decades)
    spread = LOSS_SPREAD * max(decades / math.log(10), 0.25)
    return Promise(value, value * (1 - spread), value * (1 + spread), "nats/token", f"{basis}; extrapolated")
