"""Forgetting documents: everything that holds them is written again without them, and the old bytes go."""
