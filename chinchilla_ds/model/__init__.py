"""The decoder: Megatron-core blocks from our own layer spec, initialised alike for every layout."""
