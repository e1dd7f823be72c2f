"""Corrections to DeepSpeed 0.19.8, each with the behaviour that it corrects. Applied once, by `groups.initialize`.

`assert_ints_same_as_other_ranks` compares a list of integers with that of *global* rank 0, over all ranks. ZeRO-3 calls
it with parameter ids when it first traces a forward pass. Pipeline stages hold different modules, so under a pipeline
the lists differ rightly and the broadcasts of different lengths dead-lock. The check belongs to the ranks that hold the
same partitioned parameters: the data-parallel group.
"""

import inspect
import sys

import deepspeed.runtime.zero.partition_parameters
import deepspeed.runtime.zero.stage3  # noqa: F401 - imported so that the patch below reaches it
import torch.distributed as dist
from deepspeed.runtime.zero import utils as zero_utils
from megatron.core import parallel_state

from chinchilla_ds.distributed.dependency_check import require_source

_NAME = "assert_ints_same_as_other_ranks"


def _assert_ints_same_in_data_parallel_group(ints: list[int]) -> None:
    """Raise RuntimeError where the data-parallel ranks of this stage disagree on `ints`."""
    group = parallel_state.get_data_parallel_group()
    seen: list[list[int] | None] = [None] * dist.get_world_size(group)
    dist.all_gather_object(seen, list(ints), group=group)
    if any(other != seen[0] for other in seen):
        raise RuntimeError(f"data-parallel ranks disagree on a list of parameter ids: {seen}")


def install() -> None:
    """Replace the check in every DeepSpeed module that holds a reference to it.

    Raises:
        DependencyChangedError: DeepSpeed's check no longer compares with global rank 0.
    """
    original = getattr(zero_utils, _NAME)
    if original is _assert_ints_same_in_data_parallel_group:
        return
    source = inspect.getsource(zero_utils)
    for expected in ("dist.broadcast(lst_tensor, src=0", "rank0_ints = get_lst_from_rank0(ints)"):
        require_source(source, expected, what="deepspeed.runtime.zero.utils")
    for name, module in list(sys.modules.items()):
        if name.startswith("deepspeed") and getattr(module, _NAME, None) is original:
            setattr(module, _NAME, _assert_ints_same_in_data_parallel_group)
