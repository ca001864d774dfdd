"""Per-document signals and rule sets."""
