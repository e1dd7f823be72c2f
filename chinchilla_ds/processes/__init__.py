"""Processes: how they end, what they share, worker pools."""
