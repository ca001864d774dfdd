"""A real headless Chromium: found, started, and missed with a clear word."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ARGUMENTS = ("--no-sandbox", "--disable-quic", "--disable-background-networking", "--disable-component-update")
NAMES = ("chromium", "chromium-browser", "google-chrome")
REQUIRED = "MILLRACE_REQUIRE_BROWSER"  # set where the browser tests may not be skipped

# MLflow opens a panel for questions to a language model over its first page.
NO_ASSISTANT = """
localStorage.setItem("mlflow.assistant.panelOpen_v1", "false");
localStorage.setItem("mlflow.assistant.fab.autoOpenedOnFirstLoad_v1", "true");
"""


def executable() -> Path | None:
    """Chromium on the PATH, if there is one."""
    return next((Path(found) for name in NAMES if (found := shutil.which(name))), None)


def missing() -> str:
    """Why no browser can be used; "" when one can."""
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError:
        return "Playwright's Python package is not installed"
    return "" if executable() else f"there is no Chromium on the PATH ({', '.join(NAMES)})"


def required() -> bool:
    """Whether a missing browser is a failure."""
    return os.environ.get(REQUIRED, "") not in ("", "0")


@contextmanager
def chromium() -> Iterator[Any]:
    """A running browser (`playwright.sync_api.Browser`)."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable(), args=list(ARGUMENTS))
        try:
            yield browser
        finally:
            browser.close()
