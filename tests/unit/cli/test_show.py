"""Text from data cannot play with a terminal, whatever it holds."""

from __future__ import annotations

import io
import json
import re
import sys

import pytest

from flows.cli import show
from pipeline_lib.terminal import clean


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ä 漢 🙂", "plain ä 漢 🙂"),
        ("\x1b[2J\x1b]0;owned\x07", "\\x1b[2J\\x1b]0;owned\\x07"),
        ("\x9b31m", "\\x9b31m"),
        ("a\rb", "a\\rb"),
        ("a\r\nb\tc", "a\nb\tc"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("\u2066x\u2069\ufeff", "\\u2066x\\u2069\\ufeff"),
        ("[bold red]x[/]", "[bold red]x[/]"),
    ],
)
def test_clean(text: str, shown: str) -> None:
    assert clean(text) == shown


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def drawn(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO) -> str:
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setenv("COLUMNS", "100")
    show.table(["name", "n", "[b]x[/b]"], [["\x1b[31mred", 1234567, "[link=http://x]"], ["漢字\nzwei", None, 2.5]], "t\x07")
    return stream.getvalue()


def test_plain_table_is_aligned_and_harmless(monkeypatch: pytest.MonkeyPatch) -> None:
    assert drawn(monkeypatch, io.StringIO()) == (
        "t\\x07\nname                 n  [b]x[/b]\n\\x1b[31mred  1,234,567  [link=http://x]\n漢字 ⏎ zwei             2.5\n"
    )


def test_rich_table_shows_markup_as_text(monkeypatch: pytest.MonkeyPatch) -> None:
    text = drawn(monkeypatch, Terminal())
    assert "\\x1b[31mred" in text
    assert "[link=http://x]" in text
    assert "[b]x[/b]" in text
    assert "\x07" not in text
    assert "\x1b[31m" not in text


def test_no_word_is_cut_in_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    identifier, goal = "20261120-111433-4075d82b", "See the whole pipeline work on text that is here"
    shown = {}
    for width in (80, 60, 40):
        stream = Terminal()
        monkeypatch.setattr(sys, "stdout", stream)
        monkeypatch.setenv("COLUMNS", str(width))
        show.table(["run", "pipeline", "", "goal"], [[identifier, "quickstart", "", goal]], "Runs")
        lines = [line.rstrip() for line in re.sub("\x1b\\[[0-9;]*m", "", stream.getvalue()).splitlines()]
        assert max(map(len, lines)) <= width
        assert set(f"{identifier} {goal}".split()) <= set(" ".join(lines).split())
        shown[width] = lines
    assert shown[80][1].split() == shown[60][1].split() == ["run", "pipeline", "goal"]
    assert shown[40][1] == f"run       {identifier}"  # too narrow for columns: a block for each row


@pytest.mark.parametrize(
    ("n", "words"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (999_900, "1 MB"), (2.5e12, "2.5 TB"), (4e15, "4e+03 TB")]
)
def test_sizes(n: float, words: str) -> None:
    assert show.size(n) == words


@pytest.mark.parametrize(
    ("n", "words"), [(0.04, "0.0 s"), (9.96, "10 s"), (59.7, "1 min"), (125, "2 min 5 s"), (11400, "3 h 10 min")]
)
def test_durations(n: float, words: str) -> None:
    assert show.seconds(n) == words


def test_json_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    show.json_out([{"id": b"\x00\xff", "loss": float("nan"), "more": (1.5, float("inf"))}])
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail) == [{"id": "00ff", "loss": None, "more": [1.5, None]}]


def test_json_does_not_steer_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    told = {"head": "\x1b[2J \x9b31m \u202egnp.exe \x7f", "domain": "Ü漢\n"}
    show.json_out(told)
    out = capsys.readouterr().out
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", out)
    assert "Ü漢" in out
    assert json.loads(out) == told
