"""Which parallel layouts can be built for a shape and a batch, and the nearest ones that work."""

import math
from collections.abc import Iterator

from chinchilla_ds.errors import LayoutError
from chinchilla_ds.optimizers import OptimizerSpec
from chinchilla_ds.run_plan import BatchPlan, ModelShape, Offload, ParallelLayout, Precision


def validate_layout(
    *,
    shape: ModelShape,
    layout: ParallelLayout,
    precision: Precision,
    batch: BatchPlan | None = None,
    optimizer: OptimizerSpec | None = None,
) -> None:
    """Check a layout against shape, precision and optimizer, and the batch where there is one.

    Args:
        shape: The decoder.
        layout: How it is to be spread.
        precision: Precision of the computation.
        batch: How the ranks are to share it.
        optimizer: None: AdamW.

    Raises:
        LayoutError: every broken rule, each with the nearest values that work.
    """
    problems = [*layout_problems(layout=layout, precision=precision, optimizer=optimizer)]
    problems += [*shape_problems(shape=shape, layout=layout)]
    if batch is not None:
        problems += batch_problems(batch=batch, layout=layout)
    if problems:
        raise LayoutError(problems)


def world_size_problems(*, world_size: int, tensor: int, pipeline: int) -> Iterator[str]:
    """Yield a problem if tensor x pipeline does not divide the ranks.

    Args:
        world_size: number of ranks.
        tensor: tensor-parallel size.
        pipeline: pipeline-parallel size.
    """
    product = tensor * pipeline
    if world_size % product:
        below = world_size // product * product
        near = f"{below} and {below + product}" if below else f"{product}"
        yield (
            f"world_size ({world_size} ranks) must be a multiple of layout.tensor_model_parallel_size ({tensor}) x "
            f"layout.pipeline_model_parallel_size ({pipeline}) = {product}; nearest world sizes: {near}"
        )


def layout_problems(
    *, layout: ParallelLayout, precision: Precision, optimizer: OptimizerSpec | None = None
) -> Iterator[str]:
    """Yield the problems of a layout that do not depend on the model.

    Args:
        layout: How a model is to be spread.
        precision: Precision of the computation.
        optimizer: None: AdamW.
    """
    stage, pipeline = layout.zero_stage, layout.pipeline_model_parallel_size
    if stage == 0 and pipeline > 1:
        yield (
            f"layout.zero_stage (0) cannot be combined with layout.pipeline_model_parallel_size ({pipeline}): without "
            "ZeRO, DeepSpeed reduces gradients inside each backward pass, of which a pipeline step has many; nearest: "
            "zero_stage 1 (2 and 3 work too)"
        )
    if layout.sequence_parallel and layout.tensor_model_parallel_size == 1:
        yield (
            "layout.sequence_parallel (true) needs layout.tensor_model_parallel_size above 1, which is 1: there is no "
            "group to split the sequence over; set sequence_parallel to false or tensor_model_parallel_size to 2"
        )
    if layout.virtual_pipeline_model_parallel_size > 1 and pipeline == 1:
        yield (
            f"layout.virtual_pipeline_model_parallel_size ({layout.virtual_pipeline_model_parallel_size} chunks) needs "
            "layout.pipeline_model_parallel_size above 1, which is 1; nearest: virtual 1, or pipeline 2"
        )
    yield from _half_precision_problems(layout, precision)
    yield from _offload_problems(layout)
    if optimizer is not None:
        yield from _optimizer_problems(layout, optimizer)


def _half_precision_problems(layout: ParallelLayout, precision: Precision) -> Iterator[str]:
    """Yield what DeepSpeed 0.19.8's half-precision wrapper for ZeRO-0 (FP16_UnfusedOptimizer) gets wrong."""
    tensor = layout.tensor_model_parallel_size
    if layout.zero_stage != 0:
        return
    if precision is Precision.FP16:
        yield (
            "layout.zero_stage (0) cannot be combined with precision fp16: without ZeRO, DeepSpeed unscales gradients "
            "of a loss that it has not scaled; nearest: zero_stage 1, or precision bf16"
        )
    if precision is Precision.BF16 and tensor > 1:
        yield (
            f"layout.zero_stage (0) cannot be combined with precision bf16 and layout.tensor_model_parallel_size "
            f"({tensor}): without ZeRO, DeepSpeed leaves the other ranks' shards out of the gradient norm; nearest: "
            "zero_stage 1, or tensor_model_parallel_size 1"
        )


def _offload_problems(layout: ParallelLayout) -> Iterator[str]:
    stage = layout.zero_stage
    if layout.offload_param is not Offload.NONE and stage != 3:
        yield (
            f"layout.offload_param ({layout.offload_param}) needs layout.zero_stage 3, which is {stage}: only stage 3 "
            "partitions parameters; set zero_stage to 3 or offload_param to none"
        )
    if layout.offload_optimizer is not Offload.NONE and stage == 0:
        yield (
            f"layout.offload_optimizer ({layout.offload_optimizer}) needs layout.zero_stage 1 or above (3 for nvme), "
            "which is 0; nearest: zero_stage 1 with cpu, 3 with nvme, or offload_optimizer none"
        )
    virtual = layout.virtual_pipeline_model_parallel_size
    if layout.offload_optimizer is not Offload.NONE and stage == 2 and virtual > 1:
        yield (
            f"layout.offload_optimizer ({layout.offload_optimizer}) cannot be combined with layout.zero_stage 2 and "
            f"layout.virtual_pipeline_model_parallel_size ({virtual}): ZeRO-2 sends gradients to the CPU on the last "
            "backward of the whole stage, not of each model chunk; nearest: zero_stage 1 or 3, or virtual 1"
        )
    if layout.offload_optimizer is Offload.NVME and stage in (1, 2):
        yield (
            f"layout.offload_optimizer (nvme) needs layout.zero_stage 3, which is {stage}: DeepSpeed swaps optimizer "
            "states to NVMe only there; set zero_stage to 3 or offload_optimizer to cpu"
        )


def _optimizer_problems(layout: ParallelLayout, optimizer: OptimizerSpec) -> Iterator[str]:
    place = layout.offload_optimizer
    if place is not Offload.NONE and place not in optimizer.offload:
        near = " and ".join(("none", *optimizer.offload))
        yield (
            f"layout.offload_optimizer ({place}) cannot be combined with the optimizer {optimizer.title}: its step "
            f"cannot run with its states there; it runs with offload_optimizer {near}"
        )


def shape_problems(*, shape: ModelShape, layout: ParallelLayout) -> Iterator[str]:
    """Yield why this shape cannot be split over the layout."""
    yield from _tensor_problems(shape, layout)
    yield from _pipeline_problems(shape, layout)


def _tensor_problems(shape: ModelShape, layout: ParallelLayout) -> Iterator[str]:
    tensor = layout.tensor_model_parallel_size
    counts = {
        "num_attention_heads": (shape.num_attention_heads, "heads"),
        "num_query_groups": (shape.num_query_groups, "groups"),
        "ffn_hidden_size": (shape.ffn_hidden_size, "channels"),
        "padded_vocab_size": (shape.padded_vocab_size, "rows"),
    }
    near = _near_divisors(math.gcd(*(count for count, _ in counts.values())), tensor)
    works = f"sizes that divide all of the shape: {_join(near)}"
    for name, (count, unit) in counts.items():
        if count % tensor:
            yield (
                f"layout.tensor_model_parallel_size ({tensor} ranks) must divide shape.{name} ({count} {unit}); "
                f"nearest {works}"
            )
    if layout.sequence_parallel and shape.seq_length % tensor:
        yield (
            f"layout.tensor_model_parallel_size ({tensor} ranks) must divide shape.seq_length ({shape.seq_length} "
            f"tokens) under sequence_parallel; nearest lengths: {_near_multiples(shape.seq_length, tensor)}"
        )


def _pipeline_problems(shape: ModelShape, layout: ParallelLayout) -> Iterator[str]:
    pipeline, virtual = layout.pipeline_model_parallel_size, layout.virtual_pipeline_model_parallel_size
    layers, full = shape.num_layers, -(-shape.num_layers // pipeline)
    if pipeline > layers:
        yield (
            f"layout.pipeline_model_parallel_size ({pipeline} stages) must be at most shape.num_layers ({layers} "
            f"layers): every stage holds a layer; nearest size: {layers}"
        )
    elif full % virtual:
        works = _join(_near_divisors(full, virtual))
        yield (
            f"layout.virtual_pipeline_model_parallel_size ({virtual} chunks) must divide the layers of a stage "
            f"({full} of shape.num_layers {layers} over {pipeline} stages); nearest chunks per stage: {works}"
        )
    elif pipeline * virtual > layers:
        works = str(max(count for count in range(1, virtual) if full % count == 0 and pipeline * count <= layers))
        yield (
            f"layout.virtual_pipeline_model_parallel_size ({virtual} chunks) x layout.pipeline_model_parallel_size "
            f"({pipeline} stages) must be at most shape.num_layers ({layers} layers): every chunk holds a layer; "
            f"nearest chunks per stage: {works}"
        )
    if shape.tied_embeddings and pipeline > 1:
        yield (
            f"shape.tied_embeddings (true) is not supported with layout.pipeline_model_parallel_size ({pipeline} "
            "stages): the table would live on the first and the last stage; set tied_embeddings to false or "
            "pipeline_model_parallel_size to 1"
        )


def batch_problems(*, batch: BatchPlan, layout: ParallelLayout) -> Iterator[str]:
    """Yield why this batch cannot be split over the layout."""
    data, pipeline = layout.data_parallel_size, layout.pipeline_model_parallel_size
    steps = batch.gradient_accumulation_steps
    product = batch.micro_batch_size * steps * data
    if batch.global_batch_size != product:
        yield (
            f"batch.global_batch_size ({batch.global_batch_size} sequences) must be batch.micro_batch_size "
            f"({batch.micro_batch_size}) x batch.gradient_accumulation_steps ({steps}) x data_parallel_size ({data}) = "
            f"{product}"
        )
    if layout.virtual_pipeline_model_parallel_size > 1 and steps % pipeline:
        yield (
            f"batch.gradient_accumulation_steps ({steps} micro-batches) must be a multiple of "
            f"layout.pipeline_model_parallel_size ({pipeline} stages) under virtual pipeline stages; nearest values: "
            f"{_near_multiples(steps, pipeline)}"
        )


def _near_divisors(count: int, wanted: int) -> tuple[int, ...]:
    """Return the divisors of count on either side of wanted."""
    divisors = [n for n in range(1, count + 1) if count % n == 0]
    below = [n for n in divisors if n <= wanted][-1:]
    above = [n for n in divisors if n > wanted][:1]
    return (*below, *above)


def _near_multiples(count: int, unit: int) -> str:
    below = count // unit * unit
    return _join((below, below + unit) if below else (unit,))


def _join(values: tuple[int, ...]) -> str:
    return " and ".join(str(value) for value in values)
