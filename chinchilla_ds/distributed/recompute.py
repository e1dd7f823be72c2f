"""Recomputation through deepspeed.checkpointing, so that the ds_config's own section governs it.

What DeepSpeed calls a checkpoint here is called recomputation everywhere else: a checkpoint is a saved state.
"""

from collections.abc import Callable
from typing import Any

import deepspeed
import torch

from chinchilla_ds.distributed.mpu import Mpu

_SECTION = "activation_checkpointing"


def configure(*, ds_config: dict[str, Any], num_layers: int) -> None:
    """Pass the `activation_checkpointing` section of a resolved ds_config to DeepSpeed.

    Args:
        ds_config: The DeepSpeed JSON; its section may name partition_activations, cpu_checkpointing,
            contiguous_memory_optimization, synchronize_checkpoint_boundary and profile.
        num_layers: Activation checkpoints per forward pass on this rank, required for contiguous memory.
    """
    section = ds_config.get(_SECTION, {})
    deepspeed.checkpointing.configure(
        Mpu,
        partition_activations=section.get("partition_activations", False),
        contiguous_checkpointing=section.get("contiguous_memory_optimization", False),
        num_checkpoints=section.get("number_checkpoints") or num_layers,
        checkpoint_in_cpu=section.get("cpu_checkpointing", False),
        synchronize=section.get("synchronize_checkpoint_boundary", False),
        profile=section.get("profile", False),
    )


def recomputed(function: Callable[..., torch.Tensor], *tensors: torch.Tensor) -> torch.Tensor:
    """Return `function(*tensors)`, saving only `tensors` for the backward pass, which recomputes the rest."""
    output: torch.Tensor = deepspeed.checkpointing.checkpoint(function, *tensors)
    return output
