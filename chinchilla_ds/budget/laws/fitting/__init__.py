"""Fitting scaling laws to a table of finished runs; numpy only, and never imported by the planning path."""
