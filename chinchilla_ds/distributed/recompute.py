"""Recomputation through deepspeed.checkpointing, so that the ds_config's own section governs it, and by operation.

What DeepSpeed calls a checkpoint here is called recomputation everywhere else: a checkpoint is a saved state.
"""

from collections.abc import Callable
from typing import Any

import deepspeed
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.checkpoint import checkpoint

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


_MATMUL = torch.ops.aten.mm.default
_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
}


def recomputed_but_for_matmuls(function: Callable[..., torch.Tensor], *tensors: torch.Tensor) -> torch.Tensor:
    """Return `function(*tensors)`, saving `tensors`, attention's output and that of its first, third, ... matmul.

    The backward pass recomputes the rest, up to the last value that it needs. In a decoder layer the outputs of the QKV
    projection and of gate and up are saved; norms, rotation, SwiGLU, the output and the down projection run again.

    torch's own modes for this (create_selective_checkpoint_contexts) require that both passes run the same operations.
    Those of ZeRO-3, which gathers and prefetches weights on the way, differ; here only what is saved must be the same.

    Source: torchtitan, distributed/activation_checkpoint.py, its selective mode with option "op".
    """
    saved: list[_Output] = []
    output: torch.Tensor = checkpoint(
        function,
        *tensors,
        use_reentrant=False,
        preserve_rng_state=False,
        context_fn=lambda: (_Saving(saved), _Reusing(saved)),
    )
    return output


_Output = tuple[Any, list[int]]
"""What an operation returned, on CUDA not only tensors, and the versions of the tensors."""


class _Counting(TorchDispatchMode):
    """Tells the operations whose outputs are saved by counting matmuls."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._matmuls = 0

    def __enter__(self) -> Any:
        self._matmuls = 0
        return super().__enter__()  # type: ignore[no-untyped-call]

    def is_saved(self, operation: Any) -> bool:
        """Return whether the output of this operation, the next one, is saved."""
        if operation is _MATMUL:
            self._matmuls += 1
            return self._matmuls % 2 == 1
        return operation in _ATTENTION


class _Saving(_Counting):
    """Saves outputs in the forward pass."""

    def __init__(self, saved: list[_Output]) -> None:
        super().__init__()
        self._saved = saved

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if self.is_saved(func):
            detached = tree_map_only(torch.Tensor, _detached, output)
            self._saved.append((detached, _versions(detached)))
        return output


class _Reusing(_Counting):
    """Returns the saved outputs in the backward pass, each once."""

    def __init__(self, saved: list[_Output]) -> None:
        super().__init__()
        self._saved = saved

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self.is_saved(func):
            return func(*args, **(kwargs or {}))
        output, versions = self._saved.pop(0)
        # by a tensor-parallel sum in place, for example: the output to save would be another matmul's
        assert _versions(output) == versions, f"a saved output of {func} was overwritten"
        return output


def _detached(tensor: torch.Tensor) -> torch.Tensor:
    """Return a view that shares the tensor's version, which a mode below autograd would not see change otherwise."""
    with torch._C._SetExcludeDispatchKeyGuard(torch._C.DispatchKey.ADInplaceOrView, False):
        return tensor.detach()


def _versions(output: Any) -> list[int]:
    return [leaf._version for leaf in tree_leaves(output) if isinstance(leaf, torch.Tensor)]
