"""An existing plan, in a file or in memory, checked before it is trusted."""

from pathlib import Path

from chinchilla_ds.budget.layout.relayout import is_laid_out
from chinchilla_ds.budget.layout.rules import validate_layout
from chinchilla_ds.budget.plan_checks import plan_problems
from chinchilla_ds.errors import ConfigError, LayoutError
from chinchilla_ds.optimizers import optimizer_of
from chinchilla_ds.run_plan import RunPlan
from chinchilla_ds.structured import read_bytes


def read_plan(path: Path, *, world_size: int | None = None) -> RunPlan:
    """Return the plan in a file.

    Args:
        path: the file, written by `chinchilla-ds plan` or a run.
        world_size: number of ranks that run it, if it was made for a machine; None if it is only inspected.

    Raises:
        ConfigError: no such file, not a plan, or numbers that contradict one another.
        LayoutError: it is for another number of ranks, or for none.
    """
    content = read_bytes(path, what="plan")
    try:
        plan = RunPlan.from_json(content)
    except ConfigError as error:
        raise ConfigError([f"plan {path}: {problem}" for problem in error.problems]) from None
    return checked_plan(plan, named=f"plan {path}", world_size=world_size)


def given_plan(plan: Path | RunPlan, /, *, world_size: int | None = None) -> RunPlan:
    """Return a plan given as a file or as an object; see `read_plan` for arguments and errors."""
    if isinstance(plan, RunPlan):
        return checked_plan(plan, named="the plan", world_size=world_size)
    return read_plan(plan, world_size=world_size)


def checked_plan(plan: RunPlan, *, named: str, world_size: int | None) -> RunPlan:
    """Return a plan whose numbers are consistent; raises as `read_plan` does.

    Args:
        plan: the plan.
        named: its name in messages.
        world_size: number of ranks that run it, if it was made for a machine; None if it is only inspected.
    """
    if problems := list(plan_problems(plan)):
        raise ConfigError([f"{named}: {problem}" for problem in problems])
    if world_size is not None and is_laid_out(plan) and plan.layout.world_size != world_size:
        raise LayoutError(
            f"{named} is for {plan.layout.world_size} ranks, and {world_size} were started; start it with "
            f"deepspeed --num_gpus {plan.layout.world_size}, or make a plan for {world_size}"
        )
    validate_layout(
        shape=plan.shape,
        layout=plan.layout,
        precision=plan.precision,
        batch=plan.batch,
        optimizer=optimizer_of(plan.optimizer),
    )
    return plan
