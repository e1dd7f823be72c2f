"""Initial weights that depend on the seed and the parameter's name alone, never on the layout.

Every weight is drawn in full from a generator seeded by (seed, global name) and cut for this tensor-parallel rank; one
weight at a time is whole on a rank, never the model.
"""

import hashlib
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from megatron.core import parallel_state
from torch import Tensor, nn

from chinchilla_ds.model.decoder import PipelineStage
from chinchilla_ds.run_plan import RunPlan

GatherForWriting = Callable[[nn.Parameter], AbstractContextManager[Any]]
"""Context in which a parameter is whole on this rank and what rank 0 of its partition group writes is kept."""


def global_named_parameters(stage: PipelineStage) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield this rank's parameters under the names they have in an undivided GPTModel."""
    for chunk in stage.decoders:
        for name, parameter in chunk.named_parameters():
            parts = name.split(".")
            if parts[:2] == ["decoder", "layers"]:
                parts[2] = str(chunk.decoder.layers[int(parts[2])].layer_number - 1)
            yield ".".join(parts), parameter


def partition_dim(parameter: nn.Parameter) -> int | None:
    """Return the dimension along which megatron has split a parameter over the tensor-parallel ranks, if any."""
    return getattr(parameter, "partition_dim", None) if getattr(parameter, "tensor_model_parallel", False) else None


def full_shape(parameter: nn.Parameter) -> list[int]:
    """Return the shape of a parameter before tensor parallelism; ZeRO-3's partitioning is seen through."""
    shape = list(getattr(parameter, "ds_shape", parameter.shape))
    if (dim := partition_dim(parameter)) is not None:
        shape[dim] *= parallel_state.get_tensor_model_parallel_world_size()
    return shape


def cut_for_tensor_parallel_rank(name: str, full: Tensor, *, rank: int, world_size: int, dim: int) -> Tensor:
    """Return this rank's part of a full weight.

    `linear_fc1` holds [gate; up], and each rank needs [gate_r; up_r], so its halves are cut one by one. `linear_qkv` is
    interleaved by query group, [q..., k, v] for each, so a plain cut gives whole groups.
    """
    if name.endswith("linear_fc1.weight"):
        return torch.cat([half.chunk(world_size, dim)[rank] for half in full.chunk(2, dim)], dim)
    return full.chunk(world_size, dim)[rank]


def initial_weight(*, name: str, shape: list[int], plan: RunPlan) -> Tensor:
    """Draw the full initial weight in fp32 on the CPU.

    Matrices are normal with the shape's init_std; projections into the residual stream (`linear_proj`, `linear_fc2`)
    divide it by sqrt(2 num_layers); norms are one. Source: Radford et al. 2019, section 2.3; Megatron-LM's
    scaled_init_method_normal.
    """
    if len(shape) == 1:
        return torch.ones(shape)
    std = plan.shape.init_std
    if name.endswith(("linear_proj.weight", "linear_fc2.weight")):
        std /= math.sqrt(2 * plan.shape.num_layers)
    digest = hashlib.blake2b(f"{plan.seed}:{name}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "big") % (2**63))
    return torch.empty(shape).normal_(0.0, std, generator=generator)


@torch.no_grad()
def initialize(stage: PipelineStage, *, plan: RunPlan, gather: GatherForWriting | None = None) -> None:
    """Write the initial weights of this rank's stage.

    Args:
        stage: The stage to write.
        plan: Its seed, shape and layout.
        gather: Under ZeRO-3, the context in which one parameter is whole.
    """
    rank = parallel_state.get_tensor_model_parallel_rank()
    world_size = parallel_state.get_tensor_model_parallel_world_size()
    for name, parameter in global_named_parameters(stage):
        weight = initial_weight(name=name, shape=full_shape(parameter), plan=plan)
        if (dim := partition_dim(parameter)) is not None:
            weight = cut_for_tensor_parallel_rank(name, weight, rank=rank, world_size=world_size, dim=dim)
        with gather(parameter) if gather else nullcontext():
            parameter.copy_(weight)
