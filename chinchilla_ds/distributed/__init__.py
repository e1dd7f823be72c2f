"""Process groups, the CPU backend, and what DeepSpeed and Megatron-core need to know of each other."""
