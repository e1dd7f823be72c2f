"""Process groups, the CPU backend, and the glue between DeepSpeed and Megatron-core."""
