"""Memory of one rank: what the engine holds between steps, and what one step adds. Pure integers, no framework.

`estimate_memory` joins two parts that are cached on their own, so that a search over layouts pays for each once:
`state_bytes` (weights, gradients, optimizer, buckets: TP, PP, DP, ZeRO, offload) and `budget.activations`
(activations and logits: TP, PP, virtual stages, sequence parallelism, recomputation, micro-batch). The formulas are
derived in docs/memory.md and checked there against the live engine's tensors.
"""

from functools import lru_cache
from typing import NamedTuple

from chinchilla_ds.budget.activations import activation_bytes
from chinchilla_ds.budget.ds_fields import MIN_BUCKET_ELEMENTS
from chinchilla_ds.budget.parameters import layer_matmul_params
from chinchilla_ds.plan import BatchPlan, MemoryBytes, ModelShape, Offload, ParallelLayout, Precision

FP32_BYTES = 4
CONTEXT_BYTES = 2 * 2**30
"""CUDA context, cuBLAS workspaces and NCCL's channels of a few communicators."""
FRAGMENTATION_SHARE = 0.05
"""Of what the allocator hands out: blocks that are reserved and cannot be used."""
CPU = "cpu"


class StateBytes(NamedTuple):
    """What one rank holds beside activations, in bytes."""

    weights: int
    gradients: int
    optimizer: int
    backward_buffers: int
    """Buckets and gathered parameters of the forward and backward passes."""
    step_buffers: int
    """Copies that the optimizer step makes when the activations are gone."""
    host: int
    nvme: int


@lru_cache(maxsize=4096)
def stage_params(*, shape: ModelShape, tensor: int, pipeline: int, stage: int) -> tuple[int, int]:
    """Return this rank's parameters: all of them, and its norms' (which tensor parallelism does not split)."""
    layers = shape.num_layers // pipeline
    matmul = layer_matmul_params(
        hidden_size=shape.hidden_size,
        ffn_hidden_size=shape.ffn_hidden_size,
        num_attention_heads=shape.num_attention_heads,
        num_query_groups=shape.num_query_groups,
        kv_channels=shape.kv_channels,
    )
    is_last = stage == pipeline - 1
    table = shape.padded_vocab_size * shape.hidden_size // tensor
    tables = (stage == 0) + (is_last and not (shape.tied_embeddings and pipeline == 1))
    norms = (2 * layers + is_last) * shape.hidden_size
    return layers * matmul // tensor + tables * table + norms, norms


@lru_cache(maxsize=65536)
def state_bytes(
    *,
    shape: ModelShape,
    tensor: int,
    pipeline: int,
    data: int,
    zero_stage: int,
    offload_optimizer: Offload,
    offload_param: Offload,
    precision: Precision,
    accumulates: bool,
    stage: int,
) -> StateBytes:
    """Return what a rank of `stage` holds beside activations.

    Args:
        shape: The decoder.
        tensor: tensor_model_parallel_size.
        pipeline: pipeline_model_parallel_size.
        data: data_parallel_size.
        zero_stage: 0 to 3.
        offload_optimizer: Where optimizer states live.
        offload_param: Where ZeRO-3's partitions live.
        precision: Of the weights.
        accumulates: Whether a step has more than one backward pass.
        stage: Index of the pipeline stage.
    """
    params, _ = stage_params(shape=shape, tensor=tensor, pipeline=pipeline, stage=stage)
    width = compute_bytes(precision)
    shard = -(-params // data)
    bucket = max(shape.hidden_size**2, MIN_BUCKET_ELEMENTS)
    if zero_stage == 0:
        half = width < FP32_BYTES
        return StateBytes(
            weights=width * params,
            gradients=width * params,
            optimizer=(12 if half else 8) * params,
            backward_buffers=0,
            step_buffers=FP32_BYTES * params if half else 0,
            host=0,
            nvme=0,
        )
    optimizer = 12 * shard
    largest = max(shape.padded_vocab_size, 2 * shape.ffn_hidden_size) * shape.hidden_size // tensor
    gradients = width * (params if zero_stage == 1 else shard)
    weights = width * (shard if zero_stage == 3 else params)
    buffers = width * max(bucket, largest)
    if zero_stage == 3:
        buffers += width * (largest + min(params, int(0.9 * bucket)))
    step = FP32_BYTES * shard
    host = nvme = 0
    if offload_optimizer is not Offload.NONE:
        host, nvme = (optimizer + FP32_BYTES * shard, 0) if offload_optimizer is Offload.CPU else (0, optimizer)
        optimizer = step = 0
    if offload_param is not Offload.NONE:
        host, nvme = (host + weights, nvme) if offload_param is Offload.CPU else (host, nvme + weights)
        weights = 0
    return StateBytes(weights, gradients, optimizer, buffers, step, host, nvme)


def compute_bytes(precision: Precision, /) -> int:
    """Return the bytes of one weight or activation in compute precision."""
    return FP32_BYTES if precision is Precision.FP32 else 2


def margin_bytes(used: int, *, device: str) -> int:
    """Return what allocator and context take beyond `used` bytes of tensors; 0 on "cpu"."""
    return 0 if device == CPU else CONTEXT_BYTES + int(FRAGMENTATION_SHARE * used)


def _stage_memory(
    stage: int, *, shape: ModelShape, layout: ParallelLayout, batch: BatchPlan, precision: Precision, device: str
) -> MemoryBytes:
    tensor, pipeline = layout.tensor_model_parallel_size, layout.pipeline_model_parallel_size
    state = state_bytes(
        shape=shape,
        tensor=tensor,
        pipeline=pipeline,
        data=layout.data_parallel_size,
        zero_stage=layout.zero_stage,
        offload_optimizer=layout.offload_optimizer,
        offload_param=layout.offload_param,
        precision=precision,
        accumulates=batch.gradient_accumulation_steps > 1,
        stage=stage,
    )
    activations, logits = activation_bytes(
        shape=shape,
        tensor=tensor,
        pipeline=pipeline,
        virtual=layout.virtual_pipeline_model_parallel_size,
        sequence_parallel=layout.sequence_parallel,
        recompute=layout.recompute,
        micro_batch_size=batch.micro_batch_size,
        gradient_accumulation_steps=batch.gradient_accumulation_steps,
        precision=precision,
        on_cpu=device == CPU,
        stage=stage,
    )
    backward = activations + logits + state.backward_buffers
    buffers = max(backward, state.step_buffers) - activations - logits
    used = state.weights + state.gradients + state.optimizer + activations + logits + buffers
    margin = margin_bytes(used, device=device)
    return MemoryBytes(
        weights=state.weights,
        gradients=state.gradients,
        optimizer=state.optimizer,
        activations=activations,
        logits=logits,
        buffers=buffers,
        margin=margin,
        total=used + margin,
        host=state.host,
        nvme=state.nvme,
        pipeline_stage=stage,
    )


def estimate_stages(
    *, shape: ModelShape, layout: ParallelLayout, batch: BatchPlan, precision: Precision, device: str
) -> tuple[MemoryBytes, ...]:
    """Return the expected peak of a rank of every pipeline stage, first to last.

    Args:
        shape: The decoder.
        layout: A layout that `budget.layout.validate_layout` accepts for it.
        batch: Micro-batch size and gradient accumulation steps.
        precision: Of weights and activations.
        device: "cpu" for exact tensor bytes; anything else adds the margin of a CUDA device.
    """
    return tuple(
        _stage_memory(stage, shape=shape, layout=layout, batch=batch, precision=precision, device=device)
        for stage in range(layout.pipeline_model_parallel_size)
    )


def estimate_memory(
    *, shape: ModelShape, layout: ParallelLayout, batch: BatchPlan, precision: Precision, device: str
) -> MemoryBytes:
    """Return the expected peak of the fullest rank, in bytes; arguments as `estimate_stages`.

    The fullest stage is the first or the last: one in between holds no table, no logits, and no more micro-batches in
    flight than the first.
    """
    last = layout.pipeline_model_parallel_size - 1
    ends = (
        _stage_memory(stage, shape=shape, layout=layout, batch=batch, precision=precision, device=device)
        for stage in sorted({0, last})
    )
    return max(ends, key=lambda memory: memory.total)
