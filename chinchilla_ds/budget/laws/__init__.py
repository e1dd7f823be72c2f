"""Scaling laws: their forms, the published ones, the choice among them, and fitting."""
