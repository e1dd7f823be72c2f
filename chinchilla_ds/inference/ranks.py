"""The ranks that share one model for inference: tensor parallelism within each pipeline stage, no data parallelism.

Rank = stage * tensor_model_parallel_size + tensor-parallel rank. Every rank works on the same prompts and makes the
same draws.
"""

from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from chinchilla_ds.distributed.devices import device_type
from chinchilla_ds.distributed.launch import read_place, settle
from chinchilla_ds.distributed.rendezvous import open_store
from chinchilla_ds.errors import LayoutError
from chinchilla_ds.weights import stage_layers

if TYPE_CHECKING:
    from chinchilla_ds.run_plan import ModelShape


class ModelRanks:
    """This rank's place in the layout, and the collectives that a decoder needs, which do nothing on a single rank."""

    def __init__(self, *, tensor_model_parallel_size: int = 1, pipeline_model_parallel_size: int = 1) -> None:
        """Create the layout's process groups; with more than one rank torch.distributed must be initialised."""
        self.tp_size, self.pp_size = tensor_model_parallel_size, pipeline_model_parallel_size
        self.world_size = self.tp_size * self.pp_size
        rank = dist.get_rank() if self.world_size > 1 else 0
        self.pp_rank, self.tp_rank = divmod(rank, self.tp_size)
        stages = [list(range(stage * self.tp_size, (stage + 1) * self.tp_size)) for stage in range(self.pp_size)]
        self._tp_group = dist.new_subgroups_by_enumeration(stages)[0] if self.tp_size > 1 else None

    @property
    def is_first_stage(self) -> bool:
        """Whether this rank embeds the tokens."""
        return self.pp_rank == 0

    @property
    def is_last_stage(self) -> bool:
        """Whether this rank computes the logits."""
        return self.pp_rank == self.pp_size - 1

    def layers_of_stage(self, shape: "ModelShape") -> range:
        """Return the numbers of this stage's layers in the whole decoder."""
        counts = stage_layers(num_layers=shape.num_layers, pipeline=self.pp_size)
        first = sum(counts[: self.pp_rank])
        return range(first, first + counts[self.pp_rank])

    def sum_over_tp(self, x: Tensor) -> Tensor:
        """Return the sum of the tensor-parallel ranks' partial results; `x` is overwritten."""
        if self.tp_size > 1:
            dist.all_reduce(x, group=self._tp_group)
        return x

    def join_vocab(self, logits: Tensor) -> Tensor:
        """Gather [..., v] from the tensor-parallel ranks' [..., v/tp]."""
        if self.tp_size == 1:
            return logits
        parts = [torch.empty_like(logits) for _ in range(self.tp_size)]
        dist.all_gather(parts, logits.contiguous(), group=self._tp_group)
        return torch.cat(parts, dim=-1)

    def receive(self, x: Tensor) -> Tensor:
        """Receive `x`, in place, from the previous stage."""
        dist.recv(x, src=dist.get_rank() - self.tp_size)
        return x

    def send(self, x: Tensor) -> None:
        """Send `x` to the next stage."""
        dist.send(x.contiguous(), dst=dist.get_rank() + self.tp_size)

    def share_from_last_stage(self, x: Tensor) -> Tensor:
        """Broadcast the last stage's `x` to every rank; elsewhere `x` is the buffer that receives it."""
        if self.pp_size > 1:
            dist.broadcast(x, src=(self.pp_size - 1) * self.tp_size)
        return x


def join_ranks(*, tensor_model_parallel_size: int, pipeline_model_parallel_size: int) -> ModelRanks:
    """Initialise the process group that the launcher's environment describes, and divide it as the layout says.

    Raises:
        LayoutError: the launcher started a different number of ranks from the layout's, or they cannot meet.
        ConfigError: the launcher's variables are incomplete or contradict each other.
    """
    wanted = tensor_model_parallel_size * pipeline_model_parallel_size
    place = read_place()
    if place.world_size != wanted:
        layout = (
            f"`tensor_model_parallel_size={tensor_model_parallel_size}` x "
            f"`pipeline_model_parallel_size={pipeline_model_parallel_size}` = {wanted} ranks"
        )
        raise LayoutError(
            f"{layout}, and {place.world_size} were started; start it with torchrun --nproc-per-node {wanted} "
            "--no-python chinchilla-ds ..., or give sizes whose product is the number of ranks"
        )
    if wanted > 1 and not dist.is_initialized():
        place = settle()
        cuda = device_type() == "cuda"
        if cuda:
            torch.cuda.set_device(place.local_rank % torch.cuda.device_count())
        store = open_store(place)
        dist.init_process_group("nccl" if cuda else "gloo", store=store, rank=place.rank, world_size=place.world_size)
    return ModelRanks(
        tensor_model_parallel_size=tensor_model_parallel_size,
        pipeline_model_parallel_size=pipeline_model_parallel_size,
    )


def check_divides(shape: "ModelShape", *, ranks: ModelRanks) -> None:
    """Check that tensor parallelism divides a decoder into equal parts, and that every stage has a layer.

    Raises:
        LayoutError: lists every size that cannot be divided, and the numbers of parts that work.
    """
    sizes = {
        "num_query_groups": (shape.num_query_groups, ranks.tp_size, "tensor_model_parallel_size"),
        "ffn_hidden_size": (shape.ffn_hidden_size, ranks.tp_size, "tensor_model_parallel_size"),
        "padded_vocab_size": (shape.padded_vocab_size, ranks.tp_size, "tensor_model_parallel_size"),
    }
    problems = []
    for name, (size, parts, field) in sizes.items():
        if size % parts:
            works = [str(part) for part in range(1, min(size, 2 * parts) + 1) if size % part == 0]
            problems.append(f"{field} {parts} does not divide {name} {size}; {', '.join(works)} would")
    if ranks.pp_size > shape.num_layers:
        problems.append(
            f"pipeline_model_parallel_size {ranks.pp_size} is above num_layers {shape.num_layers}, and every stage "
            f"holds a layer; nearest: {shape.num_layers}"
        )
    if problems:
        raise LayoutError(problems)
