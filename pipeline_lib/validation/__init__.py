"""Suites, scores, intervals, the gate."""
