"""An old plan on other ranks: the same model, the same batches, another layout."""

import dataclasses
import math

from chinchilla_ds.budget.layout import validate_layout
from chinchilla_ds.errors import LayoutError
from chinchilla_ds.plan import RunPlan


def lay_out_again(old: RunPlan, *, like: RunPlan, micro_batch_is_asked: bool = True) -> RunPlan:
    """Return `old` in the layout of `like`; the global batch stays, its share of a rank changes.

    Args:
        old: What was trained so far.
        like: Made for the ranks that there are now: its layout and its micro-batch at most are taken.
        micro_batch_is_asked: Whether somebody asked for `like`'s micro-batch; else the old one stays with its layout.

    Raises:
        LayoutError: the global batch cannot be dealt to so many data-parallel ranks, or the layout cannot be built.
    """
    layout, global_batch_size = like.layout, old.batch.global_batch_size
    is_same = like.batch.micro_batch_size == old.batch.micro_batch_size or not micro_batch_is_asked
    if layout == old.layout and is_same:
        return old
    per_rank, rest = divmod(global_batch_size, layout.data_parallel_size)
    if rest:
        low = [size for size in range(1, math.isqrt(global_batch_size) + 1) if global_batch_size % size == 0]
        sizes = sorted({*low, *(global_batch_size // size for size in low)})
        nearest = sorted(sizes, key=lambda size: abs(size - layout.data_parallel_size))[:2]
        replica = layout.world_size // layout.data_parallel_size
        raise LayoutError(
            f"the run has a global batch of {global_batch_size} sequences, which {layout.data_parallel_size} "
            f"data-parallel ranks cannot share; {' or '.join(map(str, sorted(nearest)))} can: start "
            f"{' or '.join(str(size * replica) for size in sorted(nearest))} ranks"
        )
    # Interleaved stages take micro-batches in rounds of the pipeline's length.
    unit = layout.pipeline_model_parallel_size if layout.virtual_pipeline_model_parallel_size > 1 else 1
    fitting = (size for size in range(1, like.batch.micro_batch_size + 1) if per_rank % (size * unit) == 0)
    micro_batch_size = max(fitting, default=1)
    batch = dataclasses.replace(
        old.batch, micro_batch_size=micro_batch_size, gradient_accumulation_steps=per_rank // micro_batch_size
    )
    validate_layout(shape=old.shape, layout=layout, precision=old.precision, batch=batch)
    why = (
        f"Continued on {layout.world_size} ranks after {old.layout.world_size}: the global batch of "
        f"{global_batch_size} sequences stays, in micro-batches of {micro_batch_size}."
    )
    return dataclasses.replace(
        old,
        layout=layout,
        batch=batch,
        device=like.device,
        cluster=like.cluster,
        memory_bytes=like.memory_bytes,
        step_time=like.step_time,
        reasons=(*old.reasons, why),
    )
