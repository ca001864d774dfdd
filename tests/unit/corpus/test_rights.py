"""Licences: one spelling, what may be used, and what becomes of the rest."""

from __future__ import annotations

from pathlib import Path

import pytest
from ingest_toy import files, ingest, jsonl, reasons, table

from pipeline_lib.corpus.rights import canonical, permitted
from pipeline_lib.errors import RefusedError

RECORDS = [
    {"text": "one", "licence": "mit"},
    {"text": "two", "licence": "GPL-3.0-only"},
    {"text": "three", "licence": "apache-2.0 or gpl-3.0-only"},
    {"text": "four", "licence": "CC-BY-NC-4.0"},
    {"text": "five", "licence": "All rights reserved"},
    {"text": "six"},
    {"text": "seven", "licence": "unknown"},
]


@pytest.mark.parametrize(
    ("told", "meant"),
    [
        ("mit", "MIT"), (" apache-2.0 ", "Apache-2.0"),
        ("mit or (apache-2.0 and cc-by-4.0)", "MIT OR (Apache-2.0 AND CC-BY-4.0)"),
        ("gpl-2.0-only with classpath-exception-2.0", "GPL-2.0-only WITH Classpath-exception-2.0"),
        ("All rights reserved!", "LicenseRef-unknown-All-rights-reserved"), ("NOASSERTION", ""), ("", ""), ("***", ""),
        ("The MIT License", "MIT"), ("Apache License, Version 2.0", "Apache-2.0"), ("BSD 3-Clause License", "BSD-3-Clause"),
        ("CC BY-SA 4.0", "CC-BY-SA-4.0"), ("https://creativecommons.org/licenses/by-nc-nd/3.0/us", "CC-BY-NC-ND-3.0"),
        ("LicenseRef-Ours", "LicenseRef-Ours"), ("MIT-like", "LicenseRef-unknown-MIT-like"),
    ],
)  # fmt: skip
def test_one_spelling_for_each_licence(told: str, meant: str) -> None:
    assert canonical(told) == meant
    assert canonical(meant) == meant


@pytest.mark.parametrize(
    ("expression", "allow", "deny", "may"),
    [
        ("MIT", [], [], True), ("MIT", ["MIT"], [], True), ("MIT", ["Apache-2.0"], [], False), ("MIT", ["mit"], ["MIT"], False),
        ("MIT OR GPL-3.0-only", ["MIT"], [], True), ("MIT AND GPL-3.0-only", ["MIT"], [], False),
        ("MIT OR GPL-3.0-only", [], ["GPL-*"], True), ("MIT AND GPL-3.0-only", [], ["GPL-*"], False),
        ("(MIT OR GPL-3.0-only) AND Apache-2.0", ["MIT", "Apache-2.0"], [], True),
        ("GPL-3.0-only OR (MIT AND BSD-3-Clause)", ["MIT"], [], False),
        ("GPL-3.0-only OR MIT AND BSD-3-Clause", ["MIT", "BSD-*"], [], True),
        ("GPL-2.0-only WITH Classpath-exception-2.0", ["GPL-2.0-only"], [], True),
        ("CC-BY-NC-4.0", ["CC-BY*"], ["*-NC-*"], False),
    ],
)  # fmt: skip
def test_of_a_choice_one_side_is_enough(expression: str, allow: list[str], deny: list[str], may: bool) -> None:
    assert permitted(expression, allow, deny) is may


def test_what_is_not_allowed_is_told_and_not_kept(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(jsonl(*RECORDS))
    made = ingest(
        tmp_path / "w", files(tmp_path / "a.jsonl"), allow_licences=["MIT", "Apache-2.0", "CC-*"], deny_licences=["*-NC-*"]
    )
    kept = dict(zip(*(table(made, "documents")[name].to_pylist() for name in ("text", "licence")), strict=True))
    assert kept == {"one": "MIT", "three": "Apache-2.0 OR GPL-3.0-only", "six": "", "seven": ""}
    assert reasons(made) == {"licence not allowed": 3}
    assert set(table(made, "quarantine")["head"].to_pylist()) == {b""}
    counts = made.manifest.counts
    assert (counts["in"], counts["documents"], counts["barred"], counts["quarantined"]) == (7, 4, 3, 0)


def test_the_unknown_has_a_limit(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(jsonl(*RECORDS))
    assert ingest(tmp_path / "w", files(tmp_path / "a.jsonl"), unknown_licence_limit=3 / 7).metrics["documents"] == 7
    with pytest.raises(RefusedError, match="3 of 7 documents"):
        ingest(tmp_path / "w", files(tmp_path / "a.jsonl"), unknown_licence_limit=2 / 7)
