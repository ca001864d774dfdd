"""Licences as SPDX expressions (https://spdx.github.io/spdx-spec/v3.0.1/annexes/spdx-license-expressions/): one form for each,
and which of them may be used.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

import pyarrow as pa
import pyarrow.compute as pc
from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

NOT_ALLOWED = "licence not allowed"
FREE = "LicenseRef-unknown-"  # before the words of what SPDX does not know: nobody has said what they allow
UNKNOWN = ("", "unknown", "none", "noassertion", "other", "n/a")  # what says nothing about a licence
_OTHER = re.compile(r"[^A-Za-z0-9.-]+")
_CREATIVE = re.compile(
    r"(?:https?://creativecommons\.org/licenses/|creative commons )?(?:cc[ -])?"
    r"(by(?:-nc)?(?:-sa|-nd)?)[ /-]v?([1-4]\.0)(?:[ /].*)?"
)
_SAID = {  # what people write instead of an identifier, in small letters and without "the" and "license"
    "mit": "MIT", "expat": "MIT", "apache": "Apache-2.0", "apache 2": "Apache-2.0", "apache 2.0": "Apache-2.0",
    "apache version 2.0": "Apache-2.0", "apache-2": "Apache-2.0", "apache software 2.0": "Apache-2.0", "isc": "ISC",
    "bsd 2-clause": "BSD-2-Clause", "simplified bsd": "BSD-2-Clause", "bsd 3-clause": "BSD-3-Clause", "new bsd": "BSD-3-Clause",
    "modified bsd": "BSD-3-Clause", "mozilla public 2.0": "MPL-2.0", "mozilla public 2.0 (mpl 2.0)": "MPL-2.0",
    "mpl 2.0": "MPL-2.0", "gplv2": "GPL-2.0-only", "gpl v2": "GPL-2.0-only", "gplv3": "GPL-3.0-only", "gpl v3": "GPL-3.0-only",
    "gnu general public v3": "GPL-3.0-only", "gplv3+": "GPL-3.0-or-later", "gplv2+": "GPL-2.0-or-later",
    "lgplv3": "LGPL-3.0-only", "agplv3": "AGPL-3.0-only", "unlicense": "Unlicense", "unlicence": "Unlicense", "cc0": "CC0-1.0",
    "cc0 1.0": "CC0-1.0", "creative commons zero": "CC0-1.0", "python software foundation": "PSF-2.0",
}  # fmt: skip
_TOKEN = re.compile(r"[()]|[^\s()]+")


def canonical(licence: str) -> str:
    """A licence in the spelling of SPDX: `mit or apache-2.0` → `MIT OR Apache-2.0`.

    Common names and addresses become their identifier (`Apache License 2.0`, `CC BY-SA 4.0`). Other free text keeps its words as
    `LicenseRef-unknown-…`: it may be allowed or denied by name, and is as unknown as what says nothing (""). A `LicenseRef-…` of
    the source's own is a licence that somebody knows.
    """
    plain = " ".join(licence.casefold().replace(",", " ").split())
    if plain in UNKNOWN:
        return ""
    if creative := _CREATIVE.fullmatch(plain):
        return f"CC-{creative[1]}-{creative[2]}".upper()
    if said := _SAID.get(plain.removeprefix("the ").replace("licence", "license").replace(" license", "").strip()):
        return said
    try:
        return str(canonicalize_license_expression(licence.strip()))
    except InvalidLicenseExpression:
        words = _OTHER.sub("-", licence.strip()).strip("-.")[:80]
        return f"{FREE}{words}" if words else ""


def known(column: pa.Array) -> pa.Array:
    """Of which values of a canonical column it is known what they allow."""
    return pc.and_not(pc.not_equal(column, ""), pc.starts_with(column, FREE))


def canonical_column(column: pa.Array) -> pa.Array:
    """`canonical` of each value, worked out once for each different one."""
    coded = pc.fill_null(column, "").dictionary_encode()
    names = pa.array([canonical(name) for name in coded.dictionary.to_pylist()], pa.string())
    return names.take(coded.indices)


def refused(column: pa.Array, allow: Sequence[str], deny: Sequence[str]) -> pa.Array:
    """Which licences may not be used: a boolean for each value of a canonical column. The unknown one is a matter of its own."""
    coded = column.dictionary_encode()
    bad = [bool(name) and not permitted(name, allow, deny) for name in coded.dictionary.to_pylist()]
    return pa.array(bad, pa.bool_()).take(coded.indices)


def permitted(expression: str, allow: Sequence[str], deny: Sequence[str]) -> bool:
    """Whether an expression leaves a choice that is allowed: of `OR` one side is enough, of `AND` both are needed.

    Args:
        expression: canonical, not "".
        allow: identifiers, `*` stands for anything (`CC-BY-*`); empty: all.
        deny: identifiers in the same form; they win.
    """
    return _either(iter([*_TOKEN.findall(expression), ")"]), allow, deny)


def _either(tokens: Iterator[str], allow: Sequence[str], deny: Sequence[str]) -> bool:
    """Up to the closing parenthesis: the disjunction of conjunctions."""
    found, both = False, True
    for token in tokens:
        if token == ")":  # noqa: S105
            break
        if token == "OR":  # noqa: S105  (an operator, no secret)
            found, both = found or both, True
        elif token == "(":  # noqa: S105
            both = _either(tokens, allow, deny) and both
        elif token == "WITH":  # noqa: S105
            next(tokens)  # an exception only adds permissions
        elif token != "AND":  # noqa: S105
            both = _fits(token, allow, deny) and both
    return found or both


def _fits(name: str, allow: Sequence[str], deny: Sequence[str]) -> bool:
    def among(patterns: Sequence[str]) -> bool:
        return any(fnmatchcase(name.casefold(), pattern.casefold()) for pattern in patterns)

    return not among(deny) and (not allow or among(allow))
