"""Checkpoints on disk: complete or absent, the same for every parallel layout, readable one tensor at a time."""
