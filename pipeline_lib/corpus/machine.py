"""The text already on this machine: the standard library and the packages of this environment. Nothing else is ever read.

Domains: `code` (standard library modules), `docs` (doc strings of the standard library and of packages, and the Markdown and
reStructuredText pages that packages ship), `descriptions` (what packages say about themselves), `licence` (licence files).
"""

from __future__ import annotations

import os
import re
import sysconfig
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from blake3 import blake3

from pipeline_lib.corpus.files import SourceFile, local_file

DOMAINS = ("code", "docs", "descriptions", "licence")
_NOT_TEXT_FOR_PEOPLE = {
    "test", "tests", "testing", "idle_test", "__pycache__", "site-packages", "dist-packages", "_vendor", "_vendored", "vendored",
    "vendor", "node_modules", "static", "pydoc_data", "ensurepip",
}  # fmt: skip
_LICENCE_NAME = re.compile(r"(?i)^(licen[cs]es?|copying|notice)([.\-_ ].*)?$|licen[cs]e(\.(txt|md|rst))?$")
_DOC_STRING = re.compile(rb'"""(.*?)"""', re.DOTALL)
_LEAST_DOC_BYTES, _LEAST_DOC_SHARE = 400, 0.2  # a module with less documentation is no page and not worth parsing
_MOST_FILE_BYTES = 1_000_000  # larger ones are generated tables
_CLASSIFIER = {  # Trove classifiers that name one SPDX licence (https://spdx.org/licenses)
    "MIT License": "MIT",
    "BSD License": "BSD-3-Clause",
    "Apache Software License": "Apache-2.0",
    "Python Software Foundation License": "PSF-2.0",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "ISC License (ISCL)": "ISC",
    "The Unlicense (Unlicense)": "Unlicense",
    "Zope Public License": "ZPL-2.1",
    "Historical Permission Notice and Disclaimer (HPND)": "HPND",
}
_SPDX = re.compile(r"^[A-Za-z0-9.+-]+( (AND|OR|WITH) [A-Za-z0-9.+-]+)*$")


def allowed_roots() -> tuple[Path, ...]:
    """The only folders that are read: the standard library and the package folders of this interpreter."""
    return tuple(dict.fromkeys(Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "purelib", "platlib")))


def machine_files(max_bytes: int) -> list[SourceFile]:
    """Files of this machine with at most `max_bytes` of text, in name order.

    Each domain may use a fair share of the budget; what a small domain leaves goes to the larger ones. Inside a domain files
    are taken in the order of the hash of their names, so that the choice is spread evenly and a new package changes little.
    """
    stdlib, *packages = allowed_roots()
    candidates: dict[str, list[tuple[str, Path, str, str]]] = {domain: [] for domain in DOMAINS}  # name, path, form, licence
    for path in _walk(stdlib):
        name = f"stdlib/{path.relative_to(stdlib).as_posix()}"
        if path.suffix == ".py" and not path.name.startswith("_sysconfigdata"):  # holds this machine's build options
            candidates["code"].append((f"code/{name}", path, "text", "PSF-2.0"))
            candidates["docs"].append((f"docs/{name}", path, "docstrings", "PSF-2.0"))
        elif _LICENCE_NAME.search(path.name):
            candidates["licence"].append((f"licence/{name}", path, "licence", "PSF-2.0"))
    for root in packages:
        for name, path, licence in _package_files(root):
            if path.name == "METADATA":
                candidates["descriptions"].append((f"descriptions/{name}", path, "description", licence))
            elif path.suffix in {"", ".txt", ".md", ".rst"} and _LICENCE_NAME.search(path.name):
                candidates["licence"].append((f"licence/{name}", path, "licence", licence))
            elif path.suffix in {".md", ".rst"}:
                candidates["docs"].append((f"docs/{name}", path, "text", licence))
            elif path.suffix == ".py":
                candidates["docs"].append((f"docs/{name}", path, "docstrings", licence))
    chosen: list[SourceFile] = []
    left = max_bytes
    for turn, domain in enumerate(("descriptions", "licence", "code", "docs")):  # the small ones first
        files = list(_within(candidates[domain], domain, left // (len(DOMAINS) - turn)))
        left -= sum(file.size for file in files)
        chosen += files
    return sorted(chosen, key=lambda file: file.name)


def _within(candidates: list[tuple[str, Path, str, str]], domain: str, budget: int) -> Iterator[SourceFile]:
    ordered = sorted((blake3(candidate[0].encode()).digest(8), candidate) for candidate in candidates)
    for _, (name, path, form, licence) in ordered:
        if not path.is_file() or path.resolve() != path:  # a link on the way may lead out
            continue
        if form == "docstrings":
            data = path.read_bytes() if path.stat().st_size <= _MOST_FILE_BYTES else b""
            size = sum(len(found) for found in _DOC_STRING.findall(data))
            if size < max(_LEAST_DOC_BYTES, _LEAST_DOC_SHARE * len(data)):
                continue
        else:
            size = path.stat().st_size
            if not 0 < size <= _MOST_FILE_BYTES:
                continue
        if size > budget:  # what did not fit is not skipped for something smaller: the choice must not prefer small files
            return
        budget -= size
        yield replace(local_file(path, name, form, domain=domain, licence=licence), size=size)


def _walk(root: Path) -> Iterator[Path]:
    """Files below a folder, links left out."""
    for folder, subfolders, names in os.walk(root, followlinks=False):
        subfolders[:] = [name for name in subfolders if name not in _NOT_TEXT_FOR_PEOPLE]
        for name in names:
            path = Path(folder, name)
            if not path.is_symlink():
                yield path


def _package_files(root: Path) -> Iterator[tuple[str, Path, str]]:
    """(name, path, SPDX licence) of what the installed packages' own records list and lies below `root`, once each."""
    seen = set()  # parts of one project, installed as several packages, list the same files
    for record in sorted(root.glob("*.dist-info/RECORD")):
        metadata = record.with_name("METADATA")
        if not metadata.is_file() or metadata.is_symlink():
            continue
        licence = _spdx(metadata.read_text(encoding="utf-8", errors="replace"))
        for line in record.read_text(encoding="utf-8", errors="replace").splitlines():
            listed = line.rsplit(",", 2)[0].strip('"')
            if not listed.endswith((".py", ".md", ".rst", ".txt", "METADATA")) and "." in listed.rpartition("/")[2]:
                continue
            parts = listed.split("/")
            if ".." in parts or listed.startswith("/") or _NOT_TEXT_FOR_PEOPLE.intersection(parts):
                continue
            if listed not in seen:
                seen.add(listed)
                yield f"packages/{listed}", root / listed, licence


def _spdx(metadata: str) -> str:
    """The SPDX expression a package states (PEP 639), or the one its classifiers name, or ""."""
    classified = []
    for line in metadata.partition("\n\n")[0].splitlines():
        field, _, value = line.partition(": ")
        if field == "License-Expression" and _SPDX.match(value.strip("() ")):
            return value.strip()
        if field == "License" and value in _CLASSIFIER.values():
            classified.append(value)
        if field == "Classifier" and value.startswith("License :: "):
            classified.append(_CLASSIFIER.get(value.rpartition(" :: ")[2], ""))
    return classified[0] if len(set(classified)) == 1 else ""
