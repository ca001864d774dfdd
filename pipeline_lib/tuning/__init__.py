"""Hyperparameter search. `ask`, `tell`: its samplers and storage for a loop of one's own (`own_loop.py`)."""

from pipeline_lib.tuning.own_loop import Asked, Range, ask, open_search, tell

__all__ = ["Asked", "Range", "ask", "open_search", "tell"]
