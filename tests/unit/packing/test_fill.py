"""The stage fill_gaps: what is lost or damaged comes back bit for bit, and nothing else is touched."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from packing_toy import Toy, rot, run_toy

from pipeline_lib.config.model import FillGapsConfig
from pipeline_lib.errors import DamagedError, StageFailedError
from pipeline_lib.packing import chunk
from pipeline_lib.packing.cache import Cache, Healer
from pipeline_lib.packing.fill import check_cache, fill_cache, intact
from pipeline_lib.packing.manifest import read_manifest
from pipeline_lib.packing.reader import PackedDataset
from pipeline_lib.workspace.files import read_json


def snapshot(folder: Path) -> dict[str, tuple[bytes, int, int]]:
    return {p.name: (p.read_bytes(), p.stat().st_ino, p.stat().st_mtime_ns) for p in sorted(folder.glob("*.arrow"))}


def remove(path: Path) -> None:
    path.unlink()


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [(remove, "missing"), (truncate, "size is"), (flip, "bytes differ")],
    ids=["removed", "truncated", "flipped"],
)
def test_a_damaged_chunk_is_made_again_and_no_other(tmp_path: Path, damage: Callable[[Path], None], reason: str) -> None:
    workspace, before = run_toy(tmp_path)
    folder = workspace.cache_folder / before["fill_gaps"].details["cache"]
    whole = snapshot(folder)
    assert intact(before["fill_gaps"], workspace) == ""
    damage(folder / "train-00002.arrow")
    assert "train-00002" in intact(before["fill_gaps"], workspace)
    _, after = run_toy(tmp_path)
    assert after["pack"].key == before["pack"].key
    filled = after["fill_gaps"]
    assert filled.key != before["fill_gaps"].key
    assert filled.manifest.digest == before["fill_gaps"].manifest.digest
    (event,) = filled.manifest.events
    assert (event["kind"], event["detail"]["chunk"]) == ("chunk_filled", "train-00002")
    assert reason in event["detail"]["reason"]
    now = snapshot(folder)
    assert now["train-00002.arrow"][0] == whole["train-00002.arrow"][0]
    del now["train-00002.arrow"], whole["train-00002.arrow"]
    assert now == whole
    aside = list(workspace.quarantine_folder.glob("cache-*train-00002*/reason.json"))
    assert len(aside) == (0 if damage is remove else 1)
    _, again = run_toy(tmp_path)
    assert again["fill_gaps"].key == filled.key


def test_a_whole_cache_comes_back(tmp_path: Path) -> None:
    workspace, before = run_toy(tmp_path)
    folder = workspace.cache_folder / before["fill_gaps"].details["cache"]
    whole = {name: data for name, (data, _, _) in snapshot(folder).items()}
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    _, after = run_toy(tmp_path)
    assert {name: data for name, (data, _, _) in snapshot(folder).items()} == whole
    assert after["fill_gaps"].metrics["filled"] == len(whole)


def test_a_flip_that_keeps_size_and_time_is_found_by_a_full_check(tmp_path: Path) -> None:
    workspace, made = run_toy(tmp_path)
    folder = workspace.cache_folder / made["fill_gaps"].details["cache"]
    path = folder / "train-00000.arrow"
    rot(path)
    cache = Cache.of(workspace, made["pack"], made["ingest"])
    assert cache.damages() == {}
    assert list(cache.damages(full=True)) == ["train-00000"]
    dataset = PackedDataset(folder, made["fill_gaps"].file("chunks"), "train")
    with pytest.raises(DamagedError, match="bytes differ"):
        dataset[0]


def test_a_chunk_that_would_come_out_otherwise_is_refused(tmp_path: Path) -> None:
    workspace, made = run_toy(tmp_path)
    cache = Cache.of(workspace, made["pack"], made["ingest"])
    changed = tmp_path / "changed.parquet"
    (link,) = cache.links
    recipe = link.recipe
    source = pq.read_table(recipe.documents[0])
    texts = source["text"].to_pylist()
    texts[0] += " drifted"
    index = source.schema.get_field_index("text")
    pq.write_table(source.set_column(index, source.schema.field("text"), pa.array(texts, pa.large_string())), changed)
    drifted = replace(cache, links=(replace(link, recipe=replace(recipe, documents=(changed, *recipe.documents[1:]))),))
    lost = cache.folder / "train-00000.arrow"
    lost.unlink()
    with pytest.raises(StageFailedError, match=r"another content.*texts or code changed"):
        list(drifted.heal(["train-00000"]))
    assert not lost.exists()
    pq.write_table(source.slice(1), changed)
    with pytest.raises(StageFailedError, match="not the ones that were selected"):
        list(drifted.heal(["train-00000"]))


def test_a_chunk_made_again_by_another_library_version_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace, made = run_toy(tmp_path)
    folder, filled = workspace.cache_folder / made["fill_gaps"].details["cache"], made["fill_gaps"]
    calm = PackedDataset.of(workspace, filled, "train")
    expected = [calm[i]["input_ids"].tolist() for i in range(len(calm))]
    path = folder / "train-00001.arrow"
    before = path.read_bytes()
    monkeypatch.setattr(chunk, "LZ4_LEVEL", 9)  # stands for a library that compresses otherwise
    remove(path)
    assert list(fill_cache(workspace, filled)) == ["train-00001"]
    assert path.read_bytes() != before
    assert fill_cache(workspace, filled) == {}
    assert intact(filled, workspace) == ""
    plain = PackedDataset(folder, filled.file("chunks"), "train")
    assert [plain[i]["input_ids"].tolist() for i in range(len(plain))] == expected
    flip(path)
    assert list(fill_cache(workspace, filled)) == ["train-00001"]
    path.write_bytes(before)  # out of a backup
    assert fill_cache(workspace, filled) == {}


def test_a_chunk_that_cannot_be_read_is_put_aside_and_made_again(tmp_path: Path) -> None:
    workspace, made = run_toy(tmp_path)
    folder, filled = workspace.cache_folder / made["fill_gaps"].details["cache"], made["fill_gaps"]
    path = folder / "train-00001.arrow"
    before = path.read_bytes()
    remove(path)
    path.mkdir()
    with pytest.raises(DamagedError, match="cannot be read"):
        list(PackedDataset(folder, filled.file("chunks"), "train").sequences.scan())
    assert len(list(PackedDataset.of(workspace, filled, "train").sequences.scan())) > 1
    assert path.read_bytes() == before


def test_training_heals_what_it_meets(tmp_path: Path) -> None:
    workspace, made = run_toy(tmp_path)
    folder, filled = workspace.cache_folder / made["fill_gaps"].details["cache"], made["fill_gaps"]
    calm = PackedDataset(folder, filled.file("chunks"), "train")
    expected = [calm[i]["input_ids"].tolist() for i in range(len(calm))]
    rot(folder / "train-00000.arrow")
    flip(folder / "train-00001.arrow")
    remove(folder / "train-00002.arrow")
    healing = PackedDataset(folder, filled.file("chunks"), "train", heal=Healer.of(workspace, filled))
    assert [healing[i]["input_ids"].tolist() for i in range(len(healing))] == expected
    assert intact(filled, workspace) == ""
    shutil.rmtree(folder)  # and without a cache every chunk is packed when it is first read
    anew = PackedDataset.of(workspace, filled, "train")
    assert [anew[i]["input_ids"].tolist() for i in range(len(anew))] == expected
    assert set(check_cache(workspace, filled, full=True)) == {"dev-00000", "test-00000"}  # nobody has read them


def test_training_goes_on_without_a_cache_that_can_be_written(tmp_path: Path) -> None:
    workspace, made = run_toy(tmp_path)
    folder, filled = workspace.cache_folder / made["fill_gaps"].details["cache"], made["fill_gaps"]
    calm = PackedDataset.of(workspace, filled, "train")
    expected = [calm[i]["input_ids"].tolist() for i in range(len(calm))]
    shutil.rmtree(folder)
    folder.symlink_to("/proc/self/fdinfo")  # a folder that is there, empty, and takes no file, from root neither
    alone = PackedDataset.of(workspace, filled, "train")
    with pytest.warns(UserWarning, match="it is packed for this process"):
        assert [alone[i]["input_ids"].tolist() for i in range(len(alone))] == expected
    assert not list(folder.glob("*.arrow"))
    folder.unlink()
    assert fill_cache(workspace, filled)  # and with a folder again, the cache is whole again
    assert intact(filled, workspace) == ""


def test_full_is_a_machine_fact(tmp_path: Path) -> None:
    _, one = run_toy(tmp_path)
    _, two = run_toy(tmp_path, Toy(fill_gaps=FillGapsConfig(full=True)))
    assert one["fill_gaps"].key == two["fill_gaps"].key


def test_a_cache_is_checked_where_nothing_can_be_noted(tmp_path: Path) -> None:
    workspace, made = run_toy(tmp_path)
    folder, filled = workspace.cache_folder / made["fill_gaps"].details["cache"], made["fill_gaps"]
    (folder / ".seen.json").unlink()
    (folder / ".seen.json").mkdir()
    flip(folder / "train-00001.arrow")
    assert list(check_cache(workspace, filled, full=False)) == ["train-00001"]


def test_several_that_fill_the_same_chunk_at_once_do_not_disturb_each_other(tmp_path: Path) -> None:
    workspace, made = run_toy(tmp_path)
    cache = Cache.of(workspace, made["pack"], made["ingest"])
    path = cache.folder / "train-00001.arrow"
    whole = path.read_bytes()
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            flip(path)
            together = Barrier(4)
            futures = [pool.submit(lambda wait=together: (wait.wait(), list(cache.heal(["train-00001"])))) for _ in range(4)]
            assert {future.result()[1][0].content_digest for future in futures} == {cache.chunks["train-00001"].content_digest}
            assert path.read_bytes() == whole
    assert read_manifest(cache.folder).damaged == 0


def test_seen_file_that_is_broken_is_not_believed(tmp_path: Path) -> None:
    workspace, made = run_toy(tmp_path)
    folder = workspace.cache_folder / made["fill_gaps"].details["cache"]
    (folder / ".seen.json").write_text("{broken")
    assert intact(made["fill_gaps"], workspace) == ""
    assert len(read_json(folder / ".seen.json")) == made["fill_gaps"].metrics["chunks"]
