"""Expected time of one optimizer step, from a roofline of the device and the volume of every collective.

A model, not a measurement: docs/step-time.md compares it with published runs and says where it misses. A step consists
of parts, so that a search over layouts pays for each once: `micro_batch_time` (TP, PP, DP, sequence parallelism,
recomputation, micro-batch), `data_parallel_time` (TP, PP, DP, ZeRO) and `optimizer_time` (the same with offload), which
`combine` joins.

MFU and HFU count attention over the full S x S scores, as the plan's FLOPs do; the time counts the causal half, as the
fused kernels compute it. Left out are kernel launches (a host that cannot keep up), data loading, stragglers,
congestion, evaluations and checkpoints.

T tokens of a micro-batch (s x b); h hidden, a heads, g query groups, d kv_channels, f ffn, p stages, m micro-batches,
v chunks per stage.
"""

import math
from typing import NamedTuple

from chinchilla_ds.budget.deepspeed_json.fields import MIN_BUCKET_ELEMENTS
from chinchilla_ds.budget.memory.activations import FP32_BYTES, compute_bytes
from chinchilla_ds.budget.memory.states import fullest_stage_params
from chinchilla_ds.budget.shape.flops import decoder_flops_per_token, hardware_flops_per_token
from chinchilla_ds.budget.speed.rates import Machine
from chinchilla_ds.run_plan import (
    ADAM_STATES,
    BatchPlan,
    ModelShape,
    Offload,
    Precision,
    Recompute,
    StepTime,
)
from chinchilla_ds.weights import stage_layers

HIDDEN_SHARE = 0.24
"""Share of data-parallel traffic that overlaps with computation, where there is enough of it: ZeRO-3's, which DeepSpeed
overlaps by default, and the reductions of ZeRO-1 and 2 with `overlap_comm`. Ours: fitted to every second published run
of docs/step-time.md, most of them under full sharding. Under a pipeline none of ZeRO-3's overlaps: the prefetch trace
is invalid wherever forward and backward passes alternate."""
HIDDEN_COST_SHARE = 0.15
"""Share of its own time that overlapped traffic still costs: NCCL's kernels take processors and memory bandwidth from
matmuls.

Source: Calculon (Isaev et al. 2023), systems/a100_80g.json, processor_usage of NVLink.
"""
FUSED_BACKWARD_ATTENTION = 2.5
"""Matmuls of a fused attention's backward pass per forward one: five for two, since the scores are recomputed.

Source: FlashAttention-2 (arXiv:2307.08691), section 3.1.2.
"""
CPU_ADAM_PARAMS_PER_S = 4e9
"""Parameters that the CPUs of one machine step per second.

Source: ZeRO-Offload (Ren et al. 2021, arXiv:2101.06840), table 4: 4 billion in 1.03 s on two Xeon 8168.
"""
DEVICES_PER_MACHINE = 8
"""Devices that share those CPUs, at most: a rack joined by NVLink has many machines."""
NVME_BYTES_PER_S = 3e9
"""NVMe bandwidth per device. Ours: one PCIe 4 drive for two devices."""

_LOSS_BYTES_PER_LOGIT = 28
"""Casts to FP32 and back, log-softmax, and their backward passes, from and to memory."""
BYTES_PER_PARAM = {0: 46, 1: 58, 2: 58, 3: 54}
"""By ZeRO stage, what `engine.step` reads and writes for each parameter that this rank updates: 18 bytes for the
gradients' norm, in FP64 (10 under ZeRO-0, in FP32), 4 to look for non-finite ones (not under ZeRO-3), 4 to gather them
in one tensor (not under ZeRO-0), 6 to cast them to FP32, 8 to clip, 12 for weight and gradient, 6 to cast the weight.

Source: counted in half precision in the engine's operations by tests/distributed/test_moved_bytes.py; deepspeed 0.19.8,
runtime/zero/stage_1_and_2.py (step, get_grad_norm_direct, unscale_and_clip_grads), stage3.py (step,
_prepare_fp32_grad_for_sub_group) and fp16/unfused_optimizer.py (step).
"""
BYTES_PER_STATE = 8
"""Each of the optimizer's states, read and written in FP32."""


class MicroBatchTime(NamedTuple):
    """Forward and backward pass of one micro-batch, in seconds."""

    compute_s: float
    """Computation of the slowest stage."""
    tensor_parallel_s: float
    """Tensor-parallel collectives of the slowest stage."""
    other_stages_s: float
    """The sum of both over all other stages."""
    send_s: float
    """One message between stages, there and back."""


class DataParallelTime(NamedTuple):
    """Collectives over the data-parallel ranks, in seconds."""

    per_step_s: float
    per_micro_batch_s: float
    hidden_share: float
    """Part of a micro-batch's collectives that overlaps with its computation, where that takes as long."""
    last_micro_batch_s: float = 0.0
    """In the step's last micro-batch alone, beside its computation."""


class OptimizerTime(NamedTuple):
    """The optimizer's step and transfers of offloaded states, in seconds."""

    per_step_s: float
    per_micro_batch_s: float


class Parts(NamedTuple):
    """A step's terms, in seconds, as in run_plan.StepTime."""

    total_s: float
    compute_s: float
    tensor_parallel_s: float
    pipeline_s: float
    data_parallel_s: float
    optimizer_s: float


def combine(
    *,
    micro: MicroBatchTime,
    collectives: DataParallelTime,
    optimizer: OptimizerTime,
    virtual: int,
    pipeline: int,
    micro_batches: int,
) -> Parts:
    """Return the step's terms.

    The pipeline's idle time is one micro-batch of every other stage, divided by the chunks per stage: (p - 1) / (m v)
    of the computation if stages are equal. Each stage sends and receives once per chunk and pass, without overlap.

    Args:
        micro: times of one micro-batch, seconds.
        collectives: times of data-parallel collectives, seconds.
        optimizer: times of AdamW's step and of transfers, seconds.
        virtual: model chunks per stage.
        pipeline: pipeline-parallel size.
        micro_batches: micro-batches per optimizer step.

    Source: Narayanan et al. 2021 (arXiv:2104.04473), sections 2.2.1 and 2.2.2.
    """
    compute, tensor_parallel = micro_batches * micro.compute_s, micro_batches * micro.tensor_parallel_s
    sends = (micro_batches * virtual + pipeline - 1) * micro.send_s
    bubble = micro.other_stages_s / virtual + sends
    exposed, last = (
        _exposed_s(traffic, compute_s=micro.compute_s, hidden_share=collectives.hidden_share)
        for traffic in (collectives.per_micro_batch_s, collectives.last_micro_batch_s)
    )
    data = collectives.per_step_s + last + micro_batches * exposed
    if pipeline > 1:  # stages that wait for their collectives hold up the others
        data += exposed * (pipeline - 1) / virtual
    step = optimizer.per_step_s + micro_batches * optimizer.per_micro_batch_s
    return Parts(compute + tensor_parallel + bubble + data + step, compute, tensor_parallel, bubble, data, step)


def _exposed_s(traffic_s: float, *, compute_s: float, hidden_share: float) -> float:
    """Return what a micro-batch waits for its collectives, with what hidden ones cost."""
    return traffic_s - (1 - HIDDEN_COST_SHARE) * hidden_share * min(traffic_s, compute_s)


def to_step_time(
    parts: Parts, *, shape: ModelShape, recompute: Recompute, batch: BatchPlan, world_size: int, machine: Machine
) -> StepTime:
    """Return the terms with MFU and HFU.

    Args:
        parts: the step's terms, seconds.
        shape: the decoder.
        recompute: which part of the forward pass is repeated.
        batch: the batch, in sequences.
        world_size: number of devices.
        machine: gives the peak rate.
    """
    tokens = batch.global_batch_size * shape.seq_length
    model = decoder_flops_per_token(shape=shape)
    available = parts.total_s * world_size * machine.peak_flops_per_s
    return StepTime(
        compute_s=parts.compute_s,
        tensor_parallel_s=parts.tensor_parallel_s,
        pipeline_s=parts.pipeline_s,
        data_parallel_s=parts.data_parallel_s,
        optimizer_s=parts.optimizer_s,
        total_s=parts.total_s,
        mfu=tokens * model / available,
        hfu=tokens * hardware_flops_per_token(shape=shape, recompute=recompute) / available,
    )


def micro_batch_time(
    *,
    shape: ModelShape,
    tensor: int,
    pipeline: int,
    data: int,
    sequence_parallel: bool,
    recompute: Recompute,
    micro_batch_size: int,
    precision: Precision,
    machine: Machine,
) -> MicroBatchTime:
    """Return the time of a forward and backward pass of one micro-batch.

    A layer's tensor parallelism is four all-reduces of T h, two forward and two backward; sequence parallelism makes
    each an all-gather and a reduce-scatter of the same volume, and megatron-core's second gather of the backward pass
    overlaps with a matmul. The embedding and the logits are counted as half a layer, both on the last stage, which is
    the slowest, unless it has a layer less than others and they take longer.

    Args:
        shape: the decoder.
        tensor: tensor-parallel size.
        pipeline: pipeline-parallel size.
        data: data-parallel size.
        sequence_parallel: whether norms and residuals are split over the tensor-parallel group.
        recompute: which part of the forward pass is repeated.
        micro_batch_size: sequences of one micro-batch.
        precision: precision of matmuls and activations.
        machine: rates of one device and its links.

    Source: Korthikanti et al. 2022 (arXiv:2205.05198), section 4.2.
    """
    tokens, width = micro_batch_size * shape.seq_length, compute_bytes(precision)
    layers = stage_layers(num_layers=shape.num_layers, pipeline=pipeline)
    forward, attention, cheap = _layer_forward_s(shape, tokens, tensor, sequence_parallel, width, machine)
    layer = 3 * forward + (1 + FUSED_BACKWARD_ATTENTION) * attention
    collectives = 4.0
    if recompute is Recompute.SELECTIVE:
        layer += attention
    elif recompute is Recompute.SELECTIVE_OP:
        layer += cheap
        collectives += 1.5 if sequence_parallel else 1
    elif recompute is Recompute.FULL:
        layer += forward + attention
        collectives += 2
    message = width * tokens * shape.hidden_size
    all_reduce = machine.all_reduce_s(message, size=tensor, stride=1)
    split = tensor if sequence_parallel else 1
    send = 2 * machine.send_s(message / split, size=pipeline, stride=tensor * data) if pipeline > 1 else 0.0
    head, whole = _head_s(shape, tokens, tensor, width, machine), layer + collectives * all_reduce
    is_last = (max(layers) - layers[-1]) * whole <= head + 2 * all_reduce
    slowest = layers[-1] if is_last else max(layers)
    ends = 0.0 if is_last else head + 2 * all_reduce
    return MicroBatchTime(
        compute_s=slowest * layer + head * is_last,
        tensor_parallel_s=(slowest * collectives + 2 * is_last) * all_reduce,
        other_stages_s=(shape.num_layers - slowest) * whole + ends,
        send_s=send,
    )


def copied_elements(*, zero_stage: int, data: int) -> tuple[float, float]:
    """Return the elements that ZeRO copies for each parameter of a rank, partitioned or not.

    They are read and written in compute precision, beside the passes themselves. Adding a gradient to earlier ones
    takes 3. ZeRO-1, once per step, and 2 move gradients into a bucket and divide them by the number of ranks, 4, and
    move their partition out again, 4; ZeRO-3 also copies the weights that it gathers, on one rank too.

    Args:
        zero_stage: ZeRO stage, 0 to 3.
        data: data-parallel size.

    Returns:
        Of the first micro-batch of a step, with what is done once per step, and of each later one.

    Source: counted by tests/distributed/test_moved_bytes.py; deepspeed 0.19.8, runtime/zero/stage_1_and_2.py
    (reduce_independent_p_g_buckets_and_remove_grads, average_tensor, copy_grads_in_partition), stage3.py
    (__add_grad_to_ipg_bucket, __avg_scatter_grads, partition_grads) and partition_parameters.py (_all_gather_dtype).
    """
    first = {0: 6.0 * (data > 1), 1: 5 + 3 / data, 2: 4 + 4 / data, 3: 12 - 2 / data}[zero_stage]
    later = {0: 3.0, 1: 3.0, 2: 4 + 7 / data, 3: 12 - 1 / data}[zero_stage]
    return first, later


def _layer_forward_s(
    shape: ModelShape, tokens: int, tensor: int, sequence_parallel: bool, width: int, machine: Machine
) -> tuple[float, float, float]:
    """Return a layer's forward time without attention, its attention's, and of the first what selective-op repeats.

    That is all but matmuls, and every second one of these: the output and the down projection.

    Apart from matmuls it moves `machine.elementwise`: norms and residual additions (split under sequence parallelism
    only), rotary positions, changes of layout and SwiGLU (split by TP).
    """
    h, f = shape.hidden_size, shape.ffn_hidden_size
    heads, groups, width_of_head = shape.num_attention_heads, shape.num_query_groups, shape.kv_channels
    q, qkv = heads * width_of_head / tensor, (heads + 2 * groups) * width_of_head / tensor
    output = machine.matmul_s(m=tokens, k=q, n=h, width=width)
    down = machine.matmul_s(m=tokens, k=f / tensor, n=h, width=width)
    matmuls = (
        machine.matmul_s(m=tokens, k=h, n=qkv, width=width)
        + output
        + machine.matmul_s(m=tokens, k=h, n=2 * f / tensor, width=width)
        + down
    )
    split = tensor if sequence_parallel else 1
    moves = machine.elementwise
    elements = moves.norms * h / split + moves.qkv * qkv + moves.ffn * f / tensor
    elementwise = width * tokens * elements / machine.memory_bytes_per_s
    attention = machine.attention_s(tokens=tokens, channels=q, seq_length=shape.seq_length, head_size=width_of_head)
    return matmuls + elementwise, attention, elementwise + output + down


def _head_s(shape: ModelShape, tokens: int, tensor: int, width: int, machine: Machine) -> float:
    """Return the forward and backward time of the logits and the loss."""
    rows = shape.padded_vocab_size / tensor
    loss = _LOSS_BYTES_PER_LOGIT * tokens * rows / machine.memory_bytes_per_s
    return 3 * machine.matmul_s(m=tokens, k=shape.hidden_size, n=rows, width=width) + loss


def data_parallel_time(
    *,
    shape: ModelShape,
    tensor: int,
    pipeline: int,
    data: int,
    zero_stage: int,
    precision: Precision,
    machine: Machine,
    overlaps: bool = False,
) -> DataParallelTime:
    """Return the time of the collectives over data-parallel ranks, in compute precision, for the fullest stage.

    ZeRO-0 and 1 all-reduce gradients once per step, ZeRO-2 on every backward pass (buckets that several ranks own are
    all-reduced, which is DeepSpeed 0.19's default); 1 and 2 gather the new parameters. With `overlap_comm` the
    reductions of 1 and 2 run beside the backward pass that they belong to. ZeRO-3 gathers parameters for every forward
    and again for every backward pass, and scatters gradients: three times the stage's parameters for every micro-batch,
    beside both.

    Args:
        shape: the decoder.
        tensor: tensor-parallel size.
        pipeline: pipeline-parallel size.
        data: data-parallel size.
        zero_stage: ZeRO stage, 0 to 3.
        precision: precision of gradient and parameter traffic.
        machine: rates of one device and its links.
        overlaps: whether ZeRO-1 and 2 run with overlap_comm; ZeRO-3 always does.

    Source: Rajbhandari et al. 2020 (arXiv:1910.02054), section 7; deepspeed 0.19.8, stage_1_and_2.py and stage3.py.
    """
    if data == 1:
        return DataParallelTime(0.0, 0.0, 0.0)
    params = fullest_stage_params(shape=shape, tensor=tensor, pipeline=pipeline)
    total_bytes = compute_bytes(precision) * params
    buckets = math.ceil(params / max(shape.hidden_size**2, MIN_BUCKET_ELEMENTS))
    gather = machine.all_gather_s(total_bytes, size=data, stride=tensor)
    reduce = machine.all_reduce_s(total_bytes, size=data, stride=tensor, messages=buckets)
    if zero_stage == 3:
        modules = max(buckets, *stage_layers(num_layers=shape.num_layers, pipeline=pipeline))
        moved = 3 * machine.all_gather_s(total_bytes, size=data, stride=tensor, messages=modules)
        return DataParallelTime(0.0, moved, HIDDEN_SHARE if pipeline == 1 else 0.0)
    share = HIDDEN_SHARE if overlaps else 0.0
    if zero_stage == 2:
        return DataParallelTime(gather, reduce, share)
    if zero_stage == 1 and overlaps:
        return DataParallelTime(gather, 0.0, share, last_micro_batch_s=reduce)
    return DataParallelTime(reduce + (gather if zero_stage == 1 else 0.0), 0.0, 0.0)


def optimizer_time(
    *,
    shape: ModelShape,
    tensor: int,
    pipeline: int,
    data: int,
    zero_stage: int,
    offload_optimizer: Offload,
    offload_param: Offload,
    precision: Precision,
    machine: Machine,
    optimizer_states: int = len(ADAM_STATES),
) -> OptimizerTime:
    """Return the optimizer's step and ZeRO's copies, bound by memory, and transfers of offloaded states; no overlap.

    Offloaded optimizer states: gradients go to the CPU (on every backward pass under ZeRO-2), whose Adam is shared by
    the devices of a machine, and new parameters return; on NVMe the states are also read and written each step.
    Offloaded parameters: this rank's partition is fetched from the CPU for every gather, and before that from NVMe if
    it is there.

    Args:
        shape: the decoder.
        tensor: tensor-parallel size.
        pipeline: pipeline-parallel size.
        data: data-parallel size.
        zero_stage: ZeRO stage, 0 to 3.
        offload_optimizer: where optimizer states are kept.
        offload_param: where parameters are kept.
        precision: compute precision.
        machine: rates of one device and its links.
        optimizer_states: values of optimizer state per parameter.

    Source: ZeRO-Offload (arXiv:2101.06840), section 4; ZeRO-Infinity (arXiv:2104.07857), section 4.
    """
    width = compute_bytes(precision)
    params = fullest_stage_params(shape=shape, tensor=tensor, pipeline=pipeline)
    shard = params / data if zero_stage > 0 else params
    transfer = width * shard / machine.host_bytes_per_s
    first, later = (
        width * elements * params / machine.memory_bytes_per_s
        for elements in copied_elements(zero_stage=zero_stage, data=data)
    )
    per_step, per_micro_batch = first - later, later
    if offload_optimizer is Offload.NONE:
        moved = BYTES_PER_PARAM[zero_stage] + BYTES_PER_STATE * optimizer_states
        per_step += moved * shard / machine.memory_bytes_per_s
    else:
        sharing = min(machine.devices_per_node, DEVICES_PER_MACHINE)
        per_step += transfer + shard * sharing / CPU_ADAM_PARAMS_PER_S
        if offload_optimizer is Offload.NVME:
            per_step += 2 * FP32_BYTES * (1 + optimizer_states) * shard / NVME_BYTES_PER_S
        if zero_stage == 2:
            per_micro_batch += transfer
        else:
            per_step += transfer
    if offload_param is not Offload.NONE:
        nvme = width * shard / NVME_BYTES_PER_S if offload_param is Offload.NVME else 0.0
        per_micro_batch += 2 * (transfer + nvme)
    return OptimizerTime(per_step, per_micro_batch)
