"""Fitting scaling laws to a table of finished runs; numpy only, never imported by the planning path."""
