"""A DeepSpeed ZeRO engine over Megatron-core: schedules, optimizer steps, precision, checkpoints."""
