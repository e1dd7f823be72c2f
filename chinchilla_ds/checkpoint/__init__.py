"""Checkpoints on disk: whole or not there, the same for every parallel layout, readable one tensor at a time."""
