"""A rule is tried on a real run: counts on both sides, examples at the line, and nothing that is no rule."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from flows.cli.main import make_app
from pipeline_lib.config.pipeline import PipelineConfig
from pipeline_lib.run import run_plain
from pipeline_lib.workspace.workspace import Workspace


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents of 1 to 40 words (5 bytes each) in two domains; today's rule drops those of fewer than 5 words."""
    folder = tmp_path_factory.mktemp("tryout")
    for domain in ("tales", "notes"):
        rows = [{"text": " ".join(["mill"] * n) + " jane@example.org \u202eabc"} for n in range(1, 41)]
        (folder / f"{domain}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sources = [
        {"name": d, "kind": "files", "path": str(folder / f"{d}.jsonl"), "domain": d, "licence": "mit" if d == "tales" else ""}
        for d in ("tales", "notes")
    ]
    score = {"rules": {"*": "none"}, "extra_rules": {"long": "bytes >= 48"}}
    record = run_plain(
        Workspace.open(folder / "ws"),
        PipelineConfig.model_validate({"ingest": {"sources": sources}, "score": score}),
        until="score",
    )
    assert record.outcome == "completed", record.error
    return folder / "ws"


def millrace(home: Path, *arguments: str) -> Result:
    return CliRunner().invoke(make_app(), ["--home", str(home), *arguments])


def test_counts_and_examples_at_the_line(home: Path) -> None:
    found = json.loads(millrace(home, "rules", "try", "bytes >= 123", "--examples", "2", "--json").output)
    assert (found["documents"], found["of"], found["signal"]) == (80, 80, "bytes")
    for row in found["domains"]:
        assert (row["kept"] + row["dropped"], row["dropped_now"]) == (40, 4)
        assert row["dropped"] - row["newly_dropped"] == 4
    kept, dropped = ([e for e in found["examples"] if e["kept"] is side] for side in (True, False))
    assert {e["value"] for e in kept} == {123.0}
    assert {e["value"] for e in dropped} == {118.0}
    assert all("jane@" not in e["text"] and "[email]" in e["text"] for e in found["examples"])


def test_what_is_shown_is_harmless(home: Path) -> None:
    shown = millrace(home, "rules", "try", "bytes >= 123").output
    assert "Kept, nearest to the line" in shown
    assert "\u202e" not in shown
    assert "jane@" not in shown


@pytest.mark.parametrize(
    "text",
    ["words > 3; DROP TABLE signals", "(SELECT 1) = words", "random() < words", "colour = 1", "read_text('/etc/passwd') = words"],
)
def test_what_is_no_rule_is_refused(home: Path, text: str) -> None:
    assert millrace(home, "rules", "try", text).exit_code == 2


def test_time_is_bounded(home: Path) -> None:
    found = json.loads(millrace(home, "rules", "try", "words > 3", "--seconds", "0", "--json").output)
    assert found["documents"] < found["of"] == 80


def test_statistics_of_the_run(home: Path) -> None:
    found = json.loads(millrace(home, "stats", "--by", "licence", "--json").output)
    assert {(row["name"], row["documents"], row["kept_documents"]) for row in found["groups"]["groups"]} == {
        ("MIT", 40, 36),
        ("", 40, 36),
    }
    assert [(row["rule"], row["failed"], row["only"]) for row in found["all"]["rules"]] == [("long", 8, 8)]
    shown = millrace(home, "stats").output
    assert "tales" in shown
    assert "words" in shown
    assert millrace(home, "stats", "--signal", "nonsense").exit_code == 6
    assert millrace(home, "stats", "--by", "colour").exit_code == 2


def test_every_rule_is_listed(home: Path) -> None:
    rows = json.loads(millrace(home, "rules", "list", "--json").output)
    assert any(row["set"] == "code" and row["keeps"] == "bytes BETWEEN 100 AND 1000000" for row in rows)
