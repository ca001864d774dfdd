"""Calibration, the plan, and the window controller."""
