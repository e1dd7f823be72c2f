"""The parallel layout: its rules, the search, and changes that save memory."""
