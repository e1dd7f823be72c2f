"""Processes: how they exit, what they share, worker pools."""
