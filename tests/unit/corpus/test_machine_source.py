from __future__ import annotations

import sys
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from ingest_toy import table

from pipeline_lib.config.pipeline import PipelineConfig
from pipeline_lib.corpus import machine
from pipeline_lib.corpus.ingest import read_part
from pipeline_lib.corpus.machine_text import EXTRACT
from pipeline_lib.corpus.sources import list_files, parts
from pipeline_lib.stages import BY_NAME
from pipeline_lib.workspace.artifact import Artifact
from pipeline_lib.workspace.stage import execute
from pipeline_lib.workspace.workspace import Workspace

SMALL = {"ingest": {"sources": [{"name": "machine", "max_mb": 2.0}]}}
_opened: list[str] = []
_watching = False


def _watch(event: str, arguments: tuple[object, ...]) -> None:
    if _watching and event == "open" and isinstance(arguments[0], str):
        _opened.append(arguments[0])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    workspace = Workspace.open(tmp_path_factory.mktemp("machine"))
    return workspace.store.artifact(execute(workspace, BY_NAME["ingest"], PipelineConfig.model_validate(SMALL), {}).key)


def test_several_domains_within_the_budget(made: Artifact) -> None:
    documents = table(made, "documents")
    size = Counter[str]()
    for row in documents.select(["domain", "text"]).to_pylist():
        size[row["domain"]] += len(row["text"].encode())
    assert set(size) == {"code", "docs", "descriptions", "licence"}
    assert 1_200_000 < sum(size.values()) <= 2_000_000
    assert min(size.values()) > 200_000
    assert made.metrics["quarantined"] < 0.05 * len(documents)


def test_licences_repeat_each_other_and_have_dates(made: Artifact) -> None:
    rows = [row for row in table(made, "documents").to_pylist() if row["domain"] == "licence"]
    groups = defaultdict(list)
    for row in rows:
        groups[row["text_hash"]].append(row["doc_id"])
    assert max(len(group) for group in groups.values()) > 1
    assert any(row["created_at"] for row in rows)
    assert any(row["licence"] in {"MIT", "BSD-3-Clause", "Apache-2.0"} for row in rows)


def test_nothing_outside_is_opened(tmp_path: Path) -> None:
    global _watching  # noqa: PLW0603
    source = PipelineConfig.model_validate(SMALL).ingest.sources[0]
    sys.addaudithook(_watch)
    _watching = True
    try:
        files = list_files(source, 1)
        for number, part in enumerate(parts(source, files, PipelineConfig().ingest)):
            (tmp_path / str(number)).mkdir()
            read_part(part, tmp_path / str(number))
    finally:
        _watching = False
    roots = (*machine.allowed_roots(), tmp_path.resolve())
    read = [Path(name).resolve() for name in _opened]
    assert len(read) > len(files) > 50
    code = Path(machine.__file__).parents[1]  # numba's cache of the kernels
    assert [path for path in read if not any(path.is_relative_to(root) for root in (*roots, code))] == []
    assert all(Path(file.path).resolve() == Path(file.path) for file in files)


def test_links_out_are_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site"
    info = package / "toy-1.dist-info"
    info.mkdir(parents=True)
    (tmp_path / "secret.md").write_text("secret " * 100)
    (package / "toy").mkdir()
    (package / "toy" / "page.md").write_text("page " * 100)
    (package / "toy" / "link.md").symlink_to(tmp_path / "secret.md")
    (info / "METADATA").write_text("Name: toy\nLicense-Expression: MIT\n\nA toy that is described.\n")
    listed = ["toy/page.md", "toy/link.md", "../secret.md", str(tmp_path / "secret.md"), "toy-1.dist-info/METADATA"]
    (info / "RECORD").write_text("".join(f"{name},,\n" for name in listed))
    (tmp_path / "stdlib").mkdir()
    monkeypatch.setattr(machine, "allowed_roots", lambda: (tmp_path / "stdlib", package))
    found = {file.name: file.licence for file in machine.machine_files(1_000_000)}
    assert found == {"docs/packages/toy/page.md": "MIT", "descriptions/packages/toy-1.dist-info/METADATA": "MIT"}


@pytest.mark.parametrize(
    ("metadata", "licence"),
    [
        ("License-Expression: Apache-2.0 OR MIT\n", "Apache-2.0 OR MIT"),
        ("Classifier: License :: OSI Approved :: BSD License\n", "BSD-3-Clause"),
        ("Classifier: License :: OSI Approved :: MIT License\nClassifier: License :: OSI Approved :: BSD License\n", ""),
        ("License: see the file\n", ""),
        ("Name: x\n\nLicense-Expression: MIT\n", ""),
    ],
)
def test_stated_licences(metadata: str, licence: str) -> None:
    assert machine._spdx(metadata) == licence


def test_what_files_say() -> None:
    code = b'"""Module."""\nclass A:\n    """Of A."""\n    def f(self):\n        """Of f."""\n'
    assert EXTRACT["docstrings"](code) == (b"Module.\n\nA\n\nOf A.\n\nA.f\n\nOf f.", "")
    with pytest.raises(ValueError, match="not parsable"):
        EXTRACT["docstrings"](b"def (:")
    assert EXTRACT["licence"](b"Copyright (c) 2009-2014, A\nCopyright 2011 B")[1] == "2014"
    assert EXTRACT["licence"](b"no year")[1] == ""
    body = b"Name: x\n\nText of 2044-01-01.\n## 1.2.0 (2024-03-01)\n1.1.0 - 2023-01-01\n"
    assert EXTRACT["description"](body) == (body.partition(b"\n\n")[2], "2024-03-01")
