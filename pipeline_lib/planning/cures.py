"""What cured a trouble in runs like this one: where a recovery's ladder begins. The policy table stays what decides."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline_lib.config.recovery import LADDER_ENDS, Policy
from pipeline_lib.memory.frame import TableFrame, believed
from pipeline_lib.memory.recall import nearest_in

LOOKED_AT = 3  # nearest runs that got over a trouble; the mildest of what cured it there is where the ladder begins
FAR = 1.0  # standard deviations: what helped further away tells nothing
# The trouble comes from the model, its optimizer and its data, not from the machine.
COMPARED = ("family", "width", "depth", "parameters", "vocabulary_size", "sequence_length", "optimizer")
_POLICY = re.compile(r'"policy": "(\w+)"')


def known_cures(table: pa.Table, asked: Mapping[str, float | str], policies: Sequence[Policy]) -> dict[str, dict[str, Any]]:
    """Signals whose ladder begins further up, since the rungs before did not help in runs like this one.

    Args:
        table: of the memory (`record.SCHEMA`).
        asked: features of this training.
        policies: the table in effect; a rung that is not in it, or never acts, is no cure here.

    Returns:
        {signal: {"begin": name of a row, "passed_over": [names of rows], "run": whose cure it was}}; nothing for a signal whose
        first rung was enough there, or that no run like this one had.
    """
    if not len(table):
        return {}
    ended = pc.and_(pc.equal(table["outcome"], "completed"), believed(table))
    table = table.filter(pc.and_(ended, pc.greater(pc.list_value_length(table["failures"]), 0)))
    wanted = {name: asked[name] for name in COMPARED if name in asked}
    found: dict[str, dict[str, Any]] = {}
    for signal in dict.fromkeys(policy.signal for policy in policies if policy.action == "roll_back"):
        rungs = [p.name for p in policies if p.signal == signal and p.action not in LADDER_ENDS and p.at_most != 0]
        rows = zip(table["run_id"].to_pylist(), table["failures"].to_pylist(), strict=True)
        cured = {run_id: name for run_id, failures in rows if (name := _cure(failures, signal)) in rungs}
        those = TableFrame(table.filter(pc.is_in(table["run_id"], pa.array(list(cured), pa.string()))))
        like = [near.run_id for near in nearest_in(those, wanted, LOOKED_AT) if near.distance <= FAR]
        if like:
            run_id = min(like, key=lambda one: rungs.index(cured[one]))  # of equal ones the nearest
            at = rungs.index(cured[run_id])
            if at:
                found[signal] = {"begin": rungs[at], "passed_over": rungs[:at], "run": run_id}
    return found


def _cure(failures: Sequence[Mapping[str, Any]], signal: str) -> str:
    """The row of the policy table that was enough; "" where none was, or its name is not known."""
    told = next((one["detail"] or "" for one in failures if one["signal"] == signal and one["cured"]), "")
    named = _POLICY.search(told)
    return named[1] if named else ""
