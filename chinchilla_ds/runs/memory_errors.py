"""Out of memory as an error that a user can fix: the memory needed, by the plan, and the nearest changes that fit."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from chinchilla_ds.budget.layout.relief import reliefs
from chinchilla_ds.budget.memory.peak import CPU, estimate_stages
from chinchilla_ds.budget.report import format_memory
from chinchilla_ds.distributed.launch import read_place
from chinchilla_ds.errors import OutOfMemoryError
from chinchilla_ds.run_plan import RunPlan
from chinchilla_ds.units import format_bytes

_CANNOT_ALLOCATE = re.compile(
    r"out of memory|can't allocate memory|cannot allocate memory|std::bad_alloc", re.IGNORECASE
)
"""Messages of torch's allocators, CUDA's libraries and C++ without a dedicated exception."""
_WANTED = re.compile(r"tried to allocate ([0-9.]+ \w+)", re.IGNORECASE)


@contextmanager
def memory_errors(plan: RunPlan) -> Iterator[None]:
    """Raise OutOfMemoryError for errors that mean that memory ran out.

    Any other error passes.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is a RuntimeError
        if not isinstance(error, MemoryError) and not _CANNOT_ALLOCATE.search(str(error)):
            raise
        raise OutOfMemoryError(explain(plan, message=str(error), capacity_bytes=_capacity_bytes(plan))) from None


def explain(plan: RunPlan, /, *, message: str, capacity_bytes: int | None) -> str:
    """Return what happened, the plan's memory table, and what would fit.

    Args:
        plan: The plan that ran.
        message: The allocator's message.
        capacity_bytes: Memory of this rank's device, or its share of the machine's; None if unknown.
    """
    stages = estimate_stages(
        shape=plan.shape, layout=plan.layout, batch=plan.batch, precision=plan.precision, device=plan.device
    )
    wanted = _WANTED.search(message)
    held = "" if capacity_bytes is None else f" of {format_bytes(capacity_bytes)} per rank"
    more = f", asking for {wanted[1]} more" if wanted else ""
    lines = [f"out of memory{held}{more}; the plan expected", "", format_memory(plan, stages=stages), ""]
    measures = reliefs(plan, capacity_bytes=capacity_bytes)
    if measures:
        lines += ["needs less, with the same batch and the same model:", *(f"  {relief}" for relief in measures)]
    else:
        lines.append("no smaller micro-batch, recomputation, ZeRO stage or offload is enough: use more devices")
    return "\n".join(lines)


def _capacity_bytes(plan: RunPlan) -> int | None:
    """Return the device's memory, or this rank's share of the machine's."""
    if plan.device == CPU:
        import psutil

        return int(psutil.virtual_memory().total) // read_place().local_size
    import torch

    return int(torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory)
