"""Small plans for tests, written by hand: no planner, no scaling law, every number literal or of a closed form."""

from typing import Any

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
    FLOPs) is computed here from closed forms. `layout` takes the other fields of ParallelLayout.
    """
    shape = shape or tiny_shape()
    global_batch_size = micro_batch_size * gradient_accumulation_steps * data_parallel_size
    num_tokens = train_iters * global_batch_size * shape.seq_length
    flops_per_token = _flops_per_token(shape)
    return RunPlan(
        compute_budget_flops=flops_per_token * num_tokens,
        num_params=count_parameters(shape),
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


def count_parameters(shape: ModelShape) -> int:
    """Return the parameters of the decoder: embedding, output, and per layer attention, SwiGLU and two norms."""
    query_width = shape.num_attention_heads * shape.kv_channels
    key_value_width = shape.num_query_groups * shape.kv_channels
    attention = shape.hidden_size * (query_width + 2 * key_value_width) + query_width * shape.hidden_size
    swiglu = 3 * shape.hidden_size * shape.ffn_hidden_size
    norms = 2 * shape.hidden_size
    embeddings = (1 if shape.tied_embeddings else 2) * shape.padded_vocab_size * shape.hidden_size
    return embeddings + shape.num_layers * (attention + swiglu + norms) + shape.hidden_size


def _flops_per_token(shape: ModelShape) -> float:
    """Return 6 per weight of a matmul, plus scores and weighted values over the context, thrice for the training.

    Source: Kaplan et al. 2020 (arXiv:2001.08361), table 1, times three for forward and backward. Leaves out norms and
    softmax. The same number as `budget.shape.flops` has, by another way.
    """
    looked_up = 0 if shape.tied_embeddings else shape.padded_vocab_size * shape.hidden_size
    norms = (2 * shape.num_layers + 1) * shape.hidden_size
    attention = 12 * shape.num_layers * shape.num_attention_heads * shape.kv_channels * shape.seq_length
    return float(6 * (count_parameters(shape) - looked_up - norms) + attention)
