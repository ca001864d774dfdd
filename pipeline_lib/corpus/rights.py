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
UNKNOWN = ("", "unknown", "none", "noassertion", "other", "n/a")  # what says nothing about a licence
_OTHER = re.compile(r"[^A-Za-z0-9.-]+")
_TOKEN = re.compile(r"[()]|[^\s()]+")


def canonical(licence: str) -> str:
    """A licence in the spelling of SPDX: `mit or apache-2.0` → `MIT OR Apache-2.0`.

    What SPDX does not know keeps its words as a `LicenseRef-…`; what says nothing is "" (unknown).
    """
    if licence.strip().casefold() in UNKNOWN:
        return ""
    try:
        return str(canonicalize_license_expression(licence.strip()))
    except InvalidLicenseExpression:
        words = _OTHER.sub("-", licence.strip()).strip("-.")[:80]
        return f"LicenseRef-{words}" if words else ""


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
