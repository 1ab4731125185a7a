"""Checkpoints as files of other runtimes, each held against its checkpoint by running it there."""
