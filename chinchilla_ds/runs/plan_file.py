"""A plan that was made before, in a file or in memory, checked before it is trusted."""

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
        path: what `chinchilla-ds plan` or a run wrote.
        world_size: ranks that are there to run it, if it was made for a machine; None where it is only looked at.

    Raises:
        ConfigError: no such file, no plan, or numbers that contradict one another.
        LayoutError: it is for another number of ranks, or for none.
    """
    content = read_bytes(path, what="plan")
    try:
        plan = RunPlan.from_json(content)
    except ConfigError as error:
        raise ConfigError([f"plan {path}: {problem}" for problem in error.problems]) from None
    return checked_plan(plan, named=f"plan {path}", world_size=world_size)


def given_plan(plan: Path | RunPlan, /, *, world_size: int | None = None) -> RunPlan:
    """Return a plan that is given as a file or as itself; see `read_plan` for arguments and errors."""
    if isinstance(plan, RunPlan):
        return checked_plan(plan, named="the plan", world_size=world_size)
    return read_plan(plan, world_size=world_size)


def checked_plan(plan: RunPlan, *, named: str, world_size: int | None) -> RunPlan:
    """Return a plan whose numbers hold together; `named` stands for it in messages, the rest is as for `read_plan`."""
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
