"""Near-duplicates: proposed by MinHash, decided by exact similarity."""
