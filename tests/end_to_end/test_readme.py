"""Every command of the README is executed, in its order, in a copy of the repository.

How they map: `deployments/pipelines/quickstart.yaml` of the copy is a reduced pipeline that takes seconds, and the copy's `.venv`
is this environment. `make run` and all `millrace` and `source` commands are then executed word for word (`millrace up` in the
background, until `millrace down`). The other `make` commands are asked what they would do (`make -n`), and the tools that they
name are started.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from pipeline_lib.workspace.runs import RunBook
from pipeline_lib.workspace.workspace import Workspace
from tests.pipeline_toys import small
from tests.servers import REPOSITORY

COPIED = ("Makefile", "README.md", "pyproject.toml", "requirements.lock", "deployments", "flows", "pipeline_lib", "tasks")
BLOCK = re.compile(r"^```(?:console|sh)\n(.*?)^```", re.MULTILINE | re.DOTALL)
INDEX = {"": "", "cpu": "whl/cpu", "cuda": "whl/cu130"}  # TORCH → where pip looks
PAGES = ("README.md", "deployments/README.md", "CHANGELOG.md")


def commands() -> list[str]:
    blocks = BLOCK.findall((REPOSITORY / "README.md").read_text("utf-8"))
    return [line.removeprefix("$ ") for block in blocks for line in block.splitlines() if line.startswith("$ ")]


class Checkout:
    """A copy of the repository where the README's commands run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in COPIED:  # with compiled kernels, which would take a minute to make again
            source = REPOSITORY / name
            (shutil.copytree if source.is_dir() else shutil.copy2)(source, folder / name)
        pipeline = {**small(tune={"trials": 0}), "name": "quickstart"}
        del pipeline["tracking"]
        (folder / "deployments/pipelines/quickstart.yaml").write_text(yaml.safe_dump(pipeline), "utf-8")
        (folder / ".venv").mkdir()
        (folder / ".venv/bin").symlink_to(Path(sys.executable).parent)
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MILLRACE_", "MLFLOW_"))}
        self.environment = {
            **kept,
            "PATH": f"{folder}/.venv/bin{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(folder),
        }
        self.up: subprocess.Popen[str] | None = None

    def bash(self, command: str) -> str:
        done = subprocess.run(
            ["/bin/bash", "-c", command],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, f"$ {command}\n{done.stdout}{done.stderr}"
        return done.stdout

    def start_up(self) -> None:
        self.up = subprocess.Popen(
            [str(self.folder / ".venv/bin/millrace"), "up"],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert self.up.stdout is not None
        said = []
        for line in self.up.stdout:
            said.append(line)
            if line.startswith("Ctrl-C"):
                return
        raise AssertionError("".join(said))


@pytest.fixture
def checkout(tmp_path: Path) -> Iterator[Checkout]:
    made = Checkout(tmp_path)
    yield made
    if made.up and made.up.poll() is None:
        made.up.terminate()
        made.up.wait(timeout=60)


def test_every_command_of_the_readme_works(checkout: Checkout) -> None:
    said: dict[str, str] = {}
    for command in commands():
        words = command.split()
        if words[0] == "make":
            torch = command.partition("TORCH=")[2]
            plan = checkout.bash(f"make -n {' '.join(words[1:])}")
            assert said or "pip install" in plan
            assert INDEX[torch] in plan
            (checkout.folder / f".venv/.installed{torch}").touch()
            if words == ["make", "run"]:
                said[command] = checkout.bash(command)
            for tool in set(re.findall(r"\.venv/bin/(ruff|mypy|millrace|python -m pytest)\b", plan)):
                checkout.bash(f".venv/bin/{tool} --version")
        elif command == "millrace up":
            checkout.start_up()
        else:
            said[command] = checkout.bash(command)
    assert "scores" in said["make run"].lower()
    assert "report" in said["make run"]
    assert checkout.up is not None
    assert checkout.up.wait(timeout=60) == 0, "`millrace down` did not stop `millrace up`"

    runs = list(RunBook(Workspace.open(checkout.folder / "workspace").runs_folder).all())
    assert {run.outcome for run in runs} == {"completed"}
    first, sample, other_rate, again = runs
    assert {entry.state for entry in first.stages.values()} == {"made"}
    assert (sample.config["ingest"]["sample"], other_rate.config["train"]["learning_rate"]) == (300, 0.002)
    assert sample.ref("train") != other_rate.ref("train") != first.ref("train")
    assert other_rate.ref("pack").key == first.ref("pack").key
    assert (len(other_rate.attempts), {entry.state for entry in other_rate.stages.values()}) == (2, {"reused"})
    assert (again.parent, again.config["train"]["learning_rate"]) == (other_rate.run_id, 0.003)
    assert "rule" in next(text for command, text in said.items() if "millrace sql" in command)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    path = REPOSITORY / page
    links = [link for link in re.findall(r"\]\(([^)]+)\)", path.read_text("utf-8")) if not link.startswith("https://")]
    assert [link for link in links if not (path.parent / link).exists()] == []


def test_pictures_are_small_and_fresh() -> None:
    from tests.docs.picture import picture

    folder = REPOSITORY / "deployments" / "pictures"
    assert (folder / "pipeline.svg").read_text("utf-8") == picture(), "run `make docs`"
    shots = list(folder.glob("*.png"))
    assert {path.name for path in shots} == {"report.png", "prefect.png", "mlflow.png"}
    assert all(path.stat().st_size < 300_000 for path in shots)
