"""Model, trainer, checkpoints, monitor."""
