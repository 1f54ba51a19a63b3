"""Sources: where checkpoints are read from."""
