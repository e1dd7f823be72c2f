"""Command lines: from flags to a run, and how one ends."""
