"""The packed-sequence cache: chunks, fill, order, readers."""
