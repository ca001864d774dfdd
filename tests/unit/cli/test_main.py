"""The front door: quick, ordered, plain where no person looks, with documented exit codes."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline_lib.errors import EXIT_CODES

MILLRACE = str(Path(sys.executable).with_name("millrace"))


def millrace(*arguments: str, home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [MILLRACE, *arguments],
        capture_output=True,
        text=True,
        cwd=home,
        env={**os.environ, "MILLRACE_HOME": str(home / "ws"), **environment},
        timeout=60,
        check=False,
    )


def test_help_is_quick_plain_ordered_and_has_an_example_each(tmp_path: Path) -> None:
    seconds = []
    for _ in range(3):
        begin = time.monotonic()
        shown = millrace("--help", home=tmp_path)
        seconds.append(time.monotonic() - begin)
    assert min(seconds) < 0.5
    assert shown.returncode == 0
    assert shown.stdout.isprintable() or not re.search("[\x1b│╭]", shown.stdout)
    panels = shown.stdout.split("Get started:")[1].partition("Exit codes:")[0]
    assert re.findall(r"^(\w[\w ]+):$", panels, re.MULTILINE) == ["Run", "Look", "Decide", "Take care of the workspace"]
    names = re.findall(r"^  ([a-z-]+)  +\S", panels, re.MULTILINE)
    used = [name for name in names if name in {"config", "run", "status", "show", "rerun", "retry", "verify", "gc"}]
    assert used == ["config", "run", "rerun", "retry", "status", "show", "verify", "gc"]
    assert set(names) >= {"init", "plan", "presets", "metrics", "train", "policies", "checkpoints", "forget", "fit-ngrams"}
    assert re.findall(r"^ +e\.g\. millrace ([a-z-]+)", panels, re.MULTILINE) == names
    flat = " ".join(shown.stdout.split())
    assert all(f"{code} " in flat for code in EXIT_CODES)


def test_help_and_light_commands_import_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys; from flows.cli.main import make_app; app = make_app()\n"
        "for arguments in (['--help'], ['config', 'check'], ['runs'], ['config', 'schema']):\n"
        "    try: app(arguments)\n"
        "    except SystemExit as stop: assert stop.code == 0, arguments\n"
        "heavy = {'prefect', 'mlflow', 'torch', 'transformers', 'pyarrow', 'numba', 'duckdb', 'optuna'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    environment = {**os.environ, "MILLRACE_HOME": str(tmp_path / "ws")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_rich_in_a_terminal(tmp_path: Path) -> None:
    reader, writer = pty.openpty()
    process = subprocess.Popen(
        [MILLRACE, "--help"], stdout=writer, stdin=writer, cwd=tmp_path, env={**os.environ, "TERM": "xterm"}
    )
    os.close(writer)
    shown = b""
    try:
        while part := os.read(reader, 65536):
            shown += part
    except OSError:  # the terminal is closed when the process ends
        pass
    assert process.wait(30) == 0
    assert "Get started" in shown.decode()
    assert b"\x1b[" in shown


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["nonsense"], 2, "No such command"),
        (["run", "--sample", "many"], 2, "Invalid value for '--sample'"),
        (["config", "check", "missing.yaml"], 2, "missing.yaml: cannot be read"),
        (["config", "show", "--set", "train.learning_rte=1"], 2, "did you mean train.learning_rate?"),
        (["run", "--from", "trian"], 2, "did you mean train?"),
        (["run", "--only", "train", "--until", "plan"], 2, "use one or the other"),
        (["run", "--until", "train", "--set", "resources.max_hours=4h"], 2, "write 4"),
        (["show", "20200101"], 6, "no run '20200101'"),
        (["rerun", "20200101"], 6, "no run '20200101'"),
        (["pin", "../x"], 6, "../x"),
        (["sql", "drop table documents"], 2, "not allowed"),
        (["--version"], 0, ""),
    ],
)
def test_exit_codes_and_words(tmp_path: Path, arguments: list[str], code: int, words: str) -> None:
    done = millrace(*arguments, home=tmp_path)
    assert done.returncode == code, done.stderr
    assert code in EXIT_CODES
    assert words in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_refusals_go_to_standard_error_only(tmp_path: Path) -> None:
    done = millrace("config", "show", "--set", "x=1", home=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("refused: --set x=1: x = 1: a configuration has no setting of this name")


def test_nothing_is_said_at_the_exit(tmp_path: Path) -> None:
    done = millrace("sql", "select 1 as one", home=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_closed_pipe_is_no_error(tmp_path: Path) -> None:
    command = f"{MILLRACE} config reference | head -1"
    done = subprocess.run(
        ["/bin/bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "# Configuration\n", "")


def test_config_commands(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text("train: {learning_rate: 1e-3}\n")
    bad.write_text("train: {learning_rat: 1e-3}\n")
    assert millrace("config", "check", "good.yaml", home=tmp_path).stdout == "fine: good.yaml\n"
    (tmp_path / "gone.yaml").write_text("ingest: {sources: [{name: news, kind: files, path: news/*.jsonl}]}\n")
    assert "source news has nothing at " in millrace("config", "check", "gone.yaml", home=tmp_path).stderr
    checked = json.loads(millrace("config", "check", "good.yaml", "bad.yaml", "--json", home=tmp_path).stdout)
    assert checked["ok"] is False
    assert list(checked["refused"]) == ["bad.yaml"]
    shown = millrace("config", "show", "good.yaml", "--set", "seed=4", "--sample", "9", "--changed", home=tmp_path)
    assert shown.stdout == "seed: 4\ningest:\n  sample: 9\ntrain:\n  learning_rate: 0.001\n"
    whole = json.loads(millrace("config", "show", "good.yaml", "--json", home=tmp_path).stdout)
    assert whole["train"]["learning_rate"] == 1e-3
    assert "ResourcesConfig" in json.loads(millrace("config", "schema", home=tmp_path).stdout)["$defs"]
    secret = json.loads(millrace("config", "environment", "--json", home=tmp_path, PREFECT_API_KEY="hidden").stdout)
    assert {row["name"]: row["set"] for row in secret}["PREFECT_API_KEY"] is True
    assert "hidden" not in str(secret)


def test_home_option_chooses_the_workspace(tmp_path: Path) -> None:
    done = millrace("--home", "elsewhere", "runs", home=tmp_path)
    assert "no runs in elsewhere yet" in done.stdout
    assert (tmp_path / "elsewhere" / "workspace.json").exists()
