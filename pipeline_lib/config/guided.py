"""A pipeline for the answers that a person gives: preset, profile and window with their reasons, as commented YAML."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pipeline_lib.config.presets import Preset, amount_for, built_in, preset
from pipeline_lib.errors import ConfigError

PRIORITIES = {"speed": "highspeed", "balanced": "quality", "quality": "bestaccuracy"}
BYTES_PER_TOKEN = 3.5  # of text with a vocabulary of some thousand entries; rough, and only the amount of data hangs on it
MARGIN_SHARE, MARGIN_MINUTES = 0.05, 30.0
LITTLE_TOKENS = 100_000  # below it, the sentence that recommends has other words
SHORT_WINDOW_HOURS = 0.5  # below it: a small validation, a short calibration and few trials
LEAST_HOURS = 0.025  # reading, calibration, start-up and validation take a minute on two cores: below it nothing is trained
MACHINE_BYTES = 20_000_000  # what is read where no data is named
TEXT_SUFFIXES = (".txt", ".md", ".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".html", ".htm", ".warc", ".gz", ".zst")


@dataclass(frozen=True)
class Answers:
    """What was asked, and answered."""

    goal: str
    data: str  # a folder or file; "": the text on this machine
    max_hours: float
    priority: str  # speed, balanced or quality
    family: str


@dataclass(frozen=True)
class Recommended:
    """What follows from the answers."""

    preset: Preset
    data_bytes: int
    why: str


def look_at(data: str) -> int:
    """Bytes of text under a path; compressed files as they lie.

    Raises:
        ConfigError: nothing is there, or nothing that a source reads.
    """
    if not data:
        return MACHINE_BYTES
    path = Path(data).expanduser()
    if not path.exists():
        raise ConfigError(
            "there is no such file or folder",
            where=f"--data {data}",
            fix="name an existing one; without --data, the text on this machine is read",
        )
    files = [path] if path.is_file() else [f for f in path.rglob("*") if f.suffix.lower() in TEXT_SUFFIXES and f.is_file()]
    if not (found := sum(file.stat().st_size for file in files)):
        raise ConfigError("nothing to read is there", where=f"--data {data}", fix=f"read are: {', '.join(TEXT_SUFFIXES)}")
    return found


def recommend(answers: Answers) -> Recommended:
    """The preset for these answers, and why.

    Raises:
        ConfigError: the data cannot be read, the family or priority is unknown, or the window is too short for any training.
    """
    if answers.priority not in PRIORITIES:
        raise ConfigError(f"{answers.priority!r} is no priority", where="--priority", fix=f"one of: {', '.join(PRIORITIES)}")
    families = sorted({known.family for known in built_in().values()})
    if answers.family not in families:
        near = get_close_matches(answers.family, families, 1)
        fix = f"did you mean {near[0]}?" if near else f"one of: {', '.join(families)}"
        raise ConfigError(f"{answers.family!r} is no family of models", where="--model", fix=fix)
    if answers.max_hours < LEAST_HOURS:
        raise ConfigError(
            f"{answers.max_hours * 3600:.3g} seconds leave nothing for training after reading and before validation",
            where="--max-hours",
            fix=f"{LEAST_HOURS:g} or more",
        )
    size = look_at(answers.data)
    tokens = size / BYTES_PER_TOKEN
    found = preset(f"{answers.family}-{PRIORITIES[answers.priority]}-{amount_for(tokens)}")
    if tokens < LITTLE_TOKENS:
        why = f"{size / 1e3:,.1f} kB are only about {tokens:,.0f} tokens, which a model learns by heart: {found.what}"
    else:
        why = f"{size / 1e6:,.1f} MB are about {tokens / 1e6:,.1f} million tokens: {found.what}"
    if answers.max_hours < SHORT_WINDOW_HOURS:
        why += f"; {answers.max_hours * 60:g} minutes may see only a part of it, the plan says how much"
    return Recommended(found, size, why)


def pipeline_yaml(answers: Answers, found: Recommended) -> str:
    """The commented YAML; what is not written in it comes from the preset, then from the defaults."""
    short = answers.max_hours < SHORT_WINDOW_HOURS
    margin = min(MARGIN_MINUTES, answers.max_hours * 60 * MARGIN_SHARE)
    lines = [
        f"# {_plain(answers.goal)}",
        "#",
        "#   millrace plan --config THIS    what will fit into the window, without training",
        "#   millrace run --config THIS     run it; run it again and only what is new is done",
        "",
        "name: mine",
        f"goal: {json.dumps(answers.goal, ensure_ascii=False)}",
        "",
        f"# {found.why}",
        "# `millrace presets NAME` shows every setting of it with its reason; what is written below goes before it.",
        f"preset: {found.preset.name}",
        "",
        "resources:",
        f"  max_hours: {answers.max_hours:g}          # the window of the whole run, from its start",
        f"  margin_minutes: {margin:.3g}     # of which this much stays free for stalls",
    ]
    if short:
        lines += ["  search_share: 0.08         # a short window: every second of search is one less of training"]
    lines += [
        "",
        "plan:",
        f"  priority: {answers.priority}         # decides the profile, and what gives way when time is short",
        "",
    ]
    if short:
        lines += [
            "suites:",
            "  level: smoke              # at least 1,000 validation items: what a short window has time for",
            "",
        ]
        lines += ["calibrate:", "  seconds: 8                # measuring this machine, once for a model", ""]
    lines += ["ingest:", "  sources:"]
    if answers.data:
        lines += [
            "    - name: mine",
            "      kind: files           # JSONL, CSV, Parquet, text, HTML, WARC; the format is recognised",
            f"      path: {json.dumps(str(Path(answers.data).expanduser().absolute()), ensure_ascii=False)}",
        ]
    else:
        lines += [
            "    - name: machine",
            "      kind: machine         # the standard library and the packages of this environment; nothing is downloaded",
            f"      max_mb: {MACHINE_BYTES // 1_000_000}",
        ]
    return "\n".join(lines) + "\n"


def _plain(text: str) -> str:
    """One line of a comment."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def as_json(answers: Answers, found: Recommended, file: Path) -> Mapping[str, Any]:
    """What was decided, for programs."""
    return {"file": str(file), "preset": found.preset.name, "why": found.why, "data_bytes": found.data_bytes, **vars(answers)}
