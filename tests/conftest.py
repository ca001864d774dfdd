"""Fixtures for all tests."""

import os

from hypothesis import settings

os.environ["PREFECT_SERVER_ALLOW_EPHEMERAL_MODE"] = "false"  # before Prefect is imported: no server but those a test starts

from tests.servers import shown, shown_config, up

__all__ = ["shown", "shown_config", "up"]

# The suite draws the same examples every time; `make campaign` looks for new ones.
settings.register_profile("suite", derandomize=True)
settings.register_profile("campaign")
settings.load_profile(os.environ.get("MILLRACE_HYPOTHESIS", "suite"))
