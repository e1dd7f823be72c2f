"""Weights, gradients, optimizer states and buffers of one rank, as DeepSpeed 0.19.8 holds them.

Bytes follow from the number of elements alone: P parameters on this rank's pipeline stage and tensor-parallel shard, of
which each data-parallel rank has P / DP. Derived and measured in docs/memory.md.

Source: Rajbhandari et al. 2020 (arXiv:1910.02054), section 5, for what each ZeRO stage partitions; DeepSpeed's code
(runtime/zero/stage_1_and_2.py, stage3.py, parameter_offload.py; runtime/fp16/unfused_optimizer.py) for copies, dtypes
and buffers, which the paper's 2 + 2 + 12 bytes per parameter do not cover. Leaves out padding of partitions, and
ZeRO-3's option to keep parameters in secondary partitions.
"""

import math
from functools import lru_cache
from typing import NamedTuple

from chinchilla_ds.budget.deepspeed_json.fields import MIN_BUCKET_ELEMENTS
from chinchilla_ds.budget.memory.activations import FP32_BYTES, compute_bytes
from chinchilla_ds.run_plan import ADAM_STATES, ModelShape, Offload, Precision
from chinchilla_ds.weights import DOWN_PROJECTION, WeightKind, held_kinds, stage_layers

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


class HeldWeights(NamedTuple):
    """The weights of one kind that a rank holds."""

    kind: WeightKind
    size: int
    """Elements of this rank's part of one such weight."""
    number: int
    """Number of such weights."""


Weights = tuple[HeldWeights, ...]


class StateBytes(NamedTuple):
    """Bytes that one rank holds in addition to activations."""

    weights: int
    gradients: int
    """Gradients while micro-batches accumulate."""
    optimizer: int
    loss_buffers: int
    """Buckets and gathered parameters when the loss is differentiated."""
    backward_buffers: int
    """The same once the first gradients exist."""
    step_buffers: int
    """Gradients, their copies and buckets during the optimizer's step."""
    reduced: int = 0
    """Copy of a full bucket that ZeRO-3's reduce-scatter makes."""
    host: int = 0
    nvme: int = 0


@lru_cache(maxsize=4096)
def stage_weights(*, shape: ModelShape, tensor: int, pipeline: int, stage: int) -> Weights:
    """Return the weights of every kind on a rank of pipeline stage `stage`.

    Args:
        shape: the decoder.
        tensor: tensor-parallel size.
        pipeline: pipeline-parallel size.
        stage: the pipeline stage, counted from 0.
    """
    layers = stage_layers(num_layers=shape.num_layers, pipeline=pipeline)[stage]
    return tuple(
        HeldWeights(
            kind=kind,
            size=math.prod(kind.local_shape(shape, tensor=tensor)),
            number=layers if kind.in_layers else 1,
        )
        for kind in held_kinds(shape, is_first=stage == 0, is_last=stage == pipeline - 1)
    )


@lru_cache(maxsize=4096)
def stage_params(*, shape: ModelShape, tensor: int, pipeline: int, stage: int) -> tuple[int, int]:
    """Return a rank's parameters: all of them, and its norms', which tensor parallelism does not split.

    Args:
        shape: the decoder.
        tensor: tensor-parallel size.
        pipeline: pipeline-parallel size.
        stage: the pipeline stage, counted from 0.
    """
    weights = stage_weights(shape=shape, tensor=tensor, pipeline=pipeline, stage=stage)
    norms = sum(held.size * held.number for held in weights if held.kind.split is None)
    return _params(weights), norms


@lru_cache(maxsize=4096)
def notable_stages(*, num_layers: int, pipeline: int) -> tuple[int, ...]:
    """Return the stages of which one is the fullest: the first, the first with the most layers, and the last.

    Any other has no more weights than one of these, and no more micro-batches in flight.

    Args:
        num_layers: Layers of the decoder.
        pipeline: pipeline-parallel size.
    """
    layers = stage_layers(num_layers=num_layers, pipeline=pipeline)
    return tuple(sorted({0, layers.index(max(layers)), pipeline - 1}))


def fullest_stage_params(*, shape: ModelShape, tensor: int, pipeline: int) -> int:
    """Return the parameters of a rank of the pipeline stage that has the most.

    Args:
        shape: the decoder.
        tensor: tensor-parallel size.
        pipeline: pipeline-parallel size.
    """
    return max(
        stage_params(shape=shape, tensor=tensor, pipeline=pipeline, stage=stage)[0]
        for stage in notable_stages(num_layers=shape.num_layers, pipeline=pipeline)
    )


def _params(weights: Weights) -> int:
    return sum(held.size * held.number for held in weights)


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
    overlaps: bool = False,
) -> StateBytes:
    """Return the bytes that a rank of pipeline stage `stage` holds in addition to activations, for any micro-batch.

    Args:
        shape: The decoder.
        tensor: tensor_model_parallel_size.
        pipeline: pipeline_model_parallel_size.
        data: data_parallel_size.
        zero_stage: 0 to 3.
        offload_optimizer: Where optimizer states live.
        offload_param: Where ZeRO-3's partitions live.
        precision: Precision of weights and gradients.
        stage: Index of the pipeline stage.
        optimizer_states: Values that the optimizer keeps for a parameter, in FP32, beside the master weight.
        overlaps: Whether ZeRO-1 and 2 run with overlap_comm, and then with two buckets that take turns.
    """
    weights = stage_weights(shape=shape, tensor=tensor, pipeline=pipeline, stage=stage)
    width = compute_bytes(precision)
    params = _params(weights)
    if zero_stage == 0:
        return _without_zero(params, width, optimizer_states)
    per_param = FP32_BYTES * (1 + optimizer_states)
    bucket = width * max(shape.hidden_size**2, MIN_BUCKET_ELEMENTS)
    if zero_stage == 3:
        gathers = data > 1 or offload_param is not Offload.NONE
        traced = stage == pipeline - 1
        state, partition = _zero3(
            weights, data=data, width=width, per_param=per_param, bucket=bucket, gathers=gathers, traced=traced
        )
    else:
        partition = 0
        bucket *= 2 if overlaps else 1
        state = _zero12(params, zero_stage=zero_stage, data=data, width=width, per_param=per_param, bucket=bucket)
    if offload_optimizer is not Offload.NONE:
        largest = width * max(weight.size for weight in weights) if zero_stage < 3 else 0
        state = _offload_optimizer(state, zero_stage, width, per_param, bucket, largest, to=offload_optimizer)
    return state if offload_param is Offload.NONE else _offload_param(state, partition, width, to=offload_param)


def _without_zero(params: int, width: int, optimizer_states: int) -> StateBytes:
    """Return ZeRO-0's share: in half precision with fp32 masters, and fp32 gradients during the step."""
    masters = FP32_BYTES * params if width < FP32_BYTES else 0
    return StateBytes(
        weights=width * params,
        gradients=width * params,
        optimizer=masters + optimizer_states * FP32_BYTES * params,
        loss_buffers=0,
        backward_buffers=0,
        step_buffers=width * params + masters,
    )


def _zero12(params: int, *, zero_stage: int, data: int, width: int, per_param: int, bucket: int) -> StateBytes:
    """Return the share of ZeRO-1 and 2: masters and states partitioned; fp32 weights have fp32 masters as well.

    Gradients accumulate in compute precision: whole in ZeRO-1, this rank's partition in ZeRO-2. ZeRO-1 allocates its
    bucket at the first gradient of a step, ZeRO-2 at that of every micro-batch. The step holds the partition and a copy
    of it in fp32.
    """
    shard = -(-params // data)
    return StateBytes(
        weights=width * params,
        gradients=width * (params if zero_stage == 1 else shard),
        optimizer=per_param * shard,
        loss_buffers=bucket if zero_stage == 1 else 0,
        backward_buffers=bucket,
        step_buffers=(width + FP32_BYTES) * shard,
    )


def _zero3(
    weights: Weights, *, data: int, width: int, per_param: int, bucket: int, gathers: bool, traced: bool
) -> tuple[StateBytes, int]:
    """Return ZeRO-3's share, and its partition of the weights alone.

    Everything is partitioned; small weights are also kept whole, others only while used. Gradient partition and
    bucket are allocated once. `traced`: forward and backward passes alternate, so DeepSpeed knows which weight comes
    next, keeps weights and prefetches them. Otherwise, in earlier stages of a pipeline, the weight of one module at a
    time is whole, at the peak that of the down projection.
    """
    shard = sum(-(-held.size // data) * held.number for held in weights)
    passing = tuple(held for held in weights if held.size > PERSISTENT_ELEMENTS)
    persistent = _params(weights) - _params(passing)
    gathered = next((held.size for held in passing if held.kind is DOWN_PROJECTION), 0)
    if traced:
        gathered = min(_params(passing), REUSED_ELEMENTS + 2 * PREFETCHED_ELEMENTS)
    buffers = bucket + width * gathered * gathers
    small = width * persistent * gathers
    step = width * shard + bucket + FP32_BYTES * min(shard, SUB_GROUP_ELEMENTS)
    state = StateBytes(
        weights=width * shard + small,
        gradients=width * shard,
        optimizer=per_param * shard,
        loss_buffers=buffers,
        backward_buffers=buffers,
        step_buffers=max(step - small, 0),  # small weights are freed before the step
        reduced=min(width * _params(weights), bucket) if data > 1 else 0,
    )
    return state, width * shard


def _offload_optimizer(
    state: StateBytes, zero_stage: int, width: int, per_param: int, bucket: int, largest: int, *, to: Offload
) -> StateBytes:
    """Move masters, states and the step's fp32 gradients off the device; under ZeRO-2 and 3, the gradients too.

    ZeRO-1 and 2 add a copy of the partition in compute precision, and one buffer as large as the largest weight on
    either side. NVMe holds masters and states; the host then has the buffers through which they pass.
    """
    shard = state.optimizer // per_param
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
    without_partition = state._replace(weights=state.weights - partition)
    if to is Offload.CPU:
        return without_partition._replace(host=state.host + partition)
    return without_partition._replace(host=state.host + width * PARAM_SWAP_ELEMENTS, nvme=state.nvme + partition)
