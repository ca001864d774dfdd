"""What one model forgot of what another one knew: by task, source, domain, fact and item."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline_lib.config.data import SelectConfig
from pipeline_lib.config.pipeline import PipelineConfig
from pipeline_lib.errors import NotFoundError
from pipeline_lib.tables.schemas import DOCUMENTS, SCORES
from pipeline_lib.validation.compare import forgetting, forgotten, regressions
from pipeline_lib.validation.items import Item, items_table
from pipeline_lib.workspace.artifact import Artifact
from pipeline_lib.workspace.resolve import resolve, write_champion
from pipeline_lib.workspace.workspace import Workspace
from tests.published import publish

FACTS = 40
ITEMS = [
    Item("earth", f"{relation}-{n}-{wording}", "choice", f"{relation} {n} {wording}?", (" a", " b"), 0, f"geo/{relation}",
         fact=f"{relation}-{n}", source=f"table of {relation}: {n}")
    for relation in ("capital", "area") for n in range(FACTS) for wording in (0, 1)
]  # fmt: skip
SOURCES = ("books", "web")


def answered(home: Path, name: str, wrong: set[str], bits: dict[str, float]) -> Artifact:
    rows = [
        {"suite": "earth", "task": i.category, "item": i.item, "form": "choice", "variant": "", "fact": i.fact, "weight": 1.0,
         "score": float(i.fact not in wrong), "chosen": int(i.fact in wrong), "confidence": 0.9}
        for i in ITEMS
    ]  # fmt: skip
    rows += [
        {"suite": "language", "task": "prose", "item": n.to_bytes(16, "big").hex(), "variant": "", "weight": 100.0,
         "score": bits[SOURCES[n % 2]] * (100 + n % 9)}
        for n in range(60)
    ]  # fmt: skip
    workspace = Workspace.open(home / name)
    return workspace.store.artifact(publish(workspace, "validate", {"scores": pa.Table.from_pylist(rows, schema=SCORES)}).key)


@pytest.fixture
def models(tmp_path: Path) -> tuple[Artifact, Artifact, Artifact, list[Path]]:
    lost = {f"capital-{n}" for n in range(0, FACTS, 2)}
    now = answered(tmp_path, "now", lost | {"area-1"}, {"books": 1.1, "web": 0.9})
    before = answered(tmp_path, "before", {"area-2"}, {"books": 1.0, "web": 1.0})
    workspace = Workspace.open(tmp_path / "w")
    suites = workspace.store.artifact(publish(workspace, "suites", {"suite_items": items_table(ITEMS)}).key)
    documents = [{"doc_id": n.to_bytes(16, "big"), "source": SOURCES[n % 2], "text": "x"} for n in range(60)]
    ingest = workspace.store.artifact(
        publish(workspace, "ingest", {"documents": pa.Table.from_pylist(documents, schema=DOCUMENTS)}).key
    )
    return now, before, suites, ingest.files("documents")


def test_losses_stand_first_by_every_grouping(models: tuple[Artifact, Artifact, Artifact, list[Path]]) -> None:
    now, before, suites, documents = models
    tasks = forgetting(now, before)
    assert {(row["suite"], row["task"]) for row in tasks} == {
        ("earth", "geo/capital"), ("language", "prose"), ("earth", "geo/area"),
    }  # fmt: skip
    assert [row["worse"] for row in tasks] == [True, False, False]
    assert tasks[0]["task"] == "geo/capital"
    assert (tasks[0]["gain"], tasks[0]["lost"], tasks[0]["won"]) == (-0.5, FACTS, 0)
    assert tasks[0]["change"]["n"] == FACTS, "two wordings are one fact"
    sources = {row["source"]: row for row in forgetting(now, before, by="source", suites=suites, documents=documents)}
    assert set(sources) == {"books", "web", "table of capital", "table of area"}
    assert sources["books"]["worse"]
    assert sources["books"]["gain"] == pytest.approx(-0.1 * np.mean([100 + n % 9 for n in range(0, 60, 2)]) / 100, rel=0.02)
    assert sources["web"]["gain"] > 0
    (earth,) = [row for row in forgetting(now, before, by="domain") if row["suite"] == "earth"]
    assert (earth["domain"], earth["items"], earth["lost"], earth["won"]) == ("geo", 4 * FACTS, FACTS + 2, 2)
    facts = [row for row in forgetting(now, before, by="fact") if row["suite"] == "earth"]
    assert {row["fact"] for row in facts if row["gain"] < 0} == {*(f"capital-{n}" for n in range(0, FACTS, 2)), "area-1"}
    assert facts[-1]["fact"] == "area-2"
    assert len([row for row in forgetting(now, before, by="item") if row["gain"] == -1]) == FACTS + 2
    assert len(regressions(now, before, suites, limit=1000)) == FACTS + 2
    assert forgotten(now, before) == {"share": round(1 / 3, 4), "tasks": 3, "worse": ["earth/geo/capital"]}
    assert forgotten(before, before)["share"] == 0


def test_models_that_were_asked_other_things_are_not_compared(tmp_path: Path, models: tuple[Artifact, ...]) -> None:
    workspace = Workspace.open(tmp_path / "other")
    rows = [{"suite": "zen", "task": "zen", "item": "1", "variant": "", "score": 1.0, "weight": 1.0}]
    other = workspace.store.artifact(publish(workspace, "validate", {"scores": pa.Table.from_pylist(rows, schema=SCORES)}).key)
    with pytest.raises(NotFoundError, match="asked nothing in common"):
        forgetting(models[0], other)


def test_what_was_forgotten_raises_the_replayed_share_within_bounds(tmp_path: Path) -> None:
    workspace = Workspace.open(tmp_path)
    entry = {"train": "train/x.0", "digest": "x", "run_id": "r", "promoted": "2026-01-01T00:00:00+00:00", "by": "gate"}
    for forgot, most, share in ((0.0, 0.5, 0.3), (0.1, 0.5, 0.38), (0.25, 0.5, 0.5), (1.0, 0.5, 0.5), (1.0, 0.0, 0.3)):
        write_champion(workspace, {"champion": {**entry, "forgot": forgot}})
        config = PipelineConfig(select=SelectConfig(parent="previous", replay_share=0.3, replay_most=most))
        resolved, told = resolve(config, workspace)
        assert resolved.select.replay_share == share
        assert told.get("select.replay_share", "") == ("" if share == 0.3 else str(share))
    afresh = PipelineConfig(select=SelectConfig(replay_share=0.3, replay_most=0.5))
    assert resolve(afresh, workspace)[0].select.replay_share == 0.3
