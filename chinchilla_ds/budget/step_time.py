"""Expected time of one optimizer step, from a roofline of the device and the volume of every collective.

A model, not a measurement: docs/step-time.md holds it against published runs and says where it misses. A step is made
of parts, so that a search over layouts pays for each once: `micro_batch_time` (TP, PP, DP, sequence parallelism,
recomputation, micro-batch), `data_parallel_time` (TP, PP, DP, ZeRO) and `optimizer_time` (the same with offload), which
`combine` joins.

Ranks stand in megatron-core's order, tp-cp-ep-dp-pp: tensor-parallel neighbours first, data-parallel groups strided by
TP, pipeline stages outermost. T tokens of a micro-batch (s x b); h hidden, a heads, g query groups, d kv_channels,
f ffn, v padded vocabulary, t tensor-parallel size.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

from chinchilla_ds.budget.activations import compute_bytes
from chinchilla_ds.budget.ds_fields import MIN_BUCKET_ELEMENTS
from chinchilla_ds.budget.flops import decoder_flops_per_token, forward_flops_per_token
from chinchilla_ds.budget.hardware import Device
from chinchilla_ds.budget.model_states import stage_weights
from chinchilla_ds.errors import ConfigError
from chinchilla_ds.plan import BatchPlan, ModelShape, Offload, ParallelLayout, Precision, Recompute, StepTime

RUN_EFFICIENCY = 0.88
"""Of what kernels reach alone, what they reach in a run: gaps between kernels, clocks under a power limit, stragglers.

Ours: fitted by eye to the published runs of docs/step-time.md, the one constant that was.
"""
LINK_EFFICIENCY = 0.8
"""Share of a link that large collectives reach.

Source: nccl-tests' bus bandwidth on 8 GPUs of a node, about 235 of 300 GB/s (A100) and 360 of 450 GB/s (H100).
"""
MEMORY_EFFICIENCY = 0.8
"""Share of the memory bandwidth that elementwise kernels reach. Ours: the usual result of STREAM on these devices."""
COLLECTIVE_LATENCY_S = 10e-6
"""Start of one collective inside a node. Source: Calculon (Isaev et al. 2023), systems/a100_80g.json."""
HOP_LATENCY_S = 5e-6
"""What each further node of a ring adds. Ours: half of what a message between two nodes takes with its protocol."""
ZERO3_HIDDEN_SHARE = 0.7
"""Of the computation, how much ZeRO-3's traffic can hide behind. DeepSpeed overlaps by default at stage 3 alone. Ours:
the first gathers and the last scatters of a pass have nothing to hide behind. Under a pipeline nothing hides: the
prefetch trace is invalid wherever forward and backward passes alternate."""
HIDDEN_COST_SHARE = 0.15
"""What hidden traffic still costs, of its own time: NCCL's kernels take processors and memory bandwidth from matmuls.

Source: Calculon (Isaev et al. 2023), systems/a100_80g.json, processor_usage of NVLink.
"""
FUSED_BACKWARD_ATTENTION = 2.5
"""Matmuls of a fused attention's backward pass per forward one: five for two, the scores being computed again.

Source: FlashAttention-2 (arXiv:2307.08691), section 3.1.2.
"""
HOST_MEMORY_BYTES_PER_S = 50e9
"""CPU memory bandwidth per device. Ours: two sockets of eight DDR4-3200 channels for eight devices."""
NVME_BYTES_PER_S = 3e9
"""NVMe bandwidth per device. Ours: one PCIe 4 drive for two devices."""

_LOSS_BYTES_PER_LOGIT = 28
"""Casts to FP32 and back, log-softmax, and their backward passes, from and to memory."""
_BYTES_PER_PARAM_ADAM = 40
"""Weight, two moments, gradient, its FP32 copy and the weight in compute precision, read and written."""
_BYTES_PER_PARAM_CPU_ADAM = 32


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A device with all its rates, as the estimate needs them."""

    device: Device
    devices_per_node: int
    peak_flops_per_s: float
    matmul_flops_per_s: float
    """What large matmuls reach."""
    attention_flops_per_s: float
    memory_bytes_per_s: float
    """What elementwise kernels reach."""
    node_bytes_per_s: float
    """What a collective reaches inside a node."""
    network_bytes_per_s: float
    """The same between nodes, of one device's network card."""
    host_bytes_per_s: float


class MicroBatchTime(NamedTuple):
    """Forward and backward pass of one micro-batch, in seconds; the slowest stage is the last, with the logits."""

    compute_s: float
    """Of the slowest stage."""
    tensor_parallel_s: float
    """Of the slowest stage."""
    other_stages_s: float
    """Of all other stages together, both kinds."""
    send_s: float
    """One message between stages, there and back."""


class DataParallelTime(NamedTuple):
    """Collectives over the data-parallel ranks, in seconds."""

    per_step_s: float
    per_micro_batch_s: float
    hidden_share: float
    """Of a micro-batch's computation, how much can hide its collectives."""


class OptimizerTime(NamedTuple):
    """AdamW's step and transfers of offloaded states, in seconds."""

    per_step_s: float
    per_micro_batch_s: float


class Parts(NamedTuple):
    """A step's terms, in seconds, as in plan.StepTime."""

    total_s: float
    compute_s: float
    tensor_parallel_s: float
    pipeline_s: float
    data_parallel_s: float
    optimizer_s: float


def make_machine(
    *, device: Device, precision: Precision, world_size: int, devices_per_node: int | None = None
) -> Machine | None:
    """Return the machine, or None where a rate that the estimate needs is not known.

    Args:
        device: The accelerator.
        precision: Of matmuls; FP32 does not use TF32, as torch by default.
        world_size: All devices.
        devices_per_node: Devices that the fast link joins; None takes the device's own. As many of them are used as
            make all nodes alike: of a rack of 72, 64 for 1024 devices.
    """
    most = devices_per_node or device.devices_per_node
    per_node = next(count for count in range(min(most, world_size), 0, -1) if world_size % count == 0)
    peak, memory = device.peak_flops_per_s(precision=precision), device.memory_bytes_per_s
    node, network = device.intra_node_bytes_per_s, device.inter_node_bytes_per_s
    if peak is None or memory is None or (per_node > 1 and node is None) or (per_node < world_size and network is None):
        return None
    return Machine(
        device=device,
        devices_per_node=per_node,
        peak_flops_per_s=peak,
        matmul_flops_per_s=peak * device.matmul_efficiency * RUN_EFFICIENCY,
        attention_flops_per_s=peak * device.attention_efficiency * RUN_EFFICIENCY,
        memory_bytes_per_s=memory * MEMORY_EFFICIENCY * RUN_EFFICIENCY,
        node_bytes_per_s=(node or math.inf) * LINK_EFFICIENCY,
        network_bytes_per_s=(network or math.inf) * LINK_EFFICIENCY,
        host_bytes_per_s=(device.host_bytes_per_s or math.inf) * LINK_EFFICIENCY,
    )


def estimate_step_time(
    *,
    shape: ModelShape,
    layout: ParallelLayout,
    batch: BatchPlan,
    precision: Precision,
    device: Device,
    devices_per_node: int | None = None,
) -> StepTime:
    """Return the expected time of one optimizer step.

    MFU and HFU count attention over the full S x S scores, as the plan's FLOPs do; the time counts the causal half, as
    the fused kernels compute it. Leaves out kernel launches (a host that cannot keep up), data loading, stragglers,
    congestion, evaluations and checkpoints.

    Args:
        shape: The decoder.
        layout: A layout that `budget.layout.validate_layout` accepts for it.
        batch: Micro-batch size and gradient accumulation steps.
        precision: Of matmuls, activations and gradient traffic.
        device: One accelerator.
        devices_per_node: Devices that the fast link joins; None takes the device's own.

    Raises:
        ConfigError: a rate of the device is not known.
    """
    machine = make_machine(
        device=device, precision=precision, world_size=layout.world_size, devices_per_node=devices_per_node
    )
    if machine is None:
        raise ConfigError(
            f"device {device.name} has no peak rate for {precision}, or no memory or link bandwidth: a step's time "
            "cannot be estimated; give them in a --hardware file"
        )
    tensor, pipeline = layout.tensor_model_parallel_size, layout.pipeline_model_parallel_size
    data, zero_stage = layout.data_parallel_size, layout.zero_stage
    micro = micro_batch_time(
        shape=shape,
        tensor=tensor,
        pipeline=pipeline,
        data=data,
        sequence_parallel=layout.sequence_parallel,
        recompute=layout.recompute,
        micro_batch_size=batch.micro_batch_size,
        precision=precision,
        machine=machine,
    )
    parts = combine(
        micro=micro,
        collectives=data_parallel_time(
            shape=shape,
            tensor=tensor,
            pipeline=pipeline,
            data=data,
            zero_stage=zero_stage,
            precision=precision,
            machine=machine,
        ),
        optimizer=optimizer_time(
            shape=shape,
            tensor=tensor,
            pipeline=pipeline,
            data=data,
            zero_stage=zero_stage,
            offload_optimizer=layout.offload_optimizer,
            offload_param=layout.offload_param,
            precision=precision,
            machine=machine,
        ),
        virtual=layout.virtual_pipeline_model_parallel_size,
        pipeline=pipeline,
        micro_batches=batch.gradient_accumulation_steps,
    )
    return to_step_time(
        parts, shape=shape, recompute=layout.recompute, batch=batch, world_size=layout.world_size, machine=machine
    )


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
    of the computation where stages are alike. Each stage sends and receives once per chunk and pass, and hides none.

    Source: Narayanan et al. 2021 (arXiv:2104.04473), sections 2.2.1 and 2.2.2.
    """
    compute, tensor_parallel = micro_batches * micro.compute_s, micro_batches * micro.tensor_parallel_s
    sends = (micro_batches * virtual + pipeline - 1) * micro.send_s
    bubble = micro.other_stages_s / virtual + sends
    hidden = min(collectives.per_micro_batch_s, collectives.hidden_share * micro.compute_s)
    exposed = collectives.per_micro_batch_s - (1 - HIDDEN_COST_SHARE) * hidden
    data = collectives.per_step_s + micro_batches * exposed
    if pipeline > 1:  # stages that wait for their collectives make the others wait
        data += exposed * (pipeline - 1) / virtual
    step = optimizer.per_step_s + micro_batches * optimizer.per_micro_batch_s
    return Parts(compute + tensor_parallel + bubble + data + step, compute, tensor_parallel, bubble, data, step)


def to_step_time(
    parts: Parts, *, shape: ModelShape, recompute: Recompute, batch: BatchPlan, world_size: int, machine: Machine
) -> StepTime:
    """Return the terms with the utilisations that follow from them."""
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
        hfu=tokens * (model + _recomputed_flops_per_token(shape, recompute)) / available,
    )


def _recomputed_flops_per_token(shape: ModelShape, recompute: Recompute) -> float:
    if recompute is Recompute.NONE:
        return 0.0
    if recompute is Recompute.SELECTIVE:
        return 4.0 * shape.num_layers * shape.seq_length * shape.num_attention_heads * shape.kv_channels
    return forward_flops_per_token(shape=shape) - 2 * shape.hidden_size * shape.padded_vocab_size


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
    """Return what a forward and backward pass of one micro-batch takes.

    A layer's tensor parallelism is four all-reduces of T h, two forward and two backward; sequence parallelism makes
    each an all-gather and a reduce-scatter of the same volume, and megatron-core's second gather of the backward pass
    runs beside a matmul. The embedding and the logits are counted as half a layer, both on the last stage.

    Source: Korthikanti et al. 2022 (arXiv:2205.05198), section 4.2.
    """
    tokens, width = micro_batch_size * shape.seq_length, compute_bytes(precision)
    layers = shape.num_layers / pipeline
    forward, attention = _layer_forward_s(shape, tokens, tensor, sequence_parallel, width, machine)
    layer = 3 * forward + (1 + FUSED_BACKWARD_ATTENTION) * attention
    collectives = 4.0
    if recompute is Recompute.SELECTIVE:
        layer += attention
    elif recompute is Recompute.FULL:
        layer += forward + attention
        collectives += 2
    message = width * tokens * shape.hidden_size
    all_reduce = _all_reduce_s(message, tensor, 1, machine)
    split = tensor if sequence_parallel else 1
    send = 2 * _send_s(message / split, tensor * data, machine) if pipeline > 1 else 0.0
    return MicroBatchTime(
        compute_s=layers * layer + _head_s(shape, tokens, tensor, width, machine),
        tensor_parallel_s=(layers * collectives + 2) * all_reduce,
        other_stages_s=(pipeline - 1) * layers * (layer + collectives * all_reduce),
        send_s=send,
    )


def _layer_forward_s(
    shape: ModelShape, tokens: int, tensor: int, sequence_parallel: bool, width: int, machine: Machine
) -> tuple[float, float]:
    """Return a layer's forward time without attention, and that of its attention.

    What is not a matmul moves, in elements per token: norms and residual additions 10 h (split under sequence
    parallelism only); rotary positions and changes of layout 8 (a + 2 g) d and SwiGLU 5 f (split by TP), none fused.
    """
    h, f = shape.hidden_size, shape.ffn_hidden_size
    heads, groups, width_of_head = shape.num_attention_heads, shape.num_query_groups, shape.kv_channels
    q, qkv = heads * width_of_head / tensor, (heads + 2 * groups) * width_of_head / tensor
    matmuls = (
        _matmul_s(tokens, h, qkv, width, machine)
        + _matmul_s(tokens, q, h, width, machine)
        + _matmul_s(tokens, h, 2 * f / tensor, width, machine)
        + _matmul_s(tokens, f / tensor, h, width, machine)
    )
    split = tensor if sequence_parallel else 1
    elements = 10 * h / split + 8 * qkv + 5 * f / tensor
    elementwise = width * tokens * elements / machine.memory_bytes_per_s
    attention = 4 * tokens * (shape.seq_length + 1) / 2 * q / machine.attention_flops_per_s
    return matmuls + elementwise, attention


def _head_s(shape: ModelShape, tokens: int, tensor: int, width: int, machine: Machine) -> float:
    """Return the forward and backward time of the logits and the loss."""
    rows = shape.padded_vocab_size / tensor
    loss = _LOSS_BYTES_PER_LOGIT * tokens * rows / machine.memory_bytes_per_s
    return 3 * _matmul_s(tokens, shape.hidden_size, rows, width, machine) + loss


def _matmul_s(m: float, k: float, n: float, width: int, machine: Machine) -> float:
    """Return the time of [m, k] x [k, n]: its FLOPs at the rate of large matmuls, then its operands through memory.

    The sum, and not the larger, of the two makes efficiency fall smoothly for small matrices: on H100 0.72 of the peak
    for 8192 cubed, 0.66 for 4096, 0.56 for 2048, before RUN_EFFICIENCY.
    """
    operands = width * (m * k + k * n + m * n)
    return 2 * m * k * n / machine.matmul_flops_per_s + operands / machine.memory_bytes_per_s


def _group_link(size: int, stride: int, machine: Machine) -> tuple[float, float]:
    """Return bytes per second and device, and the latency, of a collective over `size` ranks `stride` apart.

    A ring that leaves the node does so through the network cards of all its members in the node.
    """
    span = size * stride
    per_node = machine.devices_per_node
    if per_node % span == 0:
        return machine.node_bytes_per_s, COLLECTIVE_LATENCY_S
    members = max(1, math.gcd(per_node, span) // stride)
    rate = min(machine.node_bytes_per_s, members * machine.network_bytes_per_s)
    return rate, COLLECTIVE_LATENCY_S + HOP_LATENCY_S * (math.ceil(size / members) - 1)


def _all_gather_s(total_bytes: float, size: int, stride: int, machine: Machine, messages: float = 1) -> float:
    """Return the time of a ring all-gather, or reduce-scatter, of `total_bytes`: (n - 1) / n of them pass each link."""
    if size == 1:
        return 0.0
    rate, latency = _group_link(size, stride, machine)
    return (size - 1) / size * total_bytes / rate + messages * latency


def _all_reduce_s(total_bytes: float, size: int, stride: int, machine: Machine, messages: float = 1) -> float:
    return 2 * _all_gather_s(total_bytes, size, stride, machine, messages)


def _send_s(message_bytes: float, stride: int, machine: Machine) -> float:
    """Return the time of one message to the next stage, `stride` ranks away."""
    inside = machine.devices_per_node % (2 * stride) == 0
    rate = machine.node_bytes_per_s if inside else machine.network_bytes_per_s
    return message_bytes / rate + COLLECTIVE_LATENCY_S


def data_parallel_time(
    *,
    shape: ModelShape,
    tensor: int,
    pipeline: int,
    data: int,
    zero_stage: int,
    precision: Precision,
    machine: Machine,
) -> DataParallelTime:
    """Return the collectives over data-parallel ranks, in compute precision, of the fullest stage.

    ZeRO-0 and 1 all-reduce gradients once per step, ZeRO-2 on every backward pass (buckets that several ranks own are
    all-reduced, which is DeepSpeed 0.19's default); 1 and 2 gather the new parameters. None of this overlaps: DeepSpeed
    does so at stage 3 alone. ZeRO-3 gathers parameters for every forward and again for every backward pass, and
    scatters gradients: three times the stage's parameters for every micro-batch.

    Source: Rajbhandari et al. 2020 (arXiv:1910.02054), section 7; deepspeed 0.19.8, stage_1_and_2.py and stage3.py.
    """
    if data == 1:
        return DataParallelTime(0.0, 0.0, 0.0)
    params = _fullest_stage_params(shape, tensor, pipeline)
    total_bytes = compute_bytes(precision) * params
    buckets = math.ceil(params / max(shape.hidden_size**2, MIN_BUCKET_ELEMENTS))
    gather = _all_gather_s(total_bytes, data, tensor, machine)
    reduce = _all_reduce_s(total_bytes, data, tensor, machine, buckets)
    if zero_stage == 3:
        modules = max(buckets, shape.num_layers / pipeline)
        moved = 3 * _all_gather_s(total_bytes, data, tensor, machine, modules)
        return DataParallelTime(0.0, moved, ZERO3_HIDDEN_SHARE if pipeline == 1 else 0.0)
    if zero_stage == 2:
        return DataParallelTime(gather, reduce, 0.0)
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
) -> OptimizerTime:
    """Return AdamW's step, bound by memory, and the transfers of offloaded states; nothing hides them.

    Offloaded optimizer states: gradients go to the CPU (on every backward pass under ZeRO-2), its Adam reads and writes
    CPU memory, new parameters come back; on NVMe the states are read and written each step as well. Offloaded
    parameters: this rank's partition comes from the CPU for every gather, from NVMe first where it lies there.

    Source: ZeRO-Offload (arXiv:2101.06840), section 4; ZeRO-Infinity (arXiv:2104.07857), section 4.
    """
    width = compute_bytes(precision)
    params = _fullest_stage_params(shape, tensor, pipeline)
    shard = params / data if zero_stage > 0 else params
    transfer = width * shard / machine.host_bytes_per_s
    per_step = per_micro_batch = 0.0
    if offload_optimizer is Offload.NONE:
        per_step = _BYTES_PER_PARAM_ADAM * shard / machine.memory_bytes_per_s
    else:
        per_step = transfer + _BYTES_PER_PARAM_CPU_ADAM * shard / HOST_MEMORY_BYTES_PER_S
        if offload_optimizer is Offload.NVME:
            per_step += 2 * 12 * shard / NVME_BYTES_PER_S
        if zero_stage == 2:
            per_micro_batch = transfer
        else:
            per_step += transfer
    if offload_param is not Offload.NONE:
        nvme = width * shard / NVME_BYTES_PER_S if offload_param is Offload.NVME else 0.0
        per_micro_batch += 2 * (transfer + nvme)
    return OptimizerTime(per_step, per_micro_batch)


def _fullest_stage_params(shape: ModelShape, tensor: int, pipeline: int) -> int:
    """Return the parameters of a rank of the last stage, which holds the output table and the final norm."""
    weights = stage_weights(shape=shape, tensor=tensor, pipeline=pipeline, stage=pipeline - 1)
    return sum(elements * count for elements, count in weights)
