"""Corrections to DeepSpeed 0.19.8, each with the behaviour that it corrects. Applied once, by `groups.initialize`.

`assert_ints_same_as_other_ranks` compares a list of integers with that of *global* rank 0, over all ranks. ZeRO-3 calls
it with parameter ids when it first traces a forward pass. Pipeline stages hold different modules, so under a pipeline
the lists legitimately differ and the broadcasts of different lengths deadlock. The check belongs to the ranks with the
same partitioned parameters: the data-parallel group.

`require_skips` corrects nothing: it verifies the behaviour on which the guard against non-finite losses and gradients
relies: each of DeepSpeed's optimizers skips a step with a non-finite global gradient norm, in every precision.
"""

import inspect
import sys

import torch.distributed as dist
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer
from deepspeed.runtime.zero import utils as zero_utils
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3  # which the patch below must reach
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from megatron.core import parallel_state

from chinchilla_ds.distributed.dependency_check import require_source

_NAME = "assert_ints_same_as_other_ranks"


def _assert_ints_same_in_data_parallel_group(ints: list[int]) -> None:
    """Raise RuntimeError if the data-parallel ranks of this stage disagree on `ints`."""
    group = parallel_state.get_data_parallel_group()
    seen: list[list[int] | None] = [None] * dist.get_world_size(group)
    dist.all_gather_object(seen, list(ints), group=group)
    if any(other != seen[0] for other in seen):
        raise RuntimeError(f"data-parallel ranks disagree on a list of parameter ids: {seen}")


_SKIPS = (
    (DeepSpeedZeroOptimizer_Stage3, "if is_invalid_grad_norm(scaled_global_grad_norm):"),
    (DeepSpeedZeroOptimizer, "if (self.dtype != torch.bfloat16"),
    (DeepSpeedZeroOptimizer, "or self.check_grad_overflow) and is_invalid_grad_norm(scaled_global_grad_norm):"),
    (BF16_Optimizer, "if is_invalid_grad_norm(all_groups_norm):"),
    (FP16_UnfusedOptimizer, "if is_invalid_grad_norm(self._global_grad_norm):"),
)
"""The source text that each optimizer must contain."""


def require_skips() -> None:
    """Check that DeepSpeed's optimizers skip a step with a non-finite gradient norm.

    Raises:
        DependencyChangedError: one no longer does.
    """
    for optimizer, expected in _SKIPS:
        # the source of its module: to find a class, inspect would parse the whole file, a second for every rank
        source = inspect.getsource(sys.modules[optimizer.__module__])
        require_source(source, expected, what=f"deepspeed's {optimizer.__name__}")


def install() -> None:
    """Replace the check in every DeepSpeed module that holds a reference to it, and `require_skips`.

    Raises:
        DependencyChangedError: DeepSpeed's check no longer compares with global rank 0, or it no longer skips.
    """
    require_skips()
    original = getattr(zero_utils, _NAME)
    if original is _assert_ints_same_in_data_parallel_group:
        return
    source = inspect.getsource(zero_utils)
    for expected in ("dist.broadcast(lst_tensor, src=0", "rank0_ints = get_lst_from_rank0(ints)"):
        require_source(source, expected, what="deepspeed.runtime.zero.utils")
    for name, module in list(sys.modules.items()):
        if name.startswith("deepspeed") and getattr(module, _NAME, None) is original:
            setattr(module, _NAME, _assert_ints_same_in_data_parallel_group)
