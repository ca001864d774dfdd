"""A browser for these tests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.chromium import NO_ASSISTANT, REQUIRED, chromium, missing, required


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this folder needs the browser."""
    for item in items:
        if "tests/browser/" in item.path.as_posix():
            item.add_marker("browser")


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Headless Chromium; skipped where there is none, unless it is required."""
    if why := missing():
        if required():
            pytest.fail(f"{REQUIRED} is set, and {why}", pytrace=False)
        pytest.skip(why)
    with chromium() as running:
        yield running


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A fresh page of a desktop's size."""
    context = browser.new_context(viewport={"width": 1280, "height": 860})
    context.set_default_timeout(60_000)
    made = context.new_page()
    made.add_init_script(NO_ASSISTANT)
    yield made
    context.close()
