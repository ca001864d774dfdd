import json
from pathlib import Path

from typer.testing import CliRunner

from flows.cli.main import make_app
from pipeline_lib.config.recovery import POLICIES


def policies(tmp_path: Path, *arguments: str) -> str:
    done = CliRunner().invoke(make_app(), ["--home", str(tmp_path), "policies", *arguments])
    assert done.exit_code == 0, done.output
    return done.output


def test_the_table_is_shown_with_what_a_configuration_changes(tmp_path: Path) -> None:
    change = "train.recovery.policies={spike: {at_most: 7}, divergence_again: {decay: 3}}"
    rows = {row["name"]: row for row in json.loads(policies(tmp_path, "--json", "--set", change))}
    assert list(rows) == [policy.name for policy in POLICIES]
    assert (rows["spike"]["at_most"], rows["divergence_again"]["decay"]) == (7, 3.0)
    assert [name for name, row in rows.items() if row["changed"]] == ["spike", "divergence_again"]
    shown = policies(tmp_path, "--set", change)
    assert "changed by the configuration: spike, divergence_again" in shown
    wrong = CliRunner().invoke(
        make_app(), ["--home", str(tmp_path), "policies", "--set", "train.recovery.policies={sipke: {at_most: 1}}"]
    )
    assert wrong.exit_code == 2
    assert "did you mean spike" in wrong.output
