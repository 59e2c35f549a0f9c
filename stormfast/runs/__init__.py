"""A run on disk: its directory, checkpoints and metrics, how it is built, and several runs at once."""
