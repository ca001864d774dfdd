"""ParaRel (Elazar et al. 2021) over T-REx facts (Petroni et al. 2019): one fact in many wordings, as its authors publish it.

A folder with `trex_lms_vocab/P*.jsonl` (facts: `sub_label`, `obj_label`) and `pattern_data/graphs_json/P*.jsonl` (wordings:
`pattern` with [X] and [Y]), a file of each a relation. Wordings that end in the object are asked, as choices between it and three
other objects of the relation; the wordings of a fact share options and order.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pipeline_lib.errors import ConfigError
from pipeline_lib.validation.items import Item

FACTS, PATTERNS = Path("trex_lms_vocab"), Path("pattern_data") / "graphs_json"
MOST_FACTS = 50  # of a relation: those whose hash is smallest
OPTIONS = 4


def is_pararel(path: Path) -> bool:
    """Whether a folder has the two parts of the set."""
    return (path / FACTS).is_dir() and (path / PATTERNS).is_dir()


def pararel_files(path: Path) -> list[Path]:
    """The files of relations that have facts and wordings."""
    names = sorted(file.name for file in (path / FACTS).glob("*.jsonl") if (path / PATTERNS / file.name).is_file())
    return [path / part / name for part in (FACTS, PATTERNS) for name in names]


def read_pararel(path: Path) -> Iterator[Item]:
    """The items of a folder.

    Raises:
        ConfigError: a record lacks a field (file, line and field are named).
    """
    for file in pararel_files(path):
        if file.parent == path / FACTS:
            yield from _relation(path.stem, file, path / PATTERNS / file.name)


def _relation(suite: str, facts: Path, patterns: Path) -> Iterator[Item]:
    wordings = [text.strip().replace("[Y] .", "[Y].") for _, (text,) in _records(patterns, "pattern")]
    wordings = [text for text in wordings if text.removesuffix(".").rstrip().endswith(" [Y]") and text.count("[X]") == 1]
    known = [(number, subject, answer) for number, (subject, answer) in _records(facts, "sub_label", "obj_label")]
    objects = sorted({answer for _, _, answer in known})
    if len(objects) < OPTIONS or not wordings:
        return
    known.sort(key=lambda fact: hashlib.blake2b(f"{fact[1]}\0{fact[2]}".encode(), digest_size=8).digest())
    for number, subject, answer in sorted(known[:MOST_FACTS]):
        draw = np.random.default_rng(number)
        wrong = [text for text in (objects[index] for index in draw.permutation(len(objects))[:OPTIONS]) if text != answer]
        options = wrong[: OPTIONS - 1]
        place = int(draw.integers(OPTIONS))
        options.insert(place, answer)
        name = f"{facts.stem}-{number:05d}"
        for index, wording in enumerate(wordings):
            prompt, _, rest = wording.replace("[X]", subject).partition("[Y]")
            yield Item(
                suite, f"{name}-{index:02d}", "choice", prompt.rstrip(), tuple(f" {text}{rest}" for text in options), place,
                facts.stem, entities=(subject,), fact=name, source=f"{facts.name}:{number}",
            )  # fmt: skip


def _records(file: Path, *fields: str) -> Iterator[tuple[int, list[str]]]:
    for number, line in enumerate(file.read_text("utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise ConfigError(f"not JSON: {error}", where=f"{file}:{number}") from None
        for field in fields:
            if not isinstance(record, dict) or not isinstance(record.get(field), str):
                raise ConfigError(f"field {field!r} must be text", where=f"{file}:{number}")
        yield number, [record[field] for field in fields]
