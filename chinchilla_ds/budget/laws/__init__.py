"""Scaling laws: forms, the published ones, how they are chosen and fitted."""
