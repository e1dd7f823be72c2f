"""A plan on other ranks: the same model, the same batches, another layout."""

import dataclasses
import math

from chinchilla_ds.budget.batching import BatchRequest, choose_batch
from chinchilla_ds.budget.layout.rules import validate_layout
from chinchilla_ds.budget.memory.peak import estimate_memory
from chinchilla_ds.budget.objective_cost import objective_bytes, with_objective_bytes
from chinchilla_ds.budget.planner import check_and_lay_out, precision_of
from chinchilla_ds.config import RunConfig
from chinchilla_ds.errors import LayoutError
from chinchilla_ds.objective import make_objective
from chinchilla_ds.optimizers import optimizer_of
from chinchilla_ds.run_plan import BatchPlan, ParallelLayout, RunPlan


def is_laid_out(plan: RunPlan, /) -> bool:
    """Return whether a plan was made for a machine; the plan of imported weights only describes them."""
    return plan.memory_bytes is not None


def lay_out(plan: RunPlan, *, config: RunConfig, world_size: int, device: str) -> RunPlan:
    """Return a plan without a machine in the layout and precision that `config` names.

    Args:
        plan: Its model, tokens, optimizer and global batch are kept.
        config: The run's configuration: flags and the ds_config.
        world_size: All ranks.
        device: "cpu" or "cuda"; decides the default precision and the micro-batch.

    Raises:
        ConfigError: invalid values of `config`.
        LayoutError: the global batch cannot be shared by that many data-parallel ranks, or the layout cannot be built.
    """
    layout = check_and_lay_out(config, world_size=world_size, device=device)
    request = BatchRequest(
        wanted_tokens=plan.num_tokens,
        num_params=plan.num_params,
        seq_length=plan.shape.seq_length,
        global_batch_size=plan.batch.global_batch_size,
        micro_batch_size=None,
        device=device,
    )
    largest = choose_batch(request=request, layout=layout).micro_batch_size
    batch = _dealt(plan.batch, layout=layout, largest_micro_batch=largest)
    precision = precision_of(config, device=device)
    validate_layout(
        shape=plan.shape, layout=layout, precision=precision, batch=batch, optimizer=optimizer_of(plan.optimizer)
    )
    memory = estimate_memory(
        shape=plan.shape,
        layout=layout,
        batch=batch,
        precision=precision,
        device=device,
        optimizer_states=len(plan.optimizer.states),
    )
    extra = objective_bytes(make_objective(plan.objective), shape=plan.shape, batch=batch, layout=layout)
    return dataclasses.replace(
        plan,
        layout=layout,
        batch=batch,
        device=device,
        precision=precision,
        memory_bytes=with_objective_bytes(memory, extra),
        reasons=(*plan.reasons, f"Laid out on {world_size} ranks as the ds_config says."),
    )


def lay_out_again(old: RunPlan, *, like: RunPlan, micro_batch_is_asked: bool = True) -> RunPlan:
    """Return `old` in the layout of `like`; the global batch stays, its share of a rank changes.

    Args:
        old: The plan trained so far.
        like: A plan for the current ranks: its layout is used, and its micro-batch as an upper limit.
        micro_batch_is_asked: Whether the user set `like`'s micro-batch; otherwise an unchanged layout keeps the old
            one.

    Raises:
        LayoutError: the global batch cannot be shared by that many data-parallel ranks, or the layout cannot be built.
    """
    layout = like.layout
    is_same = like.batch.micro_batch_size == old.batch.micro_batch_size or not micro_batch_is_asked
    if layout == old.layout and is_same:
        return old
    batch = _dealt(old.batch, layout=layout, largest_micro_batch=like.batch.micro_batch_size)
    validate_layout(
        shape=old.shape, layout=layout, precision=old.precision, batch=batch, optimizer=optimizer_of(old.optimizer)
    )
    why = (
        f"Continued on {layout.world_size} ranks after {old.layout.world_size}: the global batch of "
        f"{batch.global_batch_size} sequences stays, in micro-batches of {batch.micro_batch_size}."
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


def _dealt(batch: BatchPlan, *, layout: ParallelLayout, largest_micro_batch: int) -> BatchPlan:
    """Return the same global batch, shared by a layout's data-parallel ranks.

    Raises:
        LayoutError: they cannot share it.
    """
    global_batch_size = batch.global_batch_size
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
    fitting = (size for size in range(1, largest_micro_batch + 1) if per_rank % (size * unit) == 0)
    micro_batch_size = max(fitting, default=1)
    return dataclasses.replace(
        batch, micro_batch_size=micro_batch_size, gradient_accumulation_steps=per_rank // micro_batch_size
    )
