"""The work of the pipeline itself: plain Python, usable and testable without any server."""

__version__ = "0.1.0"
