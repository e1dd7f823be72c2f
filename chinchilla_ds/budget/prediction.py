"""The law's prediction for the chosen model, and the intervals that the law gives."""

import math

from chinchilla_ds.budget.laws.forms import MAX_EXTRAPOLATION, SurfaceLaw
from chinchilla_ds.budget.laws.lookup import LAWS
from chinchilla_ds.budget.laws.uncertainty import DEFAULT_LEVEL
from chinchilla_ds.budget.shape.choice import ModelChoice
from chinchilla_ds.budget.shape.parameters import params_in_convention
from chinchilla_ds.run_plan import Interval, Prediction, RunPlan


def predict(choice: ModelChoice, /, *, num_tokens: float) -> Prediction:
    """Return the loss of the chosen shape on `num_tokens`, the continuous optimum, and the interval."""
    loss = choice.laws.losses
    size = params_in_convention(shape=choice.shape, convention=loss.law.params_convention)
    return Prediction(
        law=choice.laws.law.name,
        loss_law=loss.law.name,
        loss=loss(size, num_tokens),
        optimal_num_params=choice.optimum.member.num_params,
        optimal_num_tokens=choice.optimum.num_tokens,
        optimal_loss=choice.optimum.loss,
        interval=_interval(choice, size=size, num_tokens=num_tokens),
    )


def why_no_prediction(plan: RunPlan, /) -> str | None:
    """Return why the law's loss says nothing about this run, in words; None where it does.

    It says nothing more than MAX_EXTRAPOLATION times outside the budgets that the law was fitted on, and where guessing
    is as good.
    """
    name, guess = plan.prediction.loss_law, math.log(plan.shape.vocab_size)
    law = LAWS.get(name)
    beyond = 1.0 if law is None else law.extrapolation(compute_budget_flops=plan.compute_budget_flops)
    if law is not None and beyond > MAX_EXTRAPOLATION:
        side = "below" if plan.compute_budget_flops < law.min_flops else "above"
        return (
            f"the budget lies {beyond:,.0f} times {side} the {law.min_flops:.0e} to {law.max_flops:.0e} FLOPs that "
            f"{name} was fitted on"
        )
    if plan.prediction.loss >= guess:
        pieces = plan.shape.vocab_size
        return f"by {name} it would be worse than guessing among {pieces} pieces, {guess:.3f} nats per token"
    return None


def _interval(choice: ModelChoice, *, size: float, num_tokens: float) -> Interval | None:
    """Return the law's interval of N* and D*, scaled to the optimum of our decoder's FLOPs, and of the loss."""
    law, optimum = choice.laws.law, choice.optimum
    if not isinstance(law, SurfaceLaw) or choice.laws.losses.unique_tokens is not None:
        return None
    bounds = law.optimal_interval(compute_budget_flops=choice.compute_budget_flops, level=DEFAULT_LEVEL)
    loss = law.loss_interval(num_params=size, num_tokens=num_tokens, level=DEFAULT_LEVEL)
    if bounds is None or loss is None:
        return None
    law_optimum = law.optimal(compute_budget_flops=choice.compute_budget_flops)
    by_params = optimum.member.num_params / law_optimum.num_params
    by_tokens = optimum.num_tokens / law_optimum.num_tokens
    return Interval(
        level=DEFAULT_LEVEL,
        num_params=_scaled(bounds.num_params, by_params),
        num_tokens=_scaled(bounds.num_tokens, by_tokens),
        tokens_per_param=_scaled(bounds.tokens_per_param, by_tokens / by_params),
        loss=loss,
    )


def _scaled(bounds: tuple[float, float], factor: float) -> tuple[float, float]:
    return bounds[0] * factor, bounds[1] * factor
