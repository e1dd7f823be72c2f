"""The plan of imported weights."""

import math

from chinchilla_ds.budget.hyperparameters import choose_learning_rate, choose_warmup_iters
from chinchilla_ds.budget.laws.lookup import DEFAULT_LAW, get_law
from chinchilla_ds.budget.shape.flops import decoder_flops_per_token
from chinchilla_ds.budget.shape.parameters import count_parameters
from chinchilla_ds.run_plan import (
    BatchPlan,
    ModelShape,
    OptimizerPlan,
    ParallelLayout,
    Precision,
    Prediction,
    RunPlan,
    Schedule,
)

_SEQUENCES_PER_STEP = 64


def plan_of(shape: ModelShape, /) -> RunPlan:
    """Return a plan for a shape, with the compute-optimal number of tokens for its size and a layout of one rank.

    It describes the weights. A run of this plan gets its layout from the ranks that are started and the ds_config.
    """
    params = count_parameters(shape=shape)
    law = get_law(DEFAULT_LAW)
    optimum = law.optimal(compute_budget_flops=law.budget_for_params(num_params=params.total))
    tokens_per_iter = _SEQUENCES_PER_STEP * shape.seq_length
    iters = max(2, math.ceil(optimum.num_tokens / tokens_per_iter))
    num_tokens = iters * tokens_per_iter
    flops_per_token = decoder_flops_per_token(shape=shape)
    rate = choose_learning_rate(shape=shape, num_tokens=num_tokens).value
    warmup_iters = choose_warmup_iters(num_params=params.total, tokens_per_iter=tokens_per_iter, train_iters=iters)
    assert optimum.loss is not None, "the default law predicts a loss"
    return RunPlan(
        compute_budget_flops=flops_per_token * num_tokens,
        num_params=params.total,
        num_tokens=num_tokens,
        true_flops=flops_per_token * num_tokens,
        flops_per_token=flops_per_token,
        shape=shape,
        batch=BatchPlan(
            global_batch_size=_SEQUENCES_PER_STEP,
            micro_batch_size=1,
            gradient_accumulation_steps=_SEQUENCES_PER_STEP,
            train_iters=iters,
        ),
        layout=ParallelLayout(),
        device="cpu",
        precision=Precision.FP32,
        optimizer=OptimizerPlan(learning_rate=rate),
        schedule=Schedule(warmup_iters=warmup_iters, decay_iters=iters - warmup_iters, min_learning_rate=0.1 * rate),
        prediction=Prediction(
            law=law.name,
            loss_law=law.name,
            loss=optimum.loss,
            optimal_num_params=optimum.num_params,
            optimal_num_tokens=optimum.num_tokens,
            optimal_loss=optimum.loss,
        ),
        seed=0,
        eval_interval_iters=iters,
        reasons=("Made for imported weights: the shape is theirs, everything else is a default.",),
    )
