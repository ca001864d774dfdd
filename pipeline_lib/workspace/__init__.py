"""Artifacts, fingerprints, leases and run records: what makes a stage reusable, resumable and verifiable."""
