"""Which files of an artifact this machine has seen with the right digest: time and inode of each, in a small file of its own.

A convenience that is never trusted for content: what is not remembered here is digested. It lies outside the artifact, whose
folder is never written again after its commit.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline_lib.workspace.files import read_json, write_json
from pipeline_lib.workspace.identity import file_digest


class Seen:
    """The memory of one artifact's files; read once, written at most once (`save`)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            value: dict[str, Any] = read_json(path)
            self.facts: dict[str, list[int]] = dict(value["facts"])
            self.turn = int(value["turn"])  # whose turn it is to be digested though nothing changed
        except (OSError, ValueError, TypeError, KeyError):
            self.facts, self.turn = {}, 0
        self._changed = False

    def damage(self, name: str, path: Path, *, size: int, digest: str, full: bool) -> str:
        """What is wrong with a file, or "": by size, time and inode at once, by digest when one differs or `full`."""
        try:
            stat = path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return "file is missing"
        if stat.st_size != size:
            return f"size is {stat.st_size}, committed were {size} bytes"
        fact = [stat.st_mtime_ns, stat.st_ino]
        if not full and self.facts.get(name) == fact:
            return ""
        if file_digest(path) != digest:
            self.forget(name)  # whoever looks next must see it too, though time and inode are unchanged
            return "bytes differ from what was committed"
        self.remember(name, fact)
        return ""

    def remember(self, name: str, fact: list[int]) -> None:
        """Note time and inode of a file whose digest was right a moment ago."""
        if self.facts.get(name) != fact:
            self.facts[name] = fact
            self._changed = True

    def forget(self, name: str) -> None:
        """Trust a file's time and inode no more."""
        self._changed |= self.facts.pop(name, None) is not None

    def next_turn(self, count: int) -> int:
        """Which of `count` files is digested fully this time: another one each time."""
        chosen = self.turn % count
        self.turn = (chosen + 1) % count
        self._changed = True
        return chosen

    def save(self) -> None:
        """Write what is new, if anything."""
        if self._changed:
            write_json(self.path, {"facts": self.facts, "turn": self.turn})
            self._changed = False
