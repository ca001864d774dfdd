"""Real servers for tests: one `millrace up` for the whole session, started when the first test asks for it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest

from flows.processes import free_port
from pipeline_lib.workspace.runs import RunRecord
from pipeline_lib.workspace.workspace import Workspace
from tests.pipeline_toys import newest, write_config

T = TypeVar("T")
REPOSITORY = Path(__file__).parent.parent
MILLRACE = [sys.executable, "-m", "flows.cli.main"]

# A source that does what a test asks for through files beside it: fails while `broken` exists; while `hang` exists, waits with a
# child process whose id it writes to `child`.
SOURCE = """
import random, subprocess
from pathlib import Path
import pyarrow as pa
from pipeline_lib.extensions import extend

HERE = Path(__file__).parent

@extend.source("toy")
def toy(source):
    if (HERE / "broken").exists():
        raise ValueError("the source is broken")
    if (HERE / "hang").exists():
        child = subprocess.Popen(["sleep", "300"])
        (HERE / "child").write_text(str(child.pid))
        child.wait()
    words = "the mill grinds to and of corn that have with be wheel water stone night flour sack river wind oats".split()
    choose = random.Random(HERE.name)
    texts = [" ".join(choose.choices(words, k=120)) + "." for _ in range(100)]
    nothing = [None] * len(texts)
    yield pa.RecordBatch.from_pydict(
        {"text": texts, "id": [str(i) for i in range(100)], "domain": ["toy"] * 100, "licence": nothing, "url": nothing,
         "created_at": pa.array(nothing, pa.timestamp("us", "UTC"))},
        schema=pa.schema([("text", pa.string()), ("id", pa.string()), ("domain", pa.string()), ("licence", pa.string()),
                          ("url", pa.string()), ("created_at", pa.timestamp("us", "UTC"))]),
    )
"""


def toy_config(folder: Path, **more: Any) -> dict[str, Any]:
    """A configuration whose only source is the toy above, written into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "toy_source.py").write_text(SOURCE)
    return {
        "name": "toy",
        "score": {"rules": {"*": "none"}},
        "split": {"floor_per_domain": 2},
        "tokenizer": {"vocabulary_size": 320},
        "ingest": {"sources": [{"name": "toy", "kind": "module"}]},
        "execution": {"extensions": [str(folder / "toy_source.py")], "workers": 1},
        "tracking": {"enabled": False},
        **more,
    }


def wait_for(what: Callable[[], T], *, seconds: float = 30.0) -> T:
    """Ask again until the answer is true."""
    end = time.monotonic() + seconds
    while not (answer := what()):
        assert time.monotonic() < end, f"still {answer!r} after {seconds:g} s"
        time.sleep(0.1)
    return answer


@dataclass(frozen=True)
class Up:
    """Running servers."""

    workspace: Workspace
    prefect: str
    mlflow: str
    process: subprocess.Popen[str]

    @property
    def api(self) -> str:
        return f"{self.prefect}/api"


def environment(workspace: Path) -> dict[str, str]:
    """The environment of a child that works on a workspace and nothing else."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MILLRACE_", "MLFLOW_"))}
    return {**kept, "MILLRACE_HOME": str(workspace)}


def millrace(*arguments: str, home: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    done = subprocess.run(
        [*MILLRACE, *arguments], env=environment(home), cwd=REPOSITORY, capture_output=True, text=True, timeout=300, check=False
    )
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def start_up(home: Path) -> Up:
    """Start `millrace up` on free ports and wait until it says where it is."""
    ports = ["--prefect-port", str(free_port()), "--mlflow-port", str(free_port())]
    process = subprocess.Popen(
        [*MILLRACE, "up", *ports],
        env=environment(home),
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    said = []
    assert process.stdout is not None
    for line in process.stdout:
        said.append(line)
        if line.startswith("Ctrl-C"):
            break
    else:
        raise AssertionError(f"`millrace up` ended with code {process.wait()}: {''.join(said)}")
    state = json.loads((home / "up.json").read_text())
    return Up(Workspace.open(home), state["prefect"], state["mlflow"], process)


def stop_up(up: Up, how: int = signal.SIGTERM) -> list[psutil.Process]:
    """Stop it; returns what is still alive of its family."""
    family = psutil.Process(up.process.pid).children(recursive=True)
    up.process.send_signal(how)
    up.process.wait(timeout=60)
    return psutil.wait_procs(family, timeout=10)[1]


@pytest.fixture(scope="session")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """`millrace up` on a workspace of its own, for the whole session."""
    running = start_up(tmp_path_factory.mktemp("up") / "workspace")
    yield running
    stop_up(running)


@pytest.fixture(scope="session")
def shown_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole pipeline in small, tracked; a seed of its own, so that no other test has made a part of it before."""
    return write_config(
        tmp_path_factory.mktemp("shown") / "small.yaml", tracking={"enabled": True, "model_name": "small"}, seed=11
    )


@pytest.fixture(scope="session")
def shown(up: Up, shown_config: Path) -> RunRecord:
    """A finished small run in the workspace of the running servers: what MLflow, Prefect and the report show."""
    millrace("run", "--config", str(shown_config), home=up.workspace.root)
    return newest(up.workspace.root)
