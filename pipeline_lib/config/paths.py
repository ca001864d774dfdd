"""Paths that come from a YAML, an option or a form: made absolute, and kept inside the allowed folders."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote

from pydantic import BaseModel

from pipeline_lib.config.walk import extra, texts
from pipeline_lib.config.yaml_text import Place, Problem, dotted
from pipeline_lib.errors import ConfigError

if TYPE_CHECKING:
    from pipeline_lib.config.data import SourceConfig

Model = TypeVar("Model", bound=BaseModel)

# fsspec protocols that reach another machine, memory, or only unpack what follows them. Any other protocol could read this
# machine's files by another name and is refused. https://filesystem-spec.readthedocs.io (protocol names)
REMOTE = frozenset({
    "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "http", "https", "memory", "hdfs", "webhdfs", "hf", "ftp", "sftp",
    "ssh",
})  # fmt: skip
WRAPPERS = frozenset({"zip", "tar", "simplecache", "filecache", "blockcache"})
LOCAL = frozenset({"file", "local"})
SERVERS = frozenset({"http", "https", "postgresql", "mysql", "mssql", "databricks"})  # where MLflow may keep runs, not here
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
# `sqlite:///runs.db`, also as a URI of SQLite's own (`sqlite:///file:/runs.db?uri=true`), `file:///runs`, `runs`
_KEPT_HERE = re.compile(r"(?:sqlite(?:\+\w+)?:/{0,3})?(?:file:(?://(?:localhost)?)?)?([^?]*).*", re.IGNORECASE | re.DOTALL)
_REFERENCE = "artifact:"  # a resolved mutable name (`workspace/resolve.py`)


def allowed_roots(config_file: Path | None, workspace: Path | None = None) -> list[Path]:
    """Folders that configured paths may lie in.

    The folder of the YAML, the current folder, the workspace, and what the operator of this machine allows in
    $MILLRACE_ALLOWED_ROOTS (separated like $PATH).
    """
    home = workspace or Path(os.environ.get("MILLRACE_HOME") or "workspace")
    more = [Path(part) for part in os.environ.get("MILLRACE_ALLOWED_ROOTS", "").split(os.pathsep) if part]
    first = [config_file.parent] if config_file else []
    return list(dict.fromkeys(path.expanduser().resolve() for path in [*first, Path.cwd(), home, *more]))


def missing_sources(sources: Sequence[SourceConfig]) -> list[tuple[str, str]]:
    """(name, path) of each source on this machine where no file, folder or match of the glob is; remote ones are not asked."""
    local = [source for source in sources if source.kind in {"files", "dataset"} and "://" not in source.path]
    return [(s.name, s.path) for s in local if not Path(s.path).exists() and not any(glob.iglob(s.path, recursive=True))]  # noqa: PTH207


def refusal(text: str, roots: Sequence[Path]) -> tuple[str, str]:
    """Why a path, glob or fsspec URL may not be read, and what to do; ("", "") when it may. Links are followed.

    Chained URLs (`zip://*.csv::https://…`) are judged link by link.
    """
    for link in text.split("::"):
        match = _SCHEME.fullmatch(link)
        scheme, rest = (match[1].lower(), match[2]) if match else ("", link)
        if scheme in REMOTE | WRAPPERS or (not scheme and link in WRAPPERS):
            continue
        if scheme and scheme not in LOCAL:
            return f"{scheme}:// is not a protocol that is read", f"one of {', '.join(sorted(REMOTE))}, or a path"
        # `*/..` would step out of what the literal part shows, so `..` counts after links are followed and before any glob
        path = Path(rest).expanduser()
        literal = Path(*[part for part in path.parts if not _has_magic(part)]) if path.parts else path
        if any(part == ".." for part in path.parts[_first_magic(path) :]):
            return "`..` after a wildcard", "write the folder without `..`"
        if not any(literal.resolve().is_relative_to(root) for root in roots):
            shown = ", ".join(str(root) for root in roots)
            return f"it lies outside the allowed folders ({shown})", "move it there, or add its folder to $MILLRACE_ALLOWED_ROOTS"
    return "", ""


def tracking_path(uri: str) -> str:
    """What an address of MLflow names on this machine, a database file or a folder; "" where it names a server."""
    if uri.partition(":")[0].partition("+")[0].lower() in SERVERS:
        return ""
    found = _KEPT_HERE.fullmatch(uri)
    return unquote(found[1]) if found else ""


def _has_magic(part: str) -> bool:
    return any(char in part for char in "*?[{")


def _first_magic(path: Path) -> int:
    return next((index for index, part in enumerate(path.parts) if _has_magic(part)), len(path.parts))


def _paths(config: BaseModel) -> Iterator[tuple[Place, str]]:
    for place, info, text in texts(config):
        words = extra(info, "path", None)
        is_module = place[-2:-1] == ("extensions",) and not text.endswith(".py")
        if words is not None and text and text not in words and not text.startswith(_REFERENCE) and not is_module:
            yield place, text


def path_problems(config: BaseModel, roots: Sequence[Path]) -> list[Problem]:
    """Every configured path that may not be used, MLflow's own place included."""
    found = [(place, text, refusal(text, roots)) for place, text in _paths(config)]
    found += [(place, text, refusal(path, roots)) for place, text, path in _tracked(config)]
    return [Problem(place, what, fix, value=repr(text)) for place, text, (what, fix) in found if what]


def _tracked(config: BaseModel) -> Iterator[tuple[Place, str, str]]:
    """Place, text and path of MLflow's address, where it is on this machine."""
    for place, _, text in texts(config):
        if place == ("tracking", "uri") and (path := tracking_path(text)):
            yield place, text, path


def check_paths(config: BaseModel, roots: Sequence[Path]) -> None:
    """Refuse a configuration whose paths leave the allowed folders. For forms; `load_config` does it for files.

    Raises:
        ConfigError: names every such path.
    """
    if problems := path_problems(config, [root.resolve() for root in roots]):
        raise ConfigError("\n".join(problem.line() for problem in problems))


def absolute(config: Model, folders: Mapping[str, Path]) -> Model:
    """The configuration with relative paths made absolute, so that a run does not depend on where it is started.

    Args:
        config: what was read.
        folders: dotted place → the folder its path counts from (`""`: all others).
    """
    changes = {}
    for place, text in _paths(config):
        if "::" not in text and not _SCHEME.fullmatch(text):
            base = next((folders[name] for name in _prefixes(place) if name in folders), folders[""])
            changes[place] = str(base / Path(text).expanduser())
    return _replace(config, changes) if changes else config


def _prefixes(place: Place) -> Iterator[str]:
    for length in range(len(place), 0, -1):
        yield dotted(place[:length])


def _replace(config: Model, changes: Mapping[Place, str]) -> Model:
    values = config.model_dump(mode="json")
    for place, text in changes.items():
        at: Any = values
        for part in place[:-1]:
            at = at[part]
        at[place[-1]] = text
    return type(config).model_validate(values)


def allow(folders: Sequence[Path]) -> None:
    """Allow further folders in this process and its children: for what a person at the command line has named."""
    more = [str(folder.expanduser().resolve()) for folder in folders]
    known = [part for part in os.environ.get("MILLRACE_ALLOWED_ROOTS", "").split(os.pathsep) if part]
    os.environ["MILLRACE_ALLOWED_ROOTS"] = os.pathsep.join(dict.fromkeys([*known, *more]))


def local_folders(config: BaseModel) -> list[Path]:
    """The folders of a configuration's local paths (a glob's: the part before the first wildcard)."""
    found = [Path(text) for _, text in _paths(config) if "::" not in text and not _SCHEME.fullmatch(text)]
    found += [Path(path) for _, _, path in _tracked(config)]
    return list(dict.fromkeys(Path(*path.parts[: min(_first_magic(path), len(path.parts) - 1)]) for path in found))
