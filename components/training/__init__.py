"""A phase becomes a checkpoint."""
