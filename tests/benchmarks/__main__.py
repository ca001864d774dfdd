"""Run a benchmark by name."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

from tests.benchmarks.figures import Book, calibrate, machine

NAMES = sorted(path.stem for path in Path(__file__).parent.glob("*.py") if "\ndef run(" in path.read_text("utf-8"))


def main() -> int:
    """Parse, calibrate, run, print."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    names = parser.add_subparsers(dest="name", required=True, metavar="{" + ",".join(NAMES) + "}")
    for name in NAMES:
        module = importlib.import_module(f"tests.benchmarks.{name}")
        one = names.add_parser(name, help=(module.__doc__ or "").partition("\n")[0])
        one.add_argument("--quick", action="store_true", help="smaller sizes and counts, at most five minutes")
        one.add_argument("--json", type=Path, default=None, help="write the figures to a file")
        if hasattr(module, "options"):
            module.options(one)
        one.set_defaults(run=module.run)
    arguments = parser.parse_args()
    book = Book(setup=machine())
    print(f"{arguments.name} on {book.setup}" + (" (quick)" if arguments.quick else ""))
    calibrate(book)
    arguments.run(book, arguments)
    return book.finish(arguments.json)


if __name__ == "__main__":
    sys.exit(main())
