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
        mean_x = sum(x for x, _ in late) / len(late)
        mean_y = sum(y for _, y in late) / len(late)
        fitted = -sum((x - mean_x) * (y - mean_y) for x, y in late) / sum((x - mean_x) ** 2 for x, _ in late)
        slope = min(max(fitted, SLOPE_RANGE[0]), SLOPE_RANGE[1])
        basis = f"slope {slope:.3f} fitted on the search's best trial"
    last_x, last_y = points[-1]
    decades = max(math.log(max(tokens, 1.0)) - last_x, 0.0)
    value = math.exp(last_y - slope * decades)
    spread = LOSS_SPREAD * max(decades / math.log(10), 0.25)
    return Promise(value, value * (1 - spread), value * (1 + spread), "nats/token", f"{basis}; extrapolated")
