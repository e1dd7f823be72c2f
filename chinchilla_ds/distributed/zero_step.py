"""Corrections to the step of DeepSpeed 0.19.8's ZeRO optimizers. Applied once, by `groups.initialize`.

**The loss scale grows after the step.** When an FP16 step ends a window without an overflow, DeepSpeed doubles the loss
scale, and only then divides the gradients by it, which were computed under the old scale. That step's gradients come
out halved; under ZeRO-3 so does the reported norm, and clipping sees half of it. Here the scale grows after the
step has been taken. A step that overflows is not taken, so the scale then shrinks at once, as before.

**One all-reduce for the gradient norm.** DeepSpeed sums the squares of one sub-group (ZeRO-3) or one parameter group
(ZeRO-1 and 2) after the other over the model-parallel ranks. Pipeline stages may have different numbers of groups;
their all-reduces then do not match, and the first step hangs. Here each rank sums the squares of all its groups over
its data-parallel ranks, and the sum goes over the model-parallel ranks once.
"""

import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from deepspeed import comm
from deepspeed.accelerator import get_accelerator
from deepspeed.runtime.utils import combine_grad_norm_groups
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from torch import Tensor

from chinchilla_ds.distributed.dependency_check import DependencyChangedError, require_source

_UPDATES_FIRST_3 = """
        if self._loss_scale_update_and_overflow_cleanup():
            if self.swap_optimizer:
                self.optimizer_swapper.log_timers()
            return

        # Stash unscaled gradient norm
        self._global_grad_norm = scaled_global_grad_norm / self.loss_scale
"""
_SCALES_BY_THE_NEW = """
        # compute combined scale factor for this group
        combined_scale = self.loss_scale
"""
_ALL_REDUCES = """
        if pg_utils.is_parallel(self.model_parallel_group):
            dist.all_reduce(tensor=tensor, op=op, group=self.model_parallel_group)
"""
_EXPECTED = {
    DeepSpeedZeroOptimizer_Stage3: (
        _UPDATES_FIRST_3,
        "        self._update_scale(self.overflow)\n\n        if self.overflow:\n",
        "def _update_scale(self, has_overflow=False):\n        self.loss_scaler.update_scale(has_overflow)\n",
        _SCALES_BY_THE_NEW,
        _ALL_REDUCES,
        "norm_groups = self._get_norm_groups()\n            scaled_global_grad_norm = combine_grad_norm_groups(norm_gr",
    ),
    DeepSpeedZeroOptimizer: (
        "        prev_scale = self.loss_scale\n        self._update_scale(self.overflow)\n",
        "def _update_scale(self, has_overflow=False):\n        self.loss_scaler.update_scale(has_overflow)\n",
        _SCALES_BY_THE_NEW,
        _ALL_REDUCES,
        "scaled_global_grad_norm = self.scaled_global_norm()\n",
        "return combine_grad_norm_groups(norm_groups, norm_type=norm_type)\n",
    ),
}
"""Source text of each optimizer on which the corrections rely."""
_NUM_SUMS = "self._model_parallel_all_reduce(", 4
"""Calls of the all-reduce over the model-parallel ranks in each file: for the norm of gradients on the device
and on the host, for the largest gradient, which no step needs, and for the overflow, once per step."""
_corrected: set[type] = set()


def install() -> None:
    """Correct both optimizers; does nothing when called again.

    Raises:
        DependencyChangedError: one of them no longer has the corrected behaviour.
    """
    for optimizer in _EXPECTED.keys() - _corrected:
        _require(optimizer)
        optimizer.step = _step_then_grow(optimizer)
        _corrected.add(optimizer)
        if optimizer is DeepSpeedZeroOptimizer_Stage3:
            optimizer._get_norm_groups = _one_norm_group(optimizer)
        else:
            optimizer.scaled_global_norm = _global_norm_by_one_all_reduce(optimizer)


def _require(optimizer: type) -> None:
    # the module that it stands in: to find a class, inspect parses all of the file, a second for every rank
    source, what = inspect.getsource(sys.modules[optimizer.__module__]), f"deepspeed's {optimizer.__name__}"
    for expected in _EXPECTED[optimizer]:
        require_source(source, expected, what=what)
    call, times = _NUM_SUMS
    if source.count(call) != times:
        raise DependencyChangedError(
            f"{what} has changed: it calls {call!r} {source.count(call)} times and not {times}, so the correction in "
            f"{__name__} must be reviewed. Install the versions in constraints.txt."
        )


def _step_then_grow(optimizer: Any) -> Callable[..., None]:
    """Return the optimizer's step, after which the loss scale grows."""
    step, update_scale = optimizer.step, optimizer._update_scale

    @functools.wraps(step)
    def step_then_grow(self: Any, closure: Any = None) -> None:
        taken = False

        def shrink_now_or_grow_later(has_overflow: bool = False) -> None:
            nonlocal taken
            taken = not has_overflow
            if has_overflow:
                update_scale(self, True)

        with _replaced(self, "_update_scale", shrink_now_or_grow_later):
            step(self, closure)
        if taken:
            update_scale(self, False)

    return step_then_grow


def _one_norm_group(optimizer: Any) -> Callable[[Any], list[Tensor]]:
    """Return ZeRO-3's `_get_norm_groups` with the global norm as its only group."""
    get_norm_groups = optimizer._get_norm_groups

    @functools.wraps(get_norm_groups)
    def one_norm_group(self: Any) -> list[Tensor]:
        return [_global_norm(self, lambda: combine_grad_norm_groups(get_norm_groups(self)))]

    return one_norm_group


def _global_norm_by_one_all_reduce(optimizer: Any) -> Callable[..., Tensor]:
    """Return ZeRO-1 and 2's `scaled_global_norm`."""
    scaled_global_norm = optimizer.scaled_global_norm

    @functools.wraps(scaled_global_norm)
    def by_one_all_reduce(self: Any, norm_type: int = 2) -> Tensor:
        return _global_norm(self, lambda: scaled_global_norm(self, norm_type))

    return by_one_all_reduce


def _global_norm(optimizer: Any, norm_of_groups: Callable[[], Tensor]) -> Tensor:
    """Return the L2 norm over the model-parallel ranks; infinite if any rank has a non-finite gradient.

    Args:
        optimizer: DeepSpeed's optimizer.
        norm_of_groups: Returns the norm over all groups, each of which would be summed over the model-parallel ranks.
    """
    group = optimizer.model_parallel_group
    if group is None or comm.get_world_size(group) == 1:
        return norm_of_groups()
    with _replaced(optimizer, "_model_parallel_all_reduce", lambda tensor, op: None):
        own = norm_of_groups()
    squares = own.to(get_accelerator().current_device_name()).square()
    optimizer._model_parallel_all_reduce(tensor=squares, op=comm.ReduceOp.SUM)
    return squares.sqrt().to(own.device)


@contextmanager
def _replaced(holder: Any, name: str, function: Callable[..., Any]) -> Iterator[None]:
    """Temporarily shadow a method with a function as attribute `name` of `holder`."""
    setattr(holder, name, function)
    try:
        yield
    finally:
        delattr(holder, name)
