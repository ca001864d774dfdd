"""What the report of a finished run says is what the tables and MLflow say, and its commands make the run again."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipeline_lib.metrics import training_log
from pipeline_lib.reporting.page import cell
from pipeline_lib.tables.duck import connect
from pipeline_lib.workspace.runs import RunRecord
from tests.pipeline_toys import PURE, digests, newest
from tests.servers import Up, millrace


@pytest.fixture(scope="module")
def page(shown: RunRecord) -> str:
    return Path(shown.report).read_text("utf-8")


def rows_of(page: str, title: str) -> dict[str, list[str]]:
    """The rows of a table by their first cell."""
    table = page.partition(f"<figcaption>{title}</figcaption>")[2].partition("</table>")[0]
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", table, re.DOTALL)]
    return {row[0]: row[1:] for row in rows if row}


def test_numbers_are_those_of_the_tables_and_of_mlflow(up: Up, shown: RunRecord, page: str) -> None:
    train, validate = (up.workspace.store.artifact(ref.key) for name in ("train", "validate") if (ref := shown.ref(name)))
    told = MlflowClient(up.mlflow).get_run(shown.mlflow["run_id"]).data.metrics
    dev = train.details["dev_curve"][-1][1]
    assert f"{dev:.3f} nats per token" in page
    assert told["dev_loss"] == pytest.approx(dev)
    scores = rows_of(page, "Scores on the test side")
    for name in ("bits_per_byte", "grammar"):
        assert scores[name][0] == cell(round(validate.details["scores"][name]["value"], 4))
        assert told[name] == pytest.approx(validate.details["scores"][name]["value"])
    with connect({"scores": validate.files("scores")}) as db:
        ((value, items),) = db.sql("SELECT avg(score), count(*) FROM scores WHERE suite = 'grammar' AND variant = ''").fetchall()
    assert scores["grammar"] == [cell(round(value, 4)), *scores["grammar"][1:-1], cell(items)]
    analysis = json.loads((Path(shown.report).parent / "analysis.json").read_text())
    speeds = training_log(up.workspace, shown)["tokens_per_second"].to_numpy()
    median = {name: number for name, number, _ in analysis["numbers"]["efficiency"]}["median speed"]
    assert median == pytest.approx(sorted(speeds)[len(speeds) // 2], rel=0.2)
    assert f"{train.metrics['steps']:,} steps" in page


def test_the_commands_make_the_run_again_in_another_workspace(shown: RunRecord, page: str, tmp_path: Path) -> None:
    (command,) = re.findall(r"<pre[^>]*>millrace (run --config .*?)</pre>", page)
    millrace(*shlex.split(command.replace("&#39;", "'")), "--set", "tracking.enabled=false", home=tmp_path / "workspace")
    again = newest(tmp_path / "workspace")
    assert {name: fingerprint for name, (fingerprint, _) in digests(again).items()} == {
        name: fingerprint for name, (fingerprint, _) in digests(shown).items()
    }
    assert set(digests(again)) == set(PURE)
