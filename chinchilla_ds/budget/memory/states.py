"""Weights, gradients, optimizer states and buffers of one rank, as DeepSpeed 0.19.8 holds them.

Bytes follow from elements alone: P parameters on this rank's pipeline stage and tensor-parallel shard, of which
data-parallel rank gets P / DP. Derived and measured in docs/memory.md.

Source: Rajbhandari et al. 2020 (arXiv:1910.02054), section 5, for what each ZeRO stage partitions; DeepSpeed's code
(runtime/zero/stage_1_and_2.py, stage3.py, parameter_offload.py; runtime/fp16/unfused_optimizer.py) for copies, dtypes
and buffers, of which the paper's 2 + 2 + 12 bytes per parameter say nothing. Leaves out padding of partitions, and
ZeRO-3's option to keep parameters in secondary partitions.
"""

from functools import lru_cache
from typing import NamedTuple

from chinchilla_ds.budget.deepspeed_json.fields import MIN_BUCKET_ELEMENTS
from chinchilla_ds.budget.memory.activations import FP32_BYTES, compute_bytes
from chinchilla_ds.run_plan import ADAM_STATES, ModelShape, Offload, Precision

PERSISTENT_ELEMENTS = 100_000
"""DeepSpeed's default of stage3_param_persistence_threshold: weights up to this size stay whole."""
PREFETCHED_ELEMENTS = 50_000_000
"""DeepSpeed's default of stage3_prefetch_bucket_size."""
REUSED_ELEMENTS = 500_000_000
"""Half of DeepSpeed's default of stage3_max_reuse_distance: a weight stays whole where it is used again within 10^9
elements, on the way to the end of the stage and back."""
SUB_GROUP_ELEMENTS = 1_000_000_000
"""DeepSpeed's default of sub_group_size: what ZeRO-3's step updates at a time."""
OPTIMIZER_SWAP_BUFFERS = 4
"""DeepSpeed's default of offload_optimizer.buffer_count, each as large as a sub-group in fp32."""
PARAM_SWAP_ELEMENTS = 5 * 100_000_000
"""DeepSpeed's defaults of offload_param.buffer_count x buffer_size."""

Weights = tuple[tuple[int, int], ...]
"""(elements, how many) of every kind of weight on a rank."""


class StateBytes(NamedTuple):
    """What one rank holds beside activations, in bytes."""

    weights: int
    gradients: int
    """While micro-batches accumulate."""
    optimizer: int
    loss_buffers: int
    """Buckets and gathered parameters when the loss is differentiated."""
    backward_buffers: int
    """The same when the first gradients have come."""
    step_buffers: int
    """Gradients, their copies and buckets during the optimizer's step."""
    reduced: int = 0
    """Copy of a full bucket that ZeRO-3's reduce-scatter makes."""
    host: int = 0
    nvme: int = 0


@lru_cache(maxsize=4096)
def stage_weights(*, shape: ModelShape, tensor: int, pipeline: int, stage: int) -> Weights:
    """Return (elements, how many) of every kind of weight on a rank of pipeline stage `stage`.

    In the order: QKV, attention output, gate and up, down, norms, embedding and output tables.
    """
    layers = shape.num_layers // pipeline
    hidden, ffn = shape.hidden_size, shape.ffn_hidden_size
    queries, keys = shape.num_attention_heads * shape.kv_channels, shape.num_query_groups * shape.kv_channels
    is_last = stage == pipeline - 1
    tables = (stage == 0) + (is_last and not (shape.tied_embeddings and pipeline == 1))
    return (
        (hidden * (queries + 2 * keys) // tensor, layers),
        (hidden * queries // tensor, layers),
        (hidden * 2 * ffn // tensor, layers),
        (hidden * ffn // tensor, layers),
        (hidden, 2 * layers + is_last),
        (hidden * shape.padded_vocab_size // tensor, tables),
    )


@lru_cache(maxsize=4096)
def stage_params(*, shape: ModelShape, tensor: int, pipeline: int, stage: int) -> tuple[int, int]:
    """Return a rank's parameters: all of them, and its norms', which tensor parallelism does not split."""
    weights = stage_weights(shape=shape, tensor=tensor, pipeline=pipeline, stage=stage)
    norm, norms = weights[4]
    return sum(size * count for size, count in weights), norm * norms


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
    stage: int,
    optimizer_states: int = len(ADAM_STATES),
) -> StateBytes:
    """Return what a rank of pipeline stage `stage` holds beside activations, whatever the micro-batch.

    Args:
        shape: The decoder.
        tensor: tensor_model_parallel_size.
        pipeline: pipeline_model_parallel_size.
        data: data_parallel_size.
        zero_stage: 0 to 3.
        offload_optimizer: Where optimizer states live.
        offload_param: Where ZeRO-3's partitions live.
        precision: Of weights and gradients.
        stage: Index of the pipeline stage.
        optimizer_states: Values that the optimizer keeps for a parameter, in FP32, beside the master weight.
    """
    weights = stage_weights(shape=shape, tensor=tensor, pipeline=pipeline, stage=stage)
    width = compute_bytes(precision)
    params = sum(size * count for size, count in weights)
    if zero_stage == 0:
        return _without_zero(params, width, optimizer_states)
    held = FP32_BYTES * (1 + optimizer_states)
    bucket = width * max(shape.hidden_size**2, MIN_BUCKET_ELEMENTS)
    if zero_stage == 3:
        gathers = data > 1 or offload_param is not Offload.NONE
        traced = stage == pipeline - 1
        state, partition = _zero3(
            weights, data=data, width=width, held=held, bucket=bucket, gathers=gathers, traced=traced
        )
    else:
        state, partition = _zero12(params, zero_stage=zero_stage, data=data, width=width, held=held, bucket=bucket), 0
    if offload_optimizer is not Offload.NONE:
        largest = width * max(size for size, count in weights if count) if zero_stage < 3 else 0
        state = _offload_optimizer(state, zero_stage, width, held, bucket, largest, to=offload_optimizer)
    return state if offload_param is Offload.NONE else _offload_param(state, partition, width, to=offload_param)


def _without_zero(params: int, width: int, optimizer_states: int) -> StateBytes:
    """Return ZeRO-0's share: in half precision there are fp32 masters, and in the step fp32 gradients."""
    masters = FP32_BYTES * params if width < FP32_BYTES else 0
    return StateBytes(
        weights=width * params,
        gradients=width * params,
        optimizer=masters + optimizer_states * FP32_BYTES * params,
        loss_buffers=0,
        backward_buffers=0,
        step_buffers=width * params + masters,
    )


def _zero12(params: int, *, zero_stage: int, data: int, width: int, held: int, bucket: int) -> StateBytes:
    """Return the share of ZeRO-1 and 2: masters and states partitioned; fp32 weights have fp32 masters beside them.

    Gradients accumulate in compute precision: whole in ZeRO-1, this rank's partition in ZeRO-2. The first gradient of a
    step brings ZeRO-1's bucket, that of every micro-batch ZeRO-2's. The step holds the partition, and a copy in fp32.
    """
    shard = -(-params // data)
    return StateBytes(
        weights=width * params,
        gradients=width * (params if zero_stage == 1 else shard),
        optimizer=held * shard,
        loss_buffers=bucket if zero_stage == 1 else 0,
        backward_buffers=bucket,
        step_buffers=(width + FP32_BYTES) * shard,
    )


def _zero3(
    weights: Weights, *, data: int, width: int, held: int, bucket: int, gathers: bool, traced: bool
) -> tuple[StateBytes, int]:
    """Return ZeRO-3's share, and its partition of the weights alone.

    Everything is partitioned; small weights stay whole besides, others while they are used. Gradient partition and
    bucket are allocated once. `traced`: forward and backward passes alternate, so DeepSpeed knows which weight comes
    next, and keeps and prefetches; elsewhere, in earlier stages of a pipeline, one module's weight is whole at a time,
    at the fullest moment the down projection's.
    """
    shard = sum(-(-size // data) * count for size, count in weights)
    persistent = sum(size * count for size, count in weights if size <= PERSISTENT_ELEMENTS)
    passing = [size * count for size, count in weights if size > PERSISTENT_ELEMENTS]
    down_projection, _ = weights[3]
    gathered = down_projection * (down_projection > PERSISTENT_ELEMENTS)
    if traced:
        gathered = min(sum(passing), REUSED_ELEMENTS + 2 * PREFETCHED_ELEMENTS)
    buffers = bucket + width * gathered * gathers
    small = width * persistent * gathers
    step = width * shard + bucket + FP32_BYTES * min(shard, SUB_GROUP_ELEMENTS)
    state = StateBytes(
        weights=width * shard + small,
        gradients=width * shard,
        optimizer=held * shard,
        loss_buffers=buffers,
        backward_buffers=buffers,
        step_buffers=max(step - small, 0),  # small weights are given back before the step
        reduced=min(width * sum(size * count for size, count in weights), bucket) if data > 1 else 0,
    )
    return state, width * shard


def _offload_optimizer(
    state: StateBytes, zero_stage: int, width: int, held: int, bucket: int, largest: int, *, to: Offload
) -> StateBytes:
    """Move masters, states and the step's fp32 gradients off the device; ZeRO-2 and 3 take the gradients along.

    ZeRO-1 and 2 add a copy of the partition in compute precision, and one buffer as large as the largest weight on
    either side. NVMe keeps masters and states; the host then has the buffers that they pass through.
    """
    shard = state.optimizer // held
    swaps = to is Offload.NVME
    on_host = OPTIMIZER_SWAP_BUFFERS * FP32_BYTES * min(shard, SUB_GROUP_ELEMENTS) if swaps else state.optimizer
    gradients = state.gradients if zero_stage == 1 else 0
    return state._replace(
        gradients=gradients,
        optimizer=0,
        loss_buffers=state.loss_buffers + largest,
        backward_buffers=state.backward_buffers + largest,
        step_buffers=largest if zero_stage < 3 else bucket,
        host=on_host
        + FP32_BYTES * shard
        + (state.gradients - gradients)
        + (width * shard + largest if zero_stage < 3 else 0),
        nvme=state.optimizer if swaps else 0,
    )


def _offload_param(state: StateBytes, partition: int, width: int, *, to: Offload) -> StateBytes:
    """Move ZeRO-3's partitions off the device; small weights stay."""
    kept = state._replace(weights=state.weights - partition)
    if to is Offload.CPU:
        return kept._replace(host=state.host + partition)
    return kept._replace(host=state.host + width * PARAM_SWAP_ELEMENTS, nvme=state.nvme + partition)
