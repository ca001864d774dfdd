"""`millrace cache`: what it shows, mends and removes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from packing_toy import Toy, ToyCorpus, doc_id, run_toy
from typer.testing import CliRunner

from flows.cli.main import make_app
from pipeline_lib.packing.manifest import NAME, Listing, append_growth, read_manifest
from pipeline_lib.workspace.artifact import Artifact
from pipeline_lib.workspace.identity import fingerprint_of
from pipeline_lib.workspace.workspace import Workspace


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, dict[str, Artifact]]:
    return run_toy(tmp_path_factory.mktemp("cache"))


def call(workspace: Workspace, *words: str) -> tuple[int, str]:
    done = CliRunner().invoke(make_app(), ["--home", str(workspace.root), "cache", *words])
    return done.exit_code, done.output


def test_status_names_the_baseline_of_its_ratios(made: tuple[Workspace, dict[str, Artifact]]) -> None:
    workspace, found = made
    code, text = call(workspace, "status")
    assert (code, "% below uint16" in text) == (0, True)
    (told,) = json.loads(call(workspace, "status", "--json")[1]).values()
    metrics = found["pack"].metrics
    assert told["bits_per_token"] == round(8 * metrics["size"] / metrics["tokens"], 3)
    for bits, kind in ((16, "uint16"), (32, "uint32"), (64, "int64")):
        assert told[f"smaller_than_{kind}_percent"] == round(100 * (1 - told["bits_per_token"] / bits), 1)
    assert told["bits_per_text_byte"] == round(8 * metrics["size"] / metrics["text_bytes"], 3)


def test_before_the_first_cache_the_way_to_one_is_told(tmp_path: Path) -> None:
    workspace = Workspace.open(tmp_path)
    for words, code in ((("status",), 0), (("show", "0"), 6)):
        ended, text = call(workspace, *words)
        assert (ended, "no cache yet" in text, "run a pipeline to `fill_gaps`" in text) == (code, True, True)


def test_show_gives_every_token_as_training_sees_it(made: tuple[Workspace, dict[str, Artifact]]) -> None:
    workspace, _ = made
    sight = json.loads(call(workspace, "show", "3", "--json")[1])
    tokens = sight["tokens"]
    assert sum(piece["tokens"] for piece in sight["pieces"]) == len(tokens) <= 64
    starts = [i for i in range(len(tokens)) if i == 0 or tokens[i]["piece"] != tokens[i - 1]["piece"]]
    assert [i for i, token in enumerate(tokens) if not token["learned"]] == starts
    assert {token["text"] for token in tokens if token["special"]} == {"<|endoftext|>"}
    code, text = call(workspace, "show", "3", "--tokens")
    assert (code, text.count("⟦")) == (0, sum(token["special"] for token in tokens))
    assert text.count("│") == len(starts) - 1
    code, text = call(workspace, "show", "100000")
    assert (code, "0 … " in text) == (6, True)
    code, text = call(workspace, "show", "0", "--side", "left")
    assert (code, "train, dev or test" in text) == (6, True)


def test_show_spells_characters_of_several_tokens(tmp_path: Path) -> None:
    workspace, found = run_toy(tmp_path, Toy(toy=ToyCorpus(documents=16, words=10, foreign=True)))
    spelled = {}
    for number in range(found["fill_gaps"].details["sequences"]["train"]):
        sight = json.loads(call(workspace, "show", str(number), "--json")[1])
        for place, piece in enumerate(sight["pieces"]):
            text = "".join(token["text"] for token in sight["tokens"] if token["piece"] == place)
            spelled[piece["document"], piece["first_token"]] = text
    assert spelled[doc_id(4).hex(), 0] == "水車小屋 naïve 👍🏽 ок<|endoftext|>"


def test_a_lost_manifest_is_rebuilt_from_the_chunks_and_damage_is_named(made: tuple[Workspace, dict[str, Artifact]]) -> None:
    workspace, found = made
    folder = workspace.cache_folder / found["pack"].details["cache"]
    before = read_manifest(folder).chunks
    (folder / NAME).unlink()
    assert call(workspace, "rebuild")[0] == 0
    assert read_manifest(folder).chunks == before
    victim = folder / "train-00001.arrow"
    whole = victim.read_bytes()
    victim.write_bytes(whole[:-50])
    code, text = call(workspace, "rebuild")
    assert (code, "train-00001" in text) == (4, True)
    assert set(before) - set(read_manifest(folder).chunks) == {"train-00001"}
    assert call(workspace, "verify")[0] == 4
    assert call(workspace, "fill")[0] == 0
    assert victim.read_bytes() == whole
    assert call(workspace, "rebuild")[0] == call(workspace, "verify")[0] == 0


def test_compact_removes_what_nothing_refers_to_and_nothing_else(made: tuple[Workspace, dict[str, Artifact]]) -> None:
    workspace, found = made
    folder = workspace.cache_folder / found["pack"].details["cache"]
    files = {path.name: path.read_bytes() for path in folder.glob("*.arrow")}
    listing = read_manifest(folder).chunks
    for name in ("old", "new"):
        (folder / f".writing-train-00000.arrow-{name}").write_bytes(b"half")
    os.utime(folder / ".writing-train-00000.arrow-old", (0, 0))
    (folder / "train-99999.arrow").write_bytes(b"left over")
    with (folder / NAME).open("ab") as manifest:
        manifest.write(b'{"kind": "chunk", "torn')
    told = json.loads(call(workspace, "compact", "--json")[1])[folder.name]
    assert (told["files"], told["freed_bytes"], told["lines"]) == (2, 13, 1)
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix == ".arrow"} == files
    assert [path.name for path in folder.glob(".writing-*")] == [".writing-train-00000.arrow-new"]  # it may be in the making
    assert read_manifest(folder).chunks == listing
    with workspace.lease(f"pack-{folder.name}", wait=False):
        assert "left alone" in CliRunner().invoke(make_app(), ["--home", str(workspace.root), "cache", "compact"]).output


def test_a_damaged_artifact_is_told_and_does_not_stop_the_others(tmp_path: Path) -> None:
    workspace, found = run_toy(tmp_path, Toy(toy=ToyCorpus(documents=40)))
    _, other = run_toy(tmp_path, Toy(toy=ToyCorpus(documents=40, seed=4)))
    told = workspace.store.place(found["fill_gaps"].key, "manifest.json")
    told.chmod(0o644)
    told.write_bytes(told.read_bytes()[:50])
    name = other["fill_gaps"].details["cache"]
    (workspace.cache_folder / name / "train-00000.arrow").unlink()
    code, text = call(workspace, "fill")
    assert (code, "left out" in text, f"{name}/train-00000: file is missing" in text) == (0, True, True)
    code, text = call(workspace, "verify")
    assert (code, name in text, "1 chunks or lists" in text) == (4, True, True)


def test_lines_of_another_version_are_passed_over_and_a_new_generation_keeps_what_follows_the_cache(tmp_path: Path) -> None:
    workspace, found = run_toy(tmp_path, until="pack")
    folder = workspace.cache_folder / found["pack"].details["cache"]
    before = read_manifest(folder)
    append_growth(folder, {"era": 1, "cache": "later"})
    fields = {"kind": "chunk", "side": "train", "chunk": 0, "of_tomorrow": 1}
    with (folder / NAME).open("ab") as manifest:
        manifest.write(json.dumps({**fields, "digest": fingerprint_of(fields)}).encode() + b"\n")
    now = read_manifest(folder)
    assert (now.chunks, now.damaged, len(now.grown)) == (before.chunks, 1, 1)
    run_toy(tmp_path, until="pack", force=True)
    assert read_manifest(folder) == Listing(before.chunks, now.grown, before.lines + 1, 0)
