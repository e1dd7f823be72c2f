"""`--plan FILE`: a plan that was made before, checked before it is trusted."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from chinchilla_ds.budget.layout import validate_layout
from chinchilla_ds.budget.parameters import count_parameters
from chinchilla_ds.budget.relayout import is_laid_out
from chinchilla_ds.errors import ConfigError, LayoutError, did_you_mean, reason
from chinchilla_ds.plan import RunPlan

_MAY_BE_ZERO = {"seed", "zero_stage", "warmup_iters"}


def read_plan(path: Path, *, world_size: int | None = None) -> RunPlan:
    """Return the plan in a file.

    Args:
        path: what `chinchilla-ds plan --out` or a run wrote.
        world_size: ranks that are there to run it, if it was made for a machine; None where it is only looked at.

    Raises:
        ConfigError: no such file, no plan, or numbers that contradict one another.
        LayoutError: it is for another number of ranks, or for none.
    """
    try:
        plan = RunPlan.from_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        near = (
            did_you_mean(path.name, (file.name for file in path.parent.glob("*.json"))) if path.parent.is_dir() else ""
        )
        raise ConfigError(f"plan {path} cannot be read: {reason(error)}{near}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"plan {path} is not UTF-8: {error.reason} at byte {error.start}") from None
    except ConfigError as error:
        raise ConfigError([f"plan {path}: {problem}" for problem in error.problems]) from None
    problems = list(_size_problems(plan)) or list(_sum_problems(plan))
    if problems:
        raise ConfigError([f"plan {path}: {problem}" for problem in problems])
    if world_size is not None and is_laid_out(plan) and plan.layout.world_size != world_size:
        raise LayoutError(
            f"plan {path} is for {plan.layout.world_size} ranks, and {world_size} were started; start it with "
            f"deepspeed --num_gpus {plan.layout.world_size}, or make a plan for {world_size}"
        )
    validate_layout(shape=plan.shape, layout=plan.layout, precision=plan.precision, batch=plan.batch)
    return plan


def _size_problems(plan: RunPlan) -> Iterator[str]:
    """Yield every size below 1."""
    for part in ("", "shape", "batch", "layout", "schedule"):
        holder = getattr(plan, part) if part else plan
        for field in dataclasses.fields(holder):
            value, least = getattr(holder, field.name), 0 if field.name in _MAY_BE_ZERO else 1
            if type(value) is int and value < least:
                yield f"{part + '.' if part else ''}{field.name} is {value}; it must be at least {least}"


def _sum_problems(plan: RunPlan) -> Iterator[str]:
    """Yield every total that is not what its parts give: the file was edited by hand."""
    params = count_parameters(shape=plan.shape).total
    if plan.num_params != params:
        yield f"num_params is {plan.num_params}, but its shape has {params} parameters; make the plan anew"
    tokens = plan.batch.train_iters * plan.tokens_per_iter
    if plan.num_tokens != tokens:
        yield f"num_tokens is {plan.num_tokens}, but its batch and steps give {tokens} tokens; make the plan anew"
