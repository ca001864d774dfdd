"""What a run shows while it goes: plain lines in a log, one line that stays in place in a terminal."""

from __future__ import annotations

import os
import pty
import sys
from pathlib import Path

import pytest

from flows.cli import progress
from flows.cli.progress import ProgressLines
from pipeline_lib.workspace.services import Progress

NOTE = "loss 5.583 | 106,212 tok/s | MFU 41% | ETA 04:23 | window +00:37"
LINE = f"Step 770/26,235 (2.9%) | {NOTE}"
HERE = """
from flows.cli.progress import ProgressLines
from pipeline_lib.workspace.services import Progress
lines = ProgressLines()
lines._progress(Progress("train", 770, 26235, "steps", {note!r}))
print("WARNING: [red]in between[/red]")
lines._progress(Progress("train", 1, 1, "stage", "made in 9.0 s"))
"""


def test_lines_for_people() -> None:
    assert Progress("train", 770, 26235, "steps", NOTE).line() == LINE
    assert Progress("pack", 3, 10, "chunks", "2 MB/s").line() == "3 of 10 chunks · 2 MB/s"
    assert Progress("score", 3, 0, "files").line() == "3 files"


def test_plain_lines_outside_of_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "EVERY_SECONDS", 0.0)
    ProgressLines()._progress(Progress("train", 770, 26235, "steps", NOTE + "\x1b[31m"))
    assert capsys.readouterr().out == f"  train: {LINE}\\x1b[31m\n"


def test_a_terminal_shows_one_line_that_goes_when_the_stage_is_done(tmp_path: Path) -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        environment = {**os.environ, "COLUMNS": "140", "TERM": "xterm"}
        os.execve(sys.executable, [sys.executable, "-c", HERE.format(note=NOTE)], environment)  # noqa: S606
    shown = b""
    while True:
        try:
            part = os.read(terminal, 4096)
        except OSError:  # the child is gone
            break
        if not part:
            break
        shown += part
    assert os.waitpid(pid, 0)[1] == 0
    text = shown.decode()
    assert LINE in text
    assert "WARNING: [red]in between[/red]" in text
    assert text.rstrip().endswith("  train: made in 9.0 s")
    assert text.rindex("\x1b[2K") > text.rindex(LINE)  # wiped
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")  # the cursor is back
