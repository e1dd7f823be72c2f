"""The decoder: Megatron-core blocks from our own layer spec, initialised identically for every layout."""
