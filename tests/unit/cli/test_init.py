"""The guided set-up: through a real pseudo-terminal, unattended, and what it refuses."""

import json
import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from pipeline_lib.config.guided import PRIORITIES, Answers, pipeline_yaml, recommend
from pipeline_lib.config.load import load_config
from pipeline_lib.config.paths import allow
from pipeline_lib.config.presets import built_in
from pipeline_lib.memory.keep import store_of
from pipeline_lib.memory.record import Remembered
from pipeline_lib.workspace.workspace import Workspace
from tests.servers import environment

COMMAND = [sys.executable, "-m", "flows.cli.main", "init"]


def unattended(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *words], cwd=folder, env=environment(folder / "workspace"), capture_output=True, text=True, check=False,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip


def in_terminal(folder: Path, answers: list[str]) -> str:
    """Type an answer whenever the program waits after a question."""
    process, terminal = pty.fork()
    if process == 0:
        os.chdir(folder)
        os.execv(sys.executable, [*COMMAND, "mine.yaml"])  # noqa: S606 - a fixed command
    seen, left, end = b"", list(answers), time.monotonic() + 30
    while time.monotonic() < end:
        if select.select([terminal], [], [], 0.1)[0]:
            try:
                seen += os.read(terminal, 4096)
            except OSError:  # the other side is closed: the program has ended
                break
        elif left and seen.rstrip().endswith(b":"):
            os.write(terminal, left.pop(0).encode() + b"\n")
            seen += b"\n"
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0, seen.decode()
    assert not left
    return seen.decode()


def test_five_questions_in_a_terminal_make_a_pipeline_that_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("An essay.\n" * 100)
    shown = in_terminal(tmp_path, ["Essays", str(tmp_path / "texts"), "8", "quality", ""])
    assert "cores" in shown
    assert "Recommended: preset llama-bestaccuracy-small, because" in shown
    text = (tmp_path / "mine.yaml").read_text()
    told = yaml.safe_load(text)
    assert told["goal"] == "Essays"
    assert told["resources"] == {"max_hours": 8, "margin_minutes": 24}
    assert told["plan"] == {"priority": "quality"}
    assert text.count("#") > 8
    allow([tmp_path])
    assert load_config(tmp_path / "mine.yaml").ingest.sources[0].path == str(tmp_path / "texts")


def test_unattended_every_answer_has_a_default_and_a_flag(tmp_path: Path) -> None:
    done = unattended(tmp_path, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["preset"] == "llama-quality-small"
    assert load_config(tmp_path / "pipeline.yaml").resources.max_hours == 0.1
    again = unattended(tmp_path)
    assert again.returncode == 2
    assert "--force" in again.stderr
    changed = unattended(
        tmp_path, "--force", "--max-hours", "12", "--priority", "speed", "--model", "mistral", "--goal", 'A "b": c'
    )
    assert changed.returncode == 0, changed.stderr
    config = load_config(tmp_path / "pipeline.yaml")
    assert (config.model.family, config.resources.max_hours, config.plan.priority) == ("mistral", 12, "speed")
    assert config.goal == 'A "b": c'


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--data", "nowhere"), "no such file"),
        (("--priority", "best"), "one of: speed, balanced, quality"),
        (("--model", "lama"), "did you mean llama?"),
        (("--model", "zzz"), "--model: 'zzz' is no family of models"),
        (("--max-hours", "0.001"), "0.025 or more"),
        (("--max-hours", "0"), "no number of hours"),
    ],
)
def test_what_makes_no_pipeline_is_refused_and_nothing_is_written(tmp_path: Path, words: tuple[str, str], told: str) -> None:
    done = unattended(tmp_path, "--yes", *words)
    assert done.returncode == 2
    assert told in done.stderr
    assert not (tmp_path / "pipeline.yaml").exists()


def test_every_family_priority_and_window_makes_a_pipeline_that_is_accepted(tmp_path: Path) -> None:
    for family in sorted({preset.family for preset in built_in().values()}):
        for priority in PRIORITIES:
            answers = Answers("x", "", 0.05 if priority == "speed" else 10.0, priority, family)
            file = tmp_path / f"{family}-{priority}.yaml"
            file.write_text(pipeline_yaml(answers, recommend(answers)))
            assert load_config(file).plan.priority == priority


def test_a_past_run_like_it_is_told_where_there_is_a_memory(tmp_path: Path) -> None:
    def remembered(run_id: str, goal: str, **features: float) -> Remembered:
        return Remembered(
            run_id, goal=goal, preset="llama-quality-small", outcome="completed", features={"family": "llama", **features}
        )

    store = store_of(Workspace.open(tmp_path / "workspace"))
    store.add(remembered("20260101-000000-aa", "poems about rivers", dev_loss=3.25, tokens_per_second=1234.0))
    store.add(remembered("20260102-000000-aa", "answers to support mails", dev_loss=2.5))
    store.add(remembered("20260103-000000-aa", "poems about rivers"))  # it never trained
    words = ["mine.yaml", "--yes", "--goal", "Poems about rivers"]
    told = json.loads(unattended(tmp_path, *words, "--json").stdout)["past_run"]
    assert told["run_id"] == "20260101-000000-aa"
    assert told["came"] == "dev loss 3.250, 1,234 tokens/s"
    assert "% alike" in told["because"]
    shown = unattended(tmp_path, *words, "--force").stdout
    assert "A past run like this: 20260101-000000-aa with llama-quality-small, dev loss 3.250" in shown
