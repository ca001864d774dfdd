"""Sources, readers, normalisation, quarantine, the split."""
