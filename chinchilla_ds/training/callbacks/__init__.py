"""Everything that watches a run without owning its steps."""
