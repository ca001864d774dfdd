"""What the documents show, made by scripts: `python -m tests.docs`."""
