"""Why the plan is as it is: one sentence per choice, with its source."""

import math
from collections.abc import Iterator

from chinchilla_ds.budget import hyperparameters
from chinchilla_ds.budget.optimizer import optimizer_reasons
from chinchilla_ds.budget.shape.choice import ModelChoice
from chinchilla_ds.config import RunConfig
from chinchilla_ds.run_plan import RunPlan
from chinchilla_ds.units import format_count


def plan_reasons(config: RunConfig, *, choice: ModelChoice, made: RunPlan, rate_reason: str) -> Iterator[str]:
    """Yield one sentence per choice."""
    yield from _law_reasons(choice, made)
    yield from choice.reasons
    spent = made.true_flops / made.compute_budget_flops
    yield (
        f"D {format_count(made.num_tokens)}: the tokens that spend {spent:.2%} of the budget by this decoder's exact "
        "FLOPs, attention counted over the full context."
    )
    if config.global_batch_size is None:
        laws = hyperparameters.batch_sizes_tokens(shape=made.shape, num_tokens=made.num_tokens)
        yield (
            f"Batch {format_count(made.tokens_per_iter)} tokens: Step Law's {format_count(laws[0].value)} "
            f"(arXiv:2503.04715) in whole sequences that many data-parallel sizes can share, and at least "
            f"{hyperparameters.MIN_TRAIN_ITERS} steps where the budget allows. Others: "
            f"{hyperparameters.spread(laws[1:], show=format_count)}."
        )
    if made.batch.gradient_accumulation_steps < made.layout.pipeline_model_parallel_size:
        yield "Fewer micro-batches than pipeline stages: some stages are always idle."
    yield from optimizer_reasons(config, made=made, rate_reason=rate_reason)


def _law_reasons(choice: ModelChoice, made: RunPlan) -> Iterator[str]:
    law, prediction = choice.laws.law, made.prediction
    yield (
        f"The optimum for {made.compute_budget_flops:.3g} FLOPs is N {format_count(prediction.optimal_num_params)} and "
        f"D {format_count(prediction.optimal_num_tokens)}, by {law.source}, with the FLOPs that this decoder takes."
    )
    if not choice.laws.is_one:
        yield f"{law.name} says where the optimum lies, not how good it is: the loss is {prediction.loss_law}'s."
    if (warning := law.extrapolation_warning(compute_budget_flops=made.compute_budget_flops)) is not None:
        yield warning
    guess = math.log(made.shape.vocab_size)
    if prediction.loss >= guess:
        yield (
            f"The predicted loss of {prediction.loss:.2f} nats per token is no prediction: guessing among "
            f"{made.shape.vocab_size} pieces gives {guess:.2f}."
        )
