"""The artifact store behind an fsspec URL: the manifest alone commits, files come when they are needed."""

import fsspec
import pytest
from workspace_toys import COUNT, Config, config, files_of, make

from pipeline_lib.errors import ConfigError, DamagedError, NotFoundError
from pipeline_lib.workspace.workspace import Workspace


@pytest.fixture
def url(tmp_path):
    return f"memory://{tmp_path.name}/store"


@pytest.fixture
def memory():
    return fsspec.filesystem("memory")


@pytest.fixture
def workspace(tmp_path, url):
    return Workspace.open(tmp_path / "here", store_url=url)


def test_what_was_made_here_is_read_elsewhere(tmp_path, url, workspace):
    ref = make(workspace)
    other = Workspace.open(tmp_path / "there", store_url=url)
    again = make(other)
    assert again.reused
    assert again.digest == ref.digest
    assert not list((tmp_path / "there" / "artifacts").rglob("*.txt"))  # reuse fetches nothing
    assert [path.read_text() for path in files_of(other, again, "upper")] == ["ASH", "BIRCH", "CEDAR"]
    assert len(list((tmp_path / "there" / "artifacts").rglob("*.txt"))) == 3  # the table that was asked for
    count = make(other, Config(), COUNT, {"words": again})
    assert count.metrics["total"] == 2 * len("ashbirchcedar")


def test_digests_do_not_depend_on_the_store(tmp_path, workspace):
    assert make(workspace).digest == make(Workspace.open(tmp_path / "local", store_url="")).digest


def test_without_a_manifest_nothing_is_published(workspace, url, memory):
    ref = make(workspace)
    memory.rm_file(f"{workspace.store.base}/{ref.key}/manifest.json")
    assert not workspace.store.has(ref.key)
    assert workspace.store.scrap() == [ref.key]
    assert not make(workspace).reused


def test_growth_refers_to_segments_at_their_home(tmp_path, url, workspace):
    first = make(workspace, config("ash", "birch"))
    other = Workspace.open(tmp_path / "there", store_url=url)
    second = make(other, config("birch", "elm"))
    assert second.metrics["taken_over"] == 1
    assert other.store.manifest(second.key).parent == first.digest
    third = Workspace.open(tmp_path / "third", store_url=url)
    assert [path.read_text() for path in files_of(third, second, "upper")] == ["BIRCH", "ELM"]


@pytest.mark.parametrize("how", ["bytes", "size", "missing"])
def test_damage_at_the_origin(tmp_path, url, workspace, memory, how):
    ref = make(workspace)
    (entry,) = [e for e in workspace.store.manifest(ref.key).files if e.table == "whole"]
    path = f"{workspace.store.base}/{ref.key}/{entry.path}"
    if how == "missing":
        memory.rm_file(path)
    else:
        memory.pipe_file(path, b"X" * (entry.size if how == "bytes" else 3))
    other = Workspace.open(tmp_path / "there", store_url=url)
    with pytest.raises(DamagedError):
        other.store.artifact(ref.key).files("whole")
    assert list(other.store.artifact(ref.key).damages(full=True)) == [entry.path]
    if how != "bytes":  # a reuse looks at sizes
        again = make(other)
        assert not again.reused
        assert again.digest == ref.digest
        assert again.key == ref.key
        assert again.metrics["taken_over"] == 0
        assert len(list(other.quarantine_folder.iterdir())) == 1
    left = [] if how != "bytes" else [entry.path]
    assert list(other.store.artifact(ref.key).damages(full=True)) == left


def test_a_spoilt_mirror_is_fetched_again(workspace):
    ref = make(workspace)
    path = files_of(workspace, ref, "upper")[0]
    path.write_bytes(b"XXX")
    assert workspace.store.artifact(ref.key).damages() == {}
    assert files_of(workspace, ref, "upper")[0].read_bytes() == b"ASH"


def test_an_unknown_key_and_a_wrong_url(tmp_path, workspace):
    with pytest.raises(NotFoundError):
        workspace.store.manifest("words/" + "0" * 32 + ".0")
    with pytest.raises(NotFoundError):
        workspace.store.manifest("../x")
    with pytest.raises(ConfigError, match="not a URL"):
        Workspace.open(tmp_path / "x", store_url="/just/a/path")
    with pytest.raises(ConfigError):
        Workspace.open(tmp_path / "x", store_url="nonsense://bucket")


def test_the_environment_names_the_store(tmp_path, url, monkeypatch):
    monkeypatch.setenv("MILLRACE_STORE", url)
    assert Workspace.open(tmp_path / "w").store_url == url
