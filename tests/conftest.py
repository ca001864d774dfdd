"""Fixtures for all tests."""

from tests.servers import up

__all__ = ["up"]
