"""Promotion, the action after a run: decide once per (candidate, champion), make the better model the champion, go back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from pipeline_lib.config.pipeline import PipelineConfig
from pipeline_lib.errors import NotFoundError, RefusedError
from pipeline_lib.stages import BY_NAME
from pipeline_lib.validation.compare import forgotten
from pipeline_lib.validation.gate import GATE_VERSION, against_champion, against_chance, against_earlier
from pipeline_lib.workspace.artifact import Artifact, ArtifactRef
from pipeline_lib.workspace.faults import fault_point
from pipeline_lib.workspace.files import read_json, write_json
from pipeline_lib.workspace.identity import fingerprint_of
from pipeline_lib.workspace.lease import lock_of
from pipeline_lib.workspace.resolve import read_champion, write_champion
from pipeline_lib.workspace.runs import RunRecord
from pipeline_lib.workspace.services import Services, now
from pipeline_lib.workspace.stage import execute
from pipeline_lib.workspace.workspace import Workspace

HISTORY = 400  # former champions that are remembered: more than a year of nights


class ChampionChangedError(RefusedError):
    """A verdict is over another champion than the present one: it says nothing."""


def decide(workspace: Workspace, record: RunRecord, *, services: Services | None = None) -> dict[str, Any]:
    """Compare the run's model with the champion on the same items; the first model with chance.

    Each further candidate that is tried against one champion needs more evidence (`gate.level_of`).

    Returns:
        {"outcome": pass | fail | not_enough_evidence | same, "metric", "candidate", "champion", "difference", "reasons"}; the
        same answer for ever for one pair of models, as the candidate was validated, and one set of rules (`gate`). The run that
        the champion is from gets the answer from before its promotion: a kill may have come between that and the run's end.
    """
    train, validated = record.ref("train"), record.ref("validate")
    if train is None or validated is None:
        raise NotFoundError(
            f"run {record.run_id} has no validated model", fix="let it finish: `millrace retry " + record.run_id + "`"
        )
    config = PipelineConfig.model_validate(record.config)
    state = read_champion(workspace)
    champion, previous = state.get("champion") or {}, state.get("previous") or {}
    about = {"run_id": record.run_id, "candidate_model": train.key, "champion_model": champion.get("train", "")}
    if previous.get("rolled_back") and previous["digest"] == train.digest:
        told = f"a person went back from this model on {previous['rolled_back'][:10]}: only a person takes it again"
        return {"outcome": "fail", "metric": config.gate.metric, "reasons": [told], **about}
    decides = {"metric", "min_gain", "rules", "most_contaminated", "lookback_nights"}
    rules = fingerprint_of({**config.gate.model_dump(mode="json", include=decides), "version": GATE_VERSION})
    mine, theirs = validated.digest[:16], _digest(champion)
    others = [_digest(previous), theirs] if in_office(workspace, record) else [theirs]
    paths = [workspace.root / "verdicts" / f"{mine}-{other}-{rules[:8]}.json" for other in others]
    for path in paths:
        if path.exists():
            return dict(read_json(path))
    attempt = 1 + len(_tried(workspace, theirs) - {mine})
    candidate = workspace.store.artifact(validated.key)
    if not champion:
        verdict = against_chance(candidate, config, attempt=attempt)
    elif champion["digest"] == train.digest:
        verdict = {"outcome": "same", "metric": config.gate.metric, "reasons": ["the model is the champion"]}
    else:
        other, learned = _scored(workspace, record, config, champion, services=services)
        verdict = against_champion(candidate, other, config, selection=learned, attempt=attempt)
        verdict["forgotten"] = forgotten(candidate, other)
        verdict = _not_worse_than_earlier(workspace, record, config, verdict, candidate=candidate, services=services)
    verdict |= {"decided": now().isoformat(), **about}
    write_json(paths[-1], verdict)
    return verdict


def in_office(workspace: Workspace, record: RunRecord) -> dict[str, Any]:
    """The champion's entry where it is this run's model and this run brought it there, else {}."""
    champion, train = read_champion(workspace).get("champion") or {}, record.ref("train")
    mine = train is not None and (champion.get("digest"), champion.get("run_id")) == (train.digest, record.run_id)
    return dict(champion) if mine else {}


def _digest(entry: Mapping[str, Any]) -> str:
    """The part of a champion's digest that names a verdict against it."""
    return str(entry.get("digest", "none"))[:16]


def _tried(workspace: Workspace, champion: str) -> set[str]:
    """The candidates that were tried against a champion; one that was judged by several rules is one."""
    verdicts = (workspace.root / "verdicts").glob(f"*-{champion}-*.json")
    return {path.name.partition("-")[0] for path in verdicts if read_json(path)["outcome"] != "same"}


def _scored(
    workspace: Workspace, record: RunRecord, config: PipelineConfig, entry: Mapping[str, Any], *, services: Services | None
) -> tuple[Artifact, Sequence[Path]]:
    """A former or present champion, scored on tonight's items; and what it was trained on."""
    reference = ArtifactRef("train", entry["train"], entry["digest"])
    inputs = {name: ref for name in BY_NAME["validate"].reads if (ref := record.ref(name))} | {"train": reference}
    scored = execute(workspace, BY_NAME["validate"], config, inputs, services=services)
    learned = workspace.store.artifact(entry["select"]).files("selection") if "select" in entry else []
    return workspace.store.artifact(scored.key), learned


def _not_worse_than_earlier(
    workspace: Workspace,
    record: RunRecord,
    config: PipelineConfig,
    verdict: dict[str, Any],
    *,
    candidate: Artifact,
    services: Services | None,
) -> dict[str, Any]:
    """A pass falls when the model is surely worse than the champion of `gate.lookback_nights` ago, on tonight's items."""
    earlier = champion_of(read_champion(workspace), now() - timedelta(days=config.gate.lookback_nights))
    if verdict["outcome"] != "pass" or not config.gate.lookback_nights or not earlier:
        return verdict
    nights = config.gate.lookback_nights
    try:
        other, learned = _scored(workspace, record, config, earlier, services=services)
    except NotFoundError:
        gone = f"the champion of {nights} nights ago is no longer here to compare with"
        return {**verdict, "reasons": [*verdict["reasons"], gone]}
    rules = against_earlier(candidate, other, config, selection=learned)
    lost = [rule["reason"] for rule in rules if rule["outcome"] == "fail"]
    told = [f"against the champion of {nights} nights ago: {reason}" for reason in lost or [rules[0]["reason"]]]
    outcome = "fail" if lost else verdict["outcome"]
    return {**verdict, "outcome": outcome, "earlier_champion": earlier["train"], "reasons": [*verdict["reasons"], *told]}


def champion_of(state: Mapping[str, Any], moment: datetime) -> dict[str, Any]:
    """The champion that was in office at a moment, {} when it is the present one or there was none."""
    before = [entry for entry in state.get("history", []) if entry and datetime.fromisoformat(entry["promoted"]) <= moment]
    present = state.get("champion", {})
    if not before or (present and datetime.fromisoformat(present["promoted"]) <= moment):
        return {}
    return dict(before[-1])


def promote(workspace: Workspace, record: RunRecord, verdict: Mapping[str, Any], *, by: str = "gate") -> dict[str, Any]:
    """Make the run's model the champion; the former one stays as `previous`. `champion.json` is the truth, aliases follow it.

    The former one's entry in `history` says how long its model is compared with (`gate.lookback_nights`): so long it stays.

    Raises:
        RefusedError: the verdict is no pass and nobody (`by`) took the decision.
        ChampionChangedError: another run's model became the champion after the verdict.
    """
    train = record.ref("train")
    if train is None:
        raise NotFoundError(f"run {record.run_id} has no model")
    if verdict.get("outcome") != "pass" and by == "gate":
        raise RefusedError(
            f"the gate's verdict is {verdict.get('outcome')!r}", fix=f"`millrace promote {record.run_id} --force` decides over it"
        )
    with lock_of(workspace.lease_path("champion")):
        state = read_champion(workspace)
        former = state.get("champion", {})
        if former.get("digest") == train.digest:
            return state
        if verdict.get("champion_model", former.get("train", "")) != former.get("train", ""):
            raise ChampionChangedError(
                "another model has become the champion since the verdict", fix=f"`millrace promote {record.run_id}` decides anew"
            )
        entry = {
            "digest": train.digest, "run_id": record.run_id, "promoted": now().isoformat(), "by": by,
            **{name: ref.key for name in ("train", "pack", "select") if (ref := record.ref(name))},
            "forgot": verdict.get("forgotten", {}).get("share", 0.0),
        }  # fmt: skip
        fault_point("promote.before_champion")
        history = state.get("history", [])
        if former:
            nights = PipelineConfig.model_validate(record.config).gate.lookback_nights
            history = [*history, {**former, "compared_until": (now() + timedelta(days=nights)).isoformat()}][-HISTORY:]
        state = {"champion": entry, "previous": former, "history": history}
        write_champion(workspace, state)
        fault_point("promote.after_champion")
        return state


def rollback(workspace: Workspace) -> dict[str, Any]:
    """The previous champion comes back; the present one becomes `previous`, and no later run with its model promotes it again.

    Raises:
        NotFoundError: there is no previous champion, or its model is gone.
    """
    with lock_of(workspace.lease_path("champion")):
        state = read_champion(workspace)
        previous = state.get("previous", {})
        if not previous:
            raise NotFoundError("there is no previous champion to go back to")
        workspace.store.manifest(previous["train"])
        back = {name: value for name, value in previous.items() if name != "rolled_back"}
        state = {**state, "champion": back, "previous": {**state["champion"], "rolled_back": now().isoformat()}}
        write_champion(workspace, state)
        return state
