"""Python syntax as minimal pairs: code that compiles against code that does not (both checked by the compiler)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

NAMES = ["value", "name", "path", "result", "data", "line", "key", "item", "index", "text", "count", "size"]
CALLS = ["len", "str", "int", "list", "sorted", "repr"]

Pair = tuple[str, str]  # valid, invalid


def block_colon() -> Iterator[Pair]:
    """A block begins after a colon."""
    for name, call in itertools.product(NAMES, CALLS):
        yield f"if {name} is None:\n    return {call}({name})\n", f"if {name} is None\n    return {call}({name})\n"
        yield f"for item in {name}:\n    {call}(item)\n", f"for item in {name}\n    {call}(item)\n"


def closed_brackets() -> Iterator[Pair]:
    """Brackets are closed."""
    for name, call in itertools.product(NAMES, CALLS):
        yield f"{name} = {call}({name})\n", f"{name} = {call}({name}\n"
        yield f"{name} = [{call}(x) for x in {name}]\n", f"{name} = [{call}(x) for x in {name}\n"


def definition() -> Iterator[Pair]:
    """A definition starts with its keyword, then the name."""
    for name, call in itertools.product(NAMES, CALLS):
        yield (
            f"def get_{name}(self):\n    return {call}(self.{name})\n",
            f"def (self) get_{name}:\n    return {call}(self.{name})\n",
        )


def keyword_order() -> Iterator[Pair]:
    """`from` comes before `import`; `not in` is one operator."""
    for name, call in itertools.product(NAMES, CALLS):
        yield f"from {name} import {call}\n", f"from import {name} {call}\n"
        yield f"if {name} not in {call}:\n    pass\n", f"if {name} in not {call}:\n    pass\n"


def indentation() -> Iterator[Pair]:
    """A block is indented."""
    for name, call in itertools.product(NAMES, CALLS):
        yield (
            f"try:\n    {name} = {call}({name})\nexcept ValueError:\n    pass\n",
            f"try:\n{name} = {call}({name})\nexcept ValueError:\npass\n",
        )


PHENOMENA = (block_colon, closed_brackets, definition, keyword_order, indentation)
