"""Changes that make a plan need less memory, by its own estimate: the fewest and cheapest first."""

import dataclasses
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass

from chinchilla_ds.budget.layout.rules import validate_layout
from chinchilla_ds.budget.memory.peak import estimate_memory
from chinchilla_ds.errors import LayoutError
from chinchilla_ds.optimizers import optimizer_of
from chinchilla_ds.run_plan import BatchPlan, MemoryBytes, Offload, ParallelLayout, Recompute, RunPlan
from chinchilla_ds.units import format_bytes

NOTICEABLE = 0.9
"""A change must bring the estimate below this share of the plan's: by its estimate, the plan that ran out fitted."""
MAX_RELIEFS = 3
_Change = tuple[str, dict[str, object]]
"""The text of a change, and the fields of the layout, or micro_batch_size, that it sets."""
_RECOMPUTE = tuple(Recompute)


@dataclass(frozen=True, kw_only=True)
class Relief:
    """A change that saves memory, with the same global batch and therefore the same model."""

    changes: tuple[str, ...]
    """What to set in the config, or to write in the ds_config."""
    memory: MemoryBytes
    """Memory of the fullest rank after the change."""

    def __str__(self) -> str:
        """Return what to set, and what a rank then needs."""
        return f"{' and '.join(self.changes)}: {format_bytes(self.memory.total)}"


def reliefs(plan: RunPlan, /, *, capacity_bytes: int | None) -> tuple[Relief, ...]:
    """Return up to MAX_RELIEFS changes under which a rank needs less than it has, nearest first, one of each kind.

    Args:
        plan: The plan that ran out of memory.
        capacity_bytes: Memory of one rank's device; None if unknown.
    """
    now = _memory(plan, layout=plan.layout, batch=plan.batch)
    limit = NOTICEABLE * now.total if capacity_bytes is None else min(NOTICEABLE * now.total, capacity_bytes)
    nearest: dict[tuple[str, ...], Relief] = {}
    for relief in _changes(plan):
        if relief.memory.total <= limit:
            nearest.setdefault(tuple(re.split("[ =]", change)[0] for change in relief.changes), relief)
    return tuple(nearest.values())[:MAX_RELIEFS]


def _changes(plan: RunPlan) -> Iterator[Relief]:
    """Yield legal changes: fewest first, then by cost, where a smaller micro-batch is the cheapest."""
    layout, batch = plan.layout, plan.batch
    choices: list[list[_Change]] = [
        _micro_batches(batch),
        [(f"`layout.recompute={mode}`", {"recompute": mode}) for mode in _after(_RECOMPUTE, layout.recompute)],
        [
            (f'"zero_optimization": {{"stage": {stage}}}', {"zero_stage": stage})
            for stage in range(layout.zero_stage + 1, 4)
            if layout.data_parallel_size > 1
        ],
        _offloads(layout),
    ]
    combinations = sorted(
        itertools.product(*([None, *options] for options in choices)),
        key=lambda chosen: (sum(change is not None for change in chosen), [change is None for change in chosen]),
    )
    for chosen in combinations:
        taken = [change for change in chosen if change is not None]
        if taken and (relief := _relief(plan, [change for change, _ in taken], [values for _, values in taken])):
            yield relief


def _micro_batches(batch: BatchPlan) -> list[_Change]:
    sizes = [size for size in range(batch.micro_batch_size - 1, 0, -1) if batch.micro_batch_size % size == 0]
    return [(f"`micro_batch_size={size}`", {"micro_batch_size": size}) for size in sizes]


def _offloads(layout: ParallelLayout) -> list[_Change]:
    offloads: list[_Change] = []
    if layout.offload_optimizer is Offload.NONE:
        offloads.append(('"offload_optimizer": {"device": "cpu"}', {"offload_optimizer": Offload.CPU}))
    if layout.offload_param is Offload.NONE:
        both: dict[str, object] = {"offload_optimizer": Offload.CPU, "offload_param": Offload.CPU}
        offloads.append(('"offload_optimizer" and "offload_param": {"device": "cpu"}', both))
    return offloads


def _after(order: tuple[Recompute, ...], present: Recompute) -> tuple[Recompute, ...]:
    return order[order.index(present) + 1 :]


def _relief(plan: RunPlan, changes: list[str], values: list[dict[str, object]]) -> Relief | None:
    """Return the change, or None if it is not legal."""
    changed = {name: value for fields in values for name, value in fields.items()}
    batch = plan.batch
    size = changed.pop("micro_batch_size", batch.micro_batch_size)
    assert isinstance(size, int)
    factor = batch.micro_batch_size // size
    batch = dataclasses.replace(
        batch, micro_batch_size=size, gradient_accumulation_steps=batch.gradient_accumulation_steps * factor
    )
    layout = dataclasses.replace(plan.layout, **changed)  # type: ignore[arg-type]
    try:
        validate_layout(
            shape=plan.shape,
            layout=layout,
            precision=plan.precision,
            batch=batch,
            optimizer=optimizer_of(plan.optimizer),
        )
    except LayoutError:
        return None
    return Relief(changes=tuple(changes), memory=_memory(plan, layout=layout, batch=batch))


def _memory(plan: RunPlan, *, layout: ParallelLayout, batch: BatchPlan) -> MemoryBytes:
    return estimate_memory(
        shape=plan.shape,
        layout=layout,
        batch=batch,
        precision=plan.precision,
        device=plan.device,
        optimizer_states=len(plan.optimizer.states),
    )
