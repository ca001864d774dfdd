"""Who wins: pure arithmetic over the record of a search."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline_lib.tuning.study import Entry

# A gain up to this may be luck of the seed where no seed was repeated: the default stays. Judged.
SEED_NOISE = 0.005
LEAST_NOISE = 0.001  # of the loss: a standard deviation that a few repeats show to be smaller is believed to be this
SURE = 0.9  # one-sided


def finished(entries: Sequence[Entry]) -> list[Entry]:
    """Trials of the search that were read to the end, repeats left out."""
    return [one for one in entries if one["result"].get("state") == "complete" and one["kind"] != "repeat"]


def best_of(entries: Sequence[Entry]) -> Entry | None:
    """The trial with the least dev loss."""
    return min(finished(entries), key=lambda one: (one["result"]["dev_loss"], one["number"]), default=None)


def baseline_of(entries: Sequence[Entry]) -> Entry | None:
    """The default, if it was read to the end."""
    return next((one for one in finished(entries) if one["kind"] == "baseline"), None)


def repeated_losses(entries: Sequence[Entry], number: int) -> list[float]:
    """Dev losses of a trial's repeats with other seeds."""
    told = [one for one in entries if one["kind"] == "repeat" and one["notes"]["seed_of"] == number]
    return [one["result"]["dev_loss"] for one in told if one["result"].get("state") == "complete"]


def compare(entries: Sequence[Entry]) -> dict[str, Any]:
    """The best point against the default.

    With repeats, the best point counts by its new seeds only (its first one was picked for being good), the default by all, and
    the difference must exceed Student's one-sided 90 % bound of its error, with the spread pooled over both.

    Returns:
        winner (number, None when nothing was read to the end), gain (share of the default's loss), noise (what a gain must
        exceed), seeds (losses of each), sure, why.
    """
    best, base = best_of(entries), baseline_of(entries)
    if best is None:
        failed = [one for one in entries if one["result"].get("state") in ("failed", "refused")]
        cause, times = Counter(str(one["result"]["error"]) for one in failed).most_common(1)[0] if failed else ("no trial", 0)
        why = f"all {len(failed)} trials failed, {times} of them with: {cause}; the default values stay"
        return {"winner": None, "gain": 0.0, "noise": 0.0, "seeds": {}, "sure": False, "why": why}
    if base is None:
        why = "the baseline failed, the best of the others wins"
        return {"winner": best["number"], "gain": 0.0, "noise": 0.0, "seeds": {}, "sure": False, "why": why}
    if best["number"] == base["number"]:
        why = "nothing was better than the baseline"
        return {"winner": base["number"], "gain": 0.0, "noise": SEED_NOISE, "seeds": {}, "sure": False, "why": why}
    fresh, again = repeated_losses(entries, best["number"]), repeated_losses(entries, base["number"])
    first, default = best["result"]["dev_loss"], [base["result"]["dev_loss"], *again]
    middle = statistics.fmean(default)
    gain = (middle - statistics.fmean(fresh or [first])) / middle
    noise, how = SEED_NOISE, "assumed, no seed was repeated"
    if fresh and again:
        noise = _bound(default, fresh, [first, *fresh]) / middle
        how = f"{len(default)} and {len(fresh)} seeds"
    sure = gain > noise
    words = "more than luck" if sure else "within it, the default stays"
    return {
        "winner": (best if sure else base)["number"], "gain": gain, "noise": noise, "sure": sure,
        "seeds": {"default": default, "best": [first, *fresh]},
        "why": f"the best trial is {gain:.2%} better than the baseline; luck of the seed is up to {noise:.2%} ({how}): {words}",
    }  # fmt: skip


def _bound(default: Sequence[float], fresh: Sequence[float], best: Sequence[float]) -> float:
    from scipy.special import stdtrit  # scipy.stats takes a quarter of a second to import

    freedom = len(default) + len(best) - 2
    squares = sum((x - statistics.fmean(group)) ** 2 for group in (default, best) for x in group)
    spread = max(math.sqrt(squares / freedom), LEAST_NOISE * statistics.fmean(default))
    return float(stdtrit(freedom, SURE)) * spread * math.sqrt(1 / len(default) + 1 / len(fresh))


def front(entries: Sequence[Entry], objectives: Sequence[str]) -> dict[str, Any]:
    """The Pareto front of several objectives and a recommended point: the one nearest to the best of each, when every
    objective is scaled to 0 (best of the front) … 1 (worst).

    Returns:
        points ({number, values}), recommended (number), why; {} without a finished trial.
    """
    done = {one["number"]: one["result"]["values"] for one in finished(entries)}
    best = [
        number
        for number, mine in done.items()
        if not any(
            all(a <= b for a, b in zip(other, mine, strict=True)) and tuple(other) != tuple(mine) for other in done.values()
        )
    ]
    if not best:
        return {}
    low = [min(done[number][i] for number in best) for i in range(len(objectives))]
    high = [max(done[number][i] for number in best) for i in range(len(objectives))]

    def away(number: int) -> float:
        return math.sqrt(sum(((v - a) / (b - a) if b > a else 0.0) ** 2 for v, a, b in zip(done[number], low, high, strict=True)))

    recommended = min(best, key=lambda number: (away(number), number))
    behind = [
        f"{name} {value / least - 1:.1%} above the least" if least else f"{name} {value:.4g}"
        for name, value, least in zip(objectives, done[recommended], low, strict=True)
    ]
    why = f"trial {recommended} is nearest to the best of all {len(objectives)} objectives: {', '.join(behind)}"
    return {
        "points": [{"number": number, "values": dict(zip(objectives, done[number], strict=True))} for number in sorted(best)],
        "recommended": recommended, "why": why,
    }  # fmt: skip


def worth_of_warm_start(entries: Sequence[Entry], past: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the points of past searches brought: each against the default at the furthest rung that both were read at.

    Returns:
        points (`past` with trial, dev_loss and gain), and words.
    """
    warm = [one for one in entries if one["kind"] == "warm"]
    base = next((one for one in entries if one["kind"] == "baseline"), None)
    if not warm or base is None:
        return {"points": [], "words": "no similar past search is known"}
    known = {reading["rung"]: reading["dev_loss"] for reading in base["readings"]}
    points = []
    for one in warm:
        told: dict[str, Any] = {
            **next((p for p in past if p["point"] == one["point"]), {"point": one["point"]}),
            "trial": one["number"],
        }
        both = [r for r in one["readings"] if r["dev_loss"] is not None and known.get(r["rung"]) is not None]
        if both:
            told |= {"dev_loss": both[-1]["dev_loss"], "gain": 1 - both[-1]["dev_loss"] / known[both[-1]["rung"]]}
        points.append(told)
    best = best_of(entries)
    gains = [point["gain"] for point in points if "gain" in point]
    words = (
        f"{len(points)} points of past searches: the best is {max(gains):+.2%} against the default" if gains else "they failed"
    )
    if best is not None and best["kind"] == "warm":
        words += "; nothing that was searched afterwards was better"
    return {"points": points, "words": words}
