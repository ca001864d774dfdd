"""A file of a source: its stable name, its content's digest, and the form its name tells."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from blake3 import blake3

from pipeline_lib.corpus.streams import BLOCK, COMPRESSED_SUFFIXES, expansion
from pipeline_lib.errors import StageFailedError
from pipeline_lib.workspace.identity import file_digest

PART_BYTES = 4_000_000  # smaller files are read together in groups of about this size
FORMS = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".tsv": "tsv", ".parquet": "parquet",
    ".arrow": "arrow", ".feather": "arrow", ".html": "html", ".htm": "html", ".xhtml": "html", ".warc": "warc", ".txt": "text",
    ".text": "text", ".md": "text", ".markdown": "text", ".rst": "text",
}  # fmt: skip


@dataclass(frozen=True)
class SourceFile:
    """A file of a source.

    `name` is relative to the source's root and stable across machines; `path` is where it lies here; `form` says how it is read
    (`readers.py`; `link` and `unreadable`: not at all); `size` is the estimated bytes of text in it; `stamp` is (size, mtime_ns)
    of a local file, to notice a change between listing and reading. Of a large file that is read in ranges (`ranges.py`) each is
    a `SourceFile`: its digest is that of the range, `start` and `stop` are bytes or row groups (-1: the end), `first` is the
    number of its first record.
    """

    name: str
    path: str
    digest: str
    size: int
    form: str
    domain: str = ""
    licence: str = ""
    stamp: tuple[int, int] | None = None
    start: int = 0
    stop: int = -1
    first: int = 0

    @property
    def identity(self) -> list[str | int]:
        """What a reader's output depends on."""
        own: list[str | int] = [self.name, self.digest, self.form, self.domain, self.licence]
        return own + [self.start, self.stop, self.first] * (self.stop >= 0)

    def check(self) -> None:
        """Raise when the file changed since it was listed."""
        if self.stamp is not None and self.stamp != _stamp(self.path):
            raise StageFailedError("the file changed while it was read", where=self.path, fix="run again when it is complete")


def plain_name(name: str) -> str:
    """A file's name as text: bytes that are not UTF-8, which a file system may hold, as `\\udcff`."""
    return name.encode("utf-8", "backslashreplace").decode()


def local_link(path: Path, name: str) -> SourceFile:
    """A link that is not followed."""
    return SourceFile(plain_name(name), str(path), "", 0, "link")


def unreadable(path: Path, name: str) -> SourceFile:
    """A file that may not be read."""
    return SourceFile(plain_name(name), str(path), "", 0, "unreadable")


def local_file(path: Path, name: str, form: str = "", *, domain: str = "", licence: str = "") -> SourceFile:
    """A local file as a source file; its digest is kept while the process lives and the file's size, time and inode stay."""
    stat = path.stat()
    size = stat.st_size
    form = form or form_of(name)
    if size > 0 and Path(name).suffix.lower() in (*COMPRESSED_SUFFIXES, ""):
        size = int(size * expansion(str(path)))
    return SourceFile(
        name=plain_name(name),
        path=str(path),
        digest=_digest(str(path), stat.st_size, stat.st_mtime_ns, stat.st_ino),
        size=size,
        form=form,
        stamp=(stat.st_size, stat.st_mtime_ns),
        domain=domain,
        licence=licence,
    )


def form_suffix(name: str) -> str:
    """The suffix that tells the format, compression aside."""
    path = Path(name.lower())
    return Path(path.stem).suffix if path.suffix in COMPRESSED_SUFFIXES else path.suffix


def form_of(name: str) -> str:
    """The form a name tells; `sniff`: look at the content."""
    return FORMS.get(form_suffix(name), "sniff")


def _stamp(path: str) -> tuple[int, int]:
    stat = Path(path).stat()
    return stat.st_size, stat.st_mtime_ns


@lru_cache(maxsize=100_000)
def _digest(path: str, size: int, mtime_ns: int, inode: int) -> str:
    if size < PART_BYTES:
        return file_digest(Path(path))
    hasher = blake3(max_threads=1)  # mapped into memory, a large file would count as memory in use
    with Path(path).open("rb") as raw:
        while block := raw.read(BLOCK):
            hasher.update(block)
    return str(hasher.hexdigest())
