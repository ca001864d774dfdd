"""Fixtures for all tests."""

import os
import signal
from collections.abc import Iterator

import pytest
from hypothesis import settings

os.environ["PREFECT_SERVER_ALLOW_EPHEMERAL_MODE"] = "false"  # before Prefect is imported: no server but those a test starts
# Two workers train on the same cores: threads that spin while they wait would cost the other one most of its time.
os.environ["OMP_WAIT_POLICY"] = "passive"

from tests.servers import shown, shown_config, up

__all__ = ["shown", "shown_config", "up"]

# Started in the background by a shell, this process would ignore Ctrl-C, and so would every child that a test sends one.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The suite draws the same examples every time; `make campaign` looks for new ones.
settings.register_profile("suite", derandomize=True)
settings.register_profile("campaign")
settings.load_profile(os.environ.get("MILLRACE_HYPOTHESIS", "suite"))


@pytest.hookimpl(wrapper=True)  # around all others: before the workers read the groups
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> Iterator[None]:
    """A file stays together in one worker (its tests share runs), and so do all tests that use the session's servers."""
    for item in items:
        name = "servers" if "up" in getattr(item, "fixturenames", ()) else item.path.relative_to(config.rootpath).as_posix()
        item.add_marker(pytest.mark.xdist_group(name))
    yield
    if hasattr(config, "workerinput") and not all("@" in item.nodeid for item in items):  # pytest 9.2 with xdist 3.8
        raise pytest.UsageError("pytest-xdist does not see the groups of tests: this version of it and this pytest do not fit")
