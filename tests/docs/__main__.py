"""`python -m tests.docs`: refresh the generated page, the picture, and the screenshots of the README.

Without `--workspace` it runs the quickstart twice in a temporary workspace, the second time with another learning rate (about
eight minutes); `--quick` leaves the screenshots as they are.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from pipeline_lib.config.reference import reference_markdown
from pipeline_lib.workspace.resolve import read_champion
from pipeline_lib.workspace.runs import RunBook, RunRecord
from pipeline_lib.workspace.workspace import Workspace
from tests.chromium import missing
from tests.docs.picture import write
from tests.docs.screenshots import take
from tests.servers import REPOSITORY, millrace

DEPLOYMENTS = REPOSITORY / "deployments"


def shown_run(home: Path) -> RunRecord:
    """The champion's run: it trained and passed the gate."""
    workspace = Workspace.open(home)
    champion = read_champion(workspace).get("champion")
    if not champion:
        raise SystemExit(f"{home} has no champion")
    return RunBook(workspace.runs_folder).load(champion["run_id"])


def main() -> None:
    """Make everything that documents show."""
    parser = argparse.ArgumentParser(prog="python -m tests.docs", description=__doc__)
    parser.add_argument("--workspace", type=Path, help="take the screenshots of the runs of this workspace")
    parser.add_argument("--quick", action="store_true", help="the generated page and the picture only")
    options = parser.parse_args()
    (DEPLOYMENTS / "configuration.md").write_text(reference_markdown(), "utf-8")
    write(DEPLOYMENTS / "pictures" / "pipeline.svg")
    if options.quick:
        return
    if why := missing():
        sys.exit(f"no screenshots: {why}. The generated page and the picture are fresh (--quick makes only these).")
    with tempfile.TemporaryDirectory() as folder:
        home = options.workspace or Path(folder) / "workspace"
        if not options.workspace:
            millrace("run", home=home)
            millrace("run", "--set", "train.learning_rate=0.002", home=home)
        for path in take(home, shown_run(home), DEPLOYMENTS / "pictures"):
            print(f"{path.relative_to(REPOSITORY)}  {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
