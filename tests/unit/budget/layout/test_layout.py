from dataclasses import replace

import pytest

from chinchilla_ds.budget.layout.rules import validate_layout
from chinchilla_ds.budget.planner import plan
from chinchilla_ds.config import RunConfig
from chinchilla_ds.errors import LayoutError
from chinchilla_ds.run_plan import BatchPlan, Offload, ParallelLayout, Precision
from chinchilla_ds.testing.configs import tiny_shape

PLAN = plan(RunConfig(compute_budget_flops=1e13), world_size=1, device="cpu")


def test_a_plan_is_valid() -> None:
    validate_layout(shape=PLAN.shape, layout=PLAN.layout, precision=PLAN.precision, batch=PLAN.batch)


def test_batch_must_multiply_out() -> None:
    batch = BatchPlan(global_batch_size=16, micro_batch_size=3, gradient_accumulation_steps=2, train_iters=10)
    with pytest.raises(
        LayoutError, match=r"\(16 sequences\) must be .* \(3\) x .* \(2\) x data_parallel_size \(2\) = 12"
    ):
        validate_layout(
            shape=PLAN.shape, layout=ParallelLayout(data_parallel_size=2), precision=PLAN.precision, batch=batch
        )


def test_fewer_micro_batches_than_stages_are_slow_but_legal() -> None:
    layout = ParallelLayout(pipeline_model_parallel_size=2, zero_stage=1)
    batch = BatchPlan(global_batch_size=4, micro_batch_size=4, gradient_accumulation_steps=1, train_iters=10)
    validate_layout(shape=PLAN.shape, layout=layout, precision=PLAN.precision, batch=batch)


def test_interleaving_needs_a_multiple_of_the_stages() -> None:
    layout = ParallelLayout(pipeline_model_parallel_size=3, virtual_pipeline_model_parallel_size=2, zero_stage=1)
    batch = BatchPlan(global_batch_size=4, micro_batch_size=1, gradient_accumulation_steps=4, train_iters=10)
    with pytest.raises(LayoutError, match=r"nearest values: 3 and 6"):
        validate_layout(shape=PLAN.shape, layout=layout, precision=PLAN.precision, batch=batch)
    good = replace(batch, global_batch_size=6, gradient_accumulation_steps=6)
    validate_layout(shape=PLAN.shape, layout=layout, precision=PLAN.precision, batch=good)


def test_every_problem_of_a_hand_made_layout() -> None:
    layout = ParallelLayout(pipeline_model_parallel_size=64, tensor_model_parallel_size=3)
    with pytest.raises(LayoutError) as caught:
        validate_layout(shape=PLAN.shape, layout=layout, precision=PLAN.precision, batch=PLAN.batch)
    assert len(caught.value.problems) == 5  # ZeRO 0, heads, groups, vocabulary, layers; 192 channels do divide by 3


@pytest.mark.parametrize(
    ("layout", "precision", "nearest"),
    [
        (ParallelLayout(zero_stage=0), Precision.FP16, "zero_stage 1, or precision bf16"),
        (ParallelLayout(zero_stage=0, tensor_model_parallel_size=2), Precision.BF16, "tensor_model_parallel_size 1"),
        (
            ParallelLayout(
                zero_stage=2,
                pipeline_model_parallel_size=2,
                virtual_pipeline_model_parallel_size=2,
                offload_optimizer=Offload.CPU,
            ),
            Precision.FP32,
            "zero_stage 1 or 3, or virtual 1",
        ),
    ],
)
def test_what_deepspeed_gets_silently_wrong_is_refused(layout, precision, nearest):
    with pytest.raises(LayoutError, match=nearest):
        validate_layout(shape=tiny_shape(), layout=layout, precision=precision)
    works = replace(layout, zero_stage=1)
    validate_layout(shape=tiny_shape(), layout=works, precision=precision)


@pytest.mark.parametrize(
    ("pipeline", "virtual", "message"),
    [
        (7, 1, r"must be at most shape.num_layers \(6 layers\): every stage holds a layer; nearest size: 6"),
        (4, 3, r"must divide the layers of a stage \(2 of shape.num_layers 6 over 4 stages\); nearest .*: 2"),
        (4, 2, r"\(2 chunks\) x .* \(4 stages\) must be at most shape.num_layers \(6 layers\): .* per stage: 1"),
    ],
)
def test_no_stage_and_no_chunk_is_empty(pipeline, virtual, message):
    layout = ParallelLayout(
        pipeline_model_parallel_size=pipeline, virtual_pipeline_model_parallel_size=virtual, zero_stage=1
    )
    with pytest.raises(LayoutError, match=message):
        validate_layout(shape=tiny_shape(num_layers=6), layout=layout, precision=Precision.FP32)


@pytest.mark.parametrize(("layers", "pipeline", "virtual"), [(6, 4, 1), (126, 16, 4), (7, 2, 2), (6, 6, 1)])
def test_stages_need_not_be_equal(layers, pipeline, virtual):
    layout = ParallelLayout(
        pipeline_model_parallel_size=pipeline, virtual_pipeline_model_parallel_size=virtual, zero_stage=1
    )
    validate_layout(shape=tiny_shape(num_layers=layers), layout=layout, precision=Precision.FP32)
