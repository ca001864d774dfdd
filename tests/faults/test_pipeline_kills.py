"""SIGKILL all along the pipeline: the next run continues, makes nothing twice, and ends with the bytes of an undisturbed one."""

from __future__ import annotations

import random
import signal
from pathlib import Path

import pytest

from pipeline_lib.workspace.resolve import read_champion
from pipeline_lib.workspace.runs import RunBook
from pipeline_lib.workspace.verify import verify_all
from pipeline_lib.workspace.workspace import Workspace
from tests.kills import ALONG_THE_LINE, Plan, live, undisturbed
from tests.pipeline_toys import PURE, small_config, states


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return undisturbed(tmp_path_factory.mktemp("undisturbed"), small_config())


def finish(home: Path, plan: Plan) -> None:
    """A plain run to the end, and everything that must hold after it."""
    last = live(home, plan)
    assert last.code == 0, last.said
    workspace = Workspace.open(home)
    assert plan.matches(home) == PURE
    assert sorted(workspace.store.keys()) == plan.keys  # one generation of everything: nothing that was finished was made again
    assert verify_all(workspace, full=True) == []
    assert read_champion(workspace)["champion"]["digest"] == plan.champion
    assert read_champion(workspace)["previous"] == {}  # promoted once
    records = list(RunBook(workspace.runs_folder).all())
    assert {record.outcome for record in records[:-1]} <= {"killed", "completed"}  # completed: killed while promoting
    assert records[-1].outcome == "completed"
    assert set(states(records[-1]).values()) <= {"reused", "supplied", "made"}


FIRST = {fault.partition(":")[0]: fault for fault in ALONG_THE_LINE[::-1]}
ONCE_EACH = tuple(fault for fault in ALONG_THE_LINE if fault in FIRST.values())  # every commit point, where it is first tried


@pytest.mark.parametrize("faults", [ONCE_EACH, pytest.param(ALONG_THE_LINE, marks=pytest.mark.slow)], ids=["once", "all"])
def test_kills_at_every_commit_point(tmp_path: Path, plan: Plan, faults: tuple[str, ...]) -> None:
    home = tmp_path / "w"
    for fault in faults:
        life = live(home, plan, fault=fault)
        assert life.code == -signal.SIGKILL, (fault, life.said)
        if (home / "workspace.json").exists():
            assert verify_all(Workspace.open(home), full=True) == [], fault
    finish(home, plan)


def test_kills_at_random_moments(tmp_path: Path, plan: Plan) -> None:
    home, chance = tmp_path / "w", random.Random(2)
    moments = [("", chance.uniform(0.3, 1.5)), ("pack", chance.uniform(0, 0.1)), ("train", chance.uniform(0, 4))]
    for into, seconds in moments:
        life = live(home, plan, seconds=seconds, into=into)
        assert life.code == -signal.SIGKILL, (into, life.said)
    finish(home, plan)
