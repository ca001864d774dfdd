"""What a file of the machine source says: doc strings as a page, a package's description, a licence with its year."""

from __future__ import annotations

import ast
import inspect
import re
import threading
import warnings
from collections.abc import Callable

_YEAR = re.compile(rb"(?i)copyright[^\n]{0,80}?((?:19[89]|20[0-4])\d)(?:\s*[-,\xe2\x80\x93]+\s*((?:19[89]|20[0-4])\d))?")
_RELEASE = re.compile(rb"(?m)^[ \t#*\[v-]*\d+\.\d+[^\n]{0,30}?\b((?:199|20[0-4])\d-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12]\d|3[01]))\b")

# Before Python 3.12 the parser counts its depth for all threads together, and two at once fail (python/cpython#106905); the
# filter of warnings is shared by threads, too.
_PARSING = threading.Lock()

Extract = Callable[[bytes], tuple[bytes, str]]


def doc_strings(data: bytes) -> tuple[bytes, str]:
    """The doc strings of a module as one page with a heading each.

    Raises:
        ValueError: the file is not Python that this interpreter can parse.
    """
    with _PARSING, warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        try:
            tree = ast.parse(data)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise ValueError("not parsable as Python") from error
    sections: list[str] = []

    def visit(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, name: str) -> None:
        if text := ast.get_docstring(node):
            sections.append(f"{name}\n\n{text}" if name else text)
        for child in node.body:
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                visit(child, f"{name}.{child.name}" if name else child.name)

    visit(tree, "")
    return "\n\n".join(sections).encode("utf-8"), ""


def description(data: bytes) -> tuple[bytes, str]:
    """The long description in a METADATA file; its date is the newest release that a change log in it dates, or unknown."""
    head, _, body = data.replace(b"\r\n", b"\n").partition(b"\n\n")
    if not body.strip():
        folded = re.search(rb"(?m)^Description: (.*(?:\n[ \t|].*)*)", head)
        body = (
            inspect.cleandoc(folded[1].decode("utf-8", "surrogateescape").replace("\n       |", "\n")).encode(
                "utf-8", "surrogateescape"
            )
            if folded
            else b""
        )
    return body, max((found.decode() for found in _RELEASE.findall(body)), default="")


def licence(data: bytes) -> tuple[bytes, str]:
    """A licence text; its date is the newest copyright year it names, or unknown."""
    years = [year.decode() for found in _YEAR.findall(data) for year in found if year]
    return data, max(years, default="")


EXTRACT: dict[str, Extract] = {"docstrings": doc_strings, "description": description, "licence": licence}
"""Form of a machine file → (text, date as `YYYY`, `YYYY-MM-DD` or "")."""
