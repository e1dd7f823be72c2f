"""The cost of an objective: its FLOPs are paid from the budget, its bytes add to the decoder's on every rank."""

import dataclasses

from chinchilla_ds.budget.shape.choice import ModelChoice
from chinchilla_ds.budget.shape.flops import decoder_flops_per_token
from chinchilla_ds.config import RunConfig
from chinchilla_ds.objective import Objective
from chinchilla_ds.run_plan import BatchPlan, MemoryBytes, ModelShape, ParallelLayout, StepTime


def pay_for_objective(choice: ModelChoice, *, objective: Objective, config: RunConfig) -> ModelChoice:
    """Return the choice with the tokens that the budget buys once the objective's FLOPs are paid too.

    The model is the law's for the budget: no law accounts for an objective's FLOPs. If the tokens were given,
    or are the law's for a given model, they are kept, and a budget that was not given grows.

    Args:
        choice: Model and tokens for the decoder's FLOPs alone.
        objective: Computes the loss.
        config: The user's configuration.
    """
    extra, own = objective.flops_per_token(choice.shape), decoder_flops_per_token(shape=choice.shape)
    if not extra:
        return choice
    share = extra / (own + extra)
    why = f"The objective {config.objective} takes {extra:.3g} FLOPs per token, {share:.1%} of all"
    asked_for_budget = config.compute_budget_flops is not None
    asked_for_model = config.num_params is not None or config.shape is not None
    tokens, budget = choice.wanted_tokens, choice.compute_budget_flops
    if config.num_tokens is None and (asked_for_budget or not asked_for_model):
        tokens *= 1 - share
        why += f"; the budget buys {tokens:.3g} tokens in place of {choice.wanted_tokens:.3g}."
    elif asked_for_budget:
        why += "; they come on top of the budget, because the tokens were given."
    else:
        budget = (own + extra) * tokens
        why += "."
    return dataclasses.replace(
        choice,
        wanted_tokens=tokens,
        compute_budget_flops=budget,
        objective_flops_per_token=extra,
        reasons=(*choice.reasons, why),
    )


def objective_bytes(objective: Objective, *, shape: ModelShape, batch: BatchPlan, layout: ParallelLayout) -> int:
    """Return the bytes that the objective needs on the rank that holds most.

    Args:
        objective: Computes the loss.
        shape: The decoder.
        batch: The batch and its micro-batches.
        layout: The parallel layout.
    """
    rank_memory = objective.rank_bytes(shape=shape, batch=batch, layout=layout)
    return rank_memory.states + rank_memory.activations


def with_objective_bytes(memory: MemoryBytes, num_bytes: int, /) -> MemoryBytes:
    """Return the peak with the objective's bytes."""
    return dataclasses.replace(memory, objective=num_bytes, total=memory.total + num_bytes)


def with_objective_time(time: StepTime, *, decoder_flops: float, objective_flops: float) -> StepTime:
    """Return the time of a step with the objective's FLOPs, executed at the decoder's rate.

    Args:
        time: Time of the decoder's step.
        decoder_flops: The decoder's FLOPs per token.
        objective_flops: The objective's FLOPs per token.
    """
    if not objective_flops:
        return time
    more_s = time.compute_s * objective_flops / decoder_flops
    total_s = time.total_s + more_s
    factor = (decoder_flops + objective_flops) / decoder_flops * time.total_s / total_s
    mfu = time.mfu * factor
    return dataclasses.replace(
        time, compute_s=time.compute_s + more_s, total_s=total_s, mfu=mfu, hfu=max(mfu, time.hfu * factor)
    )
