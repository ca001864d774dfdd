"""Two nights, a third without news and one that overlaps a run: new files cost work, the champion continues, the gate decides on
tonight's items.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.launch import nightly
from pipeline_lib.config.pipeline import PipelineConfig
from pipeline_lib.corpus import sources
from pipeline_lib.promotion import promote
from pipeline_lib.run import close_run, open_run
from pipeline_lib.workspace.artifact import Artifact
from pipeline_lib.workspace.resolve import read_champion
from pipeline_lib.workspace.runs import RunBook, RunRecord
from pipeline_lib.workspace.workspace import Workspace
from tests.pipeline_toys import made, small, states, write_stories


@pytest.fixture(scope="module")
def nights(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, list[RunRecord], list[dict[str, str]]]:
    """Three nights: two files, one more, nothing new. Records and the champions after each."""
    workspace = Workspace.open(tmp_path_factory.mktemp("nights") / "workspace")
    incoming = workspace.root / "incoming"
    incoming.mkdir()
    config = PipelineConfig.model_validate(
        small(
            name="nightly",
            ingest={"sources": [{"name": "news", "kind": "files", "path": str(incoming / "*.jsonl"), "domain": "stories"}]},
            score={"rules": {"*": "none"}},
            dedup={"threshold": 0.95},
            select={"parent": "previous", "replay_share": 0.3},
            tokenizer={"source": "champion"},
            model={"start": "champion"},
            tune={"trials": 0},
            split={"floor_per_domain": 30},
            validation={"language_tokens": 50_000},  # the gate asks for 20 documents on the test side
            gate={"min_gain": 0.0},
        )
    )
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setattr(sources, "PART_BYTES", 100_000)  # files this small would be read as one part
    records, champions = [], []
    for night in range(3):
        if night == 0:
            write_stories(incoming / "monday-1.jsonl", 150, 1)
            write_stories(incoming / "monday-2.jsonl", 150, 2)
        elif night == 1:
            write_stories(incoming / "tuesday.jsonl", 150, 3)
        record = nightly(config, workspace=workspace)
        assert record is not None
        if night == 0 and record.verdict["decision"] != "promote":  # so small a model is seldom surely above chance
            promote(workspace, record, record.verdict, by="a person")
        records.append(record)
        champions.append(read_champion(workspace)["champion"])
    monkeypatch.undo()
    return workspace, records, champions


def output(workspace: Workspace, record: RunRecord, stage: str) -> Artifact:
    ref = record.ref(stage)
    assert ref is not None
    return workspace.store.artifact(ref.key)


def test_the_first_night_starts_from_nothing(nights: tuple[Workspace, list[RunRecord], list[dict[str, str]]]) -> None:
    workspace, (first, *_), (champion, *_) = nights
    assert first.outcome == "completed"
    assert set(first.resolved.values()) == {"train", "scratch", "none"}
    assert champion["train"] == output(workspace, first, "train").key


def test_the_second_night_works_on_what_is_new(nights: tuple[Workspace, list[RunRecord], list[dict[str, str]]]) -> None:
    workspace, (first, second, _), _ = nights
    assert second.outcome == "completed"
    for stage in ("ingest", "score"):
        before, after = output(workspace, first, stage).manifest, output(workspace, second, stage).manifest
        new = {mark for mark, shard in after.shards.items() if not shard["home"]}
        assert new == after.shards.keys() - before.shards.keys(), stage
        assert len(before.shards) == 2 * len(new), stage  # one file beside two
    chosen = output(workspace, second, "select").metrics
    assert 0 < chosen["new_documents"] <= 150
    assert 0 < chosen["replay_documents"] < 300
    share = chosen["replay_tokens"] / (chosen["replay_tokens"] + chosen["new_tokens"])
    assert 0.2 < share < 0.4
    assert states(second)["suites"] == "reused"


def test_the_second_night_continues_the_champion(nights: tuple[Workspace, list[RunRecord], list[dict[str, str]]]) -> None:
    workspace, (first, second, _), (champion, *_) = nights
    assert (
        output(workspace, first, "pack").details["tokenizer_digest"]
        == output(workspace, second, "pack").details["tokenizer_digest"]
    )
    trained = output(workspace, second, "train")
    assert trained.details["start"] == f"artifact:{champion['train']}#{champion['digest']}"
    last = output(workspace, first, "train").details["dev_loss"]
    assert trained.metrics["first_dev_loss"] == pytest.approx(last, rel=0.1)  # where the first night ended, on a grown dev side
    assert trained.metrics["dev_loss"] < trained.metrics["first_dev_loss"]


def test_the_gate_compares_on_tonight_s_items(nights: tuple[Workspace, list[RunRecord], list[dict[str, str]]]) -> None:
    workspace, (first, second, _), (champion, after, _) = nights
    verdict = second.verdict
    assert verdict["champion_model"] == champion["train"]
    assert verdict["candidate_model"] == output(workspace, second, "train").key
    candidate = output(workspace, second, "validate")
    tonight = {name: candidate.manifest.inputs[name] for name in ("suites", "ingest", "select")}
    (scored,) = [
        manifest
        for key in workspace.store.keys("validate")
        if (manifest := workspace.store.manifest(key)).inputs["train"]["key"] == champion["train"]
        and all(manifest.inputs[name] == tonight[name] for name in tonight)
    ]
    assert scored.key not in {candidate.key, output(workspace, first, "validate").key}
    assert scored.details["scores"]["bits_per_byte"]["value"] == verdict["champion"]["value"]
    assert verdict["candidate"]["value"] < verdict["champion"]["value"]
    assert verdict["difference"]["high"] < 0
    assert (verdict["outcome"], verdict["decision"]) == ("pass", "promote")
    assert after["train"] == verdict["candidate_model"]


def test_the_third_night_ends_as_nothing_new(nights: tuple[Workspace, list[RunRecord], list[dict[str, str]]]) -> None:
    _, (_, second, third), (_, after, last) = nights
    assert third.outcome == "nothing_new"
    assert list(third.stages) == ["suites", "ingest", "score", "dedup", "split", "select"]
    assert set(third.resolved.values()).isdisjoint({"train", "scratch", "none"})
    assert made(third) == ["select"]  # it chose the same, so that its cache is the one of last night
    assert Path(third.report).is_file()
    assert last == after
    assert last["run_id"] == second.run_id


def test_a_night_that_overlaps_a_run_is_skipped(nights: tuple[Workspace, list[RunRecord], list[dict[str, str]]]) -> None:
    workspace, records, _ = nights
    config = PipelineConfig.model_validate(records[0].config)
    going = open_run(workspace, config)  # a run of this process, which lives
    assert nightly(config, workspace=workspace) is None
    close_run(workspace, going, "completed")
    assert len(RunBook(workspace.runs_folder).ids()) == len(records) + 1
