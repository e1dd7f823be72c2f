"""Checks of a plan read from a file beyond its own fields: its counts must be those of its model."""

import math
from collections.abc import Iterator

from chinchilla_ds.budget.shape.flops import decoder_flops_per_token
from chinchilla_ds.budget.shape.parameters import count_parameters
from chinchilla_ds.run_plan import RunPlan

_ROUNDING = 1e-9
_BUDGET_FACTOR = 2.0
"""Steps are whole and shapes are discrete; no plan of more than a few optimizer steps is as far from its budget."""
_FEW_ITERS = 20


def plan_problems(plan: RunPlan) -> Iterator[str]:
    """Yield every total that contradicts its parts: the file was edited by hand, or comes from elsewhere."""
    params = count_parameters(shape=plan.shape).total
    if plan.num_params != params:
        yield f"num_params is {plan.num_params}, but its shape has {params} parameters; make a new plan"
    flops = decoder_flops_per_token(shape=plan.shape) + plan.objective_flops_per_token
    if not math.isclose(plan.flops_per_token, flops, rel_tol=_ROUNDING):
        takes = "its shape takes" if not plan.objective_flops_per_token else "its shape and objective take"
        yield f"flops_per_token is {plan.flops_per_token:g}, but {takes} {flops:g} FLOPs; make a new plan"
    budget, spent = plan.compute_budget_flops, plan.true_flops
    if plan.batch.train_iters > _FEW_ITERS and not 1 / _BUDGET_FACTOR < spent / budget < _BUDGET_FACTOR:
        yield f"compute_budget_flops is {budget:g}, but the run spends {spent:g} FLOPs; make a new plan"
