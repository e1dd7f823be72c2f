"""Callbacks: everything that watches a run without owning its steps."""
