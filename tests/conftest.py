"""Fixtures for all tests."""

import os

os.environ["PREFECT_SERVER_ALLOW_EPHEMERAL_MODE"] = "false"  # before Prefect is imported: no server but those a test starts

from tests.servers import up

__all__ = ["up"]
