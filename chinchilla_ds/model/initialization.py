"""Initial weights that depend only on the seed and the parameter's name, never on the layout.

Every weight is drawn in full from a generator seeded by (seed, global name) and cut for this tensor-parallel rank; a
rank holds one whole weight at a time, never the model.
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from megatron.core import parallel_state
from torch import Tensor, nn

from chinchilla_ds.model.decoder import PipelineStage
from chinchilla_ds.run_plan import RunPlan
from chinchilla_ds.weights import Split, kind_of

GatherForWriting = Callable[[nn.Parameter], AbstractContextManager[Any]]
"""Context in which a parameter is gathered on this rank and the values written by rank 0 of its group are kept."""


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
    """Return the shape of a parameter before tensor parallelism; ZeRO-3's partitioning is ignored."""
    shape = list(getattr(parameter, "ds_shape", parameter.shape))
    if (dim := partition_dim(parameter)) is not None:
        shape[dim] *= parallel_state.get_tensor_model_parallel_world_size()
    return shape


def split_of(name: str, parameter: nn.Parameter) -> Split | None:
    """Return how tensor parallelism cuts a parameter, by its global name; None: every rank has it whole.

    A parameter that is not a weight of the decoder is cut in one run along its marked dimension.
    """
    kind = kind_of(name)
    if kind is not None:
        return kind.split
    dim = partition_dim(parameter)
    return None if dim is None else Split(dim=dim)


def cut_for_tensor_parallel_rank(full: Tensor, *, split: Split, rank: int, world_size: int) -> Tensor:
    """Return a rank's part of a full weight.

    Args:
        full: The whole weight.
        split: How it is cut.
        rank: Tensor-parallel rank.
        world_size: Tensor-parallel size.
    """
    parts = split.parts(full.size(split.dim), rank=rank, world_size=world_size)
    return torch.cat([full.narrow(split.dim, part.start, part.stop - part.start) for part in parts], split.dim)


def initial_weight(*, name: str, shape: list[int], plan: RunPlan) -> Tensor:
    """Draw the full initial weight in fp32 on the CPU: normal, or ones, by `weights.TABLE`.

    Args:
        name: Its global name.
        shape: Shape of the whole weight.
        plan: Gives seed and shape.
    """
    kind = kind_of(name)
    assert kind is not None, f"{name} is not a weight of the decoder"
    std = kind.std(plan.shape)
    if std is None:
        return torch.ones(shape)
    digest = hashlib.blake2b(f"{plan.seed}:{name}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "big") % (2**63))
    return torch.empty(shape).normal_(0.0, std, generator=generator)


@torch.no_grad()
def initialize(stage: PipelineStage, *, plan: RunPlan, gather: GatherForWriting | None = None) -> None:
    """Write the initial weights of this rank's stage.

    Args:
        stage: The stage to write.
        plan: Gives seed, shape and layout.
        gather: Under ZeRO-3, the context in which one parameter is gathered.
    """
    rank = parallel_state.get_tensor_model_parallel_rank()
    world_size = parallel_state.get_tensor_model_parallel_world_size()
    for name, parameter in global_named_parameters(stage):
        kind = kind_of(name)
        assert kind is not None, f"{name} is not in the table of weights"
        shape, split = list(kind.shape(plan.shape)), kind.split
        assert full_shape(parameter) == shape, f"{name} is {full_shape(parameter)}, and the table makes it {shape}"
        weight = initial_weight(name=name, shape=shape, plan=plan)
        if split is not None:
            weight = cut_for_tensor_parallel_rank(weight, split=split, rank=rank, world_size=world_size)
        with gather(parameter) if gather else nullcontext():
            parameter.copy_(weight)
