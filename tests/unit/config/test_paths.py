"""Configured paths stay inside the allowed folders, whatever way they take."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from pipeline_lib.config.data import IngestConfig, SourceConfig
from pipeline_lib.config.load import check_secrets, load_config
from pipeline_lib.config.paths import allow, allowed_roots, check_paths, local_folders
from pipeline_lib.config.pipeline import PipelineConfig
from pipeline_lib.errors import ConfigError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with data in it and secrets beside it."""
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    for place in (inside / "data", outside):
        place.mkdir(parents=True)
    (outside / "secret.txt").write_text("secret")
    (inside / "link").symlink_to(outside)
    monkeypatch.chdir(inside)
    monkeypatch.setenv("MILLRACE_HOME", str(inside / "workspace"))
    monkeypatch.delenv("MILLRACE_ALLOWED_ROOTS", raising=False)
    return inside


def with_source(path: str) -> PipelineConfig:
    return PipelineConfig(ingest=IngestConfig(sources=[SourceConfig(kind="files", path=path)]))


@pytest.mark.parametrize(
    "path",
    ["data", "data/*.jsonl", "data/**/*.txt", "./data/../data/x", "s3://bucket/key", "https://host/x.jsonl", "memory://x",
     "zip://*.csv::https://host/x.zip", "simplecache::s3://bucket/key", "file://data", "workspace/x"],
)  # fmt: skip
def test_allowed(folder: Path, path: str) -> None:
    text = path.replace("file://", f"file://{folder}/")
    check_paths(with_source(text), allowed_roots(None))


@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", "../outside/secret.txt", "link/secret.txt", "data/*/../../../outside/*", "~/x", "file:///etc/passwd",
     "local:///etc/passwd", "zip://x::/etc/secret.zip", "simplecache::file:///etc/passwd", "FILE:///etc/passwd", "/*/passwd",
     "reference://x", "git:///etc", "dir::/etc"],
)  # fmt: skip
def test_refused(folder: Path, path: str) -> None:
    with pytest.raises(ConfigError, match=r"ingest\.sources\.0\.path"):
        check_paths(with_source(path), allowed_roots(None))


@pytest.mark.parametrize(
    "override",
    ["model.start=/etc", "tokenizer.source=../outside", "suites.paths=[/etc/passwd]", "execution.extensions=[../outside/x.py]"],
)
def test_every_path_field_is_checked(folder: Path, override: str) -> None:
    with pytest.raises(ConfigError, match="outside the allowed folders"):
        load_config(None, [override])


@pytest.mark.parametrize(
    "uri",
    ["sqlite:////etc/runs.db", "sqlite:///../outside/runs.db", "sqlite+pysqlite:////etc/x.db", "SQLITE:////etc/x.db",
     "sqlite:///file:/etc/x.db?uri=true", "sqlite:///file://localhost/etc/x.db?uri=true", "sqlite:///file:%2Fetc/x.db?uri=true",
     "file:///etc/runs", "file:/etc/runs", "FILE:///etc/runs", "/etc/runs", "../outside/runs", "link/runs"],
)  # fmt: skip
def test_the_tracking_server_is_no_way_out(folder: Path, uri: str) -> None:
    config = PipelineConfig.model_validate({"tracking": {"uri": uri}})
    with pytest.raises(ConfigError, match=r"tracking\.uri"):
        check_paths(config, allowed_roots(None))


@pytest.mark.parametrize(
    "uri",
    ["", "http://127.0.0.1:5000", "https://host/mlflow", "sqlite:///runs.db", "sqlite:///{here}/workspace/db/mlflow.db",
     "postgresql+psycopg2://host/runs", "databricks", "file://{here}/runs", "{here}/runs"],
)  # fmt: skip
def test_tracking_servers_that_are_taken(folder: Path, uri: str) -> None:
    config = PipelineConfig.model_validate({"tracking": {"uri": uri.format(here=folder)}})
    check_paths(config, allowed_roots(None))


def test_words_references_and_module_names_are_no_paths(folder: Path) -> None:
    config = load_config(None, ["model.start=champion", "tokenizer.source=champion", "execution.extensions=[a.b]"])
    assert (config.model.start, config.execution.extensions) == ("champion", ["a.b"])
    resolved = load_config(None, ["model.start=artifact:train/ab.0#cd"])
    assert resolved.model.start == "artifact:train/ab.0#cd"


def test_paths_count_from_the_folder_of_the_yaml(folder: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "pipelines"
    elsewhere.mkdir()
    file = elsewhere / "p.yaml"
    file.write_text("ingest: {sources: [{kind: files, path: data/*.txt}]}\nmodel: {start: base}\n")
    config = load_config(file, ["model.start=mine"])
    assert config.ingest.sources[0].path == str(elsewhere / "data/*.txt")
    assert config.model.start == str(folder / "mine")
    file.write_text("ingest: {sources: [{kind: files, path: ../outside/secret.txt}]}\n")
    with pytest.raises(ConfigError, match=r"p\.yaml:1: ingest\.sources\.0\.path.*outside the allowed folders"):
        load_config(file)


def test_the_operator_can_allow_more(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = with_source(str(tmp_path / "outside" / "*.txt"))
    with pytest.raises(ConfigError):
        check_paths(config, allowed_roots(None))
    assert local_folders(config) == [tmp_path / "outside"]
    monkeypatch.setenv("MILLRACE_ALLOWED_ROOTS", "/nowhere")
    allow(local_folders(config))
    check_paths(config, allowed_roots(None))


@pytest.mark.parametrize(
    ("uri", "refused"),
    [
        ("http://me:secret@host", True),
        ("https://token@host/x", True),
        ("https://host/x?token=abc", True),
        ("https://host/x?X-Amz-Signature=1", True),
        ("https://host/x?page=2", False),
        ("https://host/x", False),
    ],
)
def test_a_form_that_holds_a_secret_is_refused(uri: str, refused: bool) -> None:
    config = PipelineConfig.model_validate({"tracking": {"uri": uri}})
    with pytest.raises(ConfigError, match=r"tracking\.uri: holds a password") if refused else contextlib.nullcontext():
        check_secrets(config)
