"""The parallel layout: its rules, the search, what relieves a full device."""
