"""A file of a source: its stable name, its content's digest, and the form its name tells."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from pipeline_lib.corpus.streams import COMPRESSED_SUFFIXES, expansion
from pipeline_lib.errors import StageFailedError
from pipeline_lib.workspace.identity import file_digest

PART_BYTES = 4_000_000  # smaller files are read together in groups of about this size
TABLES = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".csv": "csv", ".tsv": "tsv", ".parquet": "parquet"}
TEXTS = (".txt", ".text", ".md", ".markdown", ".rst")


@dataclass(frozen=True)
class SourceFile:
    """A file of a source.

    `name` is relative to the source's root and stable across machines; `path` is where it lies here; `form` says how it is read
    (`readers.py`); `size` is the estimated bytes of text in it; `stamp` is (size, mtime_ns) of a local file, to notice a
    change between listing and reading.
    """

    name: str
    path: str
    digest: str
    size: int
    form: str
    domain: str = ""
    licence: str = ""
    stamp: tuple[int, int] | None = None

    def check(self) -> None:
        """Raise when the file changed since it was listed."""
        if self.stamp is not None and self.stamp != _stamp(self.path):
            raise StageFailedError("the file changed while it was read", where=self.path, fix="run again when it is complete")


def local_file(path: Path, name: str, form: str = "", **known: str) -> SourceFile:
    """A local file as a source file; its digest is kept while the process lives and the file's size, time and inode stay."""
    stat = path.stat()
    size = stat.st_size
    form = form or form_of(name)
    if form_suffix(name) != Path(name).suffix.lower():
        size = int(size * expansion(str(path)))
    return SourceFile(
        name=name,
        path=str(path),
        digest=_digest(str(path), stat.st_size, stat.st_mtime_ns, stat.st_ino),
        size=size,
        form=form,
        stamp=(stat.st_size, stat.st_mtime_ns),
        **known,
    )


def form_suffix(name: str) -> str:
    """The suffix that tells the format, compression aside."""
    path = Path(name.lower())
    return Path(path.stem).suffix if path.suffix in COMPRESSED_SUFFIXES else path.suffix


def form_of(name: str) -> str:
    """The form a name tells; `sniff`: look at the content."""
    suffix = form_suffix(name)
    return TABLES.get(suffix) or ("text" if suffix in TEXTS else "sniff")


def _stamp(path: str) -> tuple[int, int]:
    stat = Path(path).stat()
    return stat.st_size, stat.st_mtime_ns


@lru_cache(maxsize=100_000)
def _digest(path: str, size: int, mtime_ns: int, inode: int) -> str:
    return file_digest(Path(path))
