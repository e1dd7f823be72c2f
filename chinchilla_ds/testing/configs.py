"""Small plans for tests, written by hand: no planner, no scaling law, every number literal or counted."""

from typing import Any

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


def tiny_shape(**changes: Any) -> ModelShape:
    """Return a decoder of four layers with grouped-query attention; `changes` are fields of ModelShape."""
    values: dict[str, Any] = {
        "num_layers": 4,
        "hidden_size": 64,
        "ffn_hidden_size": 128,
        "num_attention_heads": 4,
        "num_query_groups": 2,
        "kv_channels": 16,
        "vocab_size": 256,
        "padded_vocab_size": 256,
        "seq_length": 32,
    }
    return ModelShape(**{**values, **changes})


def tiny_plan(
    *,
    train_iters: int = 5,
    micro_batch_size: int = 2,
    gradient_accumulation_steps: int = 1,
    data_parallel_size: int = 1,
    tensor_model_parallel_size: int = 1,
    pipeline_model_parallel_size: int = 1,
    zero_stage: int = 0,
    precision: Precision = Precision.FP32,
    learning_rate: float = 1e-3,
    gradient_clipping: float = 1.0,
    weight_decay: float = 0.1,
    warmup_iters: int = 1,
    seed: int = 1234,
    shape: ModelShape | None = None,
    **layout: Any,
) -> RunPlan:
    """Return a valid plan of a few steps for the decoder of `tiny_shape`.

    The layout's sizes and everything else may be chosen; what follows from them (global batch, tokens, parameters,
    FLOPs) is computed here. `layout` takes the other fields of ParallelLayout.

    Args:
        train_iters: optimizer steps.
        micro_batch_size: sequences of a micro-batch.
        gradient_accumulation_steps: micro-batches per step.
        data_parallel_size: data-parallel size.
        tensor_model_parallel_size: tensor-parallel size.
        pipeline_model_parallel_size: pipeline-parallel size.
        zero_stage: ZeRO stage, 0 to 3.
        precision: compute precision.
        learning_rate: peak learning rate.
        gradient_clipping: largest gradient norm.
        weight_decay: decay of matrices.
        warmup_iters: steps of warm-up.
        seed: seed of weights and data order.
        shape: the decoder; None: `tiny_shape()`.
        **layout: other fields of ParallelLayout.
    """
    shape = shape or tiny_shape()
    global_batch_size = micro_batch_size * gradient_accumulation_steps * data_parallel_size
    num_tokens = train_iters * global_batch_size * shape.seq_length
    flops_per_token = decoder_flops_per_token(shape=shape)
    return RunPlan(
        compute_budget_flops=flops_per_token * num_tokens,
        num_params=count_parameters(shape=shape).total,
        num_tokens=num_tokens,
        true_flops=flops_per_token * num_tokens,
        flops_per_token=flops_per_token,
        shape=shape,
        batch=BatchPlan(
            global_batch_size=global_batch_size,
            micro_batch_size=micro_batch_size,
            gradient_accumulation_steps=gradient_accumulation_steps,
            train_iters=train_iters,
        ),
        layout=ParallelLayout(
            tensor_model_parallel_size=tensor_model_parallel_size,
            pipeline_model_parallel_size=pipeline_model_parallel_size,
            data_parallel_size=data_parallel_size,
            zero_stage=zero_stage,
            **layout,
        ),
        device="cpu",
        precision=precision,
        optimizer=OptimizerPlan(
            learning_rate=learning_rate, weight_decay=weight_decay, gradient_clipping=gradient_clipping
        ),
        schedule=Schedule(
            warmup_iters=warmup_iters,
            decay_iters=max(train_iters - warmup_iters, 0),
            min_learning_rate=learning_rate / 10,
        ),
        prediction=Prediction(
            law="none",
            loss_law="none",
            loss=5.5,
            optimal_num_params=1e5,
            optimal_num_tokens=2e6,
            optimal_loss=5.5,
        ),
        seed=seed,
        eval_interval_iters=train_iters,
        reasons=("a plan for tests, written by hand",),
    )
