"""Text from data in a terminal, a log or JSON that people look at: shown, not obeyed."""

from __future__ import annotations

import re

# Control characters (terminal escapes begin with one) and the marks that reorder text. https://www.unicode.org/reports/tr36/
_HARMFUL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")


def clean(text: object) -> str:
    """Text from data as it may be shown: control characters become visible `\\x1b`, line ends and tabs stay."""
    return _HARMFUL.sub(lambda match: match[0].encode("unicode_escape").decode(), str(text).replace("\r\n", "\n"))


def clean_json(text: str) -> str:
    """The same for JSON, which stays JSON: what harms a terminal is escaped as JSON does it, also where JSON need not."""
    return _HARMFUL.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
