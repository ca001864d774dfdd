"""Secrets in texts: what is stored, logged or shown passes here. Depends on nothing, so that everything may use it."""

from __future__ import annotations

import re

_USERINFO = re.compile(r"(?<=://)[^/@\s]+(?=@)")
_QUERY = re.compile(r"([?&][^=&\s]*(?:token|secret|passw|signature|api_?key|sig)[^=&\s]*=)[^&\s'\"]+", re.IGNORECASE)


def hide_passwords(text: str) -> str:
    """A text with the user part of every URL in it, and tokens in their queries, masked."""
    return _QUERY.sub(r"\1***", _USERINFO.sub("***", text))


def told(error: BaseException) -> str:
    """An error in words, as it may be stored and shown; its type where it has none."""
    return hide_passwords(str(error)) or type(error).__name__


def mask(error: BaseException) -> None:
    """Hide passwords inside an error and in what it came from, so that tracebacks and the states of others have none either."""
    seen: set[int] = set()
    todo: list[BaseException | None] = [error]
    while todo:
        one = todo.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        one.args = tuple(hide_passwords(arg) if isinstance(arg, str) else arg for arg in one.args)
        for name, value in list(vars(one).items()):
            if isinstance(value, str):
                setattr(one, name, hide_passwords(value))
        todo += [one.__cause__, one.__context__]
